"""What a request says of beam search, in vLLM's words and transformers'.

vLLM's server has `use_beam_search`, with `n` (before, `best_of`) for the number of beams and of
texts alike, and `length_penalty`; `num_beams` and `early_stopping` are those of transformers'
`generate`, where `n` is `num_return_sequences`.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from llm_infer.openai_api.errors import invalid
from llm_infer.sampling import Beams, EarlyStopping

MAX_BEAMS = 64


class BeamFields(BaseModel):
    """Fields of both kinds of requests."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    num_beams: int | None = Field(None, ge=1, le=MAX_BEAMS)
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: Literal[True, False, "never"] | None = None


def beams_of(fields: BeamFields, *, num_texts: int, best_of: int | None) -> Beams | None:
    """The settings of the search that is asked for; None where none is.

    Raises `ApiError` for fields that do not fit together.
    """
    num_beams = fields.num_beams
    if num_beams is None and fields.use_beam_search:
        num_beams = best_of or num_texts
        if num_beams == 1:
            raise _wrong("use_beam_search", "found one beam, want several: give num_beams, or n")
    if fields.use_beam_search is False and (num_beams or 1) > 1:
        raise _wrong("num_beams", f"found {num_beams} with use_beam_search false")
    if fields.use_beam_search and num_beams == 1:
        raise _wrong("num_beams", "found 1 with use_beam_search, want at least 2")
    if num_beams is None or num_beams == 1:
        for name in ("length_penalty", "early_stopping"):
            # vLLM's clients send what its defaults are.
            if getattr(fields, name) not in (None, 1.0, False):
                raise _wrong(name, "only with num_beams or use_beam_search")
        return None
    if num_beams > MAX_BEAMS:
        raise _wrong("n", f"found {num_beams} beams, want at most {MAX_BEAMS}")
    if num_texts > num_beams:
        raise _wrong("n", f"found {num_texts}, a search with {num_beams} beams has as many texts")
    if best_of is not None and best_of != num_beams:
        raise _wrong("best_of", f"found {best_of} with {num_beams} beams; leave it out")
    penalty = fields.length_penalty
    try:
        return Beams(
            num_beams=num_beams,
            num_texts=num_texts,
            length_penalty=1.0 if penalty is None else penalty,
            early_stopping=_early(fields.early_stopping),
        )
    except ValueError as error:
        raise invalid(str(error), param="length_penalty") from None


def _early(found: bool | Literal["never"] | None) -> EarlyStopping:
    if found == "never":
        return "never"
    return "true" if found else "false"


def _wrong(field: str, message: str) -> Exception:
    return invalid(f"{field}: {message}", param=field)
