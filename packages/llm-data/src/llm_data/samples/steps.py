"""Solutions in steps with a reward for each: Math-Shepherd's records."""

from llm_data.messages import StepRewards
from llm_data.records import Reason, RecordRefusedError, kind_of
from llm_data.samples.columns import StepColumns
from llm_data.samples.values import Body, list_of, optional, required, text_of


class StepReader:
    """Reads the text, whose steps each end in a placeholder, and the rewards: a list in `value`,
    or the text again in `label` with a reward for each placeholder or after it.
    """

    def __init__(self, columns: StepColumns, *, placeholder: str) -> None:
        self._columns = columns
        self._placeholder = placeholder

    def rewards(self, body: Body, /) -> StepRewards:
        """The solution; as many rewards as placeholders."""
        columns, placeholder = self._columns, self._placeholder
        text = text_of(required(body, columns.input), repr(columns.input))
        if not text.strip():
            raise RecordRefusedError(Reason.EMPTY, f"{columns.input!r} has no text")
        if optional(body, columns.value) is None and optional(body, columns.label) is not None:
            label = text_of(body[columns.label], repr(columns.label))
            rewards = _written(text, label, placeholder=placeholder, where=repr(columns.label))
        else:
            rewards = _listed(required(body, columns.value), repr(columns.value))
        steps = text.count(placeholder)
        if steps != len(rewards):
            raise RecordRefusedError(
                Reason.WRONG_VALUE,
                f"{columns.input!r} has {steps} placeholders {placeholder!r} for {len(rewards)} "
                "rewards, want one a reward",
            )
        return StepRewards(text=text, rewards=rewards)


def _listed(value: object, where: str) -> tuple[str, ...]:
    found = list_of(value, where)
    for number, reward in enumerate(found, 1):
        if not isinstance(reward, str) or not reward:
            shown = repr(reward) if isinstance(reward, str) else kind_of(reward)
            detail = f"{where}, reward {number} is {shown}, want a string such as '+'"
            raise RecordRefusedError(Reason.WRONG_TYPE, detail)
    return tuple(map(str, found))


def _written(text: str, label: str, *, placeholder: str, where: str) -> tuple[str, ...]:
    """The word after each placeholder of the label; without placeholders, what stands in their
    stead.
    """
    if placeholder in label:
        words = [part.split(maxsplit=1) for part in label.split(placeholder)[1:]]
        if not all(words):
            raise _differs(where, f"a placeholder {placeholder!r} without a word after it")
        return tuple(word[0] for word in words)
    first, *parts = text.split(placeholder)
    if not label.startswith(first):
        raise _differs(where, "another text before the first placeholder")
    place, rewards = len(first), list[str]()
    for number, part in enumerate(parts, 1):
        is_last = number == len(parts)
        end = len(label) - len(part) if is_last else label.find(part, place + 1)
        reward = label[place:end] if end > place and label.startswith(part, end) else ""
        if reward.split() != [reward]:
            raise _differs(where, f"no single word in the place of placeholder {number}")
        rewards.append(reward)
        place = end + len(part)
    return tuple(rewards)


def _differs(where: str, found: str) -> RecordRefusedError:
    return RecordRefusedError(
        Reason.WRONG_VALUE, f"{where} has {found}, want the input with a reward for each step"
    )
