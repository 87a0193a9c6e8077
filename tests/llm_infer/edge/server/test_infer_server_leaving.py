"""A response ends when its client leaves, at whatever moment that is."""

import asyncio

import pytest

from llm_infer.edge.server.reply import CLIENT_LEFT, AnswerResponse, Watch
from llm_infer.openai_api.answers import CompletionFormat, Envelope, Piece
from llm_infer.serving.mailbox import Mailbox
from llm_infer.serving.runner import Ticket

ENVELOPE = Envelope(id="cmpl-1", created=0, model="m", has_logprobs=False, includes_usage=False)


class Endless(Mailbox):
    """An answer that never ends."""

    async def get(self):
        await asyncio.sleep(0)
        return [Piece(index=0, text="a")]


async def leave_after(num_sends, num_turns):
    """Statuses told at the end, the client leaving `num_turns` of the loop before a send ends."""
    left, sent, ends = asyncio.Event(), [], []

    async def receive():
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if len(sent) == num_sends:
            left.set()
            for _ in range(num_turns):
                await asyncio.sleep(0)

    mailbox = Endless(asyncio.get_running_loop())
    watch = Watch(first_piece=lambda: None, usage=lambda usage: None, end=ends.append)
    response = AnswerResponse(
        Ticket(mailbox=mailbox, num_places=1, num_prompt=1),
        CompletionFormat(ENVELOPE),
        prefixes=[""],
        is_stream=True,
        includes_usage=False,
        send_timeout_s=60,
        watch=watch,
    )
    running = asyncio.ensure_future(response({}, receive, send))
    for _ in range(200):
        await asyncio.sleep(0)
    is_done = running.done()
    while not running.done():
        running.cancel()
        await asyncio.sleep(0)
    return is_done, ends


@pytest.mark.parametrize("num_turns", range(8))
def test_a_client_that_leaves_while_a_send_ends_is_not_written_to_any_more(num_turns):
    """Before Python 3.12 `asyncio.wait_for` returns what it waited for and is not cancelled."""
    assert asyncio.run(leave_after(5, num_turns)) == (True, [CLIENT_LEFT])
