"""Sentence splitting against nltk itself, with Punkt data trained here."""

import pickle
import shutil
import sys
from dataclasses import fields

import pytest

from llm_data.edge.sentences import find_sentences
from llm_data.errors import DataError, UsageError

nltk = pytest.importorskip("nltk")

from nltk.tokenize import punkt  # noqa: E402 - only if nltk is there

TRAINING = (
    "Dr. Smith met Mr. Jones at 5 p.m. yesterday. He said hello. They saw the U.S. embassy. "
    "Mr. Brown was there, too. Dr. Green came later. It was late. Mrs. White left. He said so. "
    "On Jan. 5 the dog barked. The end was near. The dog of Mr. Jones barked. It was fine. "
) * 30

TEXT = (
    'Dr. Smith said hello.  "Was it late?"\n\nHe went to Mr. Jones. The end!!! (So it was.)'
    "\tNo... Yes.And so."
)
TEXTS = [
    TEXT,
    TRAINING[:400],
    "",
    "   ",
    "no end",
    "One. Two.\n\n\nThree?\nfour. Five\n",
    "。日本語。",
]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A folder that nltk finds, with an English model."""
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    folder = tmp_path / "tokenizers" / "punkt_tab"
    folder.mkdir(parents=True)
    trainer = punkt.PunktTrainer()
    trainer.ABBREV = 0.1
    trainer.train(TRAINING, finalize=True)
    punkt.save_punkt_params(trainer.get_params(), dir=str(folder / "english"))
    return folder


@pytest.mark.parametrize("text", TEXTS)
def test_the_sentences_are_nltks(data, text):
    spec = find_sentences("english", keep_newlines=False)
    assert spec.build().split(text) == punkt.PunktTokenizer("english").tokenize(text)


def test_what_was_learned_decides(data):
    """Without its abbreviations Punkt ends a sentence after `Dr.`."""
    learned = find_sentences("english", keep_newlines=False).build().split(TEXT)
    assert learned[0] == 'Dr. Smith said hello.  "Was it late?"'
    assert punkt.PunktSentenceTokenizer().tokenize(TEXT)[0] == "Dr."


def test_kept_newlines_belong_to_the_sentence_before(data):
    """Hand-computed; as in Megatron the white space at the end of a text belongs to none."""
    split = find_sentences("english", keep_newlines=True).build().split
    assert split("One two.\n\nThree four?  Five.\n") == ["One two.\n\n", "Three four?  ", "Five."]
    assert split("Dr. Smith met Mr. Jones.\nHe left.") == ["Dr. Smith met Mr. Jones.\n", "He left."]
    assert find_sentences("english", keep_newlines=False).build().split("One two.\n\nThree.") == [
        "One two.",
        "Three.",
    ]


def test_a_very_long_text_is_cut_where_megatron_cuts_it(data):
    split = find_sentences("english", keep_newlines=False).build().split
    assert split("a" * 999_999 + "bcat. One two.") == ["a" * 999_999 + "b", "cat.", "One two."]


def test_a_spec_travels_to_a_process_that_finds_no_data(data, monkeypatch):
    sent = pickle.dumps(find_sentences("english", keep_newlines=False))
    expected = punkt.PunktTokenizer("english").tokenize(TEXT)
    shutil.rmtree(data)
    assert pickle.loads(sent).build().split(TEXT) == expected


def test_the_digest_is_that_of_the_data(data):
    def digest():
        return find_sentences("english", keep_newlines=False).digest

    before = digest()
    assert digest() == before
    abbreviations = data / "english" / "abbrev_types.txt"
    lines = abbreviations.read_text().splitlines()
    abbreviations.write_text("\n".join(reversed(lines)))
    assert digest() == before
    abbreviations.write_text("\n".join([*lines, "etc"]))
    assert digest() != before


def test_every_table_of_punkt_is_carried(data):
    """What Punkt's parameters hold in this nltk is what the spec holds."""
    spec = find_sentences("english", keep_newlines=False)
    theirs = vars(punkt.PunktTokenizer("english")._params)
    assert {field.name for field in fields(spec)} == {"tables", "keep_newlines", "digest"}
    assert vars(spec.build()._punkt._params) == theirs
    assert len(theirs) == len(spec.tables)


def test_missing_data_says_how_to_get_it(data):
    with pytest.raises(
        UsageError, match=r"--language german: no Punkt data for it .* only english"
    ):
        find_sentences("german", keep_newlines=False)
    shutil.rmtree(data)
    with pytest.raises(UsageError, match=r"without network unpack punkt_tab\.zip"):
        find_sentences("english", keep_newlines=False)


def test_a_language_is_a_name_not_a_path(data):
    with pytest.raises(DataError, match=r"--language \.\./english"):
        find_sentences("../english", keep_newlines=False)


def test_a_damaged_model_is_an_error(data):
    (data / "english" / "ortho_context.tab").write_text("one\n")
    with pytest.raises(DataError, match="--language english: no whole Punkt model"):
        find_sentences("english", keep_newlines=False)


def test_without_nltk_the_way_to_it_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "nltk"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=r"pip install 'llm-data\[sentences\]'"):
        find_sentences("english", keep_newlines=False)
