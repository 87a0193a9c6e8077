"""llm-eval's scorer: against lm-eval's `hf` on the same requests, and over every format."""

import shutil

import pytest
from click.testing import CliRunner

from llm_ckpt.cli import main as llm_ckpt
from llm_eval.cli import main as llm_eval
from llm_infer.edge.scorer import open_scorer
from tiny_lm import TEXT, edit_json, make_model

PAIRS = [
    ("def read(path):", "\n    with open(path)"),
    ("def read(path): ", "with"),
    ("", "Grüße aus Köln"),
    ("Привет,", " мир. 🙂"),
    (TEXT * 4, " The quick brown fox"),
    *(
        (f"{TEXT}\nQuestion {n}: which?\nAnswer:", f" {letter}")
        for n in (1, 2)
        for letter in "ABCD"
    ),
]
GENERATIONS = [
    ("def read(path):", ["\n", "e"], 20),
    ("Grüße", [], 30),
    ("", ["a"], 8),
    (TEXT * 4, ["zzz"], 25),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A qwen3 whose context is three blocks of the cache."""
    root = tmp_path_factory.mktemp("scorer")
    return make_model(root / "qwen3", "qwen3", context=192, spread=0.15)


def _open(folder, **changes):
    options = {"device": "cpu", "dtype": "float32", "batch_size": 8, "max_length": None}
    options["threads"] = None
    return open_scorer(folder, **(options | changes))


@pytest.fixture(scope="module")
def scorer(folder):
    return _open(folder)


@pytest.fixture(scope="module")
def theirs(folder):
    """lm-eval's own model over the folder."""
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=1)


def _instances(kind, requests):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, request, 0) for request in requests]


def _logprobs(scores):
    return [score.logprob for score in scores]


def test_pairs_score_as_lm_evals_hf(scorer, theirs):
    expected = theirs.loglikelihood(_instances("loglikelihood", PAIRS), disable_tqdm=True)
    found = scorer.loglikelihood(PAIRS)
    assert _logprobs(found) == pytest.approx([logprob for logprob, _ in expected], abs=1e-5)
    assert [one.is_greedy for one in found] == [is_greedy for _, is_greedy in expected]


def test_what_greedy_decoding_writes_is_greedy(scorer, theirs):
    contexts = [TEXT[:length] for length in range(5, 60)]
    texts = scorer.generate([(context, (), 1) for context in contexts])
    pairs = [
        (context, text)
        for context, text in zip(contexts, texts, strict=True)
        # Not where the text becomes one token with the end of its context.
        if len(theirs.tok_encode(context + text)) > len(theirs.tok_encode(context))
    ]
    expected = theirs.loglikelihood(_instances("loglikelihood", pairs), disable_tqdm=True)
    greedy = [is_greedy for _, is_greedy in expected]
    assert [one.is_greedy for one in scorer.loglikelihood(pairs)] == greedy
    assert any(greedy)


def test_rolling_scores_are_lm_evals_hf(scorer, theirs):
    texts = ["Grüße", TEXT, TEXT * 8]
    asked = _instances("loglikelihood_rolling", [(text,) for text in texts])
    found = scorer.loglikelihood_rolling(texts)
    expected = theirs.loglikelihood_rolling(asked, disable_tqdm=True)
    assert _logprobs(found) == pytest.approx(expected, rel=1e-6)
    assert [one.num_tokens for one in found] == [len(theirs.tok_encode(text)) for text in texts]
    assert found[-1].num_tokens > 512  # more than one step, so one window is cut


def test_generations_are_lm_evals_hf(scorer, theirs):
    asked = [
        (context, {"until": list(until), "max_gen_toks": limit, "do_sample": False})
        for context, until, limit in GENERATIONS
        if context  # lm-eval's own cannot generate from nothing
    ]
    expected = theirs.generate_until(_instances("generate_until", asked), disable_tqdm=True)
    found = scorer.generate([one for one in GENERATIONS if one[0]])
    assert found == expected
    assert any(found)


@pytest.mark.parametrize(
    "layout", [("--layout", "v1", "--tp", "2", "--pp", "2"), ("--layout", "v2")], ids=["v1", "v2"]
)
def test_megatron_checkpoints_as_they_lie_score_as_the_hf_folder_to_the_bit(
    layout, folder, scorer, tmp_path
):
    words = ["convert", folder, "--output", tmp_path / "mcore", "--to", "mcore", *layout]
    result = CliRunner().invoke(llm_ckpt, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    other = _open(tmp_path / "mcore")
    assert other.loglikelihood(PAIRS) == scorer.loglikelihood(PAIRS)
    assert other.loglikelihood_rolling([TEXT]) == scorer.loglikelihood_rolling([TEXT])
    assert other.generate(GENERATIONS) == scorer.generate(GENERATIONS)


def test_llm_eval_scores_a_megatron_checkpoint_as_its_hf_folder(folder, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    words = ["convert", folder, "--output", tmp_path / "mcore", "--to", "mcore"]
    assert CliRunner().invoke(llm_ckpt, [str(word) for word in words]).exit_code == 0
    found = []
    for model in (folder, tmp_path / "mcore"):
        words = ["perplexity", tmp_path / "text.txt", "--model", model, "--scorer", "llm-infer"]
        words += ["--output", tmp_path / f"out-{model.name}", "--device", "cpu"]
        result = CliRunner().invoke(llm_eval, [str(word) for word in words])
        assert result.exit_code == 0, result.output
        assert "scorer: llm-infer, native on cpu, float32" in result.stderr
        found.append(result.stdout)
    assert found[0] == found[1]
    assert "token_perplexity" in found[0]


# One that takes no system message, as Gemma's.
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}"
    "{% endif %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def test_a_megatron_folder_answers_through_its_chat_template_as_lm_evals_hf(folder, tmp_path):
    from lm_eval.models.huggingface import HFLM

    there = shutil.copytree(folder, tmp_path / "hf")
    edit_json(there / "tokenizer_config.json", chat_template=TEMPLATE)
    words = ["convert", there, "--output", tmp_path / "mcore", "--to", "mcore"]
    assert CliRunner().invoke(llm_ckpt, [str(word) for word in words]).exit_code == 0
    ours = _open(tmp_path / "mcore")
    theirs = HFLM(pretrained=str(there), device="cpu", dtype="float32", batch_size=1)
    system = {"role": "system", "content": "Be brief."}
    chat = [{"role": "user", "content": "Grüße"}, {"role": "assistant", "content": "An"}]
    for messages in (chat[:1], [system, *chat[:1]]):
        found = ours.apply_chat_template(messages, add_generation_prompt=True)
        assert found == theirs.apply_chat_template(messages)
        assert found.endswith("<assistant>")
    found = ours.apply_chat_template(chat, add_generation_prompt=False)
    assert found == theirs.apply_chat_template(chat, add_generation_prompt=False)
    assert found.endswith("An")
    assert ours.chat_template == theirs.chat_template(True) == TEMPLATE
    assert _open(folder).chat_template is None


def test_a_template_that_refuses_says_why(folder, tmp_path):
    there = shutil.copytree(folder, tmp_path / "hf")
    edit_json(there / "tokenizer_config.json", chat_template="{{ raise_exception('no users') }}")
    with pytest.raises(ValueError, match="no users"):
        _open(there).apply_chat_template(
            [{"role": "user", "content": "a"}], add_generation_prompt=True
        )


def test_a_scorer_computes_on_the_threads_it_is_given(folder):
    import torch

    before = torch.get_num_threads()
    try:
        _open(folder, threads=3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_score_does_not_depend_on_what_is_scored_beside_it(folder, scorer):
    together = scorer.loglikelihood(PAIRS)
    fresh = _open(folder)
    assert [fresh.loglikelihood([one])[0] for one in reversed(PAIRS)] == together[::-1]


def test_shared_examples_are_computed_once_and_choices_in_one_row(folder, theirs):
    """Counted by hand: blocks hold 64 tokens, and choices of one token read the same text."""
    scorer = _open(folder)
    examples = TEXT[:150]
    questions = [f"{examples}\nWhat is {n}?\n" for n in range(5)]
    scorer.loglikelihood([(asked[:-1], f"\n{x}") for asked in questions for x in "ABCD"])
    each = sum(len(theirs.tok_encode(asked)) for asked in questions)
    shared = len(theirs.tok_encode(examples)) // 64 * 64
    assert shared == 64
    assert scorer.reader.num_computed == each - 4 * shared
    scorer.loglikelihood([(asked[:-1], "\nE") for asked in questions])
    assert scorer.reader.num_computed == 2 * each - 9 * shared


def _without_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def _without_ends(folder):
    edit_json(folder / "tokenizer_config.json", eos_token=None)


@pytest.mark.parametrize(
    ("damage", "changes", "said"),
    [
        (_without_tokenizer, {}, "no tokenizer; want one of"),
        (_without_ends, {}, "neither bos_token nor eos_token"),
        (None, {"max_length": 193}, "max_length 193: the model's context is 192"),
        (None, {"device": "tpu"}, "device tpu: want one of auto, cpu, cuda, npu"),
        (None, {"dtype": "int3"}, "dtype int3: want one of auto, float32"),
    ],
)
def test_what_cannot_be_opened_says_why(damage, changes, said, folder, tmp_path):
    there = shutil.copytree(folder, tmp_path / "m")
    if damage is not None:
        damage(there)
    with pytest.raises(ValueError, match=said):
        _open(there, **changes)


def test_no_folder_and_no_room_are_refused(scorer, tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such model folder"):
        _open(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no room in the context of 192"):
        scorer.generate([("a", (), 192)])
    assert scorer.generate([("a", (), 1)])
