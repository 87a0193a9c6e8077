"""Conversions as a whole: killed and resumed, repeated, refused; the source is never touched."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from ckpt_models import assert_same_folder, save_model
from llm_ckpt import execute
from llm_ckpt.edge import convert as whole
from llm_ckpt.errors import CheckpointError, LayoutError


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# Converts a folder, stopping dead after the given number of tensors.
KILLED = """
import os, signal, sys
from pathlib import Path
from llm_ckpt import execute
from llm_ckpt.cli import main
left = int(sys.argv[1])
real = execute.TorchZipWriter.tensor
def tensor(self, *args):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *args)
execute.TorchZipWriter.tensor = tensor
main(sys.argv[2:])
"""


def convert_killed(tensors, *args):
    command = [sys.executable, "-c", KILLED, str(tensors), "convert", *map(str, args)]
    return subprocess.run(command, check=False, capture_output=True).returncode


def test_kill_9_leaves_nothing_under_the_final_name_and_resume_redoes_one_file(
    hf_folder, convert, tmp_path, monkeypatch
):
    source, out = hf_folder("qwen3"), tmp_path / "v1"
    before = digests(source)
    # 4 files of 17, 17, 18 and 18 tensors: killed in the third
    args = (source, "--output", out, "--to", "mcore", "--tp", "2", "--pp", "2")
    assert convert_killed(40, *args) == -signal.SIGKILL
    assert not out.exists()
    finished = list((tmp_path / "v1.partial").rglob("model_optim_rng.pt"))
    assert 0 < len(finished) < 4
    assert digests(source) == before

    written = []
    real = execute.write_planned
    monkeypatch.setattr(
        whole, "write_planned", lambda *a: written.append(a[1].file.path) or real(*a)
    )
    outcome = convert(source, out, "v1", tp=2, pp=2, is_resumed=True)
    assert len(written) == 4 - len(finished)
    assert outcome.resumed == len(finished)
    assert not (tmp_path / "v1.partial").exists()
    assert not [path for path in out.rglob("*") if path.name.endswith(".tmp")]

    convert(source, tmp_path / "fresh", "v1", tp=2, pp=2)
    assert digests(out) == digests(tmp_path / "fresh") | {
        ".llm-ckpt.json": digests(out)[".llm-ckpt.json"]
    }
    assert digests(source) == before


def test_without_resume_an_interrupted_conversion_starts_again(hf_folder, convert, tmp_path):
    source, out = hf_folder("qwen3"), tmp_path / "v2"
    args = (source, "--output", out, "--to", "mcore", "--layout", "v2")
    assert convert_killed(10, *args) == -signal.SIGKILL
    outcome = convert(source, out, "v2")
    assert outcome.resumed == 0
    convert(out, tmp_path / "hf", "hf")
    assert_same_folder(source, tmp_path / "hf")


def test_resume_of_another_plan_keeps_nothing(hf_folder, convert, tmp_path):
    source, out = hf_folder("qwen3"), tmp_path / "v1"
    convert_killed(40, source, "--output", out, "--to", "mcore", "--tp", "2", "--pp", "2")
    assert convert(source, out, "v1", tp=2, pp=4, is_resumed=True).resumed == 0


def test_repeating_a_finished_conversion_does_nothing(hf_folder, convert, tmp_path):
    source, out = hf_folder("qwen3"), tmp_path / "v1"
    assert not convert(source, out, "v1", tp=2).is_already_done
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert convert(source, out, "v1", tp=2).is_already_done
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps


def test_a_damaged_result_is_not_taken_for_done(hf_folder, convert, tmp_path):
    source, out = hf_folder("qwen3"), tmp_path / "v1"
    convert(source, out, "v1")
    next(out.rglob("*.pt")).unlink()
    with pytest.raises(CheckpointError, match="already exists"):
        convert(source, out, "v1")
    assert not convert(source, out, "v1", is_overwritten=True).is_already_done
    assert next(out.rglob("*.pt")).is_file()


def test_a_changed_source_is_not_taken_for_done(convert, tmp_path):
    save_model(tmp_path / "hf", "qwen3", seed=1)
    convert(tmp_path / "hf", tmp_path / "v1", "v1")
    time.sleep(0.01)
    save_model(tmp_path / "hf", "qwen3", seed=2)
    with pytest.raises(CheckpointError, match="--overwrite"):
        convert(tmp_path / "hf", tmp_path / "v1", "v1")


def test_overwrite_spares_what_others_wrote(hf_folder, convert, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    for flag in (False, True):
        with pytest.raises(CheckpointError):
            convert(hf_folder("qwen3"), tmp_path / "mine", "v1", is_overwritten=flag)
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"


def test_two_conversions_into_one_folder_do_not_meet(hf_folder, convert, tmp_path):
    with whole._locked(tmp_path / "v1.partial", "other", keep=False):
        code = "import sys; from llm_ckpt.cli import main; main(sys.argv[1:])"
        args = ["convert", hf_folder("qwen3"), "--output", tmp_path / "v1", "--to", "mcore"]
        result = subprocess.run(
            [sys.executable, "-c", code, *map(str, args)], capture_output=True, check=False
        )
    assert result.returncode == 1
    assert b"another conversion is writing here" in result.stderr


def test_workers_write_the_same_bytes(hf_folder, convert, tmp_path):
    convert(hf_folder("qwen3"), tmp_path / "one", "v1", tp=2, pp=2)
    convert(hf_folder("qwen3"), tmp_path / "two", "v1", tp=2, pp=2, workers=2)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


def test_a_failing_tensor_leaves_no_result(hf_folder, convert, tmp_path):
    import shutil

    folder = shutil.copytree(hf_folder("llama", shard="200KB"), tmp_path / "hf")
    last = max(folder.glob("*.safetensors"))
    data = last.read_bytes()
    last.write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        convert(folder, tmp_path / "v1", "v1")
    assert not (tmp_path / "v1").exists()


def test_checkpoint_json_lists_every_file_with_its_checksum(hf_folder, convert, tmp_path):
    for layout in ("v1", "v2"):
        convert(hf_folder("qwen3"), tmp_path / layout, layout)
        folder = tmp_path / layout / "iter_0000001"
        recorded = json.loads((folder / "checkpoint.json").read_text())["files"]
        wanted = digests(folder)
        del wanted["checkpoint.json"]
        assert {name: entry["sha256"] for name, entry in recorded.items()} == wanted


def test_companions_go_along_byte_by_byte(convert, tmp_path):
    folder = save_model(tmp_path / "hf", "qwen3")
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (folder / "merges.txt").write_text("a b\n")
    (folder / "README.md").write_text("not one of them")
    convert(folder, tmp_path / "v1", "v1")
    convert(tmp_path / "v1", tmp_path / "hf2", "hf")
    names = {"config.json", "generation_config.json", "tokenizer.json", "merges.txt"}
    for name in names - {"config.json"}:
        assert (tmp_path / "hf2" / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((tmp_path / "hf2/config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )
    assert not (tmp_path / "v1/README.md").exists()


def test_a_config_json_of_another_model_is_not_passed_on(hf_folder, convert, tmp_path):
    convert(hf_folder("qwen3"), tmp_path / "v1", "v1")
    other = json.loads((tmp_path / "v1/config.json").read_text())
    (tmp_path / "v1/config.json").write_text(json.dumps(other | {"rms_norm_eps": 0.5}))
    convert(tmp_path / "v1", tmp_path / "hf", "hf")
    assert json.loads((tmp_path / "hf/config.json").read_text())["rms_norm_eps"] == 1e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tp": 3}, r"do not divide by tp\(3\)"),
        ({"pp": 3}, r"layers\(4\) % \(pp\(3\)"),
        ({"pp": 2, "layers": (3, 2)}, r"3 \+ 2 = 5, want 4"),
    ],
)
def test_a_layout_that_does_not_fit_writes_nothing(options, message, hf_folder, convert, tmp_path):
    with pytest.raises(LayoutError, match=message):
        convert(hf_folder("qwen3"), tmp_path / "v1", "v1", **options)
    assert list(tmp_path.iterdir()) == []


def test_no_environment_variable_changes_the_bytes(hf_folder, tmp_path):
    code = "import sys; from llm_ckpt.cli import main; main(sys.argv[1:])"
    for name, extra in (("a", {}), ("b", {"PYTHONHASHSEED": "7", "LANG": "C", "TZ": "Asia/Tokyo"})):
        args = ["convert", hf_folder("qwen3"), "--output", tmp_path / name, "--to", "mcore"]
        command = [sys.executable, "-c", code, *map(str, args), "--layout", "v2"]
        subprocess.run(command, env=os.environ | extra, check=True, capture_output=True)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")


def test_two_dtypes_in_one_parameter_are_refused(convert, tmp_path):
    from safetensors.torch import save_file

    from ckpt_models import read_tensors

    folder = save_model(tmp_path / "hf", "qwen3")
    tensors = read_tensors(folder)
    name = "model.layers.1.self_attn.k_proj.weight"
    save_file(tensors | {name: tensors[name].to(torch.bfloat16)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"different dtypes.*k_proj\.weight torch\.bfloat16"):
        convert(folder, tmp_path / "v1", "v1")
