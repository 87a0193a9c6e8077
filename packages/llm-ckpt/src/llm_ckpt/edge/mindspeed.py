"""Options of MindSpeed-LLM's two converters, and what each is here.

`convert_ckpt.py` is called v1 there and `convert_ckpt_v2.py` v2, whatever they write. A command
line that uses one of their own names is translated before it is parsed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

Kind = Literal["same", "renamed", "layout", "checked", "ignored", "refused"]
HF_OUTPUT = "mg2hf"


@dataclass(frozen=True, slots=True)
class OldOption:
    """One option there. `count` is how many words follow it, None: as many as are no options.

    `layout` options lay out what is written; they describe the source, which is detected, when
    that is Hugging Face's. `checked` ones must say what the source's configuration says.
    """

    name: str
    tools: tuple[str, ...]
    kind: Kind
    ours: str
    note: str
    count: int | None = 1
    values: tuple[tuple[str, str], ...] = ()


_BOTH = ("v1", "v2")
_V1, _V2 = ("v1",), ("v2",)
_CONFIG = "read from config.json"
_DTYPES = (("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32"))
OPTIONS: tuple[OldOption, ...] = (
    OldOption("--load-model-type", _BOTH, "ignored", "", "the format of SRC is detected"),
    OldOption(
        "--save-model-type",
        _BOTH,
        "renamed",
        "--to",
        "hf is hf, mg is mcore",
        values=(("hf", "hf"), ("mg", "mcore")),
    ),
    OldOption("--load-dir", _BOTH, "renamed", "SRC", "the argument"),
    OldOption(
        "--save-dir",
        _BOTH,
        "renamed",
        "--output",
        "to hf with a config.json in it: written to its mg2hf/, and that config.json is used",
    ),
    OldOption("--model-type", _V1, "ignored", "", "every model is a decoder"),
    OldOption("--model-type-hf", _BOTH, "ignored", "", f"the family is {_CONFIG}"),
    OldOption("--tokenizer-model", _V1, "ignored", "", "tokenizer files of SRC go along"),
    OldOption("--target-tensor-parallel-size", _BOTH, "layout", "--tp", ""),
    OldOption("--target-pipeline-parallel-size", _BOTH, "layout", "--pp", ""),
    OldOption("--target-expert-parallel-size", _BOTH, "layout", "--ep", ""),
    OldOption("--expert-tensor-parallel-size", _BOTH, "layout", "--etp", ""),
    OldOption(
        "--num-layers-per-virtual-pipeline-stage",
        _BOTH,
        "layout",
        "--layers-per-chunk",
        "or --vpp, the number of chunks a stage",
    ),
    OldOption("--num-layer-list", _BOTH, "layout", "--num-layer-list", ""),
    OldOption("--noop-layers", _BOTH, "layout", "--noop-layers", ""),
    OldOption("--schedules-method", _V2, "layout", "--schedule", "dualpipev"),
    OldOption(
        "--moe-grouped-gemm",
        _BOTH,
        "layout",
        "--expert-layout grouped",
        "te with --transformer-impl transformer_engine",
        count=0,
    ),
    OldOption("--moe-tp-extend-ep", _BOTH, "layout", "--moe-tp-extend-ep", "", count=0),
    OldOption("--mla-mm-split", _V2, "layout", "--mla-mm-split", "", count=0),
    OldOption("--transformer-impl", _V2, "layout", "--transformer-impl", ""),
    OldOption(
        "--make-vocab-size-divisible-by",
        _V1,
        "layout",
        "--make-vocab-size-divisible-by",
        "1 with any of these old names, 128 without",
    ),
    OldOption(
        "--params-dtype",
        _V1,
        "renamed",
        "--dtype",
        "fp16, bf16 or fp32; without it tensors keep their dtype, there they became fp16",
        values=_DTYPES,
    ),
    OldOption("--num-layers", _V2, "checked", "", "no layer is left out"),
    OldOption("--first-k-dense-replace", _V2, "checked", "", _CONFIG),
    OldOption("--mtp-num-layers", _V2, "checked", "", _CONFIG),
    OldOption("--hf-cfg-dir", _V2, "renamed", "--arch", "its config.json, for a SRC that has none"),
    OldOption("--use-mcore-models", _V1, "ignored", "", "always", count=0),
    OldOption("--spec", _V1, "ignored", "", f"{_CONFIG}, not from a layer spec", count=None),
    *(
        OldOption(name, _V1, "ignored", "", _CONFIG, count=0)
        for name in (
            *("--post-norm", "--add-qkv-bias", "--add-dense-bias"),
            *("--add-output-layer-bias", "--embed-layernorm"),
        )
    ),
    OldOption("--w-pack", _V1, "ignored", "", "the family's rules know it", count=None),
    OldOption("--load-checkpoint-loosely", _V1, "ignored", "", "every name must match", count=0),
    OldOption("--ckpt-cfg-path", _V1, "ignored", "", "families are files of the package"),
    OldOption("--max-queue-size", _V1, "ignored", "", "there is no queue"),
    OldOption("--no-checking", _V1, "ignored", "", "names and shapes are always checked", count=0),
    OldOption("--load-from-legacy", _V1, "ignored", "", "legacy models are detected", count=0),
    OldOption("--save-to-legacy", _V1, "layout", "--dialect legacy", "", count=0),
    OldOption("--load-hf-from-config", _V1, "refused", "", "use llm-ckpt init", count=0),
    OldOption("--qlora-nf4", _V1, "refused", "", "weights are not quantised", count=0),
    OldOption("--orm", _V1, "refused", "", "reward heads are not converted", count=0),
    OldOption("--lora-load", _BOTH, "renamed", "--lora", "factors in Megatron's form, or PEFT's"),
    OldOption("--lora-r", _BOTH, "ignored", "", "the rank is that of the factors"),
    OldOption("--lora-alpha", _BOTH, "same", "--lora-alpha", ""),
    OldOption(
        "--lora-target-modules",
        _BOTH,
        "ignored",
        "",
        "the factors say what they are for",
        count=None,
    ),
    OldOption("--save-lora-to-hf", _BOTH, "refused", "", "use llm-ckpt export-lora", count=0),
)
_BY_NAME = {option.name: option for option in OPTIONS}


@dataclass(frozen=True, slots=True)
class Translated:
    """A command line in this program's words, and what to tell about the words it had."""

    args: tuple[str, ...]
    notes: tuple[str, ...] = ()


class RefusedOptionError(ValueError):
    """An old option that asks for what this program does not do."""


def translate(args: Sequence[str]) -> Translated:
    """Old names → ours; a line without any of their own comes back as it is."""
    words = list(_split(args))
    used = [(option, values) for option, values in words if isinstance(option, OldOption)]
    if all(option.name == option.ours for option, _ in used):
        return Translated(tuple(args))
    given = {option.name: values for option, values in used}
    is_hf = given.get("--save-model-type") == ["hf"] or _follows(args, "--to") == "hf"
    out: list[str] = []
    notes: list[str] = []
    for option, values in words:
        if isinstance(option, str):
            out += [option, *values]
            continue
        found, note = _translated(option, values, given, is_hf=is_hf)
        out += found
        notes += [note] if note else []
    if not is_hf:
        out += ["--dialect", "mindspeed"] if "--dialect" not in out else []
        step = "--make-vocab-size-divisible-by"
        is_v2 = _follows(args, "--layout") == "v2"
        out += [step, "1"] if step not in out and not is_v2 else []
    return Translated(tuple(out), tuple(notes))


def table_lines() -> list[str]:
    """The README's table of every old option."""
    lines = ["| MindSpeed-LLM | of its tool | here | |", "|---|---|---|---|"]
    for option in OPTIONS:
        here = f"`{option.ours}`" if option.ours.startswith("-") else option.ours
        here = (
            here or {"checked": "checked", "ignored": "ignored", "refused": "refused"}[option.kind]
        )
        lines.append(f"| `{option.name}` | {', '.join(option.tools)} | {here} | {option.note} |")
    return lines


def _split(args: Sequence[str]) -> list[tuple[OldOption | str, list[str]]]:
    """Old options with their values; every other word by itself."""
    words: list[tuple[OldOption | str, list[str]]] = []
    rest = list(args)
    while rest:
        name, is_joined, value = rest[0].partition("=")
        option = _BY_NAME.get(name)
        if option is None:
            words.append((rest.pop(0), []))
            continue
        rest.pop(0)
        values = [value] if is_joined else []
        if option.count is None:
            while rest and not rest[0].startswith("-"):
                values.append(rest.pop(0))
        elif not is_joined:
            values, rest = rest[: option.count], rest[option.count :]
        words.append((option, values))
    return words


def _translated(
    option: OldOption, values: list[str], given: dict[str, list[str]], *, is_hf: bool
) -> tuple[list[str], str]:
    told = f"{option.name}: {option.note}"
    if option.kind == "refused":
        raise RefusedOptionError(told)
    if option.kind == "ignored":
        return [], f"{told}; ignored"
    if option.kind == "checked":
        key = option.name.removeprefix("--").replace("-", "_")
        return ["--expect", f"{key}={','.join(values)}"], ""
    if option.kind == "layout" and is_hf:
        return [], f"{option.name}: it describes the source, which is detected; ignored"
    if option.name == "--moe-grouped-gemm":
        is_te = given.get("--transformer-impl") == ["transformer_engine"]
        return ["--expert-layout", "te" if is_te else "grouped"], ""
    if option.name == "--save-to-legacy":
        return ["--dialect", "legacy"], ""
    if option.name == "--load-dir":
        return values, ""
    if option.name == "--hf-cfg-dir":
        return ["--arch", *(f"{value}/config.json" for value in values)], ""
    if option.name == "--save-dir" and is_hf:
        return _hf_output(values)
    names = dict(option.values)
    return [option.ours, *(names.get(value, value) for value in values)], ""


def _hf_output(values: list[str]) -> tuple[list[str], str]:
    """There, `--save-dir` is the original folder, and the result goes into it."""
    config = Path(*values) / "config.json" if values else None
    if config is None or not config.is_file():
        return ["--output", *values], ""
    folder = str(Path(*values) / HF_OUTPUT)
    return ["--output", folder, "--arch", str(config)], f"--save-dir: written to {folder}"


def _follows(args: Sequence[str], name: str) -> str | None:
    for word, value in pairwise(args):
        if word == name:
            return value
    return next((word.split("=", 1)[1] for word in args if word.startswith(f"{name}=")), None)
