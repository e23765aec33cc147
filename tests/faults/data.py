"""Faults of the data: bad rows among good ones, and files that change between two starts of a run."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np

from configs.errors import UserError
from configs.pretrain import tiny
from data.labeled import Example, SplitOptions, read_splits
from data.loader import BatchFunction
from data.packing import PackedRows
from data.prepare import StoreOptions, prepare, skipped_rows
from data.store import open_store
from tests.faults.contract import Fault, Outcome
from train.pretraining import pretrain
from train.run.history import read_records
from train.run.record import open_run

_WORDS = "the cat sat on a mat and saw dog run far away home again".split()
_BAD: dict[str, tuple[str, bytes]] = {
    "broken JSON": ("broken JSON", b'{"text": "cut'),
    "a list": ("broken JSON", b'["text"]'),
    "not UTF-8": ("not UTF-8", b'{"text": "\xff\xfe"}'),
    "10 MB": ("too long", b'{"text": "' + b"a" * (10 << 20) + b'"}'),
    "wrong type": ("not text", b'{"text": {"a": 5}}'),
    "missing": ("missing field", b'{"texts": "a"}'),
    "raw control character": ("broken JSON", b'{"text": "a\x01b"}'),
    "lone surrogate": ("not Unicode", b'{"text": "\\ud800"}'),
}


def _rows(count: int) -> list[bytes]:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(_WORDS, k=rng.randint(5, 20))) + f" {i}" for i in range(count)]
    return [json.dumps({"text": text, "label": "ab"[i % 2]}).encode() for i, text in enumerate(texts)]


def _with_bad_rows(rows: list[bytes]) -> list[bytes]:
    """Returns the rows with every kind of bad row, an empty row and a row of blanks among them."""
    mixed = list(rows)
    for number, (_, line) in enumerate(_BAD.values()):
        mixed.insert(7 * number + 3, line)
    return [*mixed[:20], b"", b"  ", *mixed[20:]]


def _batches(store: Path) -> list[np.ndarray]:
    function = BatchFunction(PackedRows(open_store(store, "train"), 32), 4, seed=0)
    return [x for t in range(6) for x in function(t).values()]


def _bad_rows(directory: Path, short: bool) -> Outcome:
    good = _rows(120)
    (directory / "good.jsonl").write_bytes(b"\n".join(good))
    (directory / "bad.jsonl").write_bytes(b"\n".join(_with_bad_rows(good)))
    options = StoreOptions("bytes", validation_fraction=0.1, strict=False)
    prepare(str(directory / "good.jsonl"), directory / "good", options)
    manifest = prepare(str(directory / "bad.jsonl"), directory / "bad", options)
    expected: dict[str, int] = {}
    for kind, _ in _BAD.values():
        expected[kind] = expected.get(kind, 0) + 1
    counted = skipped_rows(manifest) == expected
    pairs = zip(_batches(directory / "good"), _batches(directory / "bad"), strict=True)
    same = all(np.array_equal(a, b) for a, b in pairs)
    message = _line_of(lambda: prepare(str(directory / "bad.jsonl"), directory / "strict", StoreOptions("bytes")))
    strict = "bad.jsonl:4: broken JSON" in message and not (directory / "strict").exists()

    def parse(row: dict[str, object]) -> Example:
        if not isinstance(row.get("text"), str):
            raise UserError("no text")
        return Example(str(row["text"]), str(row["text"]), {"labels": [row.get("label")]})

    splits = [
        read_splits(str(directory / f"{n}.jsonl"), parse, SplitOptions(0.2, 0.2), strict=False) for n in ("good", "bad")
    ]
    labelled = splits[0].fingerprint == splits[1].fingerprint and splits[1].skipped["not a row of the task"] == 2
    seen = f"counted {skipped_rows(manifest)}; batches and labeled rows as without them: {same and labelled}"
    return Outcome(f"{len(_BAD)} bad rows among 120", counted and same and strict and labelled, 0, seen)


def _line_of(action: Callable[[], object]) -> str:
    try:
        action()
    except UserError as error:
        return str(error)
    return ""


def _changed_data(directory: Path, short: bool) -> Outcome:
    path, run = directory / "text.jsonl", directory / "run"
    path.write_bytes(b"\n".join(_rows(120)))
    config = tiny.get_config()
    config.tokenizer = "bpe:280"
    config.batch_size, config.sequence_length, config.num_steps = 8, 32, 4
    config.optimizer.warmup_steps = 2
    config.model.update({"embed_dim": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 16})
    config.data.path, config.evaluation.batches = str(path), 1
    config.mesh.data = -1
    config.logging.every = 1
    pretrain(config.to_dict(), run)
    before = open_run(run).record
    path.write_bytes(b"\n".join(_rows(130)))
    message = _line_of(lambda: pretrain(config.to_dict(), run))
    refused = (
        all(part in message for part in ("text.jsonl: 9", " -> ", "--accept_changed_data")) and "\n" not in message
    )
    untouched = open_run(run).record == before
    pretrain(config.to_dict(), run, accept_changed_data=True)
    now = open_run(run).record
    noted = [(c["step"], c["after"]) for c in now.data_changes] == [(4, now.data_fingerprint)]
    # From then on the new data count as the run's own.
    again = _line_of(lambda: pretrain(config.to_dict(), run)) == ""
    steps = [r["step"] for r in read_records(run) if r["phase"] == "train"]
    seen = f"refused: {message[:150]}…; accepted with the flag and recorded: {noted and again}"
    survived = refused and untouched and noted and again and steps == sorted(set(steps))
    return Outcome("10 rows added to the file", survived, 0, seen)


FAULTS = (Fault("bad rows", _bad_rows), Fault("data files changed", _changed_data))
