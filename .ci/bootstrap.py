"""Makes the project's environment, .venv, on a machine that has nothing but Python.

uv does the work. One on PATH is used; otherwise the wheel that uv.lock names is fetched
into .tools/ and checked against the lock's SHA-256, which needs neither pip nor venv.
"""

import hashlib
import io
import os
import platform
import re
import shutil
import stat
import subprocess
import sys
import time
import tomllib
import urllib.request
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools"
STAMP = ROOT / ".venv" / ".ready"
OLDEST_UV = (0, 8)
ATTEMPTS = 3

# (system, machine) -> what the file name of a uv wheel for it contains.
WHEELS = {
    ("linux", "x86_64"): "manylinux_2_17_x86_64",
    ("linux", "aarch64"): "manylinux_2_17_aarch64",
    ("linux-musl", "x86_64"): "musllinux_1_1_x86_64",
    ("linux-musl", "aarch64"): "musllinux_1_1_aarch64",
    ("darwin", "x86_64"): "macosx_10_12_x86_64",
    ("darwin", "arm64"): "macosx_11_0_arm64",
}


def main() -> int:
    """Build .venv exactly as uv.lock says, then leave the stamp that make looks at."""
    uv = usable_uv(shutil.which("uv")) or usable_uv(str(TOOLS / "uv")) or fetch_uv()
    print(f"setup: {uv} sync, with {sys.executable} ({platform.python_version()})", flush=True)
    # Compiled now: where Python may not keep what it compiles, as in many containers, every
    # command would compile torch and transformers anew, for 8 s.
    options = ["--frozen", "--no-python-downloads", "--compile-bytecode"]
    command = [str(uv), "sync", *options, "--python", sys.executable]
    if not (sync(command) or sync(command, system_certificates=True)):
        print(f"Error: {' '.join(command)} failed; its reason is above", file=sys.stderr)
        return 1
    STAMP.write_text(f"{platform.python_version()}\n", encoding="utf-8")
    return 0


def sync(command: list[str], *, system_certificates: bool = False) -> bool:
    """Run uv; True when it succeeded.

    uv trusts a list of its own first. Behind a company's proxy only the machine's own
    certificates do, so that is the second try.
    """
    environment = uv_environment()
    if system_certificates:
        print("setup: once more, with this machine's own certificates", flush=True)
        environment |= {"UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def uv_environment() -> dict[str, str]:
    """The caller's environment without what would send uv to another folder."""
    elsewhere = {"VIRTUAL_ENV", "UV_PROJECT_ENVIRONMENT", "UV_PYTHON", "PYTHONHOME", "PYTHONPATH"}
    kept = {key: value for key, value in os.environ.items() if key not in elsewhere}
    return {"UV_HTTP_TIMEOUT": "300", **kept}


def usable_uv(path: str | None) -> Path | None:
    """The uv at path when it runs and is new enough to read our lock."""
    if path is None or not Path(path).is_file():
        return None
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    version = re.match(r"uv (\d+)\.(\d+)", answer.stdout)
    if answer.returncode != 0 or version is None:
        return None
    if (int(version[1]), int(version[2])) < OLDEST_UV:
        wanted = ".".join(map(str, OLDEST_UV))
        print(f"setup: {path} is {answer.stdout.strip()}, older than {wanted}: not used")
        return None
    return Path(path)


def fetch_uv() -> Path:
    """Put the locked uv at .tools/uv; only a checked file ever gets that name."""
    wheel = locked_wheel()
    print(f"setup: fetching uv {wheel['version']} into {TOOLS}", flush=True)
    data = download(wheel["url"])
    found = hashlib.sha256(data).hexdigest()
    if found != wheel["sha256"]:
        raise SystemExit(f"Error: {wheel['url']}: sha256 {found}, uv.lock wants {wheel['sha256']}")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        member = next(name for name in archive.namelist() if name.endswith("/scripts/uv"))
        binary = archive.read(member)
    TOOLS.mkdir(exist_ok=True)
    temporary = TOOLS / f"uv.{os.getpid()}.tmp"
    temporary.write_bytes(binary)
    temporary.chmod(temporary.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    final = TOOLS / "uv"
    temporary.replace(final)
    return final


def locked_wheel() -> dict[str, str]:
    """Version, address and checksum of the uv wheel for this machine, out of uv.lock."""
    lock = tomllib.loads((ROOT / "uv.lock").read_text(encoding="utf-8"))
    package = next(one for one in lock["package"] if one["name"] == "uv")
    is_musl = sys.platform == "linux" and platform.libc_ver()[0] != "glibc"
    system = "linux-musl" if is_musl else sys.platform
    tag = WHEELS.get((system, platform.machine()))
    for wheel in package["wheels"]:
        if tag is not None and tag in wheel["url"]:
            checksum = wheel["hash"].removeprefix("sha256:")
            return {"version": package["version"], "url": wheel["url"], "sha256": checksum}
    raise SystemExit(
        f"Error: uv.lock names no uv wheel that we know for {system} {platform.machine()}. "
        "Install uv yourself, so that `uv --version` works, and run make again."
    )


def download(url: str) -> bytes:
    """The bytes at url; several tries, then an error that says what to do."""
    reason: OSError | None = None
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                return response.read()
        except OSError as error:
            reason = error
            time.sleep(attempt + 1)
    raise SystemExit(
        f"Error: could not fetch {url}: {reason}. "
        "Check the network or proxy, or install uv yourself "
        "(`python3 -m pip install uv`), and run make again."
    )


if __name__ == "__main__":
    sys.exit(main())
