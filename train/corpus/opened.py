"""The data of a pre-training run: the token store of `config.data.path`, or those of the sources of a mixture."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from configs.errors import UserError
from data.loader import Rows, Skipped, batch_number
from data.mixed_rows import MixedRows
from data.mixture import mixture_plan, of_source
from data.packing import PackedRows
from data.store import TokenStore, open_store, read_manifest
from data.store_cache import cached_store
from data.tokenizer import Tokenizer, load_tokenizer
from train.console import say
from train.settings import Settings


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The held-out rows of a source, and its share of the rows of the run."""

    rows: PackedRows
    share: float


class Usage(NamedTuple):
    """How a run uses a source: rows that it reads, rows that the source has, part of the rows of the run."""

    read: int
    rows: int
    share: float

    @property
    def epochs(self) -> float:
        """How often each row is read."""
        return self.read / self.rows


@dataclasses.dataclass(frozen=True)
class Corpus:
    """The opened stores of a run.

    Attributes:
        paths: {name of the source: its store}; without a mixture, of one store whose name is "".
        train: {name: the training split}, sorted by name.
        settings: the config.
    """

    paths: dict[str, Path]
    train: dict[str, TokenStore]
    settings: Settings

    @property
    def rows(self) -> PackedRows | MixedRows:
        """The training rows."""
        sources = tuple(PackedRows(store, self.settings.sequence_length) for store in self.train.values())
        data = self.settings.data
        if not data.mixture:
            return sources[0]
        plan = mixture_plan(data.mixture, data.mixture_schedule, self.settings.batch_size)
        return MixedRows(tuple(self.train), sources, plan)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of all stores."""
        return load_tokenizer(next(iter(self.paths.values())))

    @property
    def num_tokens(self) -> int:
        """The number of training tokens of all sources."""
        return sum(store.num_tokens for store in self.train.values())

    @property
    def fingerprints(self) -> dict[str, str]:
        """{name: fingerprint of its training split} of a mixture; empty without one."""
        return {name: store.fingerprint for name, store in self.train.items() if name}

    @property
    def fingerprint(self) -> str:
        """A SHA-256 that identifies the training rows of all sources, whatever their weights."""
        if not self.settings.data.mixture:
            return self.train[""].fingerprint
        return hashlib.sha256(json.dumps(self.fingerprints, sort_keys=True).encode()).hexdigest()

    @property
    def files(self) -> list[Any]:
        """The files that the stores were made from (`data.sources.Inventory`)."""
        found = []
        for name, path in self.paths.items():
            prefix = f"{name}: " if name else ""
            found += [[f"{prefix}{file[0]}", *file[1:]] for file in read_manifest(path).get("files", [])]
        return found

    def place_of(self, name: str, document: int) -> str:
        """Returns where a training document of a source is, as text."""
        return f"document {document} of {f'{name} (' if name else ''}{self.paths[name]}/train{')' if name else ''}"

    def held_out(self) -> dict[str, HeldOut]:
        """Returns the held-out rows of each source.

        Raises:
            UserError: a store has no validation split.
        """
        usage = source_usage(self.rows, self.settings)
        length = self.settings.sequence_length
        found = {}
        for name, path in self.paths.items():
            with of_source(name):
                found[name] = HeldOut(PackedRows(open_store(path, "validation"), length), usage[name].share)
        return found


def open_corpus(paths: Mapping[str, Path], settings: Settings) -> Corpus:
    """Returns the corpus of {name: store}, of which buckets are read as `config.data.cache` says.

    Raises:
        UserError: a store cannot be read, or the stores have different tokenizers; names the source.
    """
    cached, train = {}, {}
    for name in sorted(paths):
        with of_source(name):
            cached[name] = cached_store(paths[name], settings.data.cache)
            train[name] = open_store(cached[name], "train")
    first, *others = cached
    expected = read_manifest(cached[first])["tokenizer_sha256"]
    for name in others:
        if read_manifest(cached[name])["tokenizer_sha256"] != expected:
            raise UserError(
                f"config.data.mixture: source {name!r} ({cached[name]}) has another tokenizer than source {first!r}; "
                f"prepare its text again with: rootstock prepare --tokenizer={cached[first]}"
            )
    return Corpus(cached, train, settings)


def run_rows(settings: Settings, skipped: Skipped = ()) -> int:
    """Returns the number of rows up to the end of the run, with those of skipped batches."""
    return (batch_number(settings.num_steps - 1, skipped) + 1) * settings.batch_size


def source_usage(rows: Rows, settings: Settings, skipped: Skipped = ()) -> dict[str, Usage]:
    """Returns {name of the source: how the run uses its rows}; of a single store under the name ""."""
    total = run_rows(settings, skipped)
    if not isinstance(rows, MixedRows):
        return {"": Usage(total, len(rows), 1.0)}
    each = zip(rows.names, rows.sources, rows.plan.counts(total), strict=True)
    return {name: Usage(count, len(source), count / total) for name, source, count in each}


def check_sources(rows: Rows, settings: Settings, skipped: Skipped, is_new: bool) -> None:
    """Prints how often each source of a mixture is read, and checks it.

    Args:
        rows: the training rows.
        settings: the config.
        skipped: batches that the run skips.
        is_new: the run has not begun; one that resumes may be too short for a source.

    Raises:
        UserError: a source gives no row, or is read more often than `config.data.max_epochs`; one line with all.
    """
    most, errors = settings.data.max_epochs, []
    for name, used in source_usage(rows, settings, skipped).items():
        place = f"config.data.mixture: source {name!r}" if name else f"config.data.path={settings.data.path!r}"
        if not used.read and is_new:
            total = run_rows(settings, skipped)
            errors.append(
                f"{place} gives none of the {total:,} rows of config.num_steps={settings.num_steps}: its weight is too "
                f"small; raise it to at least {1 / total:.2g} of the sum of weights, or remove the source"
            )
        if 0 < most < used.epochs:
            remedy = f"its weight to {most / used.epochs:.2g} of what it is" if name else "config.num_steps"
            errors.append(
                f"{place} would be read {used.epochs:.3g} times ({used.read:,} rows; it has {used.rows:,}), but "
                f"config.data.max_epochs={most:g}; lower {remedy}, or raise max_epochs"
            )
        if name:
            say(f"pretrain: {name}: {used.share:.2%} of the rows, {used.epochs:.3g} epochs of {used.rows:,} rows")
    if errors:
        raise UserError("; ".join(errors))


def with_stores(config: dict[str, Any], corpus: Corpus) -> dict[str, Any]:
    """Returns a config whose data are the prepared stores of a corpus."""
    data = dict(config["data"])
    if corpus.settings.data.mixture:
        data["mixture"] = tuple(
            (source.name, str(corpus.paths[source.name]), source.weight) for source in corpus.settings.data.mixture
        )
    else:
        data["path"] = str(corpus.paths[""])
    return config | {"data": data}
