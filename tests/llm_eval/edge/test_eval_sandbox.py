"""Hostile programs are contained, honest ones pass."""

import os
import platform
import socket
import subprocess
import sys
import time

import pytest

from forging_programs import FORGING, REACHING, TAIL
from hostile_calls import HOSTILE_CALLS
from hostile_programs import HOSTILE
from llm_eval.edge.sandbox import outside
from llm_eval.edge.sandbox.outside import Limits, Sandbox
from llm_eval.errors import EvalError

QUICK = Limits(cpu_s=1, wall_s=2.0, memory_bytes=256 << 20)


@pytest.fixture(scope="module")
def sandbox():
    try:
        with Sandbox(QUICK) as made:
            yield made
    except EvalError as error:
        pytest.skip(f"this machine cannot isolate: {error}")


@pytest.fixture
def kernel_alone(sandbox, tmp_path, monkeypatch):
    """The sandbox without what the interpreter refuses: namespaces, filter and limits alone."""
    script = tmp_path / "program.py"
    text = outside._PROGRAM.read_text()
    assert "sys.addaudithook(" in text
    script.write_text(text.replace("sys.addaudithook(", "(lambda _: None)("))
    monkeypatch.setattr(outside, "_PROGRAM", script)
    return sandbox


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What an attack could reach: a file, and a listening socket."""
    victim = tmp_path_factory.mktemp("victim") / "secret.txt"
    victim.write_text("mine")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"VICTIM": str(victim), "PORT": server.getsockname()[1], "PID": os.getpid()}
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("attack", [*HOSTILE, *HOSTILE_CALLS])
def test_an_attack_is_contained_by_the_kernel_alone(attack, kernel_alone, world):
    if attack in HOSTILE_CALLS and platform.machine() != "x86_64":
        pytest.skip("numbers of system calls are those of x86-64")
    program = _aimed((HOSTILE | HOSTILE_CALLS)[attack], world)
    start = time.monotonic()
    verdict = kernel_alone.run(program)
    assert not verdict.passed
    assert time.monotonic() - start < 30
    assert not _left_over()


@pytest.mark.parametrize(
    "attack",
    ["fork bomb", "subprocess", "read a file of the user", "TCP to the machine", "unix socket"],
)
def test_an_attack_succeeds_without_the_sandbox(attack, world):
    with Sandbox(Limits(), unsafe=True) as plain:
        assert plain.run(_aimed(HOSTILE[attack], world)).passed


@pytest.mark.parametrize("attack", FORGING)
def test_a_program_that_fails_cannot_pass(attack, sandbox):
    """Not even where it knows the runner: by its frames, the collector, tracing, descriptors."""
    assert not sandbox.run(FORGING[attack] + TAIL).passed


@pytest.mark.parametrize("attack", REACHING)
def test_a_program_cannot_come_to_raw_memory(attack, sandbox):
    assert not sandbox.run(REACHING[attack]).passed


@pytest.mark.parametrize("attack", ["what the collector knows", "a jump over the tests", "ctypes"])
def test_a_forgery_works_where_nothing_is_refused(attack, kernel_alone):
    program = FORGING[attack] + TAIL if attack in FORGING else REACHING[attack]
    assert kernel_alone.run(program).passed


def _aimed(program, world):
    for name, value in world.items():
        program = program.replace(f"{{{name}!r}}", repr(value)).replace(f"{{{name}}}", str(value))
    return program


def _left_over():
    """Processes of the sandbox that outlived their program."""
    listed = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True, check=True)
    return [
        line
        for line in listed.stdout.splitlines()
        if "sandbox/inside.py" in line and line.split()[0] in ("1", str(os.getpid()))
    ]


@pytest.mark.parametrize(
    "program",
    [
        "import math, re, collections, itertools, functools, typing, hashlib, heapq, string",
        "from decimal import Decimal\nassert Decimal('0.1') * 3 == Decimal('0.3')",
        "import sys\nfor file in (sys.stdout, sys.stderr):\n    file.write('x' * 100000000)",
        "import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()",
        "import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')",
        "import random, datetime, time, copy, json, statistics, bisect, operator, fractions",
        "try:\n    1 / 0\nexcept ZeroDivisionError:\n    pass",
        "import asyncio, dataclasses, enum, unittest, uuid, logging, abc, contextlib, doctest",
        "try:\n    import ctypes\nexcept ImportError:\n    ctypes = None",
    ],
)
def test_an_honest_program_passes(program, sandbox):
    assert sandbox.run(program).passed


def test_a_program_is_no_main_module(sandbox):
    """As in `code_eval`, whose `exec` is given empty globals: what stands under it does not run."""
    assert sandbox.run("if __name__ == '__main__':\n    assert False").passed
    assert sandbox.run("assert __name__ == 'builtins'").passed


def test_the_order_of_a_set_is_the_same_in_every_run(sandbox):
    expected = subprocess.run(
        [sys.executable, "-c", "print(list({*'abcde'}))"],
        env={"PYTHONHASHSEED": "0"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for _ in range(3):
        assert sandbox.run(f"assert list({{*'abcde'}}) == {expected.stdout}").passed


def test_a_long_program_arrives_whole(sandbox):
    assert sandbox.run("x = 0\n" + "x += 1\n" * 100_000 + "assert x == 100_000").passed


def test_a_program_cannot_end_the_run_of_all(sandbox):
    """A refusal of the sandbox itself is an error; a program's words are not taken for one."""
    assert sandbox.run("import os; os.write(3, b'no:forged'); os._exit(1)").reason == "failed"


def test_why_a_program_failed_is_said(sandbox):
    assert sandbox.run("assert False").reason == "failed"
    assert sandbox.run("import os; os._exit(0)").reason == "ended early"
    assert sandbox.run("import time; time.sleep(60)").reason == "ran longer than 2 s"
    with Sandbox(Limits(cpu_s=1, wall_s=60)) as patient:
        assert patient.run("while True: pass").reason == "used up its CPU time"


def test_the_program_sees_its_own_library_and_nothing_else(sandbox):
    program = (
        "import os, sys\n"
        "assert not {'etc', 'proc', 'sys', 'var', 'mnt', 'run'} & set(os.listdir('/'))\n"
        "assert os.listdir('/tmp') == [] and sorted(os.listdir('/dev')) == "
        "['null', 'urandom', 'zero']\n"
        "assert os.getuid() == 65534 and os.getpid() == 1 and not os.path.exists('/proc')"
    )
    verdict = sandbox.run(program)
    assert verdict.passed, verdict.reason


def test_one_program_leaves_nothing_for_the_next(sandbox):
    assert sandbox.run("open('/tmp/a', 'w').write('x')").passed
    assert sandbox.run("import os; assert not os.path.exists('/tmp/a')").passed


@pytest.fixture
def no_namespaces(monkeypatch, tmp_path):
    """A machine whose kernel forbids user namespaces, seen through a changed script."""
    from llm_eval.edge.sandbox import outside

    script = tmp_path / "inside.py"
    text = outside._INSIDE.read_text()
    script.write_text(text.replace("_libc.unshare(_NEW_NAMESPACES)", "_libc.unshare(-1)"))
    monkeypatch.setattr(outside, "_INSIDE", script)


def test_a_machine_that_cannot_isolate_is_refused_unless_unsafe(no_namespaces):
    with pytest.raises(EvalError, match=r"(?s)cannot be isolated .*unshare: .*--unsafe"), Sandbox():
        pass
    with Sandbox(QUICK, unsafe=True) as plain:
        assert plain.run("x = 1").passed
        assert not plain.run("assert False").passed
        assert not plain.run("while True: pass").passed


def test_a_sandbox_killed_with_its_owner_leaves_no_program(tmp_path):
    code = (
        "from llm_eval.edge.sandbox.outside import Limits, Sandbox\n"
        "with Sandbox(Limits(wall_s=60)) as s:\n"
        "    print('ready', flush=True)\n"
        "    s.run('import time; time.sleep(60)')\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        if owner.stdout.readline() != "ready\n":
            pytest.skip("this machine cannot isolate")
        deadline = time.monotonic() + 20
        while not _children(owner.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert _children(owner.pid)
    finally:
        owner.kill()
        owner.wait()
    deadline = time.monotonic() + 20
    while _left_over() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _left_over()


def _children(pid):
    listed = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if line.split()[0] == str(pid)]
