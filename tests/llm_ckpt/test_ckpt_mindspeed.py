"""MindSpeed-LLM's command lines: every option of its two converters is translated or told of."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from ckpt_models import assert_same_folder, read_tensors
from llm_ckpt.cli import main
from llm_ckpt.edge.mindspeed import OPTIONS, table_lines, translate

ROOT = Path(__file__).parents[2]

# From the help of both tools (release 2.3.0 and the master branch of July 2026).
V1_TOOL = """
--model-type --load-model-type --save-model-type --load-dir --save-dir --tokenizer-model
--model-type-hf --target-tensor-parallel-size --target-pipeline-parallel-size
--target-expert-parallel-size --expert-tensor-parallel-size --num-layer-list
--num-layers-per-virtual-pipeline-stage --noop-layers --use-mcore-models --moe-grouped-gemm
--moe-tp-extend-ep --params-dtype --spec --post-norm --add-qkv-bias --add-dense-bias
--add-output-layer-bias --embed-layernorm --make-vocab-size-divisible-by --w-pack
--load-from-legacy --save-to-legacy --load-hf-from-config --load-checkpoint-loosely --qlora-nf4
--orm --lora-load --lora-r --lora-alpha --lora-target-modules --save-lora-to-hf --ckpt-cfg-path
--max-queue-size --no-checking
"""
V2_TOOL = """
--load-model-type --save-model-type --load-dir --save-dir --model-type-hf
--target-tensor-parallel-size --target-pipeline-parallel-size --target-expert-parallel-size
--expert-tensor-parallel-size --num-layers-per-virtual-pipeline-stage --num-layer-list
--noop-layers --mtp-num-layers --moe-grouped-gemm --moe-tp-extend-ep --mla-mm-split
--schedules-method --first-k-dense-replace --num-layers --transformer-impl --hf-cfg-dir
--lora-load --lora-r --lora-alpha --lora-target-modules --save-lora-to-hf
"""


@pytest.fixture
def run():
    def run(*args, code=0):
        result = CliRunner().invoke(main, [str(arg) for arg in args])
        assert result.exit_code == code, result.output
        return result.output

    return run


@pytest.mark.parametrize(("tool", "names"), [("v1", V1_TOOL), ("v2", V2_TOOL)])
def test_every_option_of_both_tools_is_known(tool, names):
    known = {option.name for option in OPTIONS if tool in option.tools}
    assert known == set(names.split())


def test_the_readme_has_the_table_of_every_old_option():
    readme = (ROOT / "packages/llm-ckpt/README.md").read_text()
    assert "\n".join(table_lines()) in readme


def test_a_line_of_ours_is_left_alone():
    args = ("hf", "--output", "out", "--to", "mcore", "--num-layer-list", "3,1", "--noop-layers=1")
    assert translate(args).args == args
    assert not translate(args).notes


def test_the_line_of_an_example_script_of_theirs_becomes_ours():
    # As in their ckpt_convert_*_hf2mcore.sh
    line = """--use-mcore-models --model-type GPT --load-model-type hf --save-model-type mg
    --target-tensor-parallel-size 8 --target-pipeline-parallel-size 8
    --target-expert-parallel-size 4 --num-layers-per-virtual-pipeline-stage 2
    --spec mindspeed_llm.tasks.models.spec.qwen3_spec layer_spec --load-dir ./from_hf/
    --save-dir ./mcore/ --tokenizer-model ./from_hf/ --moe-grouped-gemm --noop-layers 0,63
    --params-dtype bf16 --model-type-hf qwen3-moe"""
    translated = translate(line.split())
    assert " ".join(translated.args) == (
        "--to mcore --tp 8 --pp 8 --ep 4 --layers-per-chunk 2 ./from_hf/ --output ./mcore/ "
        "--expert-layout grouped --noop-layers 0,63 --dtype bfloat16 --dialect mindspeed "
        "--make-vocab-size-divisible-by 1"
    )
    told = [note.split(":")[0] for note in translated.notes]
    assert told == [
        "--use-mcore-models",
        "--model-type",
        "--load-model-type",
        "--spec",
        "--tokenizer-model",
        "--model-type-hf",
    ]


def test_grouped_experts_of_transformer_engine_are_te_experts():
    line = "--save-model-type mg --moe-grouped-gemm --transformer-impl transformer_engine"
    assert translate(line.split()).args[2:4] == ("--expert-layout", "te")


def test_layout_options_of_their_way_back_describe_the_source():
    line = "--load-model-type mg --save-model-type hf --noop-layers 0,63 --moe-grouped-gemm"
    translated = translate([*line.split(), "--load-dir", "m", "--save-dir", "h"])
    assert translated.args == ("--to", "hf", "m", "--output", "h")
    assert sum("describes the source" in note for note in translated.notes) == 2


def test_there_and_back_with_their_names(run, hf_folder, tmp_path):
    folder = hf_folder("qwen3")
    there = ["--load-model-type", "hf", "--save-model-type", "mg", "--load-dir", folder]
    sizes = ["--target-tensor-parallel-size=2", "--target-pipeline-parallel-size", "2"]
    run("convert", *there, "--save-dir", tmp_path / "mg", *sizes, "--model-type-hf", "qwen3")
    ranks = sorted(path.name for path in (tmp_path / "mg/iter_0000001").glob("mp_rank_*"))
    assert ranks == ["mp_rank_00_000", "mp_rank_00_001", "mp_rank_01_000", "mp_rank_01_001"]
    original = tmp_path / "original"  # their way: the result goes into the original folder
    original.mkdir()
    (original / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "mg/arch.json").unlink()
    (tmp_path / "mg/config.json").unlink()
    back = ["--load-model-type", "mg", "--save-model-type", "hf", "--load-dir", tmp_path / "mg"]
    text = run("convert", *back, "--save-dir", original)
    assert "written to" in text
    assert_same_folder(folder, original / "mg2hf")


@pytest.mark.parametrize("option", ["--orm", "--qlora-nf4", "--save-lora-to-hf"])
def test_what_is_not_done_is_refused(option, run, hf_folder, tmp_path):
    args = ["--save-model-type", "mg", "--load-dir", hf_folder("qwen3"), "--save-dir", tmp_path]
    assert option.split("=")[0] in run("convert", *args, option, code=2)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--num-layers", 2, "num_layers is 4, --num-layers says 2"),
        (
            "--first-k-dense-replace",
            1,
            "first_k_dense_replace is 4, --first-k-dense-replace says 1",
        ),
        ("--mtp-num-layers", 1, "mtp_num_layers is 0, --mtp-num-layers says 1"),
    ],
)
def test_a_number_that_the_source_contradicts_is_refused(option, value, message, run, hf_folder):
    text = run("plan", hf_folder("qwen3"), "--save-model-type", "mg", option, value, code=1)
    assert message in text
    agreed = ["--num-layers", "4", "--first-k-dense-replace", "4", "--mtp-num-layers", "0"]
    run("plan", hf_folder("qwen3"), "--save-model-type", "mg", *agreed)


# Their defect 7: the check that the layers divide never fires (`not a % b == 0`-like precedence).
def test_chunks_that_do_not_divide_are_refused_with_the_equation(run, hf_folder):
    sizes = ["--target-pipeline-parallel-size", 2, "--num-layers-per-virtual-pipeline-stage", 3]
    text = run("plan", hf_folder("qwen3"), "--save-model-type", "mg", *sizes, code=1)
    assert "layers(4) % (pp(2) * layers a chunk(3)) = 4, want 0" in text


# Their defect 7: no vocabulary padding, so ranks get unequal shards that no model loads.
def test_a_vocabulary_that_does_not_divide_is_padded(run, hf_folder, tmp_path):
    folder = hf_folder("qwen3", vocab_size=251)
    there = ["--save-model-type", "mg", "--load-dir", folder, "--save-dir", tmp_path / "mg"]
    run("convert", *there, "--target-tensor-parallel-size", 2)
    rows = [
        torch.load(path, weights_only=False)["model"]["output_layer.weight"].shape[0]
        for path in sorted((tmp_path / "mg").rglob("*.pt"))
    ]
    assert rows == [126, 126]


def test_shards_of_a_vocabulary_that_they_cut_unevenly_are_read(hf_folder, convert, tmp_path):
    """`torch.chunk(251 rows, 2)` gives 126 and 125."""
    folder = hf_folder("qwen3", vocab_size=251)
    convert(folder, tmp_path / "mg", "v1", tp=2, vocab_multiple=1)
    for path in sorted((tmp_path / "mg").rglob("*.pt")):
        file = torch.load(path, weights_only=False)
        for name in ("embedding.word_embeddings.weight", "output_layer.weight"):
            if "mp_rank_01" in str(path):
                file["model"][name] = file["model"][name][:125].clone()
        torch.save(file, path)
    convert(tmp_path / "mg", tmp_path / "hf", "hf")
    assert_same_folder(folder, tmp_path / "hf")


# Their defect 8: `raise "string"` where a direction is not supported.
def test_mcore_to_mcore_works_where_theirs_raised_a_string(run, hf_folder, tmp_path):
    first = ["--save-model-type", "mg", "--load-dir", hf_folder("qwen3")]
    run("convert", *first, "--save-dir", tmp_path / "a", "--target-tensor-parallel-size", 2)
    second = ["--load-model-type", "mg", "--save-model-type", "mg", "--load-dir", tmp_path / "a"]
    run("convert", *second, "--save-dir", tmp_path / "b", "--target-pipeline-parallel-size", 2)
    run("convert", tmp_path / "b", "--to", "hf", "--output", tmp_path / "hf")
    assert_same_folder(hf_folder("qwen3"), tmp_path / "hf")
    assert json.loads((tmp_path / "hf/config.json").read_text())["model_type"] == "qwen3"
    assert read_tensors(tmp_path / "hf")
