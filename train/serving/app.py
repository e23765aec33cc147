"""The ASGI application: routes, who may use them, errors in one format, and the page."""

import contextlib
import dataclasses
import hashlib
import hmac
import html
import json
import re
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from train.console import warn
from train.serving import fields
from train.serving.completions import Completions
from train.serving.errors import RequestError
from train.serving.predictions import Predictions

# nginx's status of a request whose client has gone; nobody reads it.
_CLIENT_CLOSED = 499
_OPEN_PATHS = ("/", "/health")
_PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may use a server.

    Attributes:
        api_key: what clients send as a bearer token; "": nothing.
        hosts: names of this server, one of which a request must be for, so that a page of another site whose name was
            made to stand for this machine is refused; empty: any.
    """

    api_key: str = ""
    hosts: tuple[str, ...] = ()


def build_app(endpoints: Completions | Predictions, access: Access) -> Starlette:
    """Returns the application; its engine or batcher, which is running, is closed when the application ends.

    Args:
        endpoints: of the model.
        access: who may use it.
    """
    worker = endpoints.engine if isinstance(endpoints, Completions) else endpoints.batcher

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        worker.close()

    card = {"id": endpoints.name, "object": "model", "created": int(time.time()), "owned_by": "rootstock"}

    async def models(request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def model(request: Request) -> Response:
        fields.check_model({"model": request.path_params["name"]}, endpoints.name)
        return JSONResponse(card)

    async def health(request: Request) -> Response:
        if not worker.alive:
            raise RequestError("the model has stopped; see the server's log", 500)
        running, waiting = worker.counts()
        return JSONResponse({"status": "ok", "model": endpoints.name, "running": running, "waiting": waiting})

    routes = [
        Route("/", page_of(endpoints, bool(access.api_key))),
        Route("/health", health),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", model),
    ]
    if isinstance(endpoints, Completions):
        routes += [
            Route("/v1/chat/completions", endpoints.chat, methods=["POST"]),
            Route("/v1/completions", endpoints.completions, methods=["POST"]),
        ]
    else:
        routes.append(Route("/predict", endpoints.predict, methods=["POST"]))
    middleware = [Middleware(_Guard, access.api_key)]
    if access.hosts:
        middleware.insert(0, Middleware(TrustedHostMiddleware, allowed_hosts=list(access.hosts), www_redirect=False))
    handlers: dict[Any, Any] = {
        RequestError: _request_error,
        HTTPException: _http_error,
        ClientDisconnect: _client_gone,
        Exception: _server_error,
    }
    return Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan)


def page_of(endpoints: Completions | Predictions, needs_key: bool) -> Callable[[Request], Response]:
    """Returns the endpoint of the page, which has no outside resources and may load none."""
    if isinstance(endpoints, Predictions):
        kind, columns = "predict", endpoints.model.text_columns
    else:
        kind, columns = ("chat" if endpoints.chats else "text"), []
    values = {"kind": kind, "model": endpoints.name, "columns": json.dumps(columns), "key": "yes" if needs_key else ""}
    page = _PAGE
    for name, value in values.items():
        page = page.replace(f"{{{{{name}}}}}", html.escape(value))
    inline = {tag: re.findall(f"<{tag}>(.*?)</{tag}>", _PAGE, re.DOTALL) for tag in ("style", "script")}
    hashes = {tag: " ".join(f"'sha256-{_sha256(text)}'" for text in texts) for tag, texts in inline.items()}
    policy = (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
    return lambda request: HTMLResponse(page, headers=headers)


def _sha256(text: str) -> str:
    return b64encode(hashlib.sha256(text.encode()).digest()).decode()


class _Guard:
    """Refuses requests without the key, and those that a page of another site makes a browser send."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app, self._key = app, api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._error(scope)):
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _error(self, scope: Scope) -> RequestError | None:
        headers = dict(scope["headers"])
        if headers.get(b"sec-fetch-site") == b"cross-site" and scope["path"] != "/":
            return RequestError("requests from pages of other sites are refused", 403)
        if not self._key or scope["path"] in _OPEN_PATHS:
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._key):
            return None
        what = "is not this server's" if given else "is missing"
        message = f"the API key {what}; expected the header 'Authorization: Bearer KEY'"
        return RequestError(message, 401, code="invalid_api_key")


def _request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error.response()


def _http_error(request: Request, error: Exception) -> Response:
    """Answers an error of the routes: an unknown path, or a method that it does not have."""
    assert isinstance(error, HTTPException)
    text = {404: "no such path", 405: f"{request.method} is not supported here"}.get(error.status_code, error.detail)
    return RequestError(f"{text}: {request.url.path:.80}", error.status_code).response()


def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=_CLIENT_CLOSED)


def _server_error(request: Request, error: Exception) -> Response:
    warn(f"serve: {request.url.path}: {type(error).__name__}: {error}")
    return RequestError("internal error; see the server's log", 500).response()
