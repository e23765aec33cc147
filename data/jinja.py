"""Renders the Jinja chat templates of Hugging Face tokenizers: messages -> text with the assistant's text marked.

Chat templates are untrusted code: they run in Jinja's sandbox with limits on time and on the size of products, and
their errors are reported in one line.
"""

import contextlib
import ctypes
import functools
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from configs.errors import UserError, one_line

# Mark the text between {% generation %} and {% endgeneration %}. Unicode reserves both code points for internal use.
START, STOP = "\ufdd0", "\ufdd1"
_SECONDS = 10  # per chat
_LARGEST = 10_000_000  # characters or elements in a product, bits in a power
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def has_generation(source: str) -> bool:
    """Returns whether a template marks the assistant's text with {% generation %}."""
    return _GENERATION.search(source) is not None


def render_jinja(source: str, messages: Sequence[Mapping[str, str]], names: Mapping[str, str], prompt: bool) -> str:
    """Returns the text of a chat, with START and STOP around the assistant's text.

    Apart from these marks, equals `apply_chat_template` of the transformers library.

    Args:
        source: the template.
        messages: {"role", "content"} each.
        names: of special tokens, by their names in the template: `bos_token`, `eos_token`. What is not here is
            undefined in the template, which prints nothing.
        prompt: end with the start of the assistant's turn.

    Raises:
        UserError: the template is invalid or fails on the messages, or jinja2 is not installed.
    """
    template = _compiled(source)
    # Templates test whether `tools` and `documents` are None, which differs from undefined.
    given = {**names, "tools": None, "documents": None}
    try:
        with _time_limit():
            return template(messages=[dict(message) for message in messages], add_generation_prompt=prompt, **given)
    except Exception as error:
        raise UserError(
            f"the tokenizer's chat_template cannot render a chat of {_roles(messages)}: {one_line(error)}"
        ) from None


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Callable[..., str]:
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError:
        raise UserError("the tokenizer's chat_template needs jinja2: pip install -e '.[tasks]'") from None

    class Generation(jinja2.ext.Extension):
        """Puts START and STOP around the text of a `{% generation %}` block."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

        def parse(self, parser: Any) -> Any:  # noqa: ANN401 - Jinja's parser and node
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

        def _mark(self, caller: Callable[[], str]) -> str:
            return START + caller() + STOP

    class Bounded(jinja2.sandbox.ImmutableSandboxedEnvironment):
        """Refuses products and powers that would not fit into memory."""

        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 - Jinja's
            _check_product(operator, left, right)
            return super().call_binop(context, operator, left, right)

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    try:
        return environment.from_string(source).render
    # Besides its own errors, Jinja passes on those of Python's compiler: nesting too deep, too many digits.
    except Exception as error:
        where = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise UserError(f"the tokenizer's chat_template is invalid: {where}{one_line(error)}") from None


class _TooLongError(TimeoutError):
    def __init__(self) -> None:
        super().__init__(f"it ran for more than {_SECONDS} s")


@contextlib.contextmanager
def _time_limit_of_thread() -> Iterator[None]:
    """Does what `_time_limit` does where signals are not received, as in a server."""
    thread, lock, ended = threading.get_ident(), threading.Lock(), threading.Event()

    def interrupt() -> None:
        with lock:
            if not ended.is_set():
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(_TooLongError))

    timer = threading.Timer(_SECONDS, interrupt)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            ended.set()
        timer.cancel()


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Raises TimeoutError after `_SECONDS`."""
    if threading.current_thread() is not threading.main_thread():
        with _time_limit_of_thread():
            yield
        return

    def handle(*_: Any) -> None:  # noqa: ANN401 - the signal's number and frame
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _check_product(operator: str, left: Any, right: Any) -> None:  # noqa: ANN401 - whatever a template multiplies
    if operator == "**" and isinstance(left, int) and isinstance(right, int):
        size = left.bit_length() * max(right, 0)
    else:
        pairs = ((left, right), (right, left))
        size = max(
            (len(a) * b for a, b in pairs if isinstance(a, str | list | tuple) and isinstance(b, int)), default=0
        )
    if size > _LARGEST:
        raise ValueError(f"a product larger than {_LARGEST:,}")


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:  # noqa: ANN401
    """Returns JSON; replaces Jinja's filter, which escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise ValueError(message)


def _roles(messages: Sequence[Mapping[str, str]]) -> str:
    names = [message["role"] for message in messages]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
