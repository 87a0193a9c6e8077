"""Small tokenizers of every kind that chat models use, trained here."""

import json
import random
from functools import cache

from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
WORDS = (
    *("hello", "world", "answer", "question", "the", "quick", "brown", "fox", "jumps", "[INST]"),
    *(
        "[/INST]",
        "user",
        "assistant",
        "über",
        "日本語",
        "テキスト",
        "naïve",
        "don't",
        "12345",
        "x=1;",
    ),
    *("🙂", "👩\u200d👧", "\n", "\n\n", "  ", "\t", "é", "good.", "(bad)", "Answer:", "¿qué?"),
)
# The splitting rule of Qwen2 and, but for the runs of digits, Llama 3.
QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def random_text(rng: random.Random, *, words: int = 12) -> str:
    """Words and spaces in any order, not empty."""
    chosen = rng.choices(WORDS, k=rng.randint(1, words))
    return "".join(word + rng.choice(["", " ", " "]) for word in chosen)


@cache
def byte_level() -> Tokenizer:
    """Byte-level BPE as Qwen2 has it: NFC, a regular expression, bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


@cache
def sentencepiece(prefix: str) -> Tokenizer:
    """SentencePiece-like BPE with byte fallback; `prefix` "prepend" is a normalizer, as the older
    Llama-2 files have it, "first" and "always" are Metaspace's schemes.
    """
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    if prefix == "prepend":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    byte_tokens = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=[*SPECIAL, *byte_tokens],
        limit_alphabet=60,
        show_progress=False,
    )
    # One word a line: without splitting, a merge would join whole sentences.
    words = (word for text in _corpus() for word in text.split() if word.isascii())
    tokenizer.train_from_iterator(words, trainer)
    return _without_added(tokenizer, keep=len(SPECIAL))


@cache
def unigram() -> Tokenizer:
    """Unigram with Metaspace."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=list(SPECIAL), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


@cache
def word_piece() -> Tokenizer:
    """WordPiece as BERT has it: spaces are not tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    trainer = trainers.WordPieceTrainer(
        vocab_size=500, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return tokenizer


KINDS = {
    "byte-level": byte_level,
    "sentencepiece-prepend": lambda: sentencepiece("prepend"),
    "sentencepiece-first": lambda: sentencepiece("first"),
    "sentencepiece-always": lambda: sentencepiece("always"),
    "unigram": unigram,
    "word-piece": word_piece,
}
# Those that keep every character, so that decoding gives the text back.
LOSSLESS = tuple(kind for kind in KINDS if kind != "word-piece" and kind != "unigram")


def _corpus() -> list[str]:
    rng = random.Random(0)
    return [random_text(rng, words=30) for _ in range(300)]


def _without_added(tokenizer: Tokenizer, *, keep: int) -> Tokenizer:
    """Bytes are pieces of the model there, not added tokens."""
    body = json.loads(tokenizer.to_str())
    body["added_tokens"] = body["added_tokens"][:keep]
    return Tokenizer.from_str(json.dumps(body))
