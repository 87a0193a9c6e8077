import asyncio
import threading
import time
from contextlib import contextmanager

import pytest

from echo_server import CharTokenizer, EchoEngine
from llm_infer.errors import InferError
from llm_infer.openai_api.errors import ApiError
from llm_infer.openai_api.jobs import Job
from llm_infer.sampling import Sampling
from llm_infer.serving.runner import OverloadedError, Runner
from llm_infer.serving.serial import SerialEngine


def _job(prompt, **sampling):
    return Job(prompt=list(map(ord, prompt)), sampling=Sampling(**sampling))


@contextmanager
def _runner(engine, **settings):
    runner = Runner(engine, CharTokenizer().decode, **({"max_open": 8} | settings))
    runner.start()
    try:
        yield runner
    finally:
        runner.stop()


async def _text(ticket):
    text = ""
    while pieces := await ticket.mailbox.get():
        text += "".join(piece.text for piece in pieces)
    return text


async def _until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("wrap", [lambda engine: engine, SerialEngine], ids=["batch", "serial"])
def test_answers_come_to_those_who_asked(wrap):
    async def ask(runner):
        tickets = [
            runner.submit([_job(text, max_new_tokens=9)], num_prompt=len(text))
            for text in ("ab", "xyz")
        ]
        texts = await asyncio.gather(*map(_text, tickets))
        assert texts == ["ababababa", "xyzxyzxyz"]
        assert [ticket.mailbox.usage.num_new for ticket in tickets] == [9, 9]

    with _runner(wrap(EchoEngine())) as runner:
        asyncio.run(ask(runner))


def test_a_stop_string_ends_the_computation():
    engine = EchoEngine()

    async def ask(runner):
        ticket = runner.submit([_job("abc", max_new_tokens=500, stop=("ca",))], num_prompt=3)
        assert await _text(ticket) == "ab"
        assert ticket.mailbox.usage.num_new == 4

    with _runner(engine) as runner:
        asyncio.run(ask(runner))
    assert engine.cancelled == [0]


def test_a_closed_ticket_is_cancelled_and_gives_its_places_back():
    engine = EchoEngine(step_s=0.001)

    async def ask(runner):
        ticket = runner.submit([_job("ab", max_new_tokens=4000)] * 8, num_prompt=2)
        await ticket.mailbox.get()
        with pytest.raises(OverloadedError):
            runner.submit([_job("x")], num_prompt=1)
        runner.close(ticket)
        runner.close(ticket)
        assert runner.num_open == 0
        await _until(lambda: not engine.requests)
        assert await _text(runner.submit([_job("x", max_new_tokens=2)], num_prompt=1)) == "xx"

    with _runner(engine) as runner:
        asyncio.run(ask(runner))
    assert sorted(engine.cancelled) == list(range(8))


def test_a_failing_step_fails_those_in_it_and_no_others():
    engine = EchoEngine(step_s=0.001)

    async def ask(runner):
        bad = runner.submit([_job("fail")], num_prompt=4)
        with pytest.raises(RuntimeError, match="asked to fail"):
            await _text(bad)
        runner.close(bad)
        assert await _text(runner.submit([_job("ok", max_new_tokens=2)], num_prompt=2)) == "ok"
        assert runner.is_alive

    with _runner(engine) as runner:
        asyncio.run(ask(runner))


def test_one_failing_answer_leaves_the_others_alone():
    class Failing(EchoEngine):
        def generate(self, prompt, sampling):
            if prompt == list(map(ord, "fail")):
                raise IndexError("no such token")
            yield from super().generate(prompt, sampling)

    async def ask(runner):
        prompts = ("a", "fail", "b")
        tickets = [runner.submit([_job(one, max_new_tokens=3)], num_prompt=1) for one in prompts]
        first, error, last = await asyncio.gather(*map(_text, tickets), return_exceptions=True)
        assert (first, last) == ("aaa", "bbb")
        assert isinstance(error, IndexError)

    with _runner(SerialEngine(Failing())) as runner:
        asyncio.run(ask(runner))


def test_text_that_cannot_be_decoded_fails_its_answer_alone():
    def decode(tokens):
        if ord("!") in tokens:
            raise OverflowError("no such token")
        return "".join(map(chr, tokens))

    async def ask(runner):
        tickets = [
            runner.submit([_job(one, max_new_tokens=4)], num_prompt=1) for one in ("ab", "x!", "cd")
        ]
        first, error, last = await asyncio.gather(*map(_text, tickets), return_exceptions=True)
        assert (first, last) == ("abab", "cdcd")
        assert isinstance(error, OverflowError)
        assert runner.is_alive

    runner = Runner(EchoEngine(), decode, max_open=8)
    runner.start()
    try:
        asyncio.run(ask(runner))
    finally:
        runner.stop()


def test_an_engine_that_breaks_fails_all_at_once_and_nobody_waits():
    class Breaking(EchoEngine):
        def cancel(self, request):
            raise AssertionError("a block was freed twice")

    async def ask(runner):
        running = runner.submit([_job("ab", max_new_tokens=4000)], num_prompt=2)
        left = runner.submit([_job("cd", max_new_tokens=4000)], num_prompt=2)
        await left.mailbox.get()
        runner.close(left)
        with pytest.raises(AssertionError, match="freed twice"):
            await asyncio.wait_for(_text(running), 20)
        assert not runner.is_alive
        with pytest.raises(ApiError) as caught:
            await asyncio.wait_for(_text(runner.submit([_job("x")], num_prompt=1)), 20)
        assert caught.value.status == 500

    with _runner(Breaking(step_s=0.001)) as runner:
        asyncio.run(ask(runner))


class Refusing(EchoEngine):
    def generate(self, prompt, sampling):
        if sampling.logprobs is not None:
            raise InferError("this engine has no logprobs")
        yield from super().generate(prompt, sampling)


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (_job(""), "the prompt has 0 tokens, want 1 to 4095"),
        (_job("a", logprobs=0), "this engine has no logprobs"),
    ],
)
def test_what_an_engine_refuses_is_the_requests_fault(job, said):
    async def ask(runner):
        with pytest.raises(ApiError, match=said) as caught:
            await _text(runner.submit([job], num_prompt=0))
        assert caught.value.status == 400

    with _runner(SerialEngine(Refusing())) as runner:
        asyncio.run(ask(runner))


def test_stopping_leaves_no_thread_and_no_request():
    engine = EchoEngine(step_s=0.001)

    async def ask(runner):
        await runner.submit([_job("ab", max_new_tokens=4000)], num_prompt=2).mailbox.get()

    with _runner(engine) as runner:
        asyncio.run(ask(runner))
    assert not engine.requests
    assert "engine" not in {thread.name for thread in threading.enumerate()}
