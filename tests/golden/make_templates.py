"""Writes tests/golden/templates.json: text and loss mask of chats in several Jinja templates, as in transformers.

Needs transformers and jinja2. Run it from the root of the repository:

    PYTHONPATH=. python tests/golden/make_templates.py
"""

import json
from pathlib import Path

from tests.designs import design

FILE = Path(__file__).with_name("templates.json")

_TURN = "{% generation %}{{ text }}<|im_end|>{% endgeneration %}\n"
_ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
_OTHERS = "<|im_start|>{{ m.role }}\n{% if m.role != 'assistant' %}{{ m.content }}<|im_end|>{{ '\n' }}{% else %}"
TEMPLATES = {
    # As Qwen3's: thoughts are parsed, dropped before the last question, and written anew with fixed white space.
    "thoughts": "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m.role == 'user' and not "
    "(m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}" + _OTHERS + "{% set text = m.content %}{% set thought = '' %}{% if '</think>' in text %}"
    "{% set thought = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set text = text.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last %}{% generation %}{{ '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}"
    "{{ text }}<|im_end|>{% endgeneration %}\n{% else %}" + _TURN + "{% endif %}{% endif %}{% endfor %}" + _ASK,
    # As DeepSeek R1's: only what follows the thought.
    "answers": "{{ bos_token }}{% for m in messages %}" + _OTHERS + "{% set text = m.content %}"
    "{% if '</think>' in text %}{% set text = text.split('</think>')|last %}{% endif %}" + _TURN
    + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
    # Thoughts are ordinary text of the answer.
    "as written": "{% for m in messages %}" + _OTHERS + "{% set text = m.content %}" + _TURN + "{% endif %}{% endfor %}"
    + _ASK,
    # Tests of length, of the first character, and of special tokens.
    "tests": "{% for m in messages %}" + _OTHERS + "{% set text = m.content|trim %}"
    "{% if text|length > 12 and text[:3] == '<th' and '<|im_end|>' not in text %}"
    "{% set text = '(' ~ text|length ~ ') ' ~ text %}{% endif %}" + _TURN + "{% endif %}{% endfor %}" + _ASK,
}  # fmt: skip
ANSWERS = (
    "good dog",
    "<think>\nthe cat sat\n</think>\n\ngood dog",
    "<think>the cat</think>good",
    "the cat</think>good",
    "<think>no end",
    "a <think> b </think> c </think> d",
    "<think>\n\n</think>\n\n",
    "",
    " \n über </think>é",
)
QUESTIONS = ("the cat?", "\n dog <mat> ")
TOOL = "<tool_response>\nthe cat\n</tool_response>"


def chats() -> list[list[dict[str, str]]]:
    """Returns chats of one and two turns, the second one with a thought in either."""
    user = [{"role": "user", "content": text} for text in QUESTIONS]
    said = [{"role": "assistant", "content": text} for text in ANSWERS]
    made = [[user[0], answer] for answer in said] + [[user[0], said[1], user[1], answer] for answer in said[:4]]
    made += [[{"role": "system", "content": "be good"}, user[1], said[1], {"role": "user", "content": TOOL}, said[2]]]
    return [*made, [user[0], said[1], user[1]]]


def main() -> None:
    """Writes the file."""
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

    cases = []
    for name, source in TEMPLATES.items():
        ours = design("bytes")
        theirs = PreTrainedTokenizerFast(
            tokenizer_object=Backend.from_str(ours.serialized), bos_token="<s>", eos_token="</s>", pad_token="<pad>"
        )
        for number, chat in enumerate(chats()):
            prompt = chat[-1]["role"] == "user"
            options = {"chat_template": source, "add_generation_prompt": prompt}
            text = theirs.apply_chat_template(chat, tokenize=False, **options)
            made = theirs.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True, **options)
            assert made["input_ids"] == ours.encode_with_specials(text)[0]
            mask = "".join(map(str, made["assistant_masks"]))
            cases.append({"template": name, "chat": number, "text": text, "mask": mask})
    FILE.write_text("[\n" + ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
