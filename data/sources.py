"""What an input pattern stands for: files, directories, Hugging Face datasets; and the hashes of their content."""

import dataclasses
import hashlib
import importlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from configs.errors import UserError, one_line
from data.storage.files import exists, files_below, is_directory, match_files
from data.storage.paths import at

TEXT_SUFFIXES = (".txt", ".md", ".rst")
ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
COMPRESSED_SUFFIXES = (".gz", ".zst")
CHUNK_BYTES = 1 << 20
_SUFFIXES = f"{' '.join(TEXT_SUFFIXES + ROW_SUFFIXES)}, all but .parquet also with .gz or .zst"
_PATTERNS = f"a file, a glob or a directory of {_SUFFIXES}, here or in a bucket (gs://, s3://), or hf:NAME"
_HF_PATTERNS = "hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT"
# What the Hub and `datasets` put beside the rows of a dataset.
_METADATA_FILES = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")
# What lies beside data and is none.
_ABOUT_DATA = re.compile(r"(README|LICEN[CS]E|COPYING|NOTICE|CHANGELOG|CITATION|_SUCCESS)\b.*", re.IGNORECASE)

# [name, bytes, SHA-256] per file, or [name, rows, SHA-256] per dataset; stored as JSON in manifests and in run.json.
Inventory = list[list[Any]]


class SourceEntry(NamedTuple):
    """A file or dataset and its content's hash.

    Attributes:
        name: the file's name without its directory, or "hf:NAME:SPLIT" or "hf:NAME:CONFIG:SPLIT".
        size: bytes, or rows of a dataset.
        sha256: the hash of the content.
        mtime_ns: when the file was last modified; None for a dataset.
    """

    name: str
    size: int
    sha256: str
    mtime_ns: int | None


@dataclasses.dataclass(frozen=True)
class HuggingFaceDataset:
    """A split of a dataset that the `datasets` library loads: a name on the Hub or a local directory.

    Attributes:
        name: of the dataset.
        split: of the rows.
        config: one of the dataset's configurations; "": the only one, or its default.
    """

    name: str
    split: str
    config: str = ""

    def __str__(self) -> str:
        return ":".join(["hf", self.name, *([self.config] if self.config else []), self.split])


def split_sources(pattern: str) -> list[str]:
    """Returns one pattern for each file or dataset that `pattern` matches.

    Raises:
        UserError: nothing matches.
    """
    return [str(source) for source in match_sources(pattern)]


def fingerprint(files: Inventory) -> str:
    """Returns the SHA-256 of an inventory, which identifies the content of a source."""
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()


def inventory(pattern: str) -> Inventory:
    """Returns the name, size and SHA-256 of each file or dataset that `pattern` matches.

    Raises:
        UserError: nothing matches, or a file cannot be read.
    """
    return [[entry.name, entry.size, entry.sha256] for entry in hash_sources(pattern)]


def hash_sources(pattern: str, known: Iterable[SourceEntry] = ()) -> list[SourceEntry]:
    """Returns an entry for each file or dataset that `pattern` matches.

    A file whose name, size and modification time equal those of a known entry is not read: it gets the known hash.

    Args:
        pattern: see `data.readers.read_documents`.
        known: entries of an earlier call.

    Raises:
        UserError: nothing matches, or a file cannot be read.
    """
    # Two files of one name, size and time in different directories may have different content: both are read.
    hashes: dict[tuple[str, int, int | None], set[str]] = {}
    for entry in known:
        hashes.setdefault((entry.name, entry.size, entry.mtime_ns), set()).add(entry.sha256)
    entries = []
    for source in match_sources(pattern):
        if isinstance(source, HuggingFaceDataset):
            entries.append(hash_dataset(source))
            continue
        # Taken before the content is read, so that a later write changes the time.
        status = status_of(source)
        found = hashes.get((source.name, status.st_size, status.st_mtime_ns), set())
        size, digest = (status.st_size, next(iter(found))) if len(found) == 1 else hash_file(source)
        entries.append(SourceEntry(source.name, size, digest, status.st_mtime_ns))
    return entries


def status_of(path: Path) -> os.stat_result:
    """Returns size and time of modification of a file.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        return path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def hash_file(path: Path, observe: Callable[[bytes], None] | None = None) -> tuple[int, str]:
    """Returns the number of bytes and the SHA-256 of a file; `observe` is called with each chunk of it.

    Raises:
        UserError: the file cannot be read.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                if observe is not None:
                    observe(chunk)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return size, digest.hexdigest()


def hash_dataset(source: HuggingFaceDataset, observe: Callable[[bytes], None] | None = None) -> SourceEntry:
    """Returns the entry of a dataset; `observe` is called with the text of each row.

    Raises:
        UserError: see `load_dataset`.
    """
    digest, count = hashlib.sha256(), 0
    for row in load_dataset(source)[0]:
        text = repr(row).encode("utf-8", "backslashreplace")
        digest.update(text)
        count += 1
        if observe is not None:
            observe(text)
    return SourceEntry(str(source), count, digest.hexdigest(), None)


def manifest_fields(entries: Iterable[SourceEntry]) -> dict[str, Any]:
    """Returns the fields of a store's manifest that describe its input; "files" alone determines "source"."""
    entries = list(entries)
    files = [[entry.name, entry.size, entry.sha256] for entry in entries]
    return {"source": fingerprint(files), "files": files, "mtimes_ns": [entry.mtime_ns for entry in entries]}


def differences(before: Inventory, now: Inventory) -> list[str]:
    """Returns a line for each file that was added, removed or changed, with its size and the start of its hash."""

    def described(files: Inventory) -> dict[str, str]:
        seen: Counter[str] = Counter()
        named = {}
        for name, size, digest in files:
            seen[name] += 1
            named[f"{name} ({seen[name]})" if seen[name] > 1 else name] = f"{size:,} {digest[:8]}"
        return named

    old, new = described(before), described(now)
    changed = [name for name in old | new if old.get(name) != new.get(name)]
    return [f"{name}: {old.get(name, 'missing')} -> {new.get(name, 'missing')}" for name in changed]


def match_sources(pattern: str) -> list[Path | HuggingFaceDataset]:
    """Returns the files and datasets that a pattern matches, each once and in the same order every time.

    Raises:
        UserError: nothing matches, or a file has an unknown suffix.
    """
    found: dict[Path | HuggingFaceDataset, None] = {}
    for part in _parts(pattern):
        found |= dict.fromkeys(_match(part))
    return list(found)


def unread_files(pattern: str) -> list[Path]:
    """Returns the files in the directories of a pattern that are not read, because their suffix is unknown.

    Hidden files and those that are about the data, such as a README or a LICENSE, are not listed.
    """
    directories = [at(part) for part in _parts(pattern) if part and not part.startswith("hf:")]
    found = [path for directory in directories if is_directory(directory) for path in _visible_files(directory)]
    return [path for path in found if suffix_of(path) is None and not _ABOUT_DATA.match(path.name)]


def _parts(pattern: str) -> list[str]:
    """Returns the parts between commas; a file whose name contains a comma is one, not two."""
    return [pattern] if os.path.exists(pattern) else [part.strip() for part in pattern.split(",")]


def _match(part: str) -> list[Path | HuggingFaceDataset]:
    if part.startswith("hf:"):
        return [parse_dataset(part)]
    if not part:
        raise UserError(f"the input is empty; expected {_PATTERNS}")
    path = at(part)
    if is_directory(path):
        files = _files_in(path)
    elif exists(path):
        files = [path]
    else:
        files = match_files(part)
    if not files:
        raise UserError(f"{part!r} matches no readable file; expected {_PATTERNS}")
    for path in files:
        if str(path) != str(path).encode("utf-8", "replace").decode():
            raise UserError(f"{os.fsencode(path)!r}: the name of the file is not UTF-8; rename it")
        if suffix_of(path) is None:
            raise UserError(f"{path}: suffix {path.suffix!r} is unknown; expected {_SUFFIXES}")
    return list(files)


def parse_dataset(part: str) -> HuggingFaceDataset:
    """Returns the dataset that "hf:NAME", "hf:NAME:SPLIT" or "hf:NAME:CONFIG:SPLIT" names.

    Raises:
        UserError: the text has another form.
    """
    # The colon of a slice such as train[:100] separates nothing.
    name, *rest = re.split(r":(?![^\[]*\])", part.removeprefix("hf:"))
    if not name:
        raise UserError(f"{part!r} does not name a dataset; expected {_HF_PATTERNS}")
    if len(rest) > 2:
        raise UserError(f"{part!r} has {len(rest) + 1} parts; expected {_HF_PATTERNS}")
    return HuggingFaceDataset(name, (rest[-1] if rest else "") or "train", rest[0] if len(rest) == 2 else "")


def _files_in(directory: Path) -> list[Path]:
    """Returns the files with a known suffix in a directory and the directories in it, without hidden ones.

    What lies beside rows and is about them is none of them: README.md, LICENSE.txt, and the descriptions of the Hub.
    """
    files = [path for path in _visible_files(directory) if suffix_of(path) and path.name not in _METADATA_FILES]
    has_rows = any(suffix_of(path) in ROW_SUFFIXES for path in files)

    def is_about(path: Path) -> bool:
        return has_rows and suffix_of(path) in TEXT_SUFFIXES and _ABOUT_DATA.match(path.name) is not None

    return [path for path in files if not is_about(path)]


def _visible_files(directory: Path) -> list[Path]:
    """Returns the files at any depth of a directory, sorted, without hidden ones and those in hidden directories."""
    parts = {path: path.relative_to(directory).parts for path in files_below(directory)}
    return sorted(path for path, names in parts.items() if not any(name.startswith(".") for name in names))


def compression_of(path: Path) -> str:
    """Returns ".gz", ".zst" or "", in lower case."""
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSED_SUFFIXES else ""


def suffix_of(path: Path) -> str | None:
    """Returns the suffix of a file's format in lower case, before .gz or .zst; None if the format is not supported."""
    compressed = compression_of(path)
    suffix = (Path(path.stem) if compressed else path).suffix.lower()
    supported = TEXT_SUFFIXES + (ROW_SUFFIXES[:-1] if compressed else ROW_SUFFIXES)
    return suffix if suffix in supported else None


def import_optional(name: str, why: str) -> Any:  # noqa: ANN401 - a module
    """Returns an optional package.

    Raises:
        UserError: it is not installed; names `why` it is needed and how to install it.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{why} needs the {name} package: pip install -e '.[data]'") from None


def load_dataset(
    source: HuggingFaceDataset, part: range | None = None
) -> tuple[Iterable[dict[str, object]], Mapping[str, Any]]:
    """Returns (the rows of a dataset or a range of them, its features as `datasets` writes them to JSON).

    Raises:
        UserError: the `datasets` package is not installed, or cannot load the dataset or, later, a row of it.
    """
    rows = _loaded(source)
    features = rows.features.to_dict()
    return _dataset_rows(source, rows if part is None else rows.select(part)), features


def _loaded(source: HuggingFaceDataset) -> Any:  # noqa: ANN401 - a type of an extra
    datasets = import_optional("datasets", str(source))
    try:
        return datasets.load_dataset(source.name, source.config or None, split=source.split)
    except Exception as error:  # the library and its dependencies raise errors of many types
        found = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{source} cannot be loaded: {found}; expected {_HF_PATTERNS}") from None


def dataset_version(source: HuggingFaceDataset) -> str:
    """Returns what the `datasets` library tells versions of a dataset apart by, without reading its rows.

    Raises:
        UserError: see `load_dataset`.
    """
    return str(_loaded(source)._fingerprint)


def _dataset_rows(source: HuggingFaceDataset, rows: Iterable[dict[str, object]]) -> Iterator[dict[str, object]]:
    try:
        yield from rows
    except Exception as error:  # see `load_dataset`
        raise UserError(f"{source} cannot be read: {type(error).__name__}: {one_line(error)}") from None
