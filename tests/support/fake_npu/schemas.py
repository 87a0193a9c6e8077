"""The schemas of torch_npu that the NPU backends of llm-kernels-npu call.

They are committed in tests/npu/schemas.json, so that calls can be checked where torch_npu is not.
`.tools/venv-npu/bin/python tests/support/fake_npu/schemas.py` writes that file anew from the
torch_npu of the environment it runs in. Nothing here imports torch_npu.
"""

import importlib.metadata
import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
OPERATORS = ROOT / "packages" / "llm-kernels-npu" / "src" / "llm_kernels_npu" / "ops"
COMMITTED = ROOT / "tests" / "npu" / "schemas.json"

_FORMAT = "torch_npu schemas v1"
_CALL = re.compile(r"torch\.ops\.npu\.(\w+)\.(\w+)")
# In the library each schema is a C string: zero bytes before and behind.
_STORED = re.compile(rb"(?<=\x00)(?:npu::)?(\w+(?:\.\w+)?)(\([^\x00]*\) -> [^\x00]+)(?=\x00)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schemas:
    """Schemas by operator and overload, `npu_apply_adam_w.out`, and where they come from."""

    torch_npu: str
    schemas: dict[str, str]


def called(source: Path) -> set[str]:
    """The operators that a Python file calls as `torch.ops.npu.NAME.OVERLOAD`."""
    found = _CALL.findall(source.read_text())
    return {name if overload == "default" else f"{name}.{overload}" for name, overload in found}


def called_by_backends() -> set[str]:
    """What all NPU backends call."""
    return set[str]().union(*(called(source) for source in OPERATORS.glob("*/npu.py")))


def committed() -> Schemas:
    """What tests/npu/schemas.json says."""
    document = json.loads(COMMITTED.read_text())
    assert document["format"] == _FORMAT, document["format"]
    return Schemas(torch_npu=document["torch_npu"], schemas=document["schemas"])


def shipped(site_packages: Path) -> Schemas:
    """Those of the torch_npu installed there, for the operators that our backends call.

    LookupError names an operator that is not there, or there twice with different arguments.
    """
    library = (site_packages / "torch_npu" / "lib" / "libtorch_npu.so").read_bytes()
    found: dict[str, set[str]] = {}
    for name, rest in _STORED.findall(library):
        found.setdefault(name.decode(), set()).add((name + rest).decode())
    wanted = sorted(called_by_backends())
    for name in wanted:
        if len(found.get(name, ())) != 1:
            raise LookupError(f"{name}: {len(found.get(name, ()))} schemas in torch_npu, want 1")
    (installed,) = importlib.metadata.distributions(name="torch_npu", path=[str(site_packages)])
    return Schemas(
        torch_npu=installed.version, schemas={name: found[name].pop() for name in wanted}
    )


def write(schemas: Schemas, path: Path) -> None:
    """One line an operator, under a temporary name first."""
    document = {"format": _FORMAT, "torch_npu": schemas.torch_npu, "schemas": schemas.schemas}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    import sysconfig

    write(shipped(Path(sysconfig.get_path("purelib"))), COMMITTED)
    print(f"wrote {COMMITTED}")
