"""What `--format auto` takes a run's records for, told from the keys of the first one."""

from collections.abc import Mapping

from llm_data.config import Task
from llm_data.errors import UsageError, listed
from llm_data.samples.columns import OPENAI, SHAREGPT, AlpacaColumns, ChatColumns, Format
from llm_data.samples.values import Body, decoded, is_list, is_object

# Keys of --map-keys that only one of the families of formats has.
_ALPACA_KEYS = frozenset({"prompt", "query", "response", "history"})
_CHAT_KEYS = frozenset({"messages", "tags"})


def detect_format(body: Body, *, task: Task, map_keys: Mapping[str, object], where: str) -> Format:
    """The format of a run whose first record this is, at `where`; UsageError if it is none of ours.

    Messages with `role` are OpenAI's, those with `from` ShareGPT's; keys of `--map-keys` that only
    one format has decide as well.
    """
    if task is Task.PRM:
        return Format.STEPS
    if _ALPACA_KEYS & map_keys.keys():
        return Format.ALPACA
    if "tags" in map_keys:
        return Format.SHAREGPT
    columns = [map_keys.get("messages"), *OPENAI.messages, *SHAREGPT.messages]
    if task is Task.PAIRWISE:
        columns += [map_keys.get(side, side) for side in ("chosen", "rejected")]
    for column in columns:
        message = _first_message(body.get(str(column)))
        for record_format, chat in ((Format.OPENAI, OPENAI), (Format.SHAREGPT, SHAREGPT)):
            if message is not None and _fits(message, chat):
                return record_format
    if AlpacaColumns().prompt in body and not _CHAT_KEYS & map_keys.keys():
        return Format.ALPACA
    raise UsageError(
        f"--format auto: {where}: the first record has {listed(body)}; want 'messages' with "
        "'role', 'conversations' with 'from', or 'instruction'. --format names the format, "
        "--map-keys other columns"
    )


def _fits(message: Body, columns: ChatColumns) -> bool:
    return columns.tags.role_tag in message


def _first_message(value: object) -> Body | None:
    """The first of a list that may be written as JSON; a message alone counts too."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        value = decoded(value, "a column")
    if is_list(value):
        value = value[0] if value else None
    return value if is_object(value) else None
