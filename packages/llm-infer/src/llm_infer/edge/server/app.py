"""The routes as an application, and what errors become."""

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from llm_infer.edge.guides import JsonGuides
from llm_infer.edge.server.api import Api, Settings
from llm_infer.engine import BatchEngine, Tokenizer
from llm_infer.openai_api.errors import ApiError, failed, unknown_route
from llm_infer.serving.runner import Runner


def create_app(
    runner: Runner,
    engine: BatchEngine,
    tokenizer: Tokenizer,
    guides: JsonGuides,
    settings: Settings,
) -> FastAPI:
    """The server's routes around a runner that is started elsewhere."""
    api = Api(runner, engine, tokenizer, guides, settings)
    # Its pages of documentation would fetch scripts from the network.
    app = FastAPI(title="llm-infer", docs_url=None, redoc_url=None, openapi_url=None)
    for path, (method, handler) in api.routes.items():
        app.add_route(path, handler, methods=[method])

    async def on_api_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return api.told(request, error)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = unknown_route(request.method, request.url.path)
        if error.status_code == 405:
            message = f"{request.url.path}: {request.method} is not for this route"
            known = ApiError(status=405, message=message, kind="invalid_request_error")
        return api.told(request, known)

    async def on_defect(request: Request, error: Exception) -> Response:  # noqa: ARG001
        return api.told(request, failed())

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_defect)
    return app
