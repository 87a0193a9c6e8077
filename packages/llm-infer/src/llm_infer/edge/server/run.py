"""Start, serve and stop: the socket, the engine's thread, the signals."""

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import click
import uvicorn

from llm_infer.edge.model_folder import Loaded
from llm_infer.edge.server.api import Settings
from llm_infer.edge.server.app import create_app
from llm_infer.errors import InferError
from llm_infer.serving.runner import Runner
from llm_infer.serving.serial import batched
from llm_infer.thinking import ToldIn

_BYTES_PER_TOKEN = 16
"""No text has more a token, but for one nobody writes."""
_MIN_BODY_BYTES = 1 << 20
_BACKLOG = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says."""

    host: str
    port: int
    model_name: str
    api_key: str | None
    template: str | None
    template_variables: Mapping[str, object]
    template_ends: Sequence[str] = ()
    thoughts: ToldIn = "reasoning_content"
    """The field of a message that tells them."""
    max_open: int
    grace_s: int
    """After SIGTERM or Ctrl-C, answers under way may take so long."""
    send_timeout_s: float = 30.0
    """A client that takes nothing for so long is given up."""


def serve(loaded: Loaded, options: Options) -> None:
    """Answer requests until SIGTERM or Ctrl-C; raises what is wrong with weights that come late."""
    engine = batched(loaded.engine)
    listener = _listen(options)
    runner = Runner(engine, loaded.tokenizer.decode, max_open=options.max_open)
    settings = Settings(
        model_name=options.model_name,
        api_key=options.api_key,
        template=options.template,
        template_variables=options.template_variables,
        template_ends=options.template_ends,
        thoughts=options.thoughts,
        max_body_bytes=max(_MIN_BODY_BYTES, _BYTES_PER_TOKEN * engine.context_length),
        send_timeout_s=options.send_timeout_s,
    )
    config = uvicorn.Config(
        create_app(runner, engine, loaded.tokenizer, loaded.guides, settings),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=options.grace_s,
        ws="none",
        lifespan="off",
    )
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    server = uvicorn.Server(config)
    broken = list[Exception]()
    if loaded.wait is not None:
        arguments = (loaded.wait, server, broken)
        threading.Thread(target=_stop_when_broken, args=arguments, daemon=True).start()
    runner.start()
    try:
        click.echo(f"serving {options.model_name} at {_address(listener)}", err=True)
        with _quiet_signals():
            server.run(sockets=[listener])
    finally:
        runner.stop()
    if broken:
        raise broken[0]


def _stop_when_broken(
    wait: Callable[[], object], server: uvicorn.Server, broken: list[Exception]
) -> None:
    try:
        wait()
    except Exception as error:  # noqa: BLE001  raised again where the server ends
        broken.append(error)
        server.should_exit = True


def _listen(options: Options) -> socket.socket:
    """A socket that takes connections, which end when a client reads nothing for a while."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Linux only; connections inherit it. Elsewhere such a connection lives until its client dies.
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        timeout_ms = int(options.send_timeout_s * 1000)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
    try:
        listener.bind((options.host, options.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        where = f"{options.host} port {options.port}"
        raise InferError(f"cannot listen on {where}: {error.strerror}") from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _quiet_signals() -> Iterator[None]:
    """Uvicorn stops at a signal, then raises it again; to end when asked is no failure."""
    signals = (signal.SIGTERM, signal.SIGINT)
    before = {one: signal.signal(one, lambda *_: None) for one in signals}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
