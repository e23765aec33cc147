"""Chat templates in Jinja, as Hugging Face tokenizers carry them: messages -> text, the assistant's words marked.

A template is a stranger's program: it runs in Jinja's sandbox with bounds on time and on what a product may make, and
whatever it raises is one line for the user.
"""

import contextlib
import functools
import json
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from configs.errors import UserError

# Around what stands between {% generation %} and {% endgeneration %}. Unicode keeps these two for a program's own use.
START, STOP = "\ufdd0", "\ufdd1"
_SECONDS = 10  # for one chat
_LARGEST = 10_000_000  # characters or elements of a product, bits of a power
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def has_generation(source: str) -> bool:
    """Returns whether a template says what the assistant generates."""
    return _GENERATION.search(source) is not None


def render_jinja(source: str, messages: Sequence[Mapping[str, str]], bos: str, eos: str, prompt: bool) -> str:
    """Returns the text of a chat, with START and STOP around what the assistant generates.

    The same text as `apply_chat_template` of the transformers library gives.

    Args:
        source: the template.
        messages: {"role", "content"} each.
        bos: name of the token that starts a document: `bos_token` in the template.
        eos: name of the token that ends one.
        prompt: end with what opens the assistant's turn.

    Raises:
        UserError: the template is broken or refuses the messages, or jinja2 is not installed.
    """
    template = _compiled(source)
    # Templates ask whether `tools` and `documents` are none, which is not the same as undefined.
    names = {"bos_token": bos, "eos_token": eos, "tools": None, "documents": None}
    try:
        with _time_limit():
            return template(messages=[dict(message) for message in messages], add_generation_prompt=prompt, **names)
    except Exception as error:
        raise UserError(f"the tokenizer's chat_template refuses a chat of {_roles(messages)}: {_line(error)}") from None


@functools.lru_cache(maxsize=8)
def _compiled(source: str) -> Callable[..., str]:
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError:
        raise UserError("the tokenizer's chat_template needs jinja2: pip install 'rootstock[tasks]'") from None

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
        """Multiplies nothing into more than memory holds."""

        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 - Jinja's
            _check_product(operator, left, right)
            return super().call_binop(context, operator, left, right)

    environment = Bounded(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raise, "strftime_now": lambda form: datetime.now().strftime(form)}
    try:
        return environment.from_string(source).render
    # Besides its own, Jinja lets through what Python's compiler raises: too deep, too many digits.
    except Exception as error:
        where = f"line {error.lineno}: " if isinstance(error, jinja2.TemplateSyntaxError) else ""
        raise UserError(f"the tokenizer's chat_template is broken: {where}{_line(error)}") from None


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """A context that raises after `_SECONDS`; without effect outside of the main thread, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(*_: Any) -> None:  # noqa: ANN401 - the signal's number and frame
        raise TimeoutError(f"it runs for more than {_SECONDS} s")

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
        raise ValueError(f"a product of more than {_LARGEST:,}")


def _to_json(value: object, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:  # noqa: ANN401
    """Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _raise(message: str) -> None:
    raise ValueError(message)


def _roles(messages: Sequence[Mapping[str, str]]) -> str:
    names = [message["role"] for message in messages]
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _line(error: Exception) -> str:
    return " ".join(f"{error}".split())[:200] or type(error).__name__
