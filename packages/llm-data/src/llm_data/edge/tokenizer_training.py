"""Training a byte-level BPE tokenizer, written as a folder `transformers` loads."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from tempfile import TemporaryFile
from typing import Any, BinaryIO, cast

from llm_data.config import EOS_TOKEN, PAD_TOKEN, OnError, TrainingConfig
from llm_data.edge.console.progress import Progress, Silent
from llm_data.edge.durable import write_whole
from llm_data.edge.sources.inputs import Inputs, find_inputs
from llm_data.edge.sources.quarantine import quarantine_line, quarantined_place
from llm_data.edge.sources.readers import Meter, read_batches, where
from llm_data.errors import DataError
from llm_data.records import COUNTED, Reject, text_of

_RECORD = "tokenizer_training.json"
REJECTS = "tokenizer_training.rejects.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """`vocab_size` is below what was asked when the text has too few pairs to merge.

    `drops`: records left out, by reason.
    """

    vocab_size: int
    num_documents: int
    drops: Mapping[str, int]
    already_done: bool


def train_tokenizer(config: TrainingConfig, *, progress: Progress | None = None) -> TrainingResult:
    """Train on the inputs and write tokenizer.json and tokenizer_config.json to `output`.

    No normaliser and no added space: decoding gives back every text exactly.
    """
    inputs = find_inputs(config.inputs, patterns=config.patterns)
    identity = _identity(config, inputs)
    done = _finished(config, identity)
    if done is not None:
        return done
    # Late: a finished training is recognised without loading the library.
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=list(config.every_special_token),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with TemporaryFile() as rejects:
        texts = _Texts(config, inputs, rejects, progress or Silent())
        tokenizer.train_from_iterator(iter(texts), trainer=trainer)
        rejects.seek(0)
        if not texts.num_documents:
            line = rejects.readline()
            quoted = f"; the first error: {quarantined_place(line)}" if line else ""
            raise DataError(f"no text in {len(inputs.files)} files{quoted}")
        result = TrainingResult(
            vocab_size=tokenizer.get_vocab_size(),
            num_documents=texts.num_documents,
            drops=dict(sorted(texts.drops.items())),
            already_done=False,
        )
        _write(config, tokenizer.to_str(pretty=True), rejects.read(), identity, result)
    return result


class _Texts:
    """The documents in lists, counting them; an unreadable one stops or is set aside."""

    def __init__(
        self, config: TrainingConfig, inputs: Inputs, rejects: BinaryIO, progress: Progress
    ) -> None:
        self._config = config
        self._progress = progress
        self._inputs = inputs
        self._rejects = rejects
        self.num_documents = 0
        self.drops: Counter[str] = Counter()

    def __iter__(self) -> Iterator[list[str]]:
        key, meter = self._config.key, Meter()
        for batch in read_batches(self._inputs.files, key=key, start=None, meter=meter):
            found = [
                item if isinstance(item, Reject) else text_of(item, key=key)
                for item in batch.items()
            ]
            texts = [text for text in found if isinstance(text, str)]
            for reject in found:
                if isinstance(reject, Reject):
                    self._skip(reject)
            self.num_documents += len(texts)
            note = f"{self.num_documents:,} documents counted"
            self._progress.update(done=meter.bytes, total=self._inputs.bytes, note=note)
            yield texts

    def _skip(self, reject: Reject) -> None:
        if reject.reason not in COUNTED:
            if self._config.on_error is OnError.STOP:
                place = where(self._inputs.files, reject.place)
                hint = "--on-error skip sets such records aside and counts them"
                raise DataError(f"{place}: {reject.detail} ({hint})")
            self._rejects.write(quarantine_line(self._inputs.files, reject) + b"\n")
        self.drops[reject.reason.value] += 1


def _identity(config: TrainingConfig, inputs: Inputs) -> dict[str, object]:
    return {
        "inputs": [source.digest for source in inputs.sources],
        "vocab_size": config.vocab_size,
        "special_tokens": list(config.every_special_token),
        "key": config.key,
        "on_error": config.on_error.value,
    }


def _finished(config: TrainingConfig, identity: dict[str, object]) -> TrainingResult | None:
    """The earlier result if it is this very training's; an error if another tokenizer is there."""
    file = config.output / "tokenizer.json"
    if config.overwrite or not file.exists():
        return None
    record = config.output / _RECORD
    body: object = json.loads(record.read_bytes()) if record.exists() else {}
    then = cast("dict[str, dict[str, object]]", body)
    if then.get("identity") != identity:
        changed = [
            name for name in identity if (then.get("identity") or {}).get(name) != identity[name]
        ]
        raise DataError(
            f"{file}: another tokenizer is there (differs in {', '.join(changed)}); "
            "--overwrite replaces it"
        )
    result = cast("dict[str, Any]", then["result"])
    return TrainingResult(
        vocab_size=result["vocab_size"],
        num_documents=result["num_documents"],
        drops=result["drops"],
        already_done=True,
    )


def _write(
    config: TrainingConfig,
    tokenizer: str,
    rejects: bytes,
    identity: dict[str, object],
    result: TrainingResult,
) -> None:
    """tokenizer.json goes first when replacing and comes last: with it the folder is whole."""
    folder = config.output
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").unlink(missing_ok=True)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": EOS_TOKEN,
        "pad_token": PAD_TOKEN,
        "additional_special_tokens": list(config.special_tokens),
        "clean_up_tokenization_spaces": False,
    }
    record = {
        "created_by": f"llm-data {version('llm-data')}",
        "identity": identity,
        "result": {
            "vocab_size": result.vocab_size,
            "num_documents": result.num_documents,
            "drops": result.drops,
        },
    }
    (folder / REJECTS).unlink(missing_ok=True)
    if rejects:
        write_whole(folder / REJECTS, rejects)
    for name, body in (("tokenizer_config.json", settings), (_RECORD, record)):
        write_whole(folder / name, (json.dumps(body, indent=2, ensure_ascii=False) + "\n").encode())
    write_whole(folder / "tokenizer.json", tokenizer.encode())
