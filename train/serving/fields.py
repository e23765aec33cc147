"""The fields of OpenAI's requests: what is read, what has no effect, and what is refused by name."""

import dataclasses
import json
import secrets
from collections.abc import Mapping
from typing import Any

from configs.errors import did_you_mean
from model.sampling import Sampling
from train.generation.language_model import GenerationOptions
from train.serving.errors import RequestError

Body = Mapping[str, Any]
_SHARED = ("model", "temperature", "top_p", "stop", "seed", "max_tokens", "stream", "stream_options")
# Not OpenAI's: those that other servers of open models read too.
_MORE = ("top_k", "min_p", "repetition_penalty")
CHAT_FIELDS = (*_SHARED, *_MORE, "messages", "max_completion_tokens")
COMPLETION_FIELDS = (*_SHARED, *_MORE, "prompt")
# They do not change an answer.
_NO_EFFECT = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "parallel_tool_calls",
)
# The only values that are supported, besides null.
_FIXED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "echo": (False,), "suffix": ("",), "logprobs": (False,), "top_logprobs": (0,),
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "tools": ([],), "functions": ([],),
    "tool_choice": ("none", "auto"), "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}  # fmt: skip
_MOST_STOPS = 4


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a request asks for, besides its prompt.

    Attributes:
        sampling: how tokens are drawn.
        seed: of the samples.
        stop: the answer ends before the first of these.
        max_tokens: the most tokens of the answer; 0: as many as there may be.
        stream: the answer is sent as it grows.
        include_usage: a stream ends with the numbers of tokens.
    """

    sampling: Sampling
    seed: int
    stop: tuple[str, ...]
    max_tokens: int
    stream: bool
    include_usage: bool

    def options(self, max_new_tokens: int) -> GenerationOptions:
        """Returns the options of a generation."""
        return GenerationOptions(max_new_tokens, self.sampling, self.seed, self.stop, stop_at_start=True)


def read_body(body: bytes) -> Body:
    """Returns the JSON object in a body.

    Raises:
        RequestError: it is something else.
    """
    try:
        found = json.loads(body)
    # A deeply nested body exceeds the recursion limit.
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(found, dict):
        raise RequestError(f"the body is {_kind(found)}; expected a JSON object", code="invalid_json")
    return {name: value for name, value in found.items() if value is not None}


def check_fields(body: Body, known: tuple[str, ...]) -> None:
    """Raises RequestError for a field that is not supported, or has a value that is not."""
    for name, value in body.items():
        if name in known or name in _NO_EFFECT:
            continue
        if name not in _FIXED:
            message = f"{name} is not supported{did_you_mean(name, known)}; supported: {', '.join(known)}"
            raise RequestError(message, param=name, code="unsupported_parameter")
        # True == 1 in Python.
        if not any(value == allowed and (type(value) is bool) == (type(allowed) is bool) for allowed in _FIXED[name]):
            expected = " or ".join(json.dumps(allowed) for allowed in _FIXED[name])
            message = f"{name}={json.dumps(value):.60} is not supported; expected {expected}, or leave it out"
            raise RequestError(message, param=name, code="unsupported_parameter")


def check_model(body: Body, name: str) -> None:
    """Raises RequestError if a request names another model."""
    if (asked := body.get("model", name)) != name:
        message = f"model={asked!r:.80} does not exist; this server has {name!r}"
        raise RequestError(message, 404, "model", "model_not_found")


def read_options(body: Body, defaults: Mapping[str, Any]) -> Asked:
    """Returns what a request asks for.

    Args:
        body: of the request.
        defaults: of the model, by names of `Sampling`.

    Raises:
        RequestError: a value is of the wrong type or out of range.
    """
    # Nothing is left of the tokens at top_p=0, where the most likely one is meant.
    top_p = number(body, "top_p", defaults.get("top_p", 1.0), 0, 1) or 1e-6
    sampling = Sampling(
        temperature=float(number(body, "temperature", defaults.get("temperature", 1.0), 0, 2)),
        top_k=max(int(number(body, "top_k", defaults.get("top_k", 0), -1, 2**31 - 1, whole=True)), 0),
        top_p=float(top_p),
        min_p=float(number(body, "min_p", defaults.get("min_p", 0.0), 0, 1)),
        repetition_penalty=float(
            number(body, "repetition_penalty", defaults.get("repetition_penalty", 1.0), 0.01, 100)
        ),
    )
    name = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    most = number(body, name, 0, 1, 2**31 - 1, whole=True)
    stream_options = body.get("stream_options", {})
    if not isinstance(stream_options, dict) or not set(stream_options) <= {"include_usage", "include_obfuscation"}:
        raise RequestError(
            "stream_options has unknown fields; expected include_usage", param="stream_options", code="invalid_value"
        )
    seed = number(body, "seed", secrets.randbits(32), -(2**63), 2**63 - 1, whole=True)
    return Asked(
        sampling, int(seed), _stops(body), int(most), flag(body, "stream"), flag(stream_options, "include_usage")
    )


def read_messages(body: Body) -> list[dict[str, str]]:
    """Returns the messages of a chat: role and text.

    Raises:
        RequestError: a message that is not text of the system, the user or the assistant.
    """
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _invalid("messages", messages, "a list of at least one message")
    return [_message(message, f"messages[{place}]") for place, message in enumerate(messages)]


def _message(message: object, place: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise _invalid(place, message, "an object with role and content")
    for name, value in message.items():
        if name not in ("role", "content", "name", "refusal") and value not in (None, [], ""):
            message_ = f"{place}.{name} is not supported; expected role and content"
            raise RequestError(message_, param=f"{place}.{name}", code="unsupported_parameter")
    role, content = message.get("role"), message.get("content")
    role = "system" if role == "developer" else role
    if role not in ("system", "user", "assistant"):
        raise _invalid(f"{place}.role", role, "system, developer, user or assistant")
    if isinstance(content, list):
        kinds = [part.get("type") if isinstance(part, dict) else None for part in content]
        if any(
            kind != "text" or not isinstance(part.get("text"), str) for kind, part in zip(kinds, content, strict=True)
        ):
            raise _invalid(f"{place}.content", kinds, 'text, or parts of {"type": "text", "text": ...}')
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise _invalid(f"{place}.content", content, 'text, or parts of {"type": "text", "text": ...}')
    return {"role": role, "content": text(content, f"{place}.content")}


def text(value: str, name: str) -> str:
    """Returns a text without halves of characters, which JSON can contain and UTF-8 cannot.

    Raises:
        RequestError: there is one.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        raise RequestError(f"{name} contains half of a character", param=name, code="invalid_value") from None
    return value


def number(body: Body, name: str, default: float, low: float, high: float, whole: bool = False) -> float:
    """Returns a number of a request, or the default.

    Raises:
        RequestError: it is no number or out of range.
    """
    if name not in body:
        return default
    value = body[name]
    kinds = (int,) if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not low <= value <= high:
        raise _invalid(name, value, f"{'an integer' if whole else 'a number'} from {low:g} to {high:g}")
    return value


def flag(body: Body, name: str) -> bool:
    """Returns a field that is true or false; false if it is missing.

    Raises:
        RequestError: it is something else.
    """
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise _invalid(name, value, "true or false")
    return value


def _stops(body: Body) -> tuple[str, ...]:
    stop = body.get("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise _invalid("stop", stop, f"a text, or a list of up to {_MOST_STOPS} texts that are not empty")
    return tuple(text(each, "stop") for each in stops)


def _invalid(name: str, value: object, expected: str) -> RequestError:
    shown = "is missing" if value is None else f"is {json.dumps(value):.80}"
    return RequestError(f"{name} {shown}; expected {expected}", param=name, code="invalid_value")


def _kind(value: object) -> str:
    return {list: "a list", str: "a text", bool: "true or false"}.get(type(value), "a number or null")
