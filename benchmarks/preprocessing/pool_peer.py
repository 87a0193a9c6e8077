"""A document at a time through a pool, as Megatron's preprocess_data.py works; for `preprocess.py`.

python benchmarks/preprocessing/pool_peer.py INPUT.jsonl TOKENIZER PREFIX --workers 2
"""

import argparse
import json
import multiprocessing

import numpy as np


class Encoder:
    """A worker's half: a line to a list of ids and the lengths of its sequences."""

    tokenizer = None

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def start(self) -> None:
        """Load the tokenizer, once a worker."""
        from transformers import AutoTokenizer

        Encoder.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def encode(self, line: str) -> tuple[list[int], list[int], int]:
        """Ids with the end of the document, lengths, bytes read."""
        ids = Encoder.tokenizer(json.loads(line)["text"]).input_ids
        if ids:
            ids.append(Encoder.tokenizer.eos_token_id)
        return ids, [len(ids)] if ids else [], len(line)


def main() -> None:
    """Run it."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    parser = argparse.ArgumentParser()
    parser.add_argument("input")
    parser.add_argument("tokenizer")
    parser.add_argument("prefix")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    encoder = Encoder(options.tokenizer)
    builder = IndexedDatasetBuilder(f"{options.prefix}.bin", dtype=np.int32)
    with (
        open(options.input, encoding="utf-8") as lines,
        multiprocessing.Pool(options.workers, initializer=encoder.start) as pool,
    ):
        for ids, lengths, _ in pool.imap(encoder.encode, lines, 32):
            if ids:
                builder.add_document(ids, lengths)
    builder.finalize(f"{options.prefix}.idx")


if __name__ == "__main__":
    main()
