"""Which operators the native engine gets, and how those in C are made."""

import ctypes
import os
import shutil
import sys

import pytest
import torch

from llm_infer.compiled import build
from llm_infer.compiled.build import CannotCompileError
from llm_infer.compiled.kernels import CompiledKernels
from llm_infer.compiled.library import library
from llm_infer.edge.operators import resolve
from llm_infer.errors import InferError

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(one) for one in ("cc", "gcc", "clang")), reason="no C compiler"
)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    """A cache of this test's own, and no compiler but those on PATH."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)
    library.cache_clear()
    yield tmp_path / "cache" / "llm-infer"
    library.cache_clear()


def compiler(path, text):
    path.write_text(f"#!{sys.executable}\n{text}\n")
    path.chmod(0o755)
    return path


@needs_compiler
def test_auto_is_compiled_for_float32_on_a_cpu_alone(cache_folder):
    assert isinstance(resolve("auto", device="cpu", dtype=torch.float32), CompiledKernels)
    (made,) = cache_folder.iterdir()
    assert made.suffix == ".so"
    assert str(resolve("auto", device="cpu", dtype=torch.bfloat16)) == "plain torch"
    assert str(resolve("auto", device="cuda", dtype=torch.float32)) == "plain torch"
    assert str(resolve("torch", device="cpu", dtype=torch.float32)) == "plain torch"


def test_without_a_compiler_auto_is_torch_and_says_why(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    found = resolve("auto", device="cpu", dtype=torch.float32)
    assert str(found) == "plain torch (no C compiler: looked for cc gcc clang on the search path)"
    with pytest.raises(InferError, match=r"--kernels compiled: no C compiler"):
        resolve("compiled", device="cpu", dtype=torch.float32)


def test_compiled_is_refused_where_it_cannot_be():
    with pytest.raises(InferError, match="for float32 on a CPU, not bfloat16 on cpu"):
        resolve("compiled", device="cpu", dtype=torch.bfloat16)
    with pytest.raises(InferError, match="for float32 on a CPU, not float32 on cuda"):
        resolve("compiled", device="cuda", dtype=torch.float32)


def test_what_a_compiler_says_is_told_and_nothing_is_left(tmp_path, monkeypatch, cache_folder):
    failing = compiler(tmp_path / "failing", "import sys; sys.exit('no space left')")
    monkeypatch.setenv("CC", str(failing))
    with pytest.raises(CannotCompileError, match=r"failing failed \(1\): no space left"):
        build.load()
    assert list(cache_folder.iterdir()) == []


def test_what_is_no_library_is_told(tmp_path, monkeypatch):
    text = "import sys; open(sys.argv[sys.argv.index('-o') + 1], 'w').write('none')"
    monkeypatch.setenv("CC", str(compiler(tmp_path / "lying", text)))
    with pytest.raises(CannotCompileError, match=r"\.so: "):
        build.load()


@needs_compiler
def test_a_library_is_made_once_for_a_cpu(monkeypatch, cache_folder):
    build.load()
    (made,) = cache_folder.iterdir()
    before = made.stat().st_mtime_ns
    build.load()
    assert made.stat().st_mtime_ns == before
    monkeypatch.setattr(build, "_cpu", lambda: "another CPU")
    build.load()
    assert len(list(cache_folder.iterdir())) == 2


@needs_compiler
def test_a_cache_that_cannot_be_written_is_not_used(cache_folder, monkeypatch):
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != cache_folder and access(path, mode)
    )
    assert isinstance(build.load(), ctypes.CDLL)
    assert list(cache_folder.iterdir()) == []


@needs_compiler
def test_a_cache_that_others_can_write_is_not_used(cache_folder):
    cache_folder.mkdir(parents=True)
    cache_folder.chmod(0o777)
    assert isinstance(build.load(), ctypes.CDLL)
    assert list(cache_folder.iterdir()) == []
