"""`llm-eval perplexity`: documents and a model in, a results folder out."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_eval.documents import Document, without_empty
from llm_eval.documents import digest as documents_digest
from llm_eval.edge import device, inputs, model_folder, quiet, token_dataset
from llm_eval.edge.progress import Progress
from llm_eval.edge.run_folder import RunFolder
from llm_eval.edge.scorers import open_scorer
from llm_eval.errors import EvalError
from llm_eval.results import stable_results

if TYPE_CHECKING:
    from llm_eval.harness.hf import ResumableHF
    from llm_eval.harness.models import ScorerLM

HF = "hf"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """Which model, on which engine and how."""

    model: Path
    scorer: str
    device: device.DeviceName
    dtype: str
    batch_size: int
    max_length: int | None
    threads: int | None = None
    url: str | None = None
    retries: int = 5
    data_parallel: int = 1

    def settings(self) -> dict[str, object]:
        """What decides the scores, for the run's record."""
        return {
            "model": str(self.model),
            "model_digest": model_folder.digest(self.model) if self.model.is_dir() else None,
            "scorer": self.scorer,
            "device": self.device,
            "dtype": self.dtype,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "versions": _versions("lm-eval", "torch", "transformers", "tokenizers"),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentChoice:
    """Which documents."""

    inputs: Sequence[Path]
    pattern: str
    text_key: str
    limit: int | None

    def token_datasets(self) -> list[Path]:
        """Stems of the token datasets that the inputs name: all of them, or none."""
        stems = [stem for path in self.inputs if (stem := token_dataset.stem_of(path))]
        if stems and len(stems) < len(self.inputs):
            raise EvalError(
                f"{len(stems)} of {len(self.inputs)} inputs are token datasets; text and tokens "
                "are scored by different metrics: give them to runs of their own"
            )
        return stems

    def read(self) -> list[Document]:
        """The documents, in a fixed order; of token datasets their ids in decimal."""
        if stems := self.token_datasets():
            listed = chain.from_iterable(map(token_dataset.read_documents, stems))
            found = without_empty(list(islice(listed, self.limit)))
            if not found:
                raise EvalError(f"{stems[0]}: no document holds a token; nothing to score")
            return found
        return inputs.read_documents(
            self.inputs, pattern=self.pattern, text_key=self.text_key, limit=self.limit
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A finished run."""

    results: dict[str, object]
    was_finished: bool
    num_resumed_batches: int


def run(documents: DocumentChoice, model: ModelChoice, output: Path, *, overwrite: bool) -> Outcome:
    """Score the documents; a finished folder is read back, an interrupted one is continued."""
    if model.scorer == HF:
        model_folder.check(model.model)
    stems = documents.token_datasets()
    if stems and model.scorer != HF:
        raise EvalError(f"--scorer {model.scorer}: token datasets are scored by hf alone")
    for stem in stems:
        token_dataset.check_tokenizer(stem, model.model)
    texts = documents.read()
    settings = {
        "command": "perplexity",
        "documents": len(texts),
        "documents_digest": documents_digest(texts),
        **model.settings(),
    }
    with RunFolder(output, settings, overwrite=overwrite) as folder:
        if folder.is_finished:
            return Outcome(results=folder.results(), was_finished=True, num_resumed_batches=0)
        num_resumed = folder.num_known
        _score(texts, model, folder, is_tokens=bool(stems))
        return Outcome(
            results=folder.results(), was_finished=False, num_resumed_batches=num_resumed
        )


def open_model(
    choice: ModelChoice, folder: RunFolder | None, *, is_tokens: bool = False
) -> "ResumableHF | ScorerLM":
    """The harness's model: its own `hf`, over texts or token ids, or a scorer by name."""
    recall = folder.recall if folder else None
    if choice.scorer != HF:
        from llm_eval.harness.models import ScorerLM

        scorer = open_scorer(
            choice.scorer,
            choice.model,
            device=choice.device,
            dtype=choice.dtype,
            batch_size=choice.batch_size,
            max_length=choice.max_length,
            threads=choice.threads,
        )
        return ScorerLM(scorer, batch_size=choice.batch_size, recall=recall)

    from llm_eval.harness.hf import ResumableHF

    where = device.resolve(choice.device)
    model, tokenizer = model_folder.load(choice.model, device=where, dtype=choice.dtype)
    context = getattr(model.config, "max_position_embeddings", None)
    if choice.max_length and context and choice.max_length > context:
        raise EvalError(f"--max-length {choice.max_length}: the model's context is {context}")
    return ResumableHF(
        model,
        tokenizer,
        batch_size=choice.batch_size,
        max_length=choice.max_length,
        recall=recall,
        is_tokens=is_tokens,
    )


def _score(
    texts: Sequence[Document], choice: ModelChoice, folder: RunFolder, *, is_tokens: bool
) -> None:
    start = time.monotonic()
    if choice.scorer == HF:
        model_folder.require_hf()
    quiet.offline()
    quiet.quiet()
    from lm_eval.evaluator import evaluate

    from llm_eval.harness.task import TASK_NAME, PerplexityTask

    lm = open_model(choice, folder, is_tokens=is_tokens)
    task = PerplexityTask(texts, lm.num_tokens, is_tokens=is_tokens)
    task.set_fewshot_seed(0)
    is_hf = choice.scorer == HF
    total = sum(lm.num_tokens(text.text) for text in texts) if is_hf else len(texts)
    with Progress("tokens" if is_hf else "documents", total) as progress:
        folder.watch(progress.advance)
        found = evaluate(lm=lm, task_dict={"tasks": {TASK_NAME: task}}, bootstrap_iters=0)
    if found is None:
        raise EvalError("lm-evaluation-harness returned no results on this rank")
    evaluated: dict[str, Any] = dict(found)
    samples = evaluated["samples"][TASK_NAME]
    results = stable_results(evaluated) | {"config": _config(choice, lm)}
    folder.finish(results, samples, seconds=time.monotonic() - start)


def _config(choice: ModelChoice, lm: "ResumableHF | ScorerLM") -> dict[str, object]:
    return {
        "model": choice.scorer,
        "model_args": {"pretrained": str(choice.model), "dtype": choice.dtype},
        "batch_size": choice.batch_size,
        "device": str(lm.device) if lm.device else choice.device,
        "max_length": getattr(lm, "max_length", choice.max_length),
        "bootstrap_iters": 0,
    }


def _versions(*packages: str) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
