"""The stages that make a token store; each maps a pure function over jobs that write files, so any may be repeated.

1. scan: hash each source and find where it can be cut; read: the documents of each unit, cleaned and hashed.
2. split: one pass over the digests: exact duplicates and the split; then the tokenizer is trained or copied.
3. tokenize: the tokens of each unit, sorted by a key that shuffles documents.
4. gather: the documents of all units whose keys begin with the same bits are a shard; the manifest is written last.

The order of documents is that of their keys, so the store does not depend on units, processes, engine or order of jobs.
"""

import contextlib
import dataclasses
import functools
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data import engines, sources
from data.engines import Engine, Map
from data.preparation.composition import COMPOSITION, Composition
from data.preparation.gathering import MAX_PREFIX_BITS, GatherOptions, gather_shard, shard_count
from data.preparation.reading import CLEANED, COUNTERS, ReadOptions, Samples, read_unit
from data.preparation.splitting import SplitOptions, split_units, texts_of
from data.preparation.tokenizing import TokenizeOptions, token_counts, tokenize_unit
from data.preparation.unit_files import UnitFiles, done_jobs, mark_path, read_mark, write_mark
from data.preparation.workspace import Workspace
from data.sources import HuggingFaceDataset
from data.store import token_dtype
from data.store_writer import split_record
from data.tokenizer import Tokenizer, load_tokenizer
from data.tokenizer_training import get_tokenizer
from data.units import Scan, plan_units, scan_source

Progress = Callable[[str, int, int | None], None]
Source = Path | HuggingFaceDataset
Part = tuple[int, float, float]  # see `splitting.split_units`

_TITLES = {"scan": "hashing files", "read": "reading", "tokenize": "tokenizing", "gather": "writing shards"}
_LONG_STAGES = ("read", "tokenize")  # shown even if they are one job
_FILES_PER_SCAN = 1024
_LARGEST_TOKEN_BYTES = 4
_SECONDS_PER_COUNT = 1.0


def _hide(stage: str, done: int, total: int | None) -> None:
    pass


class NotYet(Exception):
    """This command's part of the current stage is done; the next stage needs the parts of the others."""


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """How a store is made.

    Attributes:
        input: see `data.readers.read_documents`; for messages.
        tokenizer: a tokenizer, or what to train or load; see `tokenizer_training.get_tokenizer`.
        read: stage 1.
        split: stage 2.
        seed: of the order of documents.
        unit_bytes: size of a unit.
        shard_bytes: size of a shard at most, on average.
    """

    input: str
    tokenizer: Tokenizer | str
    read: ReadOptions
    split: SplitOptions
    seed: int
    unit_bytes: int
    shard_bytes: int


@dataclasses.dataclass(frozen=True)
class _Run:
    """A pipeline at work in a workspace."""

    space: Workspace
    engine: Engine
    progress: Progress
    ended: list[str] = dataclasses.field(default_factory=list)  # stages of one job that this command did

    @property
    def folder(self) -> Path:
        return self.space.folder

    def map(self, run_jobs: Map, stage: str, function: Callable[[Any], None], jobs: list[Any]) -> None:
        """Runs the jobs that are not done; job n is marked by `stage` and n, which begins its arguments or is it.

        Raises:
            NotYet: the jobs of other parts are not done.
        """
        part, parts = self.engine.part or (0, 1)
        done = done_jobs(self.folder, stage)
        todo = [job for number, job in enumerate(jobs) if number not in done and number % parts == part]
        if self.engine.part and self.ended and todo:
            raise NotYet(f"{self.ended[-1]} is done; {stage} is next")
        counted = time.monotonic()
        known, mine = len(done), 0
        show = self.progress if len(jobs) > 1 or stage in _LONG_STAGES else _hide
        show(_TITLES[stage], known, len(jobs))

        def finished() -> None:
            nonlocal known, mine, counted
            mine += 1
            # Others may finish jobs of this stage too.
            if self.engine.part and time.monotonic() - counted > _SECONDS_PER_COUNT:
                known, mine, counted = len(done_jobs(self.folder, stage)), 0, time.monotonic()
            show(_TITLES[stage], min(known + mine, len(jobs)), len(jobs))

        run_jobs(function, todo, finished)
        if self.engine.part and (todo or len(done) < len(jobs)):
            raise NotYet(f"{stage}: {len(done_jobs(self.folder, stage))} of {len(jobs)} jobs are done")

    def once(self, stage: str, function: Callable[[], Any]) -> Any:  # noqa: ANN401 - a JSON value
        """Returns the result of a stage that is one job, which part 0 does.

        Raises:
            NotYet: another part has to do it.
        """
        if not mark_path(self.folder, stage, 0).is_file():
            if self.engine.part and self.engine.part[0]:
                raise NotYet(f"{stage}: part 0 is not done")
            write_mark(self.folder, stage, 0, function())
            self.ended.append(stage)
        return read_mark(self.folder, stage, 0)


def make_store(
    pipeline: Pipeline, found: list[Source], space: Workspace, engine: Engine, progress: Progress
) -> dict[str, Any]:
    """Makes a store in a workspace, and returns its manifest without the options.

    Args:
        pipeline: how.
        found: the sources that the input matches, in order.
        space: where.
        engine: who runs the jobs.
        progress: called with (stage, jobs done, jobs).

    Raises:
        UserError: see `data.prepare.prepare`.
        NotYet: `engine.part` is done, and other parts are not.
    """
    run = _Run(space, engine, progress)
    with contextlib.ExitStack() as stack:
        groups = _groups(found, pipeline.unit_bytes)
        # A process takes a second to start, and a unit is one process's work.
        run_jobs = engines.run_here if len(groups) == 1 else stack.enter_context(engines.start(engine))
        run.map(run_jobs, "scan", functools.partial(_scan, run.folder, pipeline.unit_bytes), list(enumerate(groups)))
        scans = [Scan.from_json(scan) for n in range(len(groups)) for scan in read_mark(run.folder, "scan", n)]
        units = plan_units(scans, pipeline.unit_bytes)
        if len(units) > 1 and len(groups) == 1:
            run_jobs = stack.enter_context(engines.start(engine))
        run.map(run_jobs, "read", functools.partial(read_unit, run.folder, pipeline.read), list(enumerate(units)))
        _check_unchanged(found, scans)
        made = _make(run, run_jobs, pipeline, len(units))
    return sources.manifest_fields(scan.entry for scan in scans) | made


def _groups(found: list[Source], unit_bytes: int) -> list[list[Source]]:
    """Returns the sources in groups of about a unit: one job hashes a group."""
    groups: list[list[Source]] = [[]]
    total = 0
    for source in found:
        size = 0 if isinstance(source, HuggingFaceDataset) else sources.status_of(source).st_size
        if groups[-1] and (total + size > unit_bytes or len(groups[-1]) == _FILES_PER_SCAN):
            groups.append([])
            total = 0
        groups[-1].append(source)
        total += size
    return groups


def _scan(folder: Path, unit_bytes: int, job: tuple[int, list[Source]]) -> None:
    number, found = job
    write_mark(folder, "scan", number, [scan_source(source, unit_bytes).to_json() for source in found])


def _check_unchanged(found: list[Source], scans: list[Scan]) -> None:
    """Raises UserError if a file changed after it was hashed: what was read is then not what the manifest says."""
    for source, scan in zip(found, scans, strict=True):
        if not isinstance(source, HuggingFaceDataset):
            status = sources.status_of(source)
            if (status.st_size, status.st_mtime_ns) != (scan.entry.size, scan.entry.mtime_ns):
                raise UserError(f"{source} changed while it was read; run the same command again when it is complete")


def _make(run: _Run, run_jobs: Map, pipeline: Pipeline, units: int) -> dict[str, Any]:
    """Runs the stages after the units were read; returns the manifest's fields about the store."""
    files = [UnitFiles(run.folder, number) for number in range(units)]
    split = run.once("split", lambda: split_units(files, pipeline.split, pipeline.input))
    store = run.space.store
    parts: dict[str, Part] = {name: (int(place), start, stop) for name, (place, start, stop) in split["parts"].items()}
    run.once("tokenizer", lambda: _save_tokenizer(pipeline.tokenizer, files, parts["train"], run))
    tokenizer = load_tokenizer(store)
    dtype = token_dtype(tokenizer.vocab_size)
    results = [unit.results() for unit in files]
    bits = _prefix_bits(results, pipeline.shard_bytes)
    tokenize = TokenizeOptions((store, tokenizer.sha256), pipeline.seed, parts, bits)
    run.map(run_jobs, "tokenize", functools.partial(tokenize_unit, run.folder, tokenize), list(range(units)))
    counts = token_counts((read_mark(run.folder, "tokenize", number) for number in range(units)), parts)
    numbers = {name: shard_count(counts[name]["tokens"], dtype, pipeline.shard_bytes, bits) for name in parts}
    shards = tuple((name, number, count) for name, count in numbers.items() for number in range(count))
    gather = GatherOptions(store, units, dtype, bits, shards)
    run.map(run_jobs, "gather", functools.partial(gather_shard, run.folder, gather), list(range(len(shards))))
    written = iter([read_mark(run.folder, "gather", number) for number in range(len(shards))])
    records = run.once(
        "checksums",
        lambda: {name: split_record(store / name, list(itertools.islice(written, n))) for name, n in numbers.items()},
    )
    unknown = sum(count["unknown"] for count in counts.values())
    lost = {"unknown_tokens": unknown} if unknown else {}
    return lost | {
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "dtype": dtype,
        "splits": {name: record | {"bytes": counts[name]["bytes"]} for name, record in records.items()},
        **_collected(results, split),
        COMPOSITION: Composition.of(read_mark(run.folder, "tokenize", n) for n in range(units)).to_json(),
    }


def _prefix_bits(results: Iterable[dict[str, Any]], shard_bytes: int) -> int:
    """Returns how many bits of the keys may separate shards: enough for one token per byte of text."""
    most = sum(result["text_bytes"] + 2 * result["documents"] for result in results) * _LARGEST_TOKEN_BYTES
    return min((most // shard_bytes).bit_length(), MAX_PREFIX_BITS)


def _save_tokenizer(wanted: Tokenizer | str, units: list[UnitFiles], train: Part, run: _Run) -> dict[str, Any]:
    """Saves the tokenizer in the store, trained on the training split if it is to be trained."""

    def texts() -> Iterator[str]:
        for number, unit in enumerate(units):
            run.progress("training the tokenizer", number, len(units))
            # A character that occurs only in the validation split would be unknown otherwise.
            yield from texts_of(unit, None if wanted == "chars" else train)
        run.progress("training the tokenizer", len(units), len(units))

    tokenizer = wanted if isinstance(wanted, Tokenizer) else get_tokenizer(wanted, texts)
    tokenizer.save(run.space.store)
    return {"sha256": tokenizer.sha256}


def _collected(results: list[dict[str, Any]], split: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest's counts of documents and bytes, and "filtered" if a filter did something."""
    totals = {name: Counter[str]() for name in COUNTERS}
    samples = Samples()
    for result in results:
        samples.merge(result["samples"])
        for name, total in totals.items():
            total.update(result[name])
    counts = totals["counts"]
    collected = {"read": counts["read"], "empty": counts["empty"], "duplicate": split["duplicate"]}
    if counts[CLEANED]:
        collected[CLEANED] = counts[CLEANED]
    collected |= sorted(totals["skipped"].items())
    removed = Counter(split["removed"]) + totals["removed"]
    found = {"removed": removed, "changed": totals["changed"], "notes": totals["notes"]}
    filtered: dict[str, Any] = {name: dict(sorted(values.items())) for name, values in found.items()}
    made = {"collected": collected, "bytes": dict(totals["bytes"] + Counter(split["bytes"]))}
    return made | ({"filtered": filtered | {"samples": samples.to_json()}} if any(found.values()) else {})
