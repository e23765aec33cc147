"""A built-in chat template as Jinja, the form in which other libraries read a tokenizer's chat template."""

import json
import string

from data.templates import Template, built_in, parts_of_answer
from data.tokenizer import Tokenizer

_EXPRESSIONS = {
    "content": 'message["content"]',
    "stripped": 'message["content"] | trim',
    "system": "system.text",
    "bos": "bos_token",
    "eos": "eos_token",
}
_ROLES = 'messages | rejectattr("role", "equalto", "system") | map(attribute="role") | list'
_CHECKS = """\
{%- for message in messages %}
{%- if message["role"] not in ["system", "user", "assistant"] or message["content"] is not string %}
{{- raise_exception("expected messages with a role of system, user or assistant and a text as content") }}
{%- endif %}
{%- endfor %}
"""
_TURNS = """\
{%- set turns = messages[1:] if messages[0]["role"] == "system" else messages %}
{%- for message in turns %}
{%- if message["role"] != ["user", "assistant"][loop.index0 % 2] %}
{{- raise_exception("expected user and assistant messages in turns, after at most one system message") }}
{%- endif %}
{%- endfor %}
"""


def to_jinja(name: str, tokenizer: Tokenizer) -> str:
    """Returns a Jinja template that renders chats like the built-in template `name` with this tokenizer."""
    template = built_in(name)
    if name != "plain":
        return _CHECKS + (_TURNS if template.alternating else "") + _messages(template, tokenizer)
    single, chat = (_messages(each, tokenizer) for each in (template, built_in("plain_chat")))
    condition = f'{_ROLES}) in [[], ["user"], ["user", "assistant"]]'
    return f"{_CHECKS}{{%- if ({condition} %}}\n{single}{{%- else %}}\n{chat}{{%- endif %}}\n"


def _messages(template: Template, tokenizer: Tokenizer) -> str:
    """Returns the part of a Jinja template that writes the messages."""
    opening, answer, closing = parts_of_answer(template, tokenizer)
    # A system message that is part of the first user message waits in a variable.
    in_user = "{system}" in template.user
    system = f"{{%- set system.text = {_expression(template.system)} %}}" if in_user else _text(template.system)
    preset = _text(template.system.replace("{content}", template.preset)) if template.preset else ""
    lines = [
        "{%- set system = namespace(text='') %}",
        _text(template.start),
        f'{{%- if messages[0]["role"] != "system" %}}{preset}{{%- endif %}}' if preset else "",
        "{%- for message in messages %}",
        '{%- if message["role"] == "system" %}',
        system,
        '{%- elif message["role"] == "user" %}',
        _text(template.user) + "{%- set system.text = '' %}",
        "{%- else %}",
        f"{_text(opening)}{{%- generation %}}{_text(answer)}{{%- endgeneration %}}{_text(closing)}",
        "{%- endif %}",
        "{%- endfor %}",
        f"{{%- if add_generation_prompt %}}{_text(opening)}{{%- endif %}}",
    ]
    return "".join(f"{line}\n" for line in lines if line)


def _text(pattern: str) -> str:
    """Returns the Jinja statement that writes a part of a template."""
    return f"{{{{- {_expression(pattern)} }}}}" if pattern else ""


def _expression(pattern: str) -> str:
    """Returns a part of a template as a Jinja expression."""
    written = []
    for literal, name, _, _ in string.Formatter().parse(pattern):
        if literal:
            written.append(json.dumps(literal, ensure_ascii=False))
        if name is not None:
            written.append(f"({_EXPRESSIONS[name]})")
    return " ~ ".join(written)
