"""One tokenizer for the texts of several sources, trained before any of them is tokenized."""

from collections.abc import Callable, Iterator, Mapping

from data.cleaning import clean_document
from data.mixture import of_source
from data.preparation.reading import content_digest, content_fraction
from data.preparation.splitting import held_out_bound
from data.prepare import StoreOptions
from data.readers import read_documents
from data.tokenizer import Tokenizer
from data.tokenizer_training import get_tokenizer

Progress = Callable[[str, int, int | None], None]
_REPORT_EVERY = 1000


def train_shared_tokenizer(inputs: Mapping[str, str], options: StoreOptions, progress: Progress) -> Tokenizer:
    """Returns the tokenizer of `options.tokenizer`, trained on the texts of all inputs without their held-out parts.

    Args:
        inputs: {name of the source: what `readers.read_documents` reads}.
        options: how the stores are made; "chars" is trained on held-out parts as well, as for one input.
        progress: called with (stage, documents done, None).

    Raises:
        UserError: a text cannot be read; names the source.
    """

    def texts() -> Iterator[str]:
        done = 0
        for name, path in inputs.items():
            with of_source(name):
                for text in training_texts(path, options):
                    yield text
                    done += 1
                    if done % _REPORT_EVERY == 0:
                        progress("tokenizer", done, None)

    return get_tokenizer(options.tokenizer, texts)


def training_texts(path: str, options: StoreOptions) -> Iterator[str]:
    """Yields the documents of a source without their held-out parts, as `splitting.split_units` divides them."""
    if options.tokenizer == "chars":
        yield from _documents(path, options)
    elif options.validation_split == "tail":
        for text in _documents(path, options):
            if part := text[: int(len(text) * (1.0 - options.validation_fraction))]:
                yield part
    else:
        bound = _bound(path, options)
        yield from (text for text in _documents(path, options) if _fraction(text) >= bound)


def _documents(path: str, options: StoreOptions) -> Iterator[str]:
    return filter(None, map(clean_document, read_documents(path, options.text_field, options.strict)))


def _fraction(text: str) -> float:
    return content_fraction(content_digest(text))


def _bound(path: str, options: StoreOptions) -> float:
    """Returns the bound of `splitting.held_out_bound`; reads documents until both splits have one."""
    lowest: list[float] = []
    highest, wanted = 0.0, options.validation_fraction
    if not wanted:
        return 0.0
    for value in map(_fraction, _documents(path, options)):
        lowest, highest = sorted({*lowest, value})[:2], max(highest, value)
        if lowest[0] < wanted <= highest:
            return wanted
    # A source without documents is an error of the store.
    return held_out_bound(lowest, highest, wanted, path) if lowest else wanted
