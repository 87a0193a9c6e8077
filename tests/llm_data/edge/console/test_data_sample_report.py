"""What `inspect` prints of the contract's golden datasets, whose texts are known by hand."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models

from llm_data.edge.console.sample_report import LEARNED_STYLE, inspect_samples, pieces_of
from llm_data.errors import DataError

CONTRACTS = Path(__file__).parents[3] / "contracts"
GOLDEN = CONTRACTS / "sample_dataset/golden"
TOKENIZER = CONTRACTS / "token_dataset/golden/tokenizer"


def printed(kind, *, rows=9, **options):
    stream = io.StringIO()
    console = Console(file=stream, width=200, soft_wrap=True, highlight=False, **options)
    inspect_samples(GOLDEN / kind / "tiny", tokenizer=TOKENIZER, rows=rows, console=console)
    return stream.getvalue()


def after_rules(text):
    """The lines that are no table and no rule."""
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("row 0"))
    return [line for line in lines[first:] if "──" not in line]


def test_learned_text_is_between_marks_where_there_are_no_colours():
    assert after_rules(printed("sft"))[:4] == [
        "7 tokens, 4 learned:",
        "hi>⟦yes<|endoftext|>⟧",
        "10 tokens, 6 learned:",
        "1>⟦a<|endoftext|>⟧2>⟦bé<|endoftext|>⟧",
    ]


def test_learned_text_is_coloured_on_a_terminal():
    text = printed("sft", force_terminal=True, color_system="standard")
    assert "hi>\x1b[1;32myes<|endoftext|>\x1b[0m" in text
    assert "⟦" not in text


def test_samples_of_a_packed_row_stand_apart():
    assert after_rules(printed("sft_packed"))[4:] == [
        "sample 1 10 tokens, 6 learned:",
        "1>⟦a<|endoftext|>⟧2>⟦bé<|endoftext|>⟧",
        "sample 2 5 tokens, 2 learned:",
        "no>⟦!<|endoftext|>⟧",
        "then 1 times id 1",
    ]


def test_both_sides_of_a_pair_are_shown():
    assert after_rules(printed("pairwise")) == [
        "chosen 7 tokens, 5 learned:",
        "q>⟦good<|endoftext|>⟧",
        "rejected 6 tokens, 4 learned:",
        "q>⟦bad<|endoftext|>⟧",
    ]


def test_further_columns_of_a_prompt_are_named():
    lines = after_rules(printed("prompt"))
    assert lines[6:] == ["4 tokens:", "2+3>", "answer:", "five", "level:", "x"]


def test_rewards_follow_their_steps():
    assert after_rules(printed("prm")) == ["4 tokens, 2 rewards:", "a#⟦→+⟧b#⟦→-⟧"]


def test_counts_say_how_full_packed_rows_are():
    # 7 + 9 and 10 + 5 tokens in two rows of 16, of which 4 + 7 + 6 + 2 are learned.
    text = printed("sft_packed", rows=0)
    assert "16 entries a row, 96.88% of them tokens" in text
    assert "19 (61.3% of the tokens)" in text
    assert "row 0" not in text


def test_another_tokenizer_is_refused(tmp_path):
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(DataError, match="was written with ef43fde1afc791fb…"):
        inspect_samples(GOLDEN / "sft" / "tiny", tokenizer=tmp_path, rows=1)


def test_pieces_keep_the_spaces_a_decoder_drops_at_its_first_token():
    tokenizer = Tokenizer(models.WordLevel({"▁to": 0, "▁be": 1, "▁or": 2}, unk_token="▁to"))
    tokenizer.decoder = decoders.Metaspace()
    decode = lambda ids: tokenizer.decode(ids.tolist(), skip_special_tokens=False)  # noqa: E731
    ids, learned = np.array([0, 1, 2, 0]), np.array([False, True, True, False])
    assert [*pieces_of(ids, learned, decode)] == [
        ("to", None),
        (" be or", LEARNED_STYLE),
        (" to", None),
    ]


def test_a_text_cannot_steer_the_terminal(tmp_path):
    from llm_data.edge.console.sample_report import Piece, _print_text

    stream = io.StringIO()
    _print_text("t", [Piece("a\x1b[2Jb\n", None)], Console(file=stream))
    assert stream.getvalue() == "t:\na␛[2Jb\n\n"
