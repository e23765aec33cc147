"""The text of generated tokens, up to the first stop string."""

from collections.abc import Iterable, Iterator, Sequence

from data.seams import decode_after
from data.tokenizer import Tokenizer
from train.generation.language_model import GenerationOptions

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def text_until_stop(
    tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int], options: GenerationOptions
) -> tuple[str, bool]:
    """Returns (the text that tokens add to a prompt, up to the first of `options.stop`; whether there was one).

    Special tokens are not part of the text, but end it if a stop string contains their names.
    """
    text, spelled, lengths = _spell(tokenizer, prompt, ids)
    first = 0 if options.stop_at_start else len(spelled) - len(spelled.lstrip())
    ends = [index for stop in options.stop if stop and (index := spelled.find(stop, first)) >= 0]
    return (text[: lengths[min(ends)]], True) if ends else (text, False)


def _spell(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int]) -> tuple[str, str, list[int]]:
    """Returns the text, the text with names of special tokens, and for each character of it the text's length there."""
    names = {index: name for name, index in tokenizer.special_tokens.items()}
    text, spelled = "", ""
    lengths: list[int] = []
    start = 0
    for end in [*(place for place, token in enumerate(ids) if token in names), len(ids)]:
        part = decode_after(tokenizer, [*prompt, *ids[:start]], ids[start:end])
        name = names[ids[end]] if end < len(ids) else ""
        lengths += [*range(len(text), len(text) + len(part)), *[len(text) + len(part)] * len(name)]
        text, spelled = text + part, spelled + part + name
        start = end + 1
    return text, spelled, lengths


def stream_until_stop(texts: Iterable[tuple[str, bool]], stop: Sequence[str]) -> Iterator[str]:
    """Yields a growing text in parts, without what may still change: the start of a stop string or of a character.

    Args:
        texts: (the text so far, whether it has ended) of `text_until_stop`, as it grows.
        stop: the stop strings.
    """
    longest = max(map(len, stop), default=1)
    text, shown = "", 0
    for text, ended in texts:
        if ended:
            break
        # The bytes of one character can be several tokens.
        sure = min(len(text) - longest + 1, len(text.rstrip(_INCOMPLETE)))
        if sure > shown:
            yield text[shown:sure]
            shown = sure
    yield text[shown:]
