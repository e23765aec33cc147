import gzip
import json
import sys
from collections import Counter

import pytest

from configs.errors import UserError
from data.readers import LONGEST_LINE_BYTES, read_documents, read_rows
from data.sources import fingerprint, inventory

ROWS = [{"text": "first\nline", "label": "a"}, {"text": "zweite Zeile ü", "label": "b"}]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_text_files_are_one_document_each(tmp_path):
    (tmp_path / "b.txt").write_bytes("ünï\r\ncode\n".encode())
    (tmp_path / "a.md").write_bytes(b"\xef\xbb\xbfhead")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.txt").write_text("deep")
    (tmp_path / "other.bin").write_text("not read")
    assert list(read_documents(f"{tmp_path}/*.txt,{tmp_path}/a.md")) == ["ünï\r\ncode\n", "head"]
    assert list(read_documents(f"{tmp_path}/**/*.txt")) == ["ünï\r\ncode\n", "deep"]
    assert list(read_documents(str(tmp_path))) == ["head", "ünï\r\ncode\n", "deep"]
    assert list(read_documents(f"{tmp_path}/b.txt,{tmp_path}/*.txt")) == ["ünï\r\ncode\n"]


def test_every_row_format(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    lines = "".join(json.dumps(row) + "\n\n" for row in ROWS).encode()
    (tmp_path / "r.jsonl").write_bytes(lines.rstrip())
    (tmp_path / "r.json").write_bytes(lines)
    (tmp_path / "r.jsonl.gz").write_bytes(gzip.compress(lines))
    frames = [zstandard.ZstdCompressor().compress(part) for part in (lines[:30], lines[30:])]
    (tmp_path / "r.jsonl.zst").write_bytes(b"".join(frames))
    (tmp_path / "r.csv").write_text('text,label\n"first\nline",a\nzweite Zeile ü,b\n')
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "r.parquet")
    kinds = ["jsonl", "json", "jsonl.gz", "jsonl.zst", "csv", "parquet"]
    for kind in kinds:
        assert list(read_rows(f"{tmp_path}/r.{kind}")) == ROWS, kind
        assert list(read_documents(f"{tmp_path}/r.{kind}")) == [row["text"] for row in ROWS], kind
        assert list(read_documents(f"{tmp_path}/r.{kind}", text_field="label")) == ["a", "b"], kind


def test_lines_longer_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("data.readers.CHUNK_BYTES", 5)
    assert list(read_rows(write_jsonl(tmp_path / "r.jsonl", ROWS))) == ROWS


def test_csv_fields_above_128_kib(tmp_path):
    (tmp_path / "big.csv").write_text("text\n" + "x" * 200_000 + "\n")
    assert len(next(read_documents(f"{tmp_path}/big.csv"))) == 200_000


def test_local_hugging_face_dataset(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    local = tmp_path / "set"
    local.mkdir()
    write_jsonl(local / "train.jsonl", ROWS)
    write_jsonl(local / "test.jsonl", ROWS[1:])
    assert list(read_rows(f"hf:{local}")) == ROWS
    assert list(read_documents(f"hf:{local}:test")) == [ROWS[1]["text"]]
    assert fingerprint(inventory(f"hf:{local}")) != fingerprint(inventory(f"hf:{local}:test"))
    with pytest.raises(UserError, match=r"^hf:.*set:nosuch cannot be loaded: ValueError: .*nosuch"):
        list(read_rows(f"hf:{local}:nosuch"))
    with pytest.raises(UserError, match=r"row 1: field 'body' is missing; the row has: text, label"):
        list(read_documents(f"hf:{local}", text_field="body"))


@pytest.mark.parametrize(
    ("name", "content", "message", "kind", "remaining"),
    [
        ("e.txt", b" \n", r"e\.txt is empty", "empty file", 0),
        ("e.jsonl", b"\n", r"e\.jsonl is empty", "empty file", 0),
        ("e.csv", b"text\n", r"e\.csv is empty", "empty file", 0),
        ("u.txt", b"ab\xff", r"u\.txt is not UTF-8: byte 0xff at offset 2", "not UTF-8", 0),
        (
            "u.jsonl",
            b'{"text": "a"}\n{"text": "\xe9"}\n',
            r"u\.jsonl is not UTF-8: byte 0xe9 at offset 24",
            "not UTF-8",
            1,
        ),
        ("j.jsonl", b'{"text": "a"}\n{"text": \n', r"j\.jsonl:2: broken JSON: Expecting value", "broken JSON", 1),
        ("l.jsonl", b'["a"]\n{"text": "a"}\n', r"l\.jsonl:1: a JSON list; expected one JSON object", "broken JSON", 1),
        (
            "s.jsonl",
            b'{"text": "\\ud83d"}\n{"text": "\\ud83c\\udf31"}',
            r"s\.jsonl:1: .*not a character",
            "not Unicode",
            1,
        ),
        (
            "m.jsonl",
            b'{"text": "a"}\n{"body": "b", "n": 1}\n',
            r"m\.jsonl:2: field 'text' is missing; the row has: body, n",
            "missing field",
            1,
        ),
        (
            "n.jsonl",
            b'{"text": null}\n{"text": "a"}',
            r"n\.jsonl:1: 'text' is null; expected text",
            "missing value",
            1,
        ),
        ("a.jsonl", b"{\n", r"a\.jsonl:1: broken JSON", "broken JSON", 0),
        ("c.csv", b"text,label\na\nb,c\n", r"c\.csv:2: 1 columns; the header has 2", "broken CSV", 1),
        ("q.csv", b'text,label\nb,c\n"a', r"q\.csv:3: broken CSV: unexpected end of data", "broken CSV", 1),
    ],
)
def test_bad_input_is_an_error_or_counted(tmp_path, name, content, message, kind, remaining):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        list(read_documents(f"{tmp_path}/{name}"))
    assert "\n" not in str(caught.value)
    skipped = Counter()
    assert len(list(read_documents(f"{tmp_path}/{name}", strict=False, skipped=skipped))) == remaining
    assert skipped == {kind: 1}


def test_unmatched_patterns_and_unknown_suffixes_are_errors(tmp_path):
    (tmp_path / "x.pdf").write_text("x")
    (tmp_path / "x.parquet.gz").write_text("x")
    (tmp_path / "empty").mkdir()
    for pattern in (f"{tmp_path}/*.txt", f"{tmp_path}/gone.txt", f"{tmp_path}/empty"):
        with pytest.raises(
            UserError, match=r"matches no readable file; expected a file, a glob or a directory of \.txt"
        ):
            list(read_documents(pattern))
    for name in ("x.pdf", "x.parquet.gz"):
        with pytest.raises(UserError, match=rf"{name}: suffix .* is unknown; expected \.txt"):
            list(read_documents(f"{tmp_path}/{name}"))
    with pytest.raises(UserError, match="the input is empty"):
        list(read_documents(""))
    with pytest.raises(UserError, match="does not name a dataset"):
        list(read_documents("hf:"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"a\.txt has no rows; expected \.jsonl"):
        list(read_rows(f"{tmp_path}/a.txt"))


def test_damaged_archives_are_errors(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    pytest.importorskip("pyarrow")
    content = json.dumps(ROWS[0]).encode()
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(content)[:-9])
    (tmp_path / "plain.jsonl.gz").write_bytes(content)
    (tmp_path / "cut.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(content)[:-5])
    (tmp_path / "plain.jsonl.zst").write_bytes(content)
    (tmp_path / "x.parquet").write_bytes(b"not Parquet")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(UserError, match=rf"{path.name} cannot be read"):
            list(read_rows(str(path)))


@pytest.mark.parametrize(("suffix", "package"), [("parquet", "pyarrow.parquet"), ("jsonl.zst", "zstandard")])
def test_missing_optional_package_is_a_one_line_error(tmp_path, monkeypatch, suffix, package):
    (tmp_path / f"x.{suffix}").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs the {package} package: pip install -e '\.\[data\]'"):
        list(read_rows(f"{tmp_path}/x.{suffix}"))


def test_a_line_that_is_too_long_is_skipped_without_buffering_it(tmp_path):
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "a"}\n' + b"x" * (10 << 20) + b'\n{"text": "b"}\n' + b"y" * (LONGEST_LINE_BYTES + 1))
    skipped = Counter()
    assert list(read_documents(str(path), strict=False, skipped=skipped)) == ["a", "b"]
    assert skipped == {"too long": 2}
    with pytest.raises(UserError, match=r"rows.jsonl:2: a line of 10,485,761 bytes; expected at most 8,388,608"):
        list(read_documents(str(path)))
    path.write_text(json.dumps({"text": "z" * (LONGEST_LINE_BYTES - 20)}))
    assert [len(text) for text in read_documents(str(path))] == [LONGEST_LINE_BYTES - 20]
