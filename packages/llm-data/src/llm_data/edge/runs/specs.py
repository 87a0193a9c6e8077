"""The encoder a run needs and the manifest it will leave, from its options."""

from collections.abc import Iterable
from dataclasses import replace
from importlib.metadata import version
from typing import Any, ClassVar, Protocol, runtime_checkable

from llm_data.backends.backend import BackendName, BackendSpec
from llm_data.backends.choice import is_installed
from llm_data.config import PreprocessConfig, Task
from llm_data.edge.console.progress import Progress
from llm_data.edge.datasets.dataset_manifests import Options
from llm_data.edge.runs.planning import Plan
from llm_data.edge.runs.workers import Crew
from llm_data.edge.sources.inputs import Inputs
from llm_data.edge.sources.readers import Meter, read_batches
from llm_data.edge.tokenizer_files import (
    find_tokenizer_file,
    manifest_entry,
    read_tokenizer_facts,
)
from llm_data.encode import EncoderSpec
from llm_data.errors import UsageError
from llm_data.formats.manifest import Manifest
from llm_data.records import Batch
from llm_data.tasks.pretrain import PretrainSpec, SplitterSpec, TextReader
from llm_data.tokenizer import TokenizerFacts, choose_dtype

# Below this much input, proving a faster backend takes longer than doing without it.
WORTH_A_PROOF_BYTES = 8 << 20


@runtime_checkable
class _Backed(EncoderSpec, Protocol):
    """The spec of an encoder that may use any tokenizer backend, a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def backend(self) -> BackendSpec: ...

    def first_texts(self, batches: Iterable[Batch]) -> list[str]: ...


def make_plan(config: PreprocessConfig, inputs: Inputs) -> Plan:
    """The whole plan; every option that cannot be followed is an error here."""
    tokenizer = read_tokenizer_facts(config.tokenizer, eos_token=config.eos_token)
    if config.task is Task.PRETRAIN:
        return _pretrain_plan(config, inputs, tokenizer)
    # Late: templates and what renders them load for those tasks alone.
    from llm_data.edge.runs.sample_specs import sample_plan

    return sample_plan(config, inputs, tokenizer)


def with_backend(plan: Plan, *, crew: Crew, progress: Progress) -> Plan:
    """The plan with the tokenizer backend its first documents speak for. No byte depends on it."""
    spec, choice = plan.spec, plan.config.tokenizer_backend
    if choice == "hf" or not isinstance(spec, _Backed):
        return plan
    if choice == "auto" and plan.inputs.bytes < WORTH_A_PROOF_BYTES:
        return plan
    ask = None
    if is_installed(BackendName.GIGATOKEN):
        # The processes load it while it is proven here. One of them is asked, but not in chat
        # tasks: there it is busy with its own copy of the reference.
        crew.prepare(replace(spec, backend=BackendSpec(name=BackendName.GIGATOKEN)))
        ask = crew.ask if crew.workers > 1 and isinstance(spec, PretrainSpec) else None
    batches = read_batches(plan.inputs.files, key=plan.read_key, start=None, meter=Meter())
    # Late: a run that names hf chooses nothing.
    from llm_data.backends.choice import choose

    file, texts = find_tokenizer_file(plan.config.tokenizer), spec.first_texts(batches)
    chosen = choose(choice, tokenizer_file=file, texts=texts, ask=ask)
    spec = replace(spec, backend=chosen.spec)
    progress.say(chosen.message)
    draft = plan.draft
    if spec.backend.name is not BackendName.HF:
        name = spec.backend.name.value
        draft = replace(draft, created_by=f"{draft.created_by} with {name} {version(name)}")
    return replace(plan, draft=draft, spec=spec)


def _pretrain_plan(config: PreprocessConfig, inputs: Inputs, tokenizer: TokenizerFacts) -> Plan:
    if config.append_eod and tokenizer.eos_id is None:
        raise UsageError(
            f"{config.tokenizer}: --append-eod needs an end-of-text token, but no eos_token in "
            "tokenizer_config.json or special_tokens_map.json beside it; --eos-token names one"
        )
    reader, reader_options = _text_reader(config, inputs)
    splitter, splitter_options = _splitter(config)
    dtype = choose_dtype(config.dtype, vocab_size=tokenizer.vocab_size)
    eod_id = tokenizer.eos_id if config.append_eod else None
    draft = Manifest(
        dtype=dtype,
        num_documents=0,
        num_sequences=0,
        num_tokens=0,
        key=config.key,
        level=config.level,
        append_eod=config.append_eod,
        eod_id=eod_id,
        options={**reader_options, **splitter_options},
        tokenizer=manifest_entry(tokenizer),
        sources=inputs.sources,
        drops={},
        on_error=config.on_error.value,
        files={},
        created_by=f"llm-data {version('llm-data')}",
    )
    spec = PretrainSpec(
        tokenizer_file=find_tokenizer_file(config.tokenizer),
        key=config.key,
        eod_id=eod_id,
        dtype=dtype,
        text=reader,
        sentences=splitter,
    )
    read_key = None if reader else config.key
    return Plan(config=config, inputs=inputs, draft=draft, spec=spec, read_key=read_key)


def _text_reader(config: PreprocessConfig, inputs: Inputs) -> tuple[TextReader | None, Options]:
    if config.handler is None and not config.map_keys and config.format in ("auto", "text"):
        return None, {}
    # Late: most runs take a text from a key, and start faster without.
    from llm_data.edge.runs.reader_options import text_reader

    return text_reader(config, inputs)


def _splitter(config: PreprocessConfig) -> tuple[SplitterSpec | None, Options]:
    if not config.split_sentences:
        return None, {}
    from llm_data.edge.sentences import find_sentences

    spec = find_sentences(config.language, keep_newlines=config.keep_newlines)
    return spec, {
        "language": config.language,
        "keep_newlines": config.keep_newlines,
        "sentences": spec.digest,
    }
