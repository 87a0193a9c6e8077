"""The commands that make datasets of datasets: `merge`, `split` and `blend`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import click

from llm_data.edge.console.support import PATH, reported
from llm_data.errors import UsageError

if TYPE_CHECKING:
    from llm_data.edge.datasets.blending import Blend
    from llm_data.edge.datasets.derived_dataset import Derived

_Command = TypeVar("_Command", bound=Callable[..., object])

_UNITS = click.Choice(["documents", "tokens"])
_STRATEGIES = click.Choice(["blend", "concat", "interleave_under", "interleave_over"])

_WRITING = (
    click.option(
        "--output",
        "--output-prefix",
        "output",
        type=PATH,
        metavar="PREFIX",
        help="Named as `preprocess` names what it writes; bare pairs become PREFIX.bin.",
    ),
    click.option(
        "--without-manifest",
        is_flag=True,
        help="Take bare .bin and .idx pairs, as Megatron writes; the result is one, too.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace what another run left there."),
)


def writing(command: _Command) -> _Command:
    """Options of every command that writes a dataset."""
    for option in reversed(_WRITING):
        command = option(command)
    return command


@click.command(epilog="Example: llm-data merge data/part0 data/part1 --output data/train")
@click.argument("inputs", nargs=-1, metavar="INPUT...")
@click.option("--input", "folder", type=PATH, metavar="DIR", help="Folder of the pairs to group.")
@click.option(
    "--merge-group-keys",
    "keys",
    multiple=True,
    metavar="KEY...",
    help="Merge every pair of DIR with KEY in its name into PREFIX_KEY, for each KEY.",
)
@writing
def merge(
    inputs: tuple[str, ...],
    folder: Path | None,
    keys: tuple[str, ...],
    output: Path | None,
    without_manifest: bool,
    overwrite: bool,
) -> None:
    """Write datasets end to end, in the order given, as one.

    They must agree in kind, type, tokenizer and template. Their checksums are compared on the way.
    """
    with reported():
        from llm_data.edge.console.progress import terminal_progress
        from llm_data.edge.datasets import merging

        prefix = _required(output)
        with terminal_progress("merge") as progress:
            if keys:
                # Keys after the first are not marked as such: `--merge-group-keys a b`.
                if folder is None:
                    raise UsageError("--merge-group-keys groups the pairs of a folder: --input DIR")
                done = merging.merge_groups(
                    folder,
                    (*keys, *inputs),
                    output=prefix,
                    overwrite=overwrite,
                    progress=progress,
                )
            else:
                datasets = [Path(name) for name in inputs]
                if folder is not None:
                    raise UsageError("--input DIR needs --merge-group-keys: which pairs to merge")
                done = [
                    merging.merge(
                        datasets,
                        output=prefix,
                        without_manifest=without_manifest,
                        overwrite=overwrite,
                        progress=progress,
                    )
                ]
        _print_derived(done)


@click.command(
    epilog="Example: llm-data split data/all --output data/my --ratios 0.98,0.01,0.01 "
    "--names train,valid,test --shuffle-seed 1"
)
@click.argument("prefix", type=PATH)
@click.option("--parts", type=click.IntRange(min=2), help="So many parts alike.")
@click.option("--ratios", metavar="R,R,...", help="Shares of the parts; they need not sum to 1.")
@click.option("--names", metavar="NAME,...", help="Their names.  [default: train,valid,test]")
@click.option(
    "--by",
    type=_UNITS,
    default="documents",
    show_default=True,
    help="What the shares count. A document is never cut.",
)
@click.option(
    "--shuffle-seed",
    type=int,
    metavar="SEED",
    help="Choose documents at random, not stretches; the same for the same seed.",
)
@writing
def split(
    prefix: Path,
    parts: int | None,
    ratios: str | None,
    names: str | None,
    by: Literal["documents", "tokens"],
    shuffle_seed: int | None,
    output: Path | None,
    without_manifest: bool,
    overwrite: bool,
) -> None:
    """Cut a dataset into several, PREFIX_NAME; every document is in exactly one."""
    with reported():
        from llm_data.edge.console.progress import terminal_progress
        from llm_data.edge.datasets import splitting

        if (parts is None) == (ratios is None):
            raise UsageError("want either --parts N or --ratios R,R,...")
        if parts is not None:
            if names is not None:
                raise UsageError("--names goes with --ratios; --parts numbers them")
            chosen = splitting.equal_parts(parts)
        else:
            shares = [_number(word, "--ratios") for word in (ratios or "").split(",")]
            chosen = splitting.named_parts(shares, names.split(",") if names else None)
        with terminal_progress("split") as progress:
            done = splitting.split(
                prefix,
                output=_required(output),
                parts=chosen,
                by=by,
                shuffle_seed=shuffle_seed,
                without_manifest=without_manifest,
                overwrite=overwrite,
                progress=progress,
            )
        _print_derived(done)


@click.command(epilog="Example: llm-data blend 0.7 data/code 0.3 data/books --output data/mix")
@click.argument("words", nargs=-1, metavar="[WEIGHT] INPUT...")
@click.option(
    "--strategy",
    "--mix-strategy",
    "strategy",
    type=_STRATEGIES,
    default="blend",
    show_default=True,
    help="blend: Megatron's rule, and what is short is repeated; concat: all once; interleave: "
    "in turn, or at random by weight, until the first (under) or the last (over) has ended.",
)
@click.option(
    "--interleave-probs", metavar="P,P,...", help="The weights, if they do not stand with INPUT."
)
@click.option(
    "--by",
    type=_UNITS,
    default="documents",
    show_default=True,
    help="What the weights count.",
)
@click.option("--documents", type=click.IntRange(min=1), help="How long a blend is.")
@click.option(
    "--epochs",
    type=float,
    help="The same, in passes over as many documents as all inputs have.  [default: 1]",
)
@click.option(
    "--seed", type=int, default=1234, show_default=True, help="Of an interleaving at random."
)
@click.option(
    "--shuffle-seed",
    type=int,
    metavar="SEED",
    help="Give each pass over a dataset an order of its own.",
)
@click.option("--dry-run", is_flag=True, help="Only print what is taken of each dataset.")
@writing
def blend(
    words: tuple[str, ...],
    strategy: str,
    interleave_probs: str | None,
    by: Literal["documents", "tokens"],
    documents: int | None,
    epochs: float | None,
    seed: int,
    shuffle_seed: int | None,
    dry_run: bool,
    output: Path | None,
    without_manifest: bool,
    overwrite: bool,
) -> None:
    """Mix datasets by weight into one, in an order that is always the same."""
    with reported():
        from llm_data.blending import Strategy
        from llm_data.edge.console.progress import terminal_progress
        from llm_data.edge.datasets import blending

        weights, datasets = weights_and_datasets(words)
        if interleave_probs is not None:
            if weights is not None:
                raise UsageError("--interleave-probs: the inputs have weights already")
            weights = [_number(word, "--interleave-probs") for word in interleave_probs.split(",")]
        plan = blending.plan_blend(
            [Path(name) for name in datasets],
            weights=weights,
            strategy=Strategy(strategy),
            by=by,
            documents=documents,
            epochs=epochs,
            seed=seed,
            shuffle_seed=shuffle_seed,
            without_manifest=without_manifest,
        )
        _print_shares(plan)
        if dry_run:
            return
        with terminal_progress("blend") as progress:
            done = blending.blend(
                plan, output=_required(output), overwrite=overwrite, progress=progress
            )
        _print_derived([done])


def weights_and_datasets(words: Sequence[str]) -> tuple[list[float] | None, list[str]]:
    """`0.7 A 0.3 B` as weights and datasets; without any number there are no weights.

    A dataset whose name is a number is written with its folder: `./7`.
    """
    are_numbers = [_is_number(word) for word in words]
    if not any(are_numbers):
        return None, list(words)
    if are_numbers != [True, False] * (len(words) // 2):
        raise UsageError(
            f"{' '.join(words)}: want a weight before every dataset, as in `0.7 A 0.3 B`, or none"
        )
    return [float(word) for word in words[::2]], list(words[1::2])


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _number(word: str, option: str) -> float:
    if not _is_number(word):
        raise UsageError(f"{option}: {word!r}, want numbers, comma separated")
    return float(word)


def _required(output: Path | None) -> Path:
    if output is None:
        raise UsageError("Missing option '--output': where to write")
    return output


def _print_derived(done: "Sequence[Derived]") -> None:
    for one in done:
        first = next(iter(one.layout.files.values()))
        further = len(one.layout.pairs) - 1
        beside = f" and {further} more columns" if further else ""
        before = "already done: " if one.already_done else ""
        click.echo(
            f"{before}{one.num_documents:,} documents, {one.num_tokens:,} tokens in {first}{beside}"
        )


def _print_shares(plan: "Blend") -> None:
    width = max(len(share.name) for share in plan.shares)
    for share in plan.shares:
        click.echo(
            f"{share.name:<{width}}  {share.documents:>13,} documents "
            f"({share.passes:.2f} times its {share.size:,})  "
            f"{share.share:7.2%} of documents, {share.token_share:7.2%} of tokens"
        )
