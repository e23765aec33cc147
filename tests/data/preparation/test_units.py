"""Units: where inputs are cut, and what an error in a unit names."""

import gzip
import itertools
import json
from collections import Counter

import pytest

from configs.errors import UserError
from data.engines import Engine
from data.lines import BadInput, Part
from data.prepare import Execution, StoreOptions, prepare
from data.readers import read_documents, read_part
from data.sources import match_sources
from data.store import open_store
from data.tokenizer import load_tokenizer
from data.units import plan_units, scan_source, usual_unit_bytes
from train.console import say_unknown


def units_of(pattern, unit_bytes):
    return plan_units([scan_source(source, unit_bytes) for source in match_sources(pattern)], unit_bytes)


def documents_of(units, strict=True):
    bad = BadInput(strict, Counter())
    return [text for unit in units for piece in unit for text in read_part(piece.open(), piece.part, "text", bad)]


def rows(count, first=0):
    return [json.dumps({"text": f"row {n} " + "x" * (n * 7 % 50)}) for n in range(first, first + count)]


@pytest.mark.parametrize("ending", ["", "\n", "\n\n\n"])
@pytest.mark.parametrize("between", ["\n", "\n\n", "\r\n", "\n \n"])
@pytest.mark.parametrize("start", ["", "\n\n", "\ufeff"])
def test_parts_of_a_file_of_lines_have_its_rows(tmp_path, ending, between, start):
    path = tmp_path / "a.jsonl"
    path.write_bytes((start + between.join(rows(60)) + ending).encode())
    whole = list(read_documents(str(path)))
    assert len(whole) == 60
    for unit_bytes in (1, 30, 64, 65, 999, path.stat().st_size - 1, path.stat().st_size, 10**6):
        units = units_of(str(path), unit_bytes)
        assert documents_of(units) == whole, unit_bytes
        assert len(units) == 1 if unit_bytes >= path.stat().st_size else len(units) > 1 or unit_bytes > 999


def test_lines_are_cut_across_chunks(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(rows(40)))
    expected = [units_of(str(path), size) for size in (50, 120)]
    for chunk in (1, 7, 100):
        monkeypatch.setattr("data.sources.CHUNK_BYTES", chunk)
        assert [units_of(str(path), size) for size in (50, 120)] == expected


def test_every_kind_of_source_is_cut_where_it_can_be(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    texts = [json.loads(row)["text"] for row in rows(100)]
    parquet.write_table(arrow.table({"text": texts}), tmp_path / "a.parquet", row_group_size=10)
    (tmp_path / "b.jsonl").write_text("\n".join(rows(100)))
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as file:
        file.write("\n".join(rows(100)))
    (tmp_path / "d.csv").write_text("text\n" + "\n".join(f'"{text}\n"' for text in texts))
    (tmp_path / "e.json").write_text("[" + ",".join(rows(100)) + "]")
    (tmp_path / "f.json").write_text("\n".join(rows(100)))
    (tmp_path / "g.txt").write_text("\n".join(texts))
    counts = {}
    for path in sorted(tmp_path.iterdir()):
        units = units_of(str(path), 700)
        counts[path.name] = len(units)
        assert documents_of(units) == list(read_documents(str(path)))
    assert {name for name, count in counts.items() if count == 1} == {"c.jsonl.gz", "d.csv", "e.json", "g.txt"}
    assert counts["a.parquet"] in (5, 10) and counts["b.jsonl"] == counts["f.json"] > 5


def test_small_files_share_a_unit(tmp_path):
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("x" * 100)
    units = units_of(str(tmp_path), 350)
    assert [len(unit) for unit in units] == [3, 3, 3, 1]


def test_size_of_units_by_the_size_of_the_input():
    assert usual_unit_bytes(1000) == usual_unit_bytes(10**9) == 16 << 20
    assert 10**12 / usual_unit_bytes(10**12) <= 4097
    assert usual_unit_bytes(10**14) == 512 << 20


BAD_ROWS = [
    (b'{"text": 1', "a.jsonl:71: broken JSON", "broken JSON"),
    (b'{"body": "x"}', "a.jsonl:71: field 'text' is missing; the row has: body", "missing field"),
    (b'{"text": null}', "a.jsonl:71: ", "missing value"),
    (b'{"text": "\xff"}', "a.jsonl is not UTF-8: byte 0xff at offset {offset}", "not UTF-8"),
    (b'"text"', "a.jsonl:71: a JSON str; expected one JSON object per line", "broken JSON"),
]


@pytest.mark.parametrize(("row", "message", "kind"), BAD_ROWS, ids=["json", "field", "value", "utf8", "string"])
def test_a_bad_row_is_named_by_its_line_in_the_whole_file(tmp_path, row, message, kind):
    good = [line.encode() for line in rows(100)]
    lines = [*good[:70], row, *good[70:90], b"{", *good[90:]]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    (tmp_path / "b.jsonl").write_bytes(b"{")
    offset = sum(len(line) + 1 for line in good[:70]) + len(b'{"text": "')
    # Between processes one kind of error goes the same way as another.
    for unit, processes in ((0, 1), (500, 1), (40, 1), *([(500, 2)] if kind == "missing field" else [])):
        execution = Execution(Engine(processes=processes), unit)
        with pytest.raises(UserError) as error:
            prepare(str(tmp_path), tmp_path / "store", StoreOptions("bytes"), execution=execution)
        assert message.format(offset=offset) in str(error.value)
    manifest = prepare(str(tmp_path), tmp_path / "store", StoreOptions("bytes", strict=False), execution=execution)
    expected = {"read": 100, "empty": 0, "duplicate": 0, kind: 1}
    expected["broken JSON"] = expected.get("broken JSON", 0) + 2
    assert manifest["collected"] == expected


def test_a_bad_row_of_a_parquet_file_is_named_by_its_number(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    texts = [f"text {number} of a table" for number in range(100)]
    texts[57] = None
    parquet.write_table(arrow.table({"text": texts}), tmp_path / "a.parquet", row_group_size=10)
    for unit in (10**6, 200):
        with pytest.raises(UserError, match=r"a\.parquet: row 58: "):
            prepare(str(tmp_path), tmp_path / "store", StoreOptions("bytes"), execution=Execution(unit_bytes=unit))


def test_parts_of_a_dataset(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(rows(50)))
    pattern = f"hf:{tmp_path / 'set'}:train"
    units = units_of(pattern, 300)
    assert len(units) > 3 and units[1][0].part.first == units[1][0].part.start + 1
    assert documents_of(units) == list(read_documents(pattern))


def test_a_file_that_is_blank_is_an_error_of_the_whole_file(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n" * 1000)
    assert [piece.part for unit in units_of(str(tmp_path), 100) for piece in unit] == [None]
    with pytest.raises(UserError, match=r"a\.jsonl is empty: it has no rows"):
        documents_of(units_of(str(tmp_path), 100))


def test_a_part_begins_and_ends_with_a_line(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(rows(30)))
    data = (tmp_path / "a.jsonl").read_bytes()
    parts = [piece.part for unit in units_of(str(tmp_path), 100) for piece in unit]
    assert parts[0].start == 0 and parts[-1].stop == len(data)
    for part, following in itertools.pairwise(parts):
        assert part.stop == following.start and data[part.stop - 1 : part.stop] == b"\n"
        assert following == Part(following.start, following.stop, data.count(b"\n", 0, following.start) + 1)


def texts_of(store):
    opened, tokenizer = open_store(store, "train"), load_tokenizer(store)
    offsets = opened.offsets[:]
    return [tokenizer.decode(tokens[1:-1].tolist()) for tokens in opened.read(offsets[:-1], offsets[1:])]


def test_a_dataset_that_changed_is_read_again(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    path, execution = tmp_path / "set" / "train.jsonl", Execution(Engine(processes=1), 600)

    def make(word, null):
        texts = [f"{word} document number {n} " + "x" * 40 for n in range(40)]
        path.write_text("".join(json.dumps({"text": None if n == null else t}) + "\n" for n, t in enumerate(texts)))
        prepare(f"hf:{tmp_path / 'set'}", tmp_path / "store", StoreOptions("bytes"), execution=execution)

    with pytest.raises(UserError, match="row 36: 'text' is null"):
        make("old", null=35)
    make("new", null=-1)
    found = texts_of(tmp_path / "store")
    assert found and all(text.startswith("new") for text in found)


def test_a_file_that_changes_between_hash_and_reading_is_an_error(tmp_path):
    path, written = tmp_path / "a.jsonl", []
    path.write_text("".join(json.dumps({"text": f"doc {n:02}"}) + "\n" for n in range(30)))

    def progress(stage, done, total):
        if stage == "reading" and not written:
            written.append(path.write_text("".join(json.dumps({"text": f"new {n:02}"}) + "\n" for n in range(20))))

    def make(**options):
        execution = Execution(Engine(processes=1), 100)
        return prepare(str(path), tmp_path / "store", StoreOptions("bytes"), execution=execution, **options)

    with pytest.raises(UserError, match=r"a\.jsonl changed while it was read; run the same command again"):
        make(progress=progress)
    assert make()["collected"]["read"] == 20


def test_text_that_a_tokenizer_lacks_is_counted_and_named(tmp_path, capsys):
    (tmp_path / "latin.txt").write_text("ab " * 40)
    (tmp_path / "greek.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in ("ab \u03b1\u03b2", "ba ab")))
    prepare(str(tmp_path / "latin.txt"), tmp_path / "chars", StoreOptions("chars", validation_split="tail"))
    options = StoreOptions(str(tmp_path / "chars"), validation_fraction=0.0)
    manifest = prepare(str(tmp_path / "greek.jsonl"), tmp_path / "store", options)
    assert manifest["unknown_tokens"] == 2
    say_unknown("prepare", manifest)
    assert "prepare: 2 tokens are of characters that the tokenizer lacks" in capsys.readouterr().err
    whole = prepare(str(tmp_path / "greek.jsonl"), tmp_path / "bytes", StoreOptions("bytes", validation_fraction=0.0))
    assert "unknown_tokens" not in whole and all("unknown" not in split for split in whole["splits"].values())


def test_a_document_that_is_split_by_its_tail_counts_once_in_the_card(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": t}) + "\n" for t in ("abcdefghij", "klmnopqrstuvw", "x"))
    )
    options = StoreOptions("bytes", validation_fraction=0.2, validation_split="tail")
    prepare(str(tmp_path / "a.jsonl"), tmp_path / "store", options)
    card = json.loads((tmp_path / "store" / "card.json").read_text())
    assert card["funnel"][-1]["documents"] == 3 and [s["documents"] for s in card["sources"]] == [3]
