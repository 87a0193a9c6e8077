"""The encoder and the manifest of runs that make samples: every task but pretraining."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from types import MappingProxyType

from llm_data.config import PreprocessConfig, Task
from llm_data.edge.datasets.dataset_manifests import Options
from llm_data.edge.runs.planning import Plan, Row
from llm_data.edge.runs.reader_options import sample_reader
from llm_data.edge.sources.inputs import Inputs
from llm_data.edge.template_files import find_template, read_special_tokens
from llm_data.edge.tokenizer_files import find_tokenizer_file, manifest_entry
from llm_data.encode import EncoderSpec
from llm_data.errors import UsageError
from llm_data.formats.sample_manifest import SampleColumn, SampleManifest, TemplateEntry
from llm_data.tasks.chat import Limit, Rendering, TaskInput
from llm_data.tasks.pairwise import PairwiseSpec
from llm_data.tasks.prm import PrmSpec
from llm_data.tasks.prompt import PromptSpec
from llm_data.tasks.sft import Loss, SftSpec
from llm_data.tasks.truncation import TooLong
from llm_data.templates import Thinking
from llm_data.tokenizer import TokenizerFacts, choose_dtype

# The numbers of a row's samples must fit the mask's type.
_MOST_SAMPLES_IN_UINT16 = (1 << 16) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """How a task makes its encoder, and which options decide its tokens."""

    spec: Callable[[PreprocessConfig, TaskInput, Rendering | None], EncoderSpec]
    options: Callable[[PreprocessConfig], Options]


def sample_plan(config: PreprocessConfig, inputs: Inputs, facts: TokenizerFacts) -> Plan:
    """The plan of a run that makes samples."""
    rendering = _rendering(config)
    reader, reader_options = sample_reader(config, inputs)
    source = TaskInput(
        tokenizer_file=find_tokenizer_file(config.tokenizer),
        samples=reader,
        dtype=choose_dtype(config.dtype, vocab_size=facts.vocab_size),
        limit=Limit(seq_length=config.seq_length, too_long=TooLong(config.too_long)),
    )
    task = _TASKS[config.task]
    spec = task.spec(config, source, rendering)
    row = _row(config, facts, dtype=source.dtype) if config.pack else None
    draft = SampleManifest(
        task=config.task.value,
        columns=tuple(SampleColumn(name=each.name, dtype=each.dtype) for each in spec.columns),
        num_rows=0,
        num_samples=0,
        num_tokens=0,
        num_loss_tokens=0,
        packed=config.pack,
        seq_length=config.seq_length,
        pad_id=row.pad_id if row else None,
        template=_entry(rendering),
        options={
            **reader_options,
            **_special(rendering),
            **({"template_date": config.template_date} if rendering else {}),
            "too_long": config.too_long if config.seq_length else None,
            **task.options(config),
        },
        tokenizer=manifest_entry(facts),
        sources=inputs.sources,
        drops={},
        notes={},
        on_error=config.on_error.value,
        files={},
        created_by=f"llm-data {version('llm-data')}",
    )
    return Plan(config=config, inputs=inputs, draft=draft, spec=spec, read_key=None, row=row)


def _rendering(config: PreprocessConfig) -> Rendering | None:
    if config.template is None:
        return None
    return Rendering(
        template=find_template(
            config.template, tokenizer=config.tokenizer, date=config.template_date
        ),
        special=read_special_tokens(config.tokenizer),
        thinking=Thinking(config.thinking),
    )


def _entry(rendering: Rendering | None) -> TemplateEntry | None:
    if rendering is None:
        return None
    return TemplateEntry(name=rendering.template.name, digest=rendering.template.digest)


def _special(rendering: Rendering | None) -> Options:
    """The tokens that a template writes: the tokenizer's digest does not cover them."""
    if rendering is None:
        return {}
    return dict(rendering.special.named())


def _row(config: PreprocessConfig, facts: TokenizerFacts, *, dtype: str) -> Row:
    assert config.seq_length is not None
    if facts.pad_id is None:
        raise UsageError(
            f"{config.tokenizer}: --pack fills rows with the padding or end-of-text token, but "
            "tokenizer_config.json and special_tokens_map.json name none; --eos-token names one"
        )
    if dtype == "uint16" and config.seq_length // 2 > _MOST_SAMPLES_IN_UINT16:
        raise UsageError(
            f"--seq-length {config.seq_length} has room for more samples than uint16 can number; "
            "want --dtype int32"
        )
    return Row(length=config.seq_length, pad_id=facts.pad_id)


def _needed(rendering: Rendering | None) -> Rendering:
    # The configuration refuses chat tasks without a template.
    assert rendering is not None
    return rendering


def _sft(config: PreprocessConfig, source: TaskInput, rendering: Rendering | None) -> SftSpec:
    loss = Loss.ANSWERS
    if config.mask_history:
        loss = Loss.LAST_ANSWER
    elif config.train_on_prompt:
        loss = Loss.EVERYTHING
    return SftSpec(source=source, rendering=_needed(rendering), loss=loss)


def _pairwise(
    _config: PreprocessConfig, source: TaskInput, rendering: Rendering | None
) -> PairwiseSpec:
    return PairwiseSpec(source=source, rendering=_needed(rendering))


def _prompt(config: PreprocessConfig, source: TaskInput, rendering: Rendering | None) -> PromptSpec:
    return PromptSpec(source=source, rendering=_needed(rendering), extra=tuple(config.extra_keys))


def _prm(config: PreprocessConfig, source: TaskInput, _rendering: Rendering | None) -> PrmSpec:
    return PrmSpec(
        source=source,
        placeholder=config.placeholder_token,
        reward_tokens=tuple(config.reward_tokens),
    )


_TASKS = MappingProxyType(
    {
        Task.SFT: _Task(
            spec=_sft,
            options=lambda config: {
                "thinking": config.thinking,
                "mask_history": config.mask_history,
                "train_on_prompt": config.train_on_prompt,
            },
        ),
        Task.PAIRWISE: _Task(spec=_pairwise, options=lambda config: {"thinking": config.thinking}),
        Task.PROMPT: _Task(spec=_prompt, options=lambda config: {"thinking": config.thinking}),
        Task.PRM: _Task(
            spec=_prm,
            options=lambda config: {
                "placeholder_token": config.placeholder_token,
                "reward_tokens": json.dumps(list(config.reward_tokens), ensure_ascii=False),
            },
        ),
    }
)
