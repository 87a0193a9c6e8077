"""Several datasets mixed into one by weights, in an order that is always the same."""

import json
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from llm_data.blending import Recipe, Strategy
from llm_data.edge.console.progress import Progress, Silent
from llm_data.edge.datasets.dataset_agreement import check_agreement, joined
from llm_data.edge.datasets.dataset_files import DatasetFiles, open_files, output_layout
from llm_data.edge.datasets.dataset_sums import derived_draft, derived_source
from llm_data.edge.datasets.derived_dataset import Derivation, Derived, derive
from llm_data.edge.datasets.document_reader import PairReader
from llm_data.edge.datasets.splitting import Unit
from llm_data.errors import DataError, UsageError

# Files that a process needs besides those of the datasets.
_OTHER_FILES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a blend takes of one dataset: `documents` of the `size` it has, and their tokens.

    `share` and `token_share` are of the whole blend. With a shuffle, the tokens of a pass that is
    not finished are those of as many average documents.
    """

    name: str
    size: int
    documents: int
    tokens: int
    share: float
    token_share: float

    @property
    def passes(self) -> float:
        """How often the dataset is gone through."""
        return self.documents / self.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """A blend before it is written: the datasets and what is taken of each."""

    datasets: tuple[DatasetFiles, ...]
    recipe: Recipe
    shares: tuple[Share, ...]

    @property
    def num_documents(self) -> int:
        """Documents in all."""
        return sum(share.documents for share in self.shares)


def plan_blend(
    inputs: Sequence[Path],
    *,
    weights: Sequence[float] | None = None,
    strategy: Strategy = Strategy.BLEND,
    by: Unit = "documents",
    documents: int | None = None,
    epochs: float | None = None,
    seed: int = 1234,
    shuffle_seed: int | None = None,
    without_manifest: bool = False,
) -> Blend:
    """What a blend would take of each dataset; writes nothing.

    `weights` are shares of the documents, or by "tokens" of the tokens. Of `documents` and
    `epochs`, one says how long a `blend` is: epochs are passes over as many documents as all
    inputs have. Raises DataError for datasets that differ or are empty.
    """
    if not inputs:
        raise UsageError("no INPUT given: want datasets to blend")
    datasets = tuple(open_files(prefix, bare=without_manifest) for prefix in inputs)
    for files in datasets:
        if not files.num_documents:
            raise DataError(f"{files.name}: holds no document: nothing can be drawn from it")
    check_agreement(datasets)
    _allow_open_files(datasets)
    sizes = tuple(files.num_documents for files in datasets)
    recipe = Recipe(
        strategy=strategy,
        sizes=sizes,
        weights=_document_weights(datasets, weights, by=by),
        size=_length(sizes, strategy, documents=documents, epochs=epochs),
        seed=seed,
        shuffle_seed=shuffle_seed,
    )
    return Blend(datasets=datasets, recipe=recipe, shares=_shares(datasets, recipe))


def blend(
    plan: Blend, *, output: Path, overwrite: bool = False, progress: Progress | None = None
) -> Derived:
    """Write the blend as a dataset whose documents stand in its order."""
    datasets, recipe = plan.datasets, plan.recipe
    draft = None
    if manifests := [files.manifest for files in datasets if files.manifest]:
        how = f"blend: {json.dumps(asdict(recipe))}"
        draft = derived_draft(
            joined(manifests), sources=[derived_source(files, how=how) for files in datasets]
        )
    derivation = Derivation(
        inputs=datasets,
        order=recipe.draws(),
        num_documents=plan.num_documents,
        output=output_layout(output, datasets[0]),
        draft=draft,
    )
    return derive(derivation, overwrite=overwrite, progress=progress or Silent())


def _length(
    sizes: Sequence[int], strategy: Strategy, *, documents: int | None, epochs: float | None
) -> int | None:
    if documents is not None and epochs is not None:
        raise UsageError("--documents and --epochs both say how long the blend is: want one")
    if strategy is not Strategy.BLEND:
        if documents is not None or epochs is not None:
            raise UsageError(
                f"--documents and --epochs are for --strategy blend; {strategy.value} ends by "
                "itself"
            )
        return None
    if documents is not None:
        return documents
    epochs = 1.0 if epochs is None else epochs
    if not 0 < epochs < float("inf"):
        raise UsageError(f"--epochs {epochs}, want a number above 0")
    return max(1, round(epochs * sum(sizes)))


def _document_weights(
    datasets: Sequence[DatasetFiles], weights: Sequence[float] | None, *, by: Unit
) -> tuple[float, ...] | None:
    """Shares of documents that give the shares wanted."""
    if weights is None:
        if by == "tokens":
            raise UsageError("--by tokens says what weights count: want a weight for each dataset")
        return None
    if len(weights) != len(datasets):
        raise UsageError(f"{len(weights)} weights for {len(datasets)} datasets, want one each")
    if by == "documents":
        return tuple(weights)
    found: list[float] = []
    for files, weight in zip(datasets, weights, strict=True):
        tokens = _tokens_before(files, files.num_documents)
        if not tokens:
            raise DataError(f"{files.name}: its documents hold no token, want some: --by tokens")
        found.append(weight * files.num_documents / tokens)
    return tuple(found)


def _shares(datasets: Sequence[DatasetFiles], recipe: Recipe) -> tuple[Share, ...]:
    totals = recipe.totals().tolist()
    tokens = [
        _tokens_drawn(files, total, is_shuffled=recipe.shuffle_seed is not None)
        for files, total in zip(datasets, totals, strict=True)
    ]
    return tuple(
        Share(
            name=files.name,
            size=files.num_documents,
            documents=total,
            tokens=count,
            share=total / sum(totals),
            token_share=count / max(1, sum(tokens)),
        )
        for files, total, count in zip(datasets, totals, tokens, strict=True)
    )


def _tokens_drawn(files: DatasetFiles, documents: int, *, is_shuffled: bool) -> int:
    passes, rest = divmod(documents, files.num_documents)
    whole = _tokens_before(files, files.num_documents)
    if is_shuffled:
        return passes * whole + round(whole * rest / files.num_documents)
    return passes * whole + (_tokens_before(files, rest) if rest else 0)


def _tokens_before(files: DatasetFiles, document: int) -> int:
    """Tokens of the documents before number `document`: they lie end to end."""
    total = 0
    for column, pair in zip(files.columns, files.layout.pairs, strict=True):
        if column and not column.endswith("input_ids"):
            continue
        index = PairReader(pair.stem).index
        sequence = int(index.documents[document])
        end = index.bin_bytes if sequence == index.num_sequences else int(index.pointers[sequence])
        total += end // index.dtype.itemsize
    return total


def _allow_open_files(datasets: Sequence[DatasetFiles]) -> None:
    """A blend reads all datasets at once: two files a pair, of one column at a time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    columns = len(datasets[0].layout.pairs)
    wanted = 2 * len(datasets) * columns + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise DataError(
            f"{len(datasets)} datasets of {columns} columns need {wanted} open files, the system "
            f"allows {hard}; merge some of them first"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
