"""From a checked request and its tokens to what the engine is asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llm_infer.detokenize import Decode
from llm_infer.guide import Guide, NewGuide
from llm_infer.openai_api.errors import invalid, too_long
from llm_infer.openai_api.requests import Common
from llm_infer.sampling import Beams, Sampling
from llm_infer.tools.answers import AnswerReading

_DEFAULT_TEMPERATURE = 1.0
"""OpenAI's, where the command line's is 0."""
_MOST_DIGITS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Text in which there may be thoughts and calls of tools."""

    answer: AnswerReading
    decode: Decode
    """Leaves the marks of both in the text."""


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt as text and tokens."""

    text: str
    tokens: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One answer to compute, or those of one beam search."""

    prompt: Sequence[int]
    sampling: Sampling
    guide: Guide | None = None
    """What its tokens are held to."""
    reading: Reading | None = None
    """How its text is read; None: as it is."""
    echo: Echo | None = None
    """The prompt as it is told before the answer, where its tokens' probabilities are."""
    is_empty: bool = False
    """Whether the answer has no tokens: `max_tokens` 0."""

    @property
    def num_answers(self) -> int:
        """How many it gives."""
        return 1 if self.sampling.beams is None else self.sampling.beams.num_texts

    @property
    def num_places(self) -> int:
        """Texts that are computed for it at once."""
        return 1 if self.sampling.beams is None else self.sampling.beams.num_beams


def jobs(
    request: Common,
    prompts: Sequence[Sequence[int]],
    *,
    context_length: int,
    vocab_size: int,
    seed: int,
    param: str,
    new_guide: NewGuide | None = None,
    reading: Reading | None = None,
    echoed: Sequence[str] | None = None,
) -> list[Job]:
    """`n` answers a prompt, in the order of the prompts; answer i is drawn with `seed + i`.

    A beam search gives all answers to its prompt; search i is drawn with `seed + i`.

    `seed` is used where the request brings none; `echoed` has the text of each prompt where answers
    begin with the probabilities of its tokens. Raises `ApiError` for a prompt that cannot be
    answered; `param` names the field it came in.
    """
    for prompt in prompts:
        _check_prompt(prompt, context_length=context_length, vocab_size=vocab_size, param=param)
    first = seed if request.seed is None else request.seed
    bias = _logit_bias(request.logit_bias, vocab_size=vocab_size)
    beams = request.beams
    found: list[Job] = []
    for number, prompt in enumerate(prompts):
        room = context_length - len(prompt)
        echo = None if echoed is None else Echo(echoed[number], prompt)
        for _ in range(request.num_choices if beams is None else 1):
            seed_of = first + len(found)
            try:
                sampling = _sampling(request, room=room, seed=seed_of, bias=bias, beams=beams)
            except ValueError as error:
                raise invalid(str(error), param=str(error).partition(":")[0]) from None
            guide = None if new_guide is None else new_guide()
            job = Job(
                prompt=prompt,
                sampling=sampling,
                guide=guide,
                reading=reading,
                echo=echo,
                is_empty=request.token_limit == 0,
            )
            found.append(job)
    return found


def _check_prompt(
    prompt: Sequence[int], *, context_length: int, vocab_size: int, param: str
) -> None:
    if not prompt:
        raise invalid("the prompt is empty and the tokenizer adds nothing to it", param=param)
    if len(prompt) >= context_length:
        raise too_long(num_prompt_tokens=len(prompt), context_length=context_length, param=param)
    if strays := [token for token in prompt if not 0 <= token < vocab_size]:
        raise invalid(f"{param}: found token {strays[0]}, want 0 to {vocab_size - 1}", param=param)


def _sampling(
    request: Common, *, room: int, seed: int, bias: Mapping[int, float], beams: Beams | None
) -> Sampling:
    temperature, penalty = request.temperature, request.repetition_penalty
    if temperature is None:
        # A search draws nothing unless it is told to.
        temperature = _DEFAULT_TEMPERATURE if beams is None else 0.0
    return Sampling(
        # An answer of no tokens is one token that nobody is told.
        max_new_tokens=1 if request.token_limit == 0 else min(request.token_limit or room, room),
        temperature=temperature,
        # vLLM's -1 and 0 both mean off.
        top_k=max(request.top_k or 0, 0),
        top_p=1.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        repetition_penalty=1.0 if penalty is None else penalty,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        logit_bias=tuple(bias.items()),
        seed=seed % (1 << 63),
        stop=request.stops,
        logprobs=request.num_logprobs,
        beams=beams,
    )


def _logit_bias(found: Mapping[str, float] | None, *, vocab_size: int) -> dict[int, float]:
    """JSON's keys are texts."""
    bias: dict[int, float] = {}
    for key, value in (found or {}).items():
        # Python makes no number of thousands of digits.
        is_number = key.isascii() and key.isdecimal() and len(key) <= _MOST_DIGITS
        if not (is_number and int(key) < vocab_size):
            shown = repr(key) if len(key) <= 40 else f"{key[:40]!r}..."
            wanted = f"want tokens from 0 to {vocab_size - 1}"
            raise invalid(f"logit_bias: found {shown}, {wanted}", param="logit_bias")
        bias[int(key)] = value
    return bias
