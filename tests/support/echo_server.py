"""A server whose engine repeats the prompt for ever: every answer is known by hand, none costs.

Run as a program it serves on a free port until SIGTERM: `python echo_server.py [--slow SECONDS]`.
"""

import argparse
import time
from dataclasses import dataclass, field
from itertools import count

from llm_infer.engine import Event

VOCAB_SIZE = 0x110000
FAILING = "fail"
END = "\0"


class CharTokenizer:
    """A token is a character. The chat template shows the last message and the end it is told, and
    asks for calls of tools as Hermes' does.
    """

    has_chat_template = True
    vocab_size = VOCAB_SIZE

    def encode(self, text):
        return list(map(ord, text))

    def encode_chat(self, messages, template, *, tools=None, variables=None):
        return self.encode(messages[-1]["content"] + (variables or {}).get("end", ""))

    def chat_template(self, given, *, has_tools):
        return given or "<tool_call>"

    def decode(self, tokens, *, keeps=()):
        return "".join(map(chr, tokens))


@dataclass(slots=True)
class _Request:
    prompt: list
    sampling: object
    num_tokens: int = 0


@dataclass
class EchoEngine:
    """A `BatchEngine`: each step brings every request its next token.

    A step costs `step_s`. The logprob of token i is -i, and its rival the tokens before and after.
    All but the first of a prompt's tokens count as cached. A prompt "fail" makes the step fail, and
    the character `END` ends an answer.
    `cancelled` lists what was cancelled before its end.
    """

    context_length: int = 4096
    step_s: float = 0.0
    description: str = "echo"
    requests: dict = field(default_factory=dict)
    cancelled: list = field(default_factory=list)
    _numbers: object = field(default_factory=count)

    @property
    def has_work(self):
        return bool(self.requests)

    def generate(self, prompt, sampling):
        for i in range(sampling.max_new_tokens):
            yield prompt[i % len(prompt)]

    def submit(self, prompt, sampling):
        number = next(self._numbers)
        self.requests[number] = _Request(list(prompt), sampling)
        return number

    def step(self):
        time.sleep(self.step_s)
        if any(r.prompt == list(map(ord, FAILING)) for r in self.requests.values()):
            raise RuntimeError("asked to fail")
        return [self._next(number) for number in list(self.requests)]

    def cancel(self, request):
        if self.requests.pop(request, None) is not None:
            self.cancelled.append(request)

    def _next(self, number):
        request = self.requests[number]
        token = request.prompt[request.num_tokens % len(request.prompt)]
        request.num_tokens += 1
        end = "length" if request.num_tokens == request.sampling.max_new_tokens else None
        if token == ord(END):
            token, end = None, "end"
        if end is not None:
            del self.requests[number]
        top = request.sampling.logprobs
        logprob = None if None in (top, token) else -float(request.num_tokens)
        rivals = () if logprob is None else ((token, logprob), (token + 1, -9.0))[: top or 0]
        return Event(
            request=number,
            token=token,
            end=end,
            logprob=logprob,
            top_logprobs=rivals,
            num_cached=len(request.prompt) - 1,
        )


def main():
    from llm_infer.edge.model_folder import Loaded
    from llm_infer.edge.server.run import Options, serve

    parser = argparse.ArgumentParser()
    parser.add_argument("--slow", type=float, default=0.0)
    parser.add_argument("--api-key")
    parser.add_argument("--template")
    parser.add_argument("--thoughts", default="reasoning_content")
    parser.add_argument("--max-open", type=int, default=64)
    parser.add_argument("--grace", type=int, default=5)
    parser.add_argument("--send-timeout", type=float, default=30.0)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--port", type=int, default=0)
    found = parser.parse_args()
    serve(
        Loaded(engine=EchoEngine(found.context, step_s=found.slow), tokenizer=CharTokenizer()),
        Options(
            host="127.0.0.1",
            port=found.port,
            model_name="echo",
            api_key=found.api_key,
            template=found.template,
            thoughts=found.thoughts,
            template_variables={"end": "", "unused": 1},
            max_open=found.max_open,
            grace_s=found.grace,
            send_timeout_s=found.send_timeout,
        ),
    )


if __name__ == "__main__":
    main()
