"""Readers and writers of bytes: other libraries agree, damage and hostile files are refused."""

import argparse
import io
import json
import os
import pickle
import random
import shutil
import sys
import zipfile
import zlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_ckpt.errors import CheckpointError, FormatError
from llm_ckpt.formats import zip_stream
from llm_ckpt.formats.dist_metadata import read_metadata
from llm_ckpt.formats.hf import header_bytes, read_folder, read_header
from llm_ckpt.formats.slab import Files, Slab
from llm_ckpt.formats.stream import NewFile, hash_file
from llm_ckpt.formats.torch_zip import TorchZipWriter, read_torch_zip
from llm_ckpt.formats.unpickle import Stub
from llm_ckpt.formats.zip_stream import ZipStream
from llm_ckpt.layout import Box, whole
from llm_ckpt.source import open_source

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8]


def read_all(slab):
    files = Files()
    out = torch.empty(slab.shape, dtype=slab.dtype)
    files.read(slab, whole(slab.shape), out)
    files.close()
    return out


# safetensors


@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors_header_is_read_as_the_library_wrote_it(dtype, tmp_path):
    tensors = {"a": torch.arange(24).reshape(4, 6).to(dtype), "b": torch.ones(3).to(dtype)}
    save_file(tensors, tmp_path / "x.safetensors")
    found = read_header(tmp_path / "x.safetensors")
    assert {name: slab.dtype for name, slab in found.items()} == {"a": dtype, "b": dtype}
    assert all(torch.equal(read_all(found[name]), tensors[name]) for name in tensors)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_library_reads_our_safetensors(dtype, tmp_path):
    tensor = torch.arange(24).reshape(4, 6).to(dtype)
    with NewFile(tmp_path / "x.safetensors") as file:
        file.write(header_bytes([("a", dtype, (4, 6)), ("b", dtype, (6, 4))]))
        file.write_tensor(tensor)
        file.write_tensor(tensor.t())
        file.commit()
    found = load_file(tmp_path / "x.safetensors")
    assert torch.equal(found["a"], tensor)
    assert torch.equal(found["b"], tensor.t())


@pytest.mark.parametrize("keep", [4, 60, -1])
def test_truncated_safetensors_is_refused(keep, tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FormatError, match=r"x\.safetensors: .* bytes, want"):
        read_header(path)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "spans 4 bytes, want 8"),
        ({"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}, "malformed"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "gap or overlap"),
        (
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
            },
            "gap or overlap",
        ),
    ],
)
def test_safetensors_whose_header_lies_is_refused(entries, message, tmp_path):
    text = json.dumps(entries).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(FormatError, match=message):
        read_header(path)


def test_missing_shard_is_named(hf_folder, tmp_path):
    folder = shutil.copytree(hf_folder("llama", shard="200KB"), tmp_path / "hf")
    first = min(folder.glob("*.safetensors"))
    first.unlink()
    with pytest.raises(FormatError, match=f"{first.name}: shard is missing"):
        read_folder(folder)


def test_name_in_two_shards_and_index_that_disagrees_are_refused(hf_folder, tmp_path):
    folder = shutil.copytree(hf_folder("llama", shard="200KB"), tmp_path / "hf")
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    tensors = load_file(second)
    save_file({**tensors, "extra": torch.ones(1)}, second)
    with pytest.raises(FormatError, match=r"1 tensors differ from .*: extra"):
        read_folder(folder)
    twice = next(iter(load_file(first)))
    save_file({**tensors, twice: torch.ones(1)}, second)
    with pytest.raises(FormatError, match=f"{twice} are also in another file"):
        read_folder(folder)


def test_shard_path_that_leaves_the_folder_is_refused(tmp_path):
    index = {"weight_map": {"a": "../model.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match="not a bare file name"):
        read_folder(tmp_path)


# torch.save zips


def write_zip(path, tensors, extra=None):
    with NewFile(path) as file:
        writer = TorchZipWriter(file)
        stored = {n: writer.tensor([t], t.dtype, tuple(t.shape)) for n, t in tensors.items()}
        writer.finish({"model": stored, **(extra or {})})
        return file.commit()


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_loads_our_zip(mmap, tmp_path):
    tensors = {str(d): torch.arange(77).reshape(7, 11).to(d) for d in DTYPES}
    fact = write_zip(tmp_path / "x.pt", tensors, {"n": 3})
    found = torch.load(tmp_path / "x.pt", weights_only=True, mmap=mmap)
    assert found["n"] == 3
    assert all(torch.equal(found["model"][name], tensors[name]) for name in tensors)
    assert zipfile.ZipFile(tmp_path / "x.pt").testzip() is None
    assert hash_file(tmp_path / "x.pt") == fact


class Memory:
    """A sink in memory."""

    def __init__(self):
        self.data, self.crc = bytearray(), 0

    def write(self, data, *, is_checked=False):
        self.data += data
        if is_checked:
            self.crc = zlib.crc32(data, self.crc)
        return len(data)

    def crc32(self):
        value, self.crc = self.crc, 0
        return value


class Forward(io.BytesIO):
    """A file that zipfile cannot seek in."""

    def seekable(self):
        return False

    def seek(self, *_):
        raise io.UnsupportedOperation


# gh-103861: zip64 records of earlier zipfiles disagree with their own headers.
FIXED_ZIP64 = pytest.mark.skipif(sys.version_info < (3, 11, 4), reason="invalid before 3.11.4")


@pytest.mark.parametrize(
    "limits",
    [
        (2**31 - 1, 2**16 - 1),
        pytest.param((150, 2**16 - 1), marks=FIXED_ZIP64),
        (2**31 - 1, 2),
    ],
)
def test_our_zips_are_the_standard_librarys_byte_by_byte(limits, monkeypatch):
    """Also beyond 2 GiB and 65535 records, with both sides' limits lowered."""
    for module, names in (
        (zipfile, ("ZIP64_LIMIT", "ZIP_FILECOUNT_LIMIT")),
        (zip_stream, ("_LIMIT", "_COUNT_LIMIT")),
    ):
        for name, value in zip(names, limits, strict=True):
            monkeypatch.setattr(module, name, value)
    records = {"a/one": b"1234567", "a/two": bytes(range(256)) * 2, "a/none": b"", "a/b": b"x" * 99}
    ours, theirs = Memory(), Forward()
    stream = ZipStream(ours, align=64)
    with zipfile.ZipFile(theirs, "w") as archive:
        for name, data in records.items():
            with stream.record(name, len(data)):
                stream.write(data)
            info = zipfile.ZipInfo(name)
            is_large = len(data) > limits[0]
            start = theirs.tell() + 30 + len(name) + 4 + 20 * is_large
            info.extra = b"FB" + (-start % 64).to_bytes(2, "little") + b"Z" * (-start % 64)
            with archive.open(info, "w", force_zip64=is_large) as record:
                record.write(data)
    stream.close()
    assert bytes(ours.data) == theirs.getvalue()


def test_a_record_of_another_length_is_refused():
    stream = ZipStream(Memory(), align=64)
    with pytest.raises(FormatError, match="record a: 2 bytes, want 3"), stream.record("a", 3):
        stream.write(b"12")


def test_records_are_aligned_to_64_bytes(tmp_path):
    write_zip(tmp_path / "x.pt", {"a": torch.ones(3), "b": torch.ones(5)})
    opened = read_torch_zip(tmp_path / "x.pt")
    offsets = [opened.slab(lazy).offset for lazy in opened.value["model"].values()]
    assert [offset % 64 for offset in offsets] == [0, 0]


def test_views_saved_by_torch_are_read_where_they_lie(tmp_path):
    base = torch.arange(40.0).reshape(10, 4)
    torch.save({"whole": base, "rows": base[3:5], "t": base.t()}, tmp_path / "x.pt")
    opened = read_torch_zip(tmp_path / "x.pt")
    assert torch.equal(read_all(opened.slab(opened.value["whole"])), base)
    assert torch.equal(read_all(opened.slab(opened.value["rows"])), base[3:5])
    with pytest.raises(FormatError, match="strides"):
        opened.slab(opened.value["t"])


def test_truncated_zip_is_refused(tmp_path):
    write_zip(tmp_path / "x.pt", {"a": torch.ones(1000)})
    data = (tmp_path / "x.pt").read_bytes()
    (tmp_path / "x.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(FormatError, match="truncated"):
        read_torch_zip(tmp_path / "x.pt")


class Runs:
    """A pickle that would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_hostile_pickle_is_refused_and_does_not_run(tmp_path):
    torch.save({"model": {}, "args": Runs(tmp_path / "made")}, tmp_path / "x.pt")
    with pytest.raises(FormatError, match=r"names posix\.mkdir, which is not on the allow-list"):
        read_torch_zip(tmp_path / "x.pt")
    assert not (tmp_path / "made").exists()


class Reaches:
    """A pickle that asks a class for an attribute."""

    def __reduce__(self):
        return getattr, (OrderedDict, "fromkeys")


def by_name(member, _protocol):
    """How Python 3.11.0 to 3.11.3 reduce an enum's member (`Enum.__reduce_ex__`)."""
    return getattr, (type(member), member.name)


def test_an_enum_by_name_is_inert_and_no_other_attribute_is_given(tmp_path, monkeypatch):
    from megatron.core.transformer.enums import AttnBackend

    monkeypatch.setattr(AttnBackend, "__reduce_ex__", by_name)
    args = argparse.Namespace(attention_backend=AttnBackend.auto)
    torch.save({"model": {}, "args": args}, tmp_path / "enum.pt")
    assert isinstance(read_torch_zip(tmp_path / "enum.pt").value["args"].attention_backend, Stub)
    torch.save({"model": {}, "args": Reaches()}, tmp_path / "other.pt")
    with pytest.raises(FormatError, match=r"names builtins\.getattr, which is not on the allow"):
        read_torch_zip(tmp_path / "other.pt")


def test_options_of_megatron_become_inert(tmp_path):
    """Enums, numpy and python random state, as Megatron-LM's own files hold."""
    from megatron.core.transformer.enums import AttnBackend

    state = {
        "args": argparse.Namespace(backend=AttnBackend.flash, dtype=torch.bfloat16),
        "rng": [random.Random(1).getstate(), np.random.RandomState(1).get_state()],
        "device": torch.device("cpu"),
    }
    torch.save(state, tmp_path / "x.pt")
    found = read_torch_zip(tmp_path / "x.pt").value
    # By its name before Python 3.11.4.
    assert found["args"].backend.args in ((AttnBackend.flash.value,), (AttnBackend.flash.name,))
    assert found["args"].dtype == torch.bfloat16


# torch_dist


def edit_metadata(folder, change):
    """Change the real Metadata object and write it back with pickle, as torch would."""
    path = folder / "iter_0000001/.metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


@pytest.fixture
def v2(hf_folder, convert, tmp_path):
    convert(hf_folder("qwen3"), tmp_path / "v2", "v2")
    return tmp_path / "v2"


def test_torch_reads_our_metadata_and_every_chunk(v2, hf_folder):
    from torch.distributed.checkpoint import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    metadata = FileSystemReader(str(v2 / "iter_0000001")).read_metadata()
    key = "decoder.layers.self_attention.linear_qkv.weight"
    state = {key: torch.empty(metadata.state_dict_metadata[key].size)}
    load(state, checkpoint_id=str(v2 / "iter_0000001"), no_dist=True)
    with open_source(hf_folder("qwen3")) as source:
        for layer in range(4):
            wanted = source.read(f"decoder.layers.{layer}.self_attention.linear_qkv.weight")
            assert torch.equal(state[key][layer], wanted)


def test_gap_overlap_and_escaping_path_are_refused(v2):
    key = "decoder.layers.mlp.linear_fc1.weight"

    def gap(metadata):
        del metadata.state_dict_metadata[key].chunks[2]

    def overlap(metadata):
        chunks = metadata.state_dict_metadata[key].chunks
        chunks[2].offsets = chunks[1].offsets

    def escape(metadata):
        next(iter(metadata.storage_data.values())).relative_path = "../../x.distcp"

    untouched = (v2 / "iter_0000001/.metadata").read_bytes()
    for change, message in (
        (gap, r"layers\.2\.mlp\.linear_fc1\.weight|1 tensors are missing"),
        (overlap, "overlap"),
        (escape, "not a bare file name"),
    ):
        (v2 / "iter_0000001/.metadata").write_bytes(untouched)
        edit_metadata(v2, change)
        with pytest.raises(CheckpointError, match=message):
            open_source(v2)


def test_part_of_a_layer_missing_is_a_gap(hf_folder, convert, tmp_path, monkeypatch):
    monkeypatch.setattr("llm_ckpt.execute.MAX_CHUNK_BYTES", 5000)
    convert(hf_folder("qwen3"), tmp_path / "v2", "v2")

    def gap(metadata):
        del metadata.state_dict_metadata["decoder.layers.mlp.linear_fc1.weight"].chunks[1]

    edit_metadata(tmp_path / "v2", gap)
    with pytest.raises(CheckpointError, match=r"linear_fc1\.weight .*elements are stored"):
        open_source(tmp_path / "v2")


def test_missing_and_truncated_distcp_are_named(v2):
    path = v2 / "iter_0000001/__0_0.distcp"
    path.write_bytes(path.read_bytes()[:5000])
    with open_source(v2) as source, pytest.raises(FormatError, match=r"__0_0\.distcp.*5000 bytes"):
        source.read("decoder.final_layernorm.weight")
    path.unlink()
    with open_source(v2) as source, pytest.raises(FormatError, match=r"__0_0\.distcp.*missing"):
        source.read("decoder.final_layernorm.weight")


def test_metadata_with_enums_by_name_is_read(v2, monkeypatch):
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING

    before = read_metadata(v2 / "iter_0000001")
    monkeypatch.setattr(_MEM_FORMAT_ENCODING, "__reduce_ex__", by_name)
    edit_metadata(v2, lambda _: None)
    assert b"getattr" in (v2 / "iter_0000001/.metadata").read_bytes()
    assert read_metadata(v2 / "iter_0000001") == before
    (v2 / "iter_0000001/.metadata").write_bytes(pickle.dumps(Reaches()))
    with pytest.raises(FormatError, match=r"names builtins\.getattr, which is not on the allow"):
        read_metadata(v2 / "iter_0000001")


def test_hostile_metadata_is_refused_and_does_not_run(v2, tmp_path):
    (v2 / "iter_0000001/.metadata").write_bytes(pickle.dumps(Runs(tmp_path / "made")))
    with pytest.raises(FormatError, match="not on the allow-list"):
        read_metadata(v2 / "iter_0000001")
    assert not (tmp_path / "made").exists()


# positions


@pytest.mark.parametrize("columns", [6, 3000])
def test_boxes_are_read_whatever_their_width(columns, tmp_path):
    tensor = torch.arange(40 * columns).reshape(40, columns).float()
    save_file({"a": tensor}, tmp_path / "x.safetensors")
    slab, files = read_header(tmp_path / "x.safetensors")["a"], Files()
    for box in (
        Box((3, 0), (9, columns)),
        Box((0, 1), (40, columns // 2)),
        Box((5, columns - 2), (6, columns)),
        Box((0, 0), (40, 1100 if columns > 1100 else 2)),
    ):
        wanted = tensor[box.within(whole(slab.shape))]
        for out in (torch.empty(box.shape), torch.empty(box.shape[0], box.shape[1] + 1)[:, 1:]):
            files.read(slab, box, out)
            assert torch.equal(out, wanted)
    files.close()


@pytest.mark.parametrize("columns", [(0, 2048), (2048, 4096), (1000, 3500), (0, 4095), (1, 4096)])
@pytest.mark.parametrize("most", [None, 4097])
def test_columns_of_many_rows_are_read_whatever_a_call_gives(columns, most, tmp_path, monkeypatch):
    """More rows than one call takes; `most`: bytes that a system gives at a time."""
    rows, real, calls = 1100, os.preadv, 0
    data = torch.arange(rows * 4096, dtype=torch.int32).to(torch.int16).reshape(rows, 4096)
    (tmp_path / "x").write_bytes(b"head" + data.numpy().tobytes())

    def preadv(descriptor, views, offset):
        nonlocal calls
        calls += 1
        if most is None:
            return real(descriptor, views, offset)
        return real(descriptor, [views[0][:most]], offset)

    monkeypatch.setattr(os, "preadv", preadv)
    slab = Slab(tmp_path / "x", 4, torch.int16, (rows, 4096))
    box = Box((3, columns[0]), (rows, columns[1]))
    out = torch.empty(box.shape, dtype=torch.int16)
    files = Files()
    files.read(slab, box, out)
    files.close()
    assert torch.equal(out, data[3:, columns[0] : columns[1]])
    assert most or calls == 3


def test_a_file_that_ends_in_the_columns_asked_for_is_named(tmp_path):
    (tmp_path / "x").write_bytes(bytes(4096 * 4096 * 2 - 100))
    slab = Slab(tmp_path / "x", 0, torch.int16, (4096, 4096))
    box = Box((0, 2048), (4096, 4096))
    with pytest.raises(FormatError, match="x: ends at byte 33554332, want 100 more"):
        Files().read(slab, box, torch.empty(box.shape, dtype=torch.int16))
