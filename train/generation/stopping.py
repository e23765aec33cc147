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
    text = decode_after(tokenizer, prompt, ids)
    spelled, lengths = _spell(tokenizer, prompt, ids, text)
    first = 0 if options.stop_at_start else len(spelled) - len(spelled.lstrip())
    ends = [index for stop in options.stop if stop and (index := spelled.find(stop, first)) >= 0]
    return (text[: lengths[min(ends)]], True) if ends else (text, False)


def _spell(tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int], text: str) -> tuple[str, list[int]]:
    """Returns the text with the names of special tokens, and the length of the text before each of its characters."""
    names = {index: name for name, index in tokenizer.special_tokens.items()}
    spelled, lengths, done = "", [], 0
    for place, token in enumerate(ids):
        if token in names:
            end = max(len(decode_after(tokenizer, prompt, ids[:place])), done)
            spelled += text[done:end] + names[token]
            lengths += [*range(done, end), *[end] * len(names[token])]
            done = end
    return spelled + text[done:], [*lengths, *range(done, len(text))]


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
