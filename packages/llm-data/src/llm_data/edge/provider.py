"""What llm-train asks for when its config names raw text: the entry point `llm_train.raw_data`."""

from collections.abc import Sequence
from pathlib import Path

from llm_data.config import OnError, PreprocessConfig
from llm_data.edge.console.progress import terminal_progress
from llm_data.edge.durable import with_suffix
from llm_data.edge.runs.pipeline import preprocess
from llm_data.errors import DataError


def prepare(
    inputs: Sequence[str],
    *,
    tokenizer: Path,
    output: Path,
    key: str = "text",
    patterns: Sequence[str] = (),
    append_eod: bool = True,
    skip_bad_records: bool = False,
    workers: int | None = None,
) -> Path:
    """The prefix of the token dataset that `llm-data preprocess` makes of `inputs` at `output`.

    Goes on where an earlier call was killed; does nothing if the dataset is there. Says on standard
    error how far it is and what it made. Raises DataError if other inputs or options made what is
    there: a training must not go on with other data than it began with.
    """
    config = PreprocessConfig(
        inputs=inputs,
        tokenizer=tokenizer,
        output=output,
        key=key,
        patterns=patterns,
        append_eod=append_eod,
        on_error=OnError.SKIP if skip_bad_records else OnError.STOP,
        workers=workers,
    )
    was_there = with_suffix(config.stem, ".json").exists()
    with terminal_progress("tokenizing") as progress:
        try:
            result = preprocess(config, progress=progress)
        except DataError as error:
            hint = "; in a training, another save.path begins with the text as it is now"
            raise DataError(f"raw data: {error}{hint if was_there else ''}") from None
        manifest = result.manifest
        dropped = sum(manifest.drops.values())
        progress.say(
            f"{'already tokenized' if result.already_done else 'tokenized'}: "
            f"{', '.join(map(str, inputs))} → {config.stem}, {manifest.num_tokens:,} tokens"
            + (f", {dropped:,} records left out" if dropped else "")
        )
    return config.stem
