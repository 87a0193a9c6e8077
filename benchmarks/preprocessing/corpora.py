"""Real text and a tokenizer of a real size for `preprocess.py`, made once and kept."""

import ast
import hashlib
import json
import random
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

VOCAB_SIZE = 100_000
END = "<|endoftext|>"
# Qwen2's published splitting rule: words, single digits, signs, spaces.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DOCUMENT_BYTES = 3500
SUFFIXES = (".md", ".rst", ".txt", ".pod")

_HAN = re.compile("[\u4e00-\u9fff]")
_BLANK = re.compile(r"\n\s*\n")


def docstrings() -> Iterator[str]:
    """English prose about code: what the installed packages say of themselves."""
    for root in {sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")}:
        for path in sorted(Path(root).rglob("*.py")):
            try:
                nodes = list(ast.walk(ast.parse(path.read_bytes())))
            except (SyntaxError, ValueError, RecursionError):
                continue
            kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            found = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]
            yield "\n\n".join(text for text in found if len(text) > 200)


def files_under(folders: Iterable[Path]) -> Iterator[str]:
    """Every text file of the folders."""
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix in SUFFIXES and path.is_file():
                yield path.read_text(errors="replace")


def documents(texts: Iterable[str], *, chinese: bool) -> Iterator[str]:
    """Documents of about 4 kB out of paragraphs in one language, none of them twice."""
    seen: set[bytes] = set()
    for text in texts:
        kept: list[str] = []
        for paragraph in map(str.strip, _BLANK.split(text)):
            share = len(_HAN.findall(paragraph)) / max(1, len(paragraph))
            if len(paragraph) < 12 or not (share >= 0.35 if chinese else share <= 0.02):
                continue
            digest = hashlib.md5(paragraph.encode(errors="replace")).digest()[:8]
            if digest in seen:
                continue
            seen.add(digest)
            kept.append(paragraph)
            if sum(len(one.encode(errors="replace")) for one in kept) > DOCUMENT_BYTES:
                yield "\n\n".join(kept)
                kept = []
        if kept:
            yield "\n\n".join(kept)


def write_lines(file: Path, texts: Iterable[str], *, most_bytes: int | None = None) -> None:
    """JSON lines with one key, `text`, until there are enough."""
    size = 0
    with file.open("wb") as stream:
        for text in texts:
            line = json.dumps({"text": text}, ensure_ascii=False).encode(errors="replace") + b"\n"
            size += stream.write(line)
            if most_bytes is not None and size >= most_bytes:
                return


def read_lines(file: Path) -> Iterator[str]:
    """The texts of `write_lines`."""
    with file.open("rb") as stream:
        for line in stream:
            yield json.loads(line)["text"]


def varied(file: Path, *, seed: int) -> Iterator[str]:
    """The texts again and again, one word in 100 replaced by letters that were no word before.

    A bounded memory must show on new words; text that only repeats would hide an unbounded one.
    """
    rng = random.Random(seed)
    while True:
        for text in read_lines(file):
            words = text.split(" ")
            for _ in range(1 + len(words) // 100):
                size = rng.randint(4, 12)
                words[rng.randrange(len(words))] = "".join(rng.choices("etaoinshrdlu", k=size))
            yield " ".join(words)


def train_tokenizer(folder: Path, corpora: Iterable[Path], *, most_bytes: int = 40_000_000) -> None:
    """Byte-level BPE over half of the documents of each corpus."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre

    def texts() -> Iterator[str]:
        for corpus in corpora:
            left = most_bytes
            for number, text in enumerate(read_lines(corpus)):
                if number % 2 == 0 and left > 0:
                    left -= len(text.encode(errors="replace"))
                    yield text

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre.Split(Regex(SPLIT), behavior="isolated")
    bytes_only = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[END, "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
