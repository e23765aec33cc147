"""Writes the data card and the evidence of removals into a store."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.card.contents import card_contents, licenses_of, read_pairs
from data.card.page import write_card_page
from data.preparation.similar_documents import EVIDENCE_FILE
from data.preparation.workspace import Workspace
from data.storage.files import write_atomically

CARD_FILE, PAGE_FILE = "card.json", "card.html"


def write_card(
    space: Workspace,
    name: str,
    manifest: Mapping[str, Any],
    about: Mapping[str, Any],
    said: tuple[str, Mapping[str, str]],
) -> None:
    """Writes `card.json`, `card.html` and, if near-duplicates were looked for, `near_duplicates.jsonl` into a store.

    Args:
        space: where the store is made.
        name: of the store.
        manifest: of the store.
        about: see `card_contents`.
        said: (command that makes the store, license of each source), by the user.
    """
    evidence = space.folder / EVIDENCE_FILE
    card = card_contents(manifest, about, read_pairs(evidence), *said)
    if evidence.is_file():
        with evidence.open("rb") as source, (space.store / EVIDENCE_FILE).open("wb") as copy:
            shutil.copyfileobj(source, copy)
    write_atomically(space.store / CARD_FILE, json.dumps(card, indent=1, ensure_ascii=False))
    write_card_page(space.store / PAGE_FILE, name, card)


def replace_licenses(store: Path, licenses: Sequence[str], command: str) -> None:
    """Replaces the licenses in the card of a complete store, and the command, unless they are the same.

    Args:
        store: its directory.
        licenses: see `licenses_of`.
        command: that gives these licenses.

    Raises:
        UserError: the store has no card, or a license is given for a source that does not exist.
    """
    path = store / CARD_FILE
    if not path.is_file():
        raise UserError(f"{path} is missing, so the store has no place for a license; prepare it again")
    card = json.loads(path.read_text(encoding="utf-8"))
    names = licenses_of([source["name"] for source in card["sources"]], licenses)
    if all(source["license"] == names[source["name"]] for source in card["sources"]):
        return
    sources = [source | {"license": names[source["name"]]} for source in card["sources"]]
    card |= {"sources": sources, "command": command}
    write_atomically(path, json.dumps(card, indent=1, ensure_ascii=False))
    write_card_page(store / PAGE_FILE, store.name, card)
