"""The text of generated tokens as it grows, up to the first stop string."""

from collections.abc import Iterable, Iterator, Sequence

from data.seams import decode_after
from data.tokenizer import Tokenizer
from train.generation.language_model import GenerationOptions

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class GrowingText:
    """The text that tokens add to a prompt, as they come; a few tokens are decoded again, not the whole text.

    Special tokens are not part of the text, but end it if a stop string contains their names. A stop string is not
    looked for in the first `drop_spaces` spaces, which the caller drops because the prompt ends with them.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt: Sequence[int], options: GenerationOptions, drop_spaces: int = 0
    ) -> None:
        self._tokenizer = tokenizer
        self._names = {index: name for name, index in tokenizer.special_tokens.items()}
        self._options, self._drop_spaces = options, drop_spaces
        self._context = list(prompt)
        # Tokens whose text may still change: the bytes of one character can be several tokens.
        self._open: list[int] = []
        # The text; the text with names of special tokens; for each character of that, the length of the text there.
        self._text, self._spelled = "", ""
        self._lengths: list[int] = []

    def add(self, ids: Sequence[int]) -> tuple[str, bool]:
        """Returns (the text with these tokens, up to the first stop string; whether there was one)."""
        for token in ids:
            if token in self._names:
                self._close(self._rest())
                self._context.append(token)
                self._spelled += self._names[token]
                self._lengths += [len(self._text)] * len(self._names[token])
            else:
                self._open.append(token)
        rest = self._rest()
        if not rest.endswith(_INCOMPLETE):
            self._close(rest)
            rest = ""
        return self._until_stop(rest)

    def _rest(self) -> str:
        return decode_after(self._tokenizer, self._context, self._open)

    def _close(self, part: str) -> None:
        self._context += self._open
        self._open = []
        self._lengths += range(len(self._text), len(self._text) + len(part))
        self._text, self._spelled = self._text + part, self._spelled + part

    def _until_stop(self, rest: str) -> tuple[str, bool]:
        text, spelled = self._text + rest, self._spelled + rest
        first = len(spelled) - len(spelled.lstrip())
        if self._options.stop_at_start:
            first = min(len(spelled) - len(spelled.lstrip(" ")), self._drop_spaces)
        # Without `stop_at_start`, a stop string such as "\nQ:" may begin in the white space, but not be only that.
        before = 0 if self._options.stop_at_start else 1
        starts = {stop: max(first - before * (len(stop) - 1), 0) for stop in self._options.stop if stop}
        ends = [index for stop, start in starts.items() if (index := spelled.find(stop, start)) >= 0]
        if not ends:
            return text, False
        end = min(ends)
        closed = len(self._lengths)
        return text[: self._lengths[end] if end < closed else len(self._text) + end - closed], True


def text_until_stop(
    tokenizer: Tokenizer, prompt: Sequence[int], ids: Sequence[int], options: GenerationOptions
) -> tuple[str, bool]:
    """Returns (the text that tokens add to a prompt, up to the first of `options.stop`; whether there was one)."""
    return GrowingText(tokenizer, prompt, options).add(ids)


def sure_length(text: str, stop: Sequence[str]) -> int:
    """Returns how much of a growing text stays: without the start of a stop string or of a character at its end."""
    longest = max(map(len, stop), default=1)
    return max(min(len(text) - longest + 1, len(text.rstrip(_INCOMPLETE))), 0)


def stream_until_stop(texts: Iterable[tuple[str, bool]], stop: Sequence[str]) -> Iterator[str]:
    """Yields a growing text in parts, without what may still change.

    Args:
        texts: (the text so far, whether it has ended) of `text_until_stop`, as it grows.
        stop: the stop strings.
    """
    text, shown = "", 0
    for text, ended in texts:
        if ended:
            break
        sure = sure_length(text, stop)
        if sure > shown:
            yield text[shown:sure]
            shown = sure
    yield text[shown:]
