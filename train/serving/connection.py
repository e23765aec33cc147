"""What all endpoints need of a connection: its body within limits, and whether its client is still there."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from train.serving.errors import RequestError
from train.serving.limits import Limits

T = TypeVar("T")
# Seconds in which a client must send a body.
_BODY_SECONDS = 30.0


async def body_of(request: Request, limits: Limits) -> bytes:
    """Returns the body of a request.

    Raises:
        RequestError: it is no JSON by its header, too long or too slow.
        ClientDisconnect: the client has gone.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RequestError(f"Content-Type is {kind!r:.40}; expected application/json", 415)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > limits.max_body:
                    message = f"the body has more than {limits.max_body:,} bytes (--max_body); send less"
                    raise RequestError(message, 413, code="body_too_large")
                parts.append(part)
    except TimeoutError:
        raise RequestError(f"the body did not come within {_BODY_SECONDS:g} s", 408, code="timeout") from None
    return b"".join(parts)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Returns the result of `work`, which is canceled when the client goes.

    Raises:
        ClientDisconnect: the client has gone.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        watch.cancel()


class EventStream(StreamingResponse):
    """Server-sent events; calls `on_end` once at the end, also when the client has gone."""

    def __init__(self, events: AsyncIterator[str], on_end: Callable[[], None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()
