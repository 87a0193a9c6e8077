"""What a beam search needs of the cache, and the texts that it ends with as an engine's events."""

from collections.abc import Iterator, Sequence

from llm_infer.beam import BeamSearch, Found
from llm_infer.engine import EndReason, Event
from llm_infer.errors import InferError
from llm_infer.scheduler import Scheduler
from llm_infer.scheduler import Sequence as Text


def make_room(text: Text, search: BeamSearch, scheduler: Scheduler) -> None:
    """Let the scheduler know what a search wants; InferError where it never has it."""
    blocks, num_beams = scheduler.blocks, len(search.answers)
    if num_beams > scheduler.max_running:
        raise InferError(
            f"num_beams: found {num_beams}, want at most {scheduler.max_running}, the texts that "
            "run at once"
        )
    # The last token is chosen, but never computed.
    longest, size = text.num_prompt + search.max_new_tokens - 1, blocks.block_tokens
    shared = text.num_prompt // size
    own = -(-longest // size) - shared
    wanted, found = shared + num_beams * own, blocks.num_blocks
    if wanted > found:
        raise InferError(
            f"a beam search over {num_beams} texts of {longest} tokens: shared({shared}) + "
            f"beams({num_beams}) * own({own}) = {wanted} blocks of {size} tokens, and the "
            f"cache has {found}; use fewer beams or new tokens, or a larger cache"
        )
    text.num_branches, text.most_blocks = num_beams, wanted


def require_one_table(text: Text, search: BeamSearch, *, short_length: int | None) -> None:
    """Raise InferError where texts would grow past the length after which rope is another."""
    longest = text.num_prompt + search.max_new_tokens - 1
    if short_length is not None and text.num_prompt <= short_length < longest:
        raise InferError(
            f"a beam search from {text.num_prompt} to {longest} tokens: the model has another "
            f"rope table after {short_length}, and beams cannot change it on their way"
        )


def events_of(
    found: Found, request: int, *, at_length: EndReason, num_cached: int
) -> Iterator[Event]:
    """A text's tokens, all at once; `at_length` is why it ends where no end token ends it."""
    last = len(found.tokens) - 1
    for index, chosen in enumerate(found.tokens):
        yield Event(
            request=request,
            token=chosen.token,
            end=at_length if index == last and not found.is_ended else None,
            logprob=chosen.logprob,
            top_logprobs=chosen.top_logprobs,
            num_cached=num_cached,
            score=found.score,
        )
    if found.is_ended:
        yield Event(
            request=request, token=None, end="end", num_cached=num_cached, score=found.score
        )


def continued(text: Text, search: BeamSearch) -> Sequence[Sequence[int]]:
    """Prompt and answer of each text that goes on."""
    prompt = text.tokens[: text.num_prompt]
    return [[*prompt, *answer] for answer in search.answers]
