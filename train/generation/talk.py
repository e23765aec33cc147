"""A conversation with a model: its turns are remembered, and the answers are streamed."""

import dataclasses
from collections.abc import Iterable, Iterator

from data.templates import render
from train.console import warn
from train.generation.decode import stream_text
from train.generation.language_model import GenerationOptions, LanguageModel


def talk(language_model: LanguageModel, lines: Iterable[str], system: str, options: GenerationOptions) -> Iterator[str]:
    """Yields the answers to `lines` in parts, as they are generated, with a line feed after each answer.

    The oldest turns are dropped when the conversation exceeds the model's context.
    """
    start = [{"role": "system", "content": language_model.cleaned(system)}] if system else []
    messages = list(start)
    for number, line in enumerate(lines):
        if line.strip() == "/exit":
            return
        if line.strip() in ("", "/reset"):
            messages = list(start) if line.strip() else messages
            continue
        messages.append({"role": "user", "content": language_model.cleaned(line)})
        max_prompt_len = max(language_model.model.context_length - options.max_new_tokens, 1)
        alone = [*start, messages[-1]]
        needed = len(render(alone, language_model.template, language_model.tokenizer, prompt=True).tokens)
        if needed > max_prompt_len:
            warn(
                f"chat: the message has {needed} tokens with its template; expected at most {max_prompt_len}, the "
                f"model's context minus --max_new_tokens={options.max_new_tokens}; it is left out"
            )
            messages.pop()
            continue
        tokens = render(messages, language_model.template, language_model.tokenizer, max_prompt_len, prompt=True).tokens
        answer, first = "", True
        # Seeds have 64 bits.
        seed = options.seed + number
        turn = dataclasses.replace(options, seed=seed if seed < 2**63 else seed - 2**64)
        for part in stream_text(language_model, tokens, turn):
            # The space before an answer can be a part of its first token.
            shown = part.removeprefix(" ") if first else part
            first = first and not part
            answer += shown
            yield shown
        yield "\n"
        messages.append({"role": "assistant", "content": answer})
