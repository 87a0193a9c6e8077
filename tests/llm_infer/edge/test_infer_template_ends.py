"""The end tokens that a named template has beside its text; tokens are known by hand."""

import shutil
from dataclasses import dataclass, field

import pytest

from llm_infer.edge.choices import LoadOptions
from llm_infer.edge.local import LocalSpeaker
from llm_infer.edge.model_folder import load as load_transformers
from llm_infer.edge.native_model import load_native
from llm_infer.edge.templates import chat_template, ended_by, template_ends
from llm_infer.sampling import Sampling


@dataclass
class Named:
    """A tokenizer that knows some tokens by name."""

    tokens: dict = field(default_factory=dict)
    end_token: int | None = None

    def token(self, text):
        return self.tokens.get(text)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("chatml", ["<|im_end|>"]),
        ("glm4_moe", ["<|user|>", "<|observation|>"]),
        ("default", ["eos_token"]),
        # Harmony's <|end|> stands within an answer, too: after its thought.
        ("gpt_oss", ["<|return|>", "<|call|>"]),
    ],
)
def test_names_bring_their_ends(name, ends):
    assert list(template_ends(name)) == ends


def test_a_file_brings_none(tmp_path):
    (tmp_path / "chatml").write_text("{{ messages }}")
    assert template_ends(str(tmp_path / "chatml")) == ()


def test_a_token_ends_as_a_token_and_what_is_none_as_text():
    tokenizer = Named({"<|user|>": 7}, end_token=3)
    found = ended_by(Sampling(stop=("x",)), ["<|user|>", "<|observation|>", "eos_token"], tokenizer)
    assert (found.end_tokens, found.stop) == ((7, 3), ("x", "<|observation|>"))
    assert ended_by(Sampling(), ["eos_token"], Named()) == Sampling()


LOADERS = {
    "native": lambda folder: load_native(folder, LoadOptions(device="cpu", dtype="float32")),
    "transformers": lambda folder: load_transformers(folder, device="cpu", dtype="float32"),
}


@pytest.mark.parametrize("engine", LOADERS)
def test_an_answer_in_a_conversation_ends_with_it(models, tmp_path, engine):
    loaded = LOADERS[engine](shutil.copytree(models["qwen3"], tmp_path / "m"))
    messages, sampling = [{"role": "user", "content": "hi"}], Sampling(max_new_tokens=12)
    template = chat_template("chatml")

    def tokens(**settings):
        speaker = LocalSpeaker(loaded, template=template, **settings)
        stream = speaker.converse(messages, sampling)
        text = "".join(stream)
        return text, stream.num_tokens, stream.finish_reason

    prompt = loaded.tokenizer.encode_chat(messages, template)
    chosen = list(loaded.engine.generate(prompt, sampling))
    assert tokens() == (loaded.tokenizer.decode(chosen), 12, "length")
    at = next(at for at in range(2, 12) if chosen[at] not in chosen[:at])
    end = next(text for text, token in _vocabulary(models).items() if token == chosen[at])
    assert tokens(ends=[end]) == (loaded.tokenizer.decode(chosen[:at]), at, "end")


def _vocabulary(models):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(models["qwen3"]).get_vocab()
