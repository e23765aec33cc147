"""OpenAI's endpoints of language models: /v1/chat/completions and /v1/completions, also streamed."""

import asyncio
import contextlib
import dataclasses
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from configs.errors import UserError
from data.seams import split_spaces
from train.serving import fields
from train.serving.connection import EventStream, body_of, while_connected
from train.serving.engine import Engine, Generation, Part
from train.serving.errors import RequestError, stopping, timed_out

Body = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Completions:
    """The endpoints of one language model.

    Attributes:
        name: the model's, in `/v1/models`.
        engine: answers.
        defaults: of sampling, by names of `Sampling`.
        chats: the model has learned to answer in its chat template.
    """

    name: str
    engine: Engine
    defaults: Mapping[str, Any]
    chats: bool

    async def chat(self, request: Request) -> Response:
        """Answers a POST to /v1/chat/completions."""
        body = await self._body(request, fields.CHAT_FIELDS)
        asked = fields.read_options(body, self.defaults)
        messages = fields.read_messages(body)
        prompt = await self._tokens(lambda: self.engine.language_model.chat_tokens(messages), "messages")
        # The space before an answer can be a part of its first token.
        return await self._answer(request, _Chat(self.name), asked, prompt, drop_spaces=1)

    async def completions(self, request: Request) -> Response:
        """Answers a POST to /v1/completions."""
        body = await self._body(request, fields.COMPLETION_FIELDS)
        asked = fields.read_options(body, self.defaults)
        text = body.get("prompt")
        if isinstance(text, list) and len(text) == 1:
            text = text[0]
        if not isinstance(text, str):
            message = "prompt is not supported in this form; expected one text (send a request for each prompt)"
            raise RequestError(message, param="prompt", code="invalid_value")
        language_model = self.engine.language_model
        # A space at the end of a prompt is a part of the first generated token.
        kept, spaces = split_spaces(language_model.tokenizer, fields.text(text, "prompt"))
        prompt = await self._tokens(lambda: language_model.text_tokens(kept), "prompt")
        return await self._answer(request, _Form(self.name), asked, prompt, drop_spaces=len(spaces))

    async def _body(self, request: Request, known: tuple[str, ...]) -> fields.Body:
        body = fields.read_body(await body_of(request, self.engine.limits))
        fields.check_fields(body, known)
        fields.check_model(body, self.name)
        return body

    async def _tokens(self, encode: Callable[[], list[int]], name: str) -> list[int]:
        try:
            # A long text takes long, and others wait for the event loop.
            tokens = await asyncio.to_thread(encode)
        except UserError as error:
            raise RequestError(str(error), param=name, code="invalid_value") from None
        if not tokens:
            raise RequestError(f"{name} has no tokens; expected some text", param=name, code="invalid_value")
        return tokens

    async def _answer(
        self, request: Request, form: "_Form", asked: fields.Asked, prompt: list[int], *, drop_spaces: int
    ) -> Response:
        engine, loop = self.engine, asyncio.get_running_loop()
        parts: asyncio.Queue[Part] = asyncio.Queue()

        def listen(part: Part) -> None:
            # The loop is closed when the server ends.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(parts.put_nowait, part)

        options = asked.options(self._max_new_tokens(form, asked, len(prompt)))
        deadline = time.monotonic() + engine.limits.timeout
        generation = Generation(prompt, options, listen, drop_spaces, deadline)
        engine.submit(generation)
        if asked.stream:
            events = _events(form, parts, len(prompt), asked.include_usage, engine.limits.timeout)
            return EventStream(events, lambda: engine.leave(generation))
        try:
            text, last = await while_connected(request, _whole(parts))
        finally:
            engine.leave(generation)
        if error := _error(last, engine.limits.timeout):
            raise error
        return JSONResponse(form.answer(text, last.finish) | {"usage": _usage(len(prompt), last.tokens)})

    def _max_new_tokens(self, form: "_Form", asked: fields.Asked, prompt: int) -> int:
        """Returns the most tokens of an answer.

        Raises:
            RequestError: more are asked for than there may be.
        """
        longest, most = self.engine.max_length, self.engine.limits.max_tokens
        if asked.max_tokens > most:
            message = f"max_tokens={asked.max_tokens} must be at most {most} (--max_tokens)"
            raise RequestError(message, param="max_tokens", code="invalid_value")
        wanted = asked.max_tokens or 1
        if prompt + wanted > longest:
            message = (
                f"the prompt has {prompt} tokens, and {wanted} are asked for; expected at most {longest} together "
                "(--max_length and the model's context)"
            )
            raise RequestError(message, param=form.asks, code="context_length_exceeded")
        return asked.max_tokens or min(form.usual_tokens or most, most, longest - prompt)


class _Form:
    """The form of the answers of /v1/completions."""

    prefix, asks = "cmpl", "prompt"
    kind = chunk_kind = "text_completion"
    # Of an answer, where max_tokens is not given: OpenAI's default; 0: as many as there may be.
    usual_tokens = 16

    def __init__(self, model: str) -> None:
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def answer(self, text: str, finish: str) -> Body:
        """Returns an answer, without its usage."""
        return self._frame(self.kind, self.content(text), finish)

    def chunk(self, text: str, finish: str | None) -> Body:
        """Returns a part of a stream."""
        return self._frame(self.chunk_kind, self.delta(text), finish)

    def first(self) -> Iterator[Body]:
        """Yields the parts of a stream before any text."""
        return iter(())

    def usage(self, usage: Body) -> Body:
        """Returns the part of a stream that has only the numbers of tokens."""
        return {**self._head, "object": self.chunk_kind, "choices": [], "usage": usage}

    def content(self, text: str) -> Body:
        """Returns the field of a choice that has the text."""
        return {"text": text}

    def delta(self, text: str) -> Body:
        """Returns the field of a streamed choice that has the new text."""
        return {"text": text}

    def _frame(self, kind: str, content: Body, finish: str | None) -> Body:
        choice = {"index": 0, **content, "logprobs": None, "finish_reason": finish}
        return {**self._head, "object": kind, "choices": [choice]}


class _Chat(_Form):
    """The form of the answers of /v1/chat/completions."""

    prefix, asks = "chatcmpl", "messages"
    kind, chunk_kind = "chat.completion", "chat.completion.chunk"
    usual_tokens = 0

    def first(self) -> Iterator[Body]:
        yield self._frame(self.chunk_kind, {"delta": {"role": "assistant", "content": ""}}, None)

    def content(self, text: str) -> Body:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str) -> Body:
        return {"delta": {"content": text} if text else {}}


async def _whole(parts: asyncio.Queue[Part]) -> tuple[str, Part]:
    """Returns the text of all parts, and the last one."""
    text = ""
    while True:
        part = await parts.get()
        text += part.text
        if part.finish:
            return text, part


async def _events(
    form: _Form, parts: asyncio.Queue[Part], prompt: int, include_usage: bool, timeout: float
) -> AsyncIterator[str]:
    """Yields the server-sent events of an answer."""
    for body in form.first():
        yield _event(body)
    while not (part := await parts.get()).finish:
        yield _event(form.chunk(part.text, None))
    if error := _error(part, timeout):
        yield _event(error.body())
        return
    if part.text:
        yield _event(form.chunk(part.text, None))
    yield _event(form.chunk("", part.finish))
    if include_usage:
        yield _event(form.usage(_usage(prompt, part.tokens)))
    yield "data: [DONE]\n\n"


def _event(body: Body) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _error(part: Part, timeout: float) -> RequestError | None:
    """Returns the error that ended an answer, if one did."""
    if part.finish == "timeout":
        return timed_out(timeout)
    if part.finish == "shutdown":
        return stopping()
    return RequestError("the answer failed; see the server's log", 500) if part.finish == "error" else None


def _usage(prompt: int, answer: int) -> Body:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
