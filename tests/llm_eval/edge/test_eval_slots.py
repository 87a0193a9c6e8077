"""The cache of rows that come and go, against a plain list of what each row has read."""

from types import SimpleNamespace

PROMPT, LIFE = 4, 6


def test_rows_hold_what_they_have_read_while_others_come_go_and_all_move():
    import torch

    from llm_eval.harness.slots import Slots

    slots = Slots(3, longest=PROMPT + LIFE, longest_prompt=PROMPT)
    rows, number = [], 0
    for step in range(400):
        # Every second step a row enters, of one to four tokens.
        if step % 2 == 0 and len(rows) < 3:
            read = [float(number * 100 + n) for n in range(1 + number % PROMPT)]
            padded = torch.tensor(read + [-1.0] * (PROMPT - len(read)))[None, None, :, None]
            layer = SimpleNamespace(keys=padded, values=-padded)
            slots.admit(SimpleNamespace(layers=[layer]), [len(read)])
            rows.append(read)
            number += 1
        new = torch.tensor([row[-1] + 1 for row in rows])[:, None, None, None]
        mask = slots.inputs(new.device)["attention_mask"]
        keys, values = slots.update(new, -new, 0)
        slots.advance()
        rows = [[*row, row[-1] + 1] for row in rows]
        for row, key, value, seen in zip(rows, keys, values, mask.bool(), strict=True):
            assert key[0, seen, 0].tolist() == row
            assert value[0, seen, 0].tolist() == [-one for one in row]
        for place in reversed(range(len(rows))):
            if len(rows[place]) >= PROMPT + LIFE:
                slots.drop(place)
                rows[place] = rows[-1]
                rows.pop()
    assert number > 60
