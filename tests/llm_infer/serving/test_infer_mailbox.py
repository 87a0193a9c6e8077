import asyncio

import pytest

from llm_infer.openai_api.answers import Piece, TokenText, ToolCalled, Usage
from llm_infer.serving.mailbox import Mailbox, SlowReaderError

CALL = ToolCalled(index=0, id="i", name="f", arguments="{}")


def test_what_waits_is_joined_and_loses_nothing():
    async def read():
        mailbox = Mailbox(asyncio.get_running_loop())
        for number in range(10_000):
            mailbox.put(Piece(index=number % 2, text=f"{number},"))
            if number == 7:
                mailbox.put(Piece(index=1, calls=(CALL,)))
        mailbox.put(Piece(index=0, finish="end"))
        mailbox.put(Piece(index=1, finish="stop"))
        mailbox.usage = Usage(num_prompt=1, num_new=1)
        pieces = await mailbox.get()
        assert len(pieces) < 150
        for index, finish in ((0, "end"), (1, "stop")):
            mine = [piece for piece in pieces if piece.index == index]
            assert "".join(p.text for p in mine) == "".join(
                f"{number}," for number in range(index, 10_000, 2)
            )
            assert [p.calls for p in mine if p.calls] == [(CALL,)] * index
            assert [p.finish for p in mine if p.finish] == [finish]
        assert await mailbox.get() == []

    asyncio.run(read())


def test_unread_probabilities_are_bounded():
    async def flood():
        mailbox = Mailbox(asyncio.get_running_loop())
        piece = Piece(index=0, text="x", tokens=(TokenText("x", -1.0),))
        for _ in range(Mailbox.MAX_UNREAD_TOKENS):
            mailbox.put(piece)
        with pytest.raises(SlowReaderError):
            mailbox.put(piece)

    asyncio.run(flood())
