"""One tokenizer for the texts of several sources, trained before any of them is tokenized."""

from collections.abc import Callable, Iterator, Mapping

from data.cleaning import clean_document
from data.mixture import of_source
from data.preparation.reading import content_digest, content_fraction
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

    def documents() -> Iterator[str]:
        for name, path in inputs.items():
            with of_source(name):
                yield from read_documents(path, options.text_field, options.strict)

    def texts() -> Iterator[str]:
        done = 0
        for raw in documents():
            if text := _training_part(clean_document(raw), options):
                yield text
            done += 1
            if done % _REPORT_EVERY == 0:
                progress("tokenizer", done, None)

    return get_tokenizer(options.tokenizer, texts)


def _training_part(text: str, options: StoreOptions) -> str:
    if options.tokenizer == "chars":
        return text
    if options.validation_split == "tail":
        return text[: int(len(text) * (1 - options.validation_fraction))]
    return text if content_fraction(content_digest(text)) >= options.validation_fraction else ""
