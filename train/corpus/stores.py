"""The token stores of a pre-training config: those that it names, or made of text in the run's directory."""

import dataclasses
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.mixture import of_source
from data.prepare import DataChanged, StoreOptions, prepare, skipped_rows
from data.shared_tokenizer import train_shared_tokenizer
from data.sources import match_sources
from data.storage.files import delete_tree
from data.storage.paths import at
from data.store import is_store
from data.tokenizer import Tokenizer, load_tokenizer
from data.tokenizer_training import is_trainable
from train.console import say_skipped, say_unknown, say_unread, step_progress
from train.distributed.processes import run_on_process_zero
from train.settings import Settings


def token_stores(
    settings: Settings, workdir: Path, parent: Path | None, accept_changed_data: bool = False
) -> dict[str, Path]:
    """Returns {source of `config.data.mixture`: its token store}, or {"": the store of `config.data.path`}.

    Text is tokenized into `store_path(workdir, name)` on the first start, that of all sources by one tokenizer. With
    `accept_changed_data`, text that changed is tokenized again with the run's tokenizer.

    Raises:
        UserError: the text is missing, invalid, or changed since the store was written; names the source.
    """
    paths = run_on_process_zero(lambda: _stores(settings, workdir, parent, accept_changed_data))
    return {name: at(path) for name, path in paths.items()}


def store_path(workdir: Path, name: str) -> Path:
    """Returns where the text of a source is tokenized to; "": that of `config.data.path`."""
    return workdir / "stores" / name if name else workdir / "store"


def existing_stores(settings: Settings, workdir: Path) -> dict[str, Path]:
    """Returns the stores that the run in `workdir` reads, as `token_stores` does, without making any.

    Raises:
        UserError: one is missing.
    """
    found = {}
    for name, given in _given_paths(settings).items():
        path = at(given)
        path = path if is_store(path) else store_path(workdir, name)
        if not is_store(path):
            option = f"--data={name}=STORE" if name else "--data=STORE"
            raise UserError(f"{given}, the data of {workdir}, is not a token store; expected {option}")
        found[name] = path
    return found


def _given_paths(settings: Settings) -> dict[str, str]:
    """Returns {name: path} of the config, sorted by name."""
    data = settings.data
    return {source.name: source.path for source in sorted(data.mixture)} if data.mixture else {"": data.path}


def _stores(settings: Settings, workdir: Path, parent: Path | None, accept_changed_data: bool) -> dict[str, str]:
    """Process 0's part of `token_stores`."""
    if settings.data.mixture and settings.data.path:
        raise UserError(
            f"config.data.path={settings.data.path!r} has no effect with config.data.mixture; set one of the two"
        )
    given = _given_paths(settings)
    if not all(given.values()):
        raise UserError(
            "config.data.path is empty; expected a token store (rootstock prepare), a file, a glob or hf:NAME"
        )
    texts = {name: path for name, path in given.items() if not is_store(at(path))}
    stores = [path for name, path in given.items() if name not in texts]
    if not texts:
        return given
    if not settings.data.validation_fraction:
        raise UserError("config.data.validation_fraction=0 leaves no text to evaluate on; expected a fraction above 0")
    options = _options(settings, parent, stores)
    begun = (workdir / "run.json").exists()
    # If a kill interrupted tokenizing changed text again, the run's own tokenizer must still be used.
    tokenizer = load_tokenizer(workdir / "tokenizer") if begun else _shared_tokenizer(texts, workdir, options)

    for name, path in texts.items():
        output, title = store_path(workdir, name), f"pretrain: {name}" if name else "pretrain"
        with of_source(name):
            say_unread(title, path)
            try:
                manifest = _prepare(path, output, options, tokenizer)
            except DataChanged as error:
                if not begun:
                    raise UserError(f"{error}, or delete {output.parent if name else output}") from None
                if not accept_changed_data:
                    raise UserError(f"{error}, or --accept_changed_data") from None
                delete_tree(output)
                manifest = _prepare(path, output, options, tokenizer)
        say_skipped(title, skipped_rows(manifest))
        say_unknown(title, manifest)
    return given | {name: str(store_path(workdir, name)) for name in texts}


def _options(settings: Settings, parent: Path | None, stores: list[str]) -> StoreOptions:
    """Returns how text is tokenized: with the tokenizer of the parent run, of a store, or of the config."""
    data = settings.data
    return StoreOptions(
        tokenizer=str(parent / "tokenizer") if parent else stores[0] if stores else settings.tokenizer,
        text_field=data.text_field,
        validation_fraction=data.validation_fraction,
        validation_split=data.validation_split,
        seed=settings.seed,
        strict=data.strict,
    )


def _shared_tokenizer(texts: dict[str, str], workdir: Path, options: StoreOptions) -> Tokenizer | None:
    """Returns the tokenizer of the sources of a mixture that are text; None: `prepare` makes that of one text."""
    if "" in texts or not is_trainable(options.tokenizer):
        return None
    made = [output for output in (store_path(workdir, name) for name in texts) if is_store(output)]
    if made:
        return load_tokenizer(made[0])
    for name, path in texts.items():
        with of_source(name):
            match_sources(path)
    with step_progress() as progress:
        return train_shared_tokenizer(texts, options, progress)


def _prepare(path: str, output: Path, options: StoreOptions, tokenizer: Tokenizer | None) -> dict[str, Any]:
    with step_progress() as progress:
        return prepare(path, output, options, tokenizer, progress)


def replaced_paths(settings: Settings, data: str) -> Settings:
    """Returns settings with other paths: `data` is that of `config.data.path`, or NAME=PATH,... of a mixture's sources.

    Raises:
        UserError: `data` names no source of the mixture.
    """
    if not data:
        return settings
    if not settings.data.mixture:
        return dataclasses.replace(settings, data=dataclasses.replace(settings.data, path=data))
    sources = {source.name: source for source in settings.data.mixture}
    for part in data.split(","):
        name, _, path = part.partition("=")
        if name not in sources or not path:
            raise UserError(f"--data={part}; expected NAME=STORE,... with names of: {', '.join(sources)}")
        sources[name] = sources[name]._replace(path=path)
    return dataclasses.replace(settings, data=dataclasses.replace(settings.data, mixture=tuple(sources.values())))
