"""The routes: what a request asks for goes to the runner, what comes back becomes a response."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hmac import compare_digest
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from llm_infer.edge.guides import JsonGuides
from llm_infer.edge.server.body import BodyReader
from llm_infer.edge.server.metrics import Metrics, metrics
from llm_infer.edge.server.reply import AnswerResponse, Watch, error_response
from llm_infer.edge.templates import ended_by
from llm_infer.engine import BatchEngine, PromptReadingEngine, SearchingEngine, Tokenizer
from llm_infer.errors import InferError
from llm_infer.openai_api.answers import ChatFormat, CompletionFormat, Envelope, Format, Usage
from llm_infer.openai_api.errors import (
    ApiError,
    invalid,
    overloaded,
    unauthorized,
    unknown_model,
)
from llm_infer.openai_api.jobs import Job, Reading, jobs
from llm_infer.openai_api.parsing import parse
from llm_infer.openai_api.requests import ChatRequest, Common, CompletionRequest
from llm_infer.sampling import Beams
from llm_infer.serving.runner import OverloadedError, Runner, Ticket
from llm_infer.thinking import LAST_TOKENS, ToldIn, marks_of, reading_after
from llm_infer.tools.answers import AnswerReading
from llm_infer.tools.formats import FORCED, format_of
from llm_infer.tools.splitter import CallReading, signatures

_RETRY_AFTER_S = 2
_PAGE_HEADERS = {
    # The page brings all it needs: nothing is fetched from anywhere else.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line says about the server."""

    model_name: str
    api_key: str | None
    """Wanted on every `/v1` route; None lets everybody in."""
    template: str | None
    """Jinja text in place of the tokenizer's chat template."""
    template_variables: Mapping[str, object]
    """What chat templates are told, unless a request says otherwise."""
    template_ends: Sequence[str] = ()
    """Tokens that end an answer in a chat beside the model's own, as texts."""
    thoughts: ToldIn = "reasoning_content"
    """The field that tells them, unless a request says otherwise."""
    max_body_bytes: int
    send_timeout_s: float
    """A client that reads nothing for so long is given up."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request understood: its answers to compute, and how they are to be written."""

    request: Common
    jobs: Sequence[Job]
    num_prompt: int
    prefixes: Sequence[str]
    form: Callable[[Envelope], Format]
    id_prefix: str


class Api:
    """The handlers of one server."""

    def __init__(
        self,
        runner: Runner,
        engine: BatchEngine,
        tokenizer: Tokenizer,
        guides: JsonGuides,
        settings: Settings,
    ) -> None:
        self._runner, self._engine = runner, engine
        self._tokenizer, self._guides, self._settings = tokenizer, guides, settings
        self._metrics: Metrics = metrics(engine, num_open=lambda: runner.num_open)
        self._bodies = BodyReader(max_bytes=settings.max_body_bytes)
        # The tokenizer is not meant for several threads; a long prompt must not stop the loop.
        self._tokenizing = asyncio.Lock()
        self._started = int(time.time())
        self._page = files("llm_infer.edge.server").joinpath("page.html").read_text("utf-8")

        self.routes = MappingProxyType(
            {
                "/": ("GET", self.page),
                "/health": ("GET", self.health),
                "/metrics": ("GET", self.metrics),
                "/v1/models": ("GET", self.models),
                "/v1/models/{name:path}": ("GET", self.model),
                "/v1/chat/completions": ("POST", self.chat),
                "/v1/completions": ("POST", self.completions),
            }
        )
        """Path to method and handler."""

    async def page(self, request: Request) -> Response:  # noqa: ARG002  a route's signature
        """The page to chat in."""
        return HTMLResponse(self._page, headers=_PAGE_HEADERS)

    async def health(self, request: Request) -> Response:  # noqa: ARG002
        """200 while the engine's thread lives."""
        is_alive = self._runner.is_alive
        body = {"status": "ok" if is_alive else "the engine is broken; see the log"}
        return JSONResponse(body, status_code=200 if is_alive else 503)

    async def metrics(self, request: Request) -> Response:  # noqa: ARG002
        """For Prometheus."""
        return Response(self._metrics.text(), media_type="text/plain; version=0.0.4")

    async def models(self, request: Request) -> Response:
        """The one model there is."""
        self._authorize(request)
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """That model, by its name."""
        self._authorize(request)
        name = request.path_params["name"]
        if name != self._settings.model_name:
            raise unknown_model(name, served=self._settings.model_name)
        return JSONResponse(self._model())

    async def chat(self, request: Request) -> Response:
        """`POST /v1/chat/completions`."""
        return await self._answer(request, ChatRequest, self._understand_chat)

    async def completions(self, request: Request) -> Response:
        """`POST /v1/completions`."""
        return await self._answer(request, CompletionRequest, self._understand_completion)

    def told(self, request: Request, error: ApiError) -> Response:
        """The response to a request that failed."""
        # Nobody shall fill the metrics with names of his own.
        path = request.url.path
        route = path if path in self.routes else "other"
        self._metrics.requests.labels(route, str(error.status)).inc()
        return error_response(error)

    async def _answer(
        self,
        http: Request,
        model: Any,
        understand: Callable[[Any], Awaitable[_Asked]],
    ) -> Response:
        start_s = time.perf_counter()
        self._authorize(http)
        if self._runner.num_open >= self._runner.max_open:
            # Before its body is read: a refusal costs nothing.
            raise self._overloaded()
        request = parse(model, await self._bodies.read(http))
        if request.model != self._settings.model_name:
            raise unknown_model(request.model, served=self._settings.model_name)
        asked = await understand(request)
        try:
            ticket = self._runner.submit(asked.jobs, num_prompt=asked.num_prompt)
        except OverloadedError:
            raise self._overloaded() from None
        envelope = Envelope(
            id=f"{asked.id_prefix}-{secrets.token_hex(12)}",
            created=int(time.time()),
            model=self._settings.model_name,
            has_logprobs=request.num_logprobs is not None,
            includes_usage=request.includes_usage,
        )
        return AnswerResponse(
            ticket,
            asked.form(envelope),
            prefixes=asked.prefixes,
            is_stream=bool(request.stream),
            includes_usage=request.includes_usage,
            send_timeout_s=self._settings.send_timeout_s,
            watch=self._watch(http.url.path, ticket, start_s),
        )

    async def _understand_chat(self, request: ChatRequest) -> _Asked:
        template = self._settings.template
        if template is None and not self._tokenizer.has_chat_template:
            raise invalid(
                "messages: the tokenizer has no chat template; start the server with --template, "
                "or use /v1/completions",
                param="messages",
            )
        messages = [message.plain() for message in request.messages]
        variables = {**self._settings.template_variables, **request.template_variables}
        async with self._tokenizing:
            try:
                prompt = await asyncio.to_thread(
                    self._tokenizer.encode_chat,
                    messages,
                    template,
                    tools=request.tools_wanted,
                    variables=variables,
                )
                reading = self._reading(request, prompt)
            except InferError as error:
                raise invalid(f"messages: {error}", param="messages") from None
        found = await self._jobs(request, [prompt], param="messages", reading=reading)
        ends = self._settings.template_ends
        found = [
            replace(job, sampling=ended_by(job.sampling, ends, self._tokenizer)) for job in found
        ]
        prefixes = [""] * request.num_choices
        return _Asked(request, found, len(prompt), prefixes, ChatFormat, "chatcmpl")

    def _reading(self, request: ChatRequest, prompt: Sequence[int]) -> Reading | None:
        """How thoughts and calls are found in the answer; None where a schema leaves neither."""
        tools = request.tools_wanted
        is_forced = request.call_wanted is not None
        if request.schema_wanted is not None and not is_forced:
            return None
        template = self._tokenizer.chat_template(
            self._settings.template, has_tools=tools is not None
        )
        form = FORCED if is_forced else format_of(template)
        if form is not None and tools is None and not form.has_channels:
            form = None
        marks = marks_of(template)
        kept = marks.both if form is None else (*marks.both, *form.marks)
        decode = partial(self._tokenizer.decode, keeps=kept)
        end = decode(prompt[-LAST_TOKENS:])
        calls = None
        if form is not None:
            calls = CallReading(
                form=form,
                tools=signatures(tools or ()),
                is_single=request.parallel_tool_calls is False,
                prompt_end=end,
            )
        is_apart = request.separate_reasoning
        if is_apart is None:
            is_apart = self._settings.thoughts == "reasoning_content"
        thoughts = reading_after(end, marks, is_apart=is_apart)
        if is_forced:
            # A schema holds the answer to the call from its first token on.
            thoughts = replace(thoughts, is_open=False)
        return Reading(answer=AnswerReading(thoughts=thoughts, calls=calls), decode=decode)

    async def _understand_completion(self, request: CompletionRequest) -> _Asked:
        prompts: list[list[int]] = []
        texts: list[str] = []
        async with self._tokenizing:
            for one in request.prompts():
                if isinstance(one, str):
                    prompts.append(await asyncio.to_thread(self._tokenizer.encode, one))
                else:
                    prompts.append(one)
                if request.echo:
                    texts.append(one if isinstance(one, str) else self._tokenizer.decode(one))
        if request.reads_prompt and not isinstance(self._engine, PromptReadingEngine):
            raise invalid(
                "echo: this engine tells no probabilities of prompts; the native engine does",
                param="echo",
            )
        reads = request.reads_prompt
        found = await self._jobs(request, prompts, param="prompt", echoed=texts if reads else None)
        # Told with the tokens, where those are.
        echoed = [""] * len(prompts) if reads or not texts else texts
        prefixes = [text for text in echoed for _ in range(request.num_choices)]
        num_prompt = sum(map(len, prompts))
        return _Asked(request, found, num_prompt, prefixes, CompletionFormat, "cmpl")

    async def _jobs(
        self,
        request: Common,
        prompts: Sequence[Sequence[int]],
        *,
        param: str,
        reading: Reading | None = None,
        echoed: Sequence[str] | None = None,
    ) -> list[Job]:
        if request.beams is not None:
            self._check_search(request.beams, num_prompts=len(prompts))
        num_answers = len(prompts) * request.num_choices
        if num_answers > self._runner.max_open:
            raise invalid(
                f"n: {len(prompts)} prompts * n({request.num_choices}) = {num_answers} answers; "
                f"this server takes {self._runner.max_open} at once",
                param="n",
            )
        held, new_guide = request.held_to, None
        if held is not None:
            try:
                # A schema may take a second to compile.
                new_guide = await asyncio.to_thread(self._guides.of_schema, held.schema)
            except InferError as error:
                raise invalid(f"{held.field}: {error}", param=held.field) from None
        return jobs(
            request,
            prompts,
            context_length=self._engine.context_length,
            vocab_size=self._tokenizer.vocab_size,
            seed=secrets.randbits(63),
            param=param,
            new_guide=new_guide,
            reading=reading,
            echoed=echoed,
        )

    def _check_search(self, beams: Beams, *, num_prompts: int) -> None:
        if not isinstance(self._engine, SearchingEngine):
            raise invalid(
                "num_beams: this engine has no beam search; the native engine does",
                param="num_beams",
            )
        if (found := num_prompts * beams.num_beams) > self._runner.max_open:
            raise invalid(
                f"num_beams: {num_prompts} prompts * num_beams({beams.num_beams}) = {found} texts; "
                f"this server takes {self._runner.max_open} at once",
                param="num_beams",
            )

    def _watch(self, route: str, ticket: Ticket, start_s: float) -> Watch:
        counts = self._metrics
        seen: list[float] = []

        def first_piece() -> None:
            if not seen:
                seen.append(time.perf_counter() - start_s)
                counts.first_token_s.observe(seen[0])

        def usage(found: Usage) -> None:
            counts.prompt_tokens.inc(found.num_prompt)
            counts.new_tokens.inc(found.num_new)

        def end(status: int) -> None:
            self._runner.close(ticket)
            counts.requests.labels(route, str(status)).inc()
            counts.request_s.observe(time.perf_counter() - start_s)

        return Watch(first_piece=first_piece, usage=usage, end=end)

    def _authorize(self, request: Request) -> None:
        key = self._settings.api_key
        found = request.headers.get("authorization", "")
        if key is not None and not compare_digest(found.encode(), f"Bearer {key}".encode()):
            raise unauthorized()

    def _overloaded(self) -> ApiError:
        return overloaded(limit=self._runner.max_open, retry_after_s=_RETRY_AFTER_S)

    def _model(self) -> dict[str, object]:
        return {
            "id": self._settings.model_name,
            "object": "model",
            "created": self._started,
            "owned_by": "llm-infer",
            "max_model_len": self._engine.context_length,
        }
