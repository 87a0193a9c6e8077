"""lm-eval's prompt templates, compiled once."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from lm_eval import utils

# Far more templates than a run has; a few tasks make one of each document.
_KEPT = 4096


@contextmanager
def compiled_once() -> Iterator[None]:
    """Within it lm-eval compiles a template once, not again for every document and example.

    Its Jinja environment compiles anew in each `from_string`, several times a document.
    """
    own = vars(utils.env)
    own["from_string"] = lru_cache(_KEPT)(utils.env.from_string)
    try:
        yield
    finally:
        del own["from_string"]
