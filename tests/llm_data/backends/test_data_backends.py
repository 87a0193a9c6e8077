"""Both backends against `transformers`, tokenizer family by tokenizer family."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from llm_data.backends.backend import BackendName, BackendSpec
from llm_data.backends.choice import choose
from llm_data.backends.gigatoken import GigatokenBackend
from llm_data.backends.hard_texts import hard_texts
from llm_data.errors import DataError, UsageError

# The splitting patterns that Qwen2 and Llama 3 publish in their tokenizer.json.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
SIGNS_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{SIGNS_AND_SPACE}"
LLAMA3 = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{SIGNS_AND_SPACE}"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|begin_of_text|>"]


def learned(tokenizer, **options):
    texts = ["the cat and the dog, isn't it? 我们今天去公园。 été naïve"] * 3 + hard_texts([])
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=SPECIAL, show_progress=False, **options
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def byte_level(pattern, *, model=None):
    tokenizer = Tokenizer(model or models.BPE())
    split = pre.Split(Regex(pattern), behavior="isolated")
    bytes_only = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre.Sequence([split, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def qwen2():
    tokenizer = byte_level(QWEN2)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer = learned(tokenizer, initial_alphabet=pre.ByteLevel.alphabet())
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken(" wide ")])
    return tokenizer


def llama3():
    """`ignore_merges`, and a token before every text."""
    tokenizer = learned(
        byte_level(LLAMA3, model=models.BPE(ignore_merges=True)),
        initial_alphabet=pre.ByteLevel.alphabet(),
    )
    tokenizer.add_special_tokens([AddedToken("<|eot|>", lstrip=True, rstrip=True)])
    bos, eos = "<|begin_of_text|>", "<|endoftext|>"
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (bos, eos)],
    )
    return tokenizer


def gpt2():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    return learned(tokenizer, initial_alphabet=pre.ByteLevel.alphabet())


def llama2():
    """Words with their spaces as one sign, and bytes for characters not in the vocabulary."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    body = json.loads(learned(tokenizer).to_str())
    vocab = body["model"]["vocab"]
    for token in ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]:
        vocab.setdefault(token, len(vocab))
    return Tokenizer.from_str(json.dumps(body))


FAMILIES = {"qwen2": qwen2, "llama3": llama3, "gpt2": gpt2, "llama2": llama2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tokenizer.json of each family."""
    folder = tmp_path_factory.mktemp("tokenizers")
    for name, make in FAMILIES.items():
        make().save(str(folder / f"{name}.json"))
    return {name: folder / f"{name}.json" for name in FAMILIES}


def transformers_ids(file, texts):
    return PreTrainedTokenizerFast(tokenizer_file=str(file))(texts)["input_ids"]


def ids_of(spec, file, texts):
    return [[int(number) for number in ids] for ids in spec.load(file).encode(texts)]


@pytest.mark.parametrize("family", FAMILIES)
def test_both_backends_have_the_ids_of_transformers(files, family):
    file = files[family]
    chosen = choose("gigatoken", tokenizer_file=file, texts=["some text"])
    assert chosen.spec.name is BackendName.GIGATOKEN
    texts = [*hard_texts(SPECIAL), "", "a" * 5000]
    wanted = transformers_ids(file, texts)
    assert ids_of(BackendSpec(), file, texts) == wanted
    assert ids_of(pickle.loads(pickle.dumps(chosen.spec)), file, texts) == wanted


@pytest.fixture(scope="module")
def loaded(files):
    """transformers' tokenizer and gigatoken, of the two families with the most rules."""
    pairs = []
    for family in ("qwen2", "llama3"):
        spec = choose("gigatoken", tokenizer_file=files[family], texts=[]).spec
        reference = PreTrainedTokenizerFast(tokenizer_file=str(files[family]))
        pairs.append((reference, spec.load(files[family])))
    return pairs


PIECES = st.one_of(
    st.text(st.characters(max_codepoint=0x33FF, exclude_categories=["Cs", "Cn"]), max_size=12),
    st.sampled_from(
        [*SPECIAL, "<tool_call>", " wide ", "<|eot|>", "'Re", "\r\n", "  ", "公园", "12"]
    ),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(pieces=st.lists(PIECES, max_size=8))
def test_gigatoken_has_the_ids_of_transformers_on_any_text(loaded, pieces):
    text = "".join(pieces)
    for reference, backend in loaded:
        (found,) = backend.encode([text])
        assert list(found) == reference(text)["input_ids"]


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
def test_joining_puts_the_same_bytes_into_every_column(files, dtype):
    texts = ["the cat", "我们今天", "isn't it?"]
    wanted = [number for ids in transformers_ids(files["llama3"], texts) for number in (*ids, 7)]
    spec = choose("gigatoken", tokenizer_file=files["llama3"], texts=[]).spec
    for backend in (BackendSpec().load(files["llama3"]), spec.load(files["llama3"])):
        pieces = [piece for ids in backend.encode(texts) for piece in (ids, (7,))]
        assert backend.join(pieces, dtype=dtype) == np.array(wanted, dtype=dtype).tobytes()
        assert backend.join([], dtype=dtype) == b""


def test_truncation_and_padding_of_the_file_are_not_applied(files, tmp_path):
    tokenizer = Tokenizer.from_file(str(files["qwen2"]))
    wanted = tokenizer.encode("the cat and the dog").ids
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    for name in BackendName:
        assert ids_of(BackendSpec(name=name), file, ["the cat and the dog"]) == [wanted]


def test_forgetting_words_changes_no_id(files):
    texts = hard_texts(SPECIAL)[::5]
    forgetful = GigatokenBackend(files["qwen2"], cache_bytes=-(1 << 40), least_text=0)
    found = [[int(number) for ids in forgetful.encode([text]) for number in ids] for text in texts]
    assert forgetful.num_builds == len(texts) + 1
    assert found == transformers_ids(files["qwen2"], texts)


MEMORY_SCRIPT = """
import random, sys
from pathlib import Path
from llm_data.backends.gigatoken import GigatokenBackend
from llm_data.backends.memory import resident_bytes
backend = GigatokenBackend(Path(sys.argv[1]), cache_bytes=int(sys.argv[2]), least_text=1 << 20)
rng, start, most = random.Random(1), resident_bytes(), 0
letters = bytes.maketrans(b"0123456789", b"ghijklmnop")
for _ in range(120):
    words = (rng.randbytes(10).hex().encode().translate(letters).decode() for _ in range(6000))
    backend.encode([" ".join(words)])
    most = max(most, resident_bytes())
print((most - start) >> 20)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc: counts text instead")
def test_ever_new_words_do_not_grow_a_worker_without_bound(files):
    """15 MB of words that never come twice; the last bound is none."""
    bounded, unbounded = (
        int(
            subprocess.check_output([sys.executable, "-c", MEMORY_SCRIPT, files["gpt2"], str(most)])
        )
        for most in (8 << 20, 1 << 40)
    )
    assert bounded <= 48
    assert unbounded >= 72


def test_a_mismatch_means_hf_for_the_run_and_says_where(files, tmp_path):
    """`single_word` is a rule that gigatoken 0.10 does not know."""
    tokenizer = Tokenizer.from_file(str(files["gpt2"]))
    tokenizer.add_tokens([AddedToken("inner", single_word=True)])
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    chosen = choose("auto", tokenizer_file=file, texts=["text"])
    assert chosen.spec == BackendSpec(name=BackendName.HF)
    assert "backend: hf, because" in chosen.message
    assert "does not give hf's ids: the hard text" in chosen.message
    with pytest.raises(DataError, match=r"tokenizer\.json: gigatoken does not give hf's ids"):
        choose("gigatoken", tokenizer_file=file, texts=["text"])


def test_a_mismatch_in_the_runs_own_documents_is_seen(files, tmp_path):
    """A rule broken by no hard text: only the 65th and later added tokens are not tried."""
    tokenizer = Tokenizer.from_file(str(files["gpt2"]))
    tokenizer.add_tokens([f"<reserved {number}>" for number in range(64)])
    tokenizer.add_tokens([AddedToken("inner", single_word=True)])
    file = tmp_path / "tokenizer.json"
    tokenizer.save(str(file))
    assert choose("auto", tokenizer_file=file, texts=["fine"]).spec.name is BackendName.GIGATOKEN
    chosen = choose("auto", tokenizer_file=file, texts=["fine", "the innermost"])
    assert chosen.spec.name is BackendName.HF
    assert "the run's document 1 ('the innermost'…), from token" in chosen.message


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram"])
def test_a_tokenizer_that_gigatoken_cannot_load_is_left_to_hf(tmp_path, kind):
    vocab = {"[UNK]": 0, "a": 1, "b": 2}
    model = {
        "WordPiece": lambda: models.WordPiece(vocab, unk_token="[UNK]"),
        "Unigram": lambda: models.Unigram([("[UNK]", -1.0), ("a", -2.0), ("b", -2.0)], 0, False),
    }[kind]()
    file = tmp_path / "tokenizer.json"
    Tokenizer(model).save(str(file))
    chosen = choose("auto", tokenizer_file=file, texts=["a"])
    assert chosen.spec.name is BackendName.HF
    assert f'gigatoken cannot load it: Unsupported model type "{kind}"' in chosen.message
    with pytest.raises(DataError, match="gigatoken cannot load it"):
        choose("gigatoken", tokenizer_file=file, texts=["a"])


def test_without_gigatoken_auto_is_hf_and_asking_for_it_says_how_to_get_it(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    chosen = choose("auto", tokenizer_file=files["gpt2"], texts=["a"])
    assert chosen.spec.name is BackendName.HF
    assert "gigatoken is not installed; pip install gigatoken" in chosen.message
    with pytest.raises(UsageError, match="pip install gigatoken"):
        choose("gigatoken", tokenizer_file=files["gpt2"], texts=["a"])


def test_a_file_that_is_no_tokenizer_is_an_error_for_every_choice(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    for choice in ("auto", "gigatoken"):
        with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
            choose(choice, tokenizer_file=file, texts=["a"])
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer"):
        choose("hf", tokenizer_file=file, texts=["a"]).spec.load(file)
