import gzip
import json
import os
import re
import sys
from collections import Counter

import pytest

from configs.errors import UserError
from data.class_names import with_class_names
from data.lines import LONGEST_LINE_BYTES
from data.readers import read_documents, read_placed_rows, read_rows, read_rows_or_errors
from data.sources import HuggingFaceDataset, fingerprint, inventory, match_sources, unread_files

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


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("q.tsv", 'text\tlabel\n"Good film\tpos\nBad "film"\tneg\n', [('"Good film', "pos"), ('Bad "film"', "neg")]),
        ("w.tsv", 'text\tlabel\n"all of it"\ta\r\n5" x 7"\tb\n', [('"all of it"', "a"), ('5" x 7"', "b")]),
        ("a.json", '\ufeff [{"text": "a", "label": 0},\n\n{"text": "\\u00fc",\n"label": 0}]', [("a", 0), ("ü", 0)]),
        ("o.json", '[{"text": "a", "label": 0}]', [("a", 0)]),
        ("l.json", '{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n', [("a", 0), ("b", 1)]),
        ("u.csv", ",text,label,\n0,a,b,1\n", [("a", "b")]),
    ],
)  # fmt: skip
def test_tab_separated_values_have_no_quotes_and_json_may_be_an_array(tmp_path, name, content, rows):
    (tmp_path / name).write_text(content)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content.encode()))
    for path in (tmp_path / name, tmp_path / f"{name}.gz"):
        assert [(row["text"], row["label"]) for row in read_rows(str(path))] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("d.csv", "text,label,text\na,b,c\n", "d.csv: column 'text' occurs twice in the header"),
        ("d.tsv", "text\ttext\na\tb\n", "d.tsv: column 'text' occurs twice in the header"),
        ("d.jsonl", '{"text": "a"}\n{"text": "a", "text": "b"}\n', "d.jsonl:2: broken JSON: 'text' occurs twice"),
        ("n.jsonl", '{"text": {"a": 1, "a": 2}}\n', "n.jsonl:1: broken JSON: 'a' occurs twice"),
        ("d.json", '[{"text": "a", "text": "b"}]', "d.json: broken JSON: 'text' occurs twice"),
        ("i.json", '[{"text": "a"}, 3]', "i.json: row 2: a JSON int; expected a JSON object"),
        ("b.json", '[{"text": "a"}', "b.json: broken JSON: Expecting ',' delimiter"),
        ("p.json", '{\n"text": "a"\n}', "p.json:1: broken JSON"),
        ("e.json", "[]", "e.json is empty: it has no rows"),
        ("s.json", '[{"text": "\\ud83d"}]', "s.json: a \\ud... escape"),
        ("x.tsv", 'text\tlabel\n"He said ""hi"""\tpos\n', "x.tsv:2: '\"He said \"\"hi\"\"\"' is quoted as in .csv"),
        ("m.tsv", 'text\tlabel\n"two\nlines"\tpos\n', "m.tsv:2: 1 columns; the header has 2"),
        ("t.jsonl", '{"text": {"a": 1}}\n', "t.jsonl:1: 'text' is an object"),
        ("z.jsonl", '{"text": NaN}\n', "z.jsonl:1: 'text' is NaN"),
        ("l.jsonl", '{"text": ["a"]}\n', "l.jsonl:1: 'text' is a list"),
    ],
)  # fmt: skip
def test_a_file_that_would_lose_values_is_an_error(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        list(read_documents(str(tmp_path / name)))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_document_may_be_a_number_or_a_nested_column(tmp_path):
    rows = [{"text": 0, "meta": {"body": "a"}}, {"text": 1.5, "meta": {"body": "b\r\n"}}]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    assert list(read_documents(path)) == ["0", "1.5"]
    assert list(read_documents(path, text_field="meta.body")) == ["a", "b\r\n"]


def test_a_folder_as_the_hub_leaves_it_has_only_its_rows(tmp_path):
    write_jsonl(tmp_path / "data.jsonl", ROWS)
    for hidden in (".cache/huggingface/download", ".ipynb_checkpoints", "data/.git"):
        (tmp_path / hidden).mkdir(parents=True)
        write_jsonl(tmp_path / hidden / "old.jsonl", [{"text": "hidden"}])
    write_jsonl(tmp_path / "._data.jsonl", [{"text": "hidden"}])
    for name in ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"):
        (tmp_path / name).write_text('{"description": "no row"}')
    (tmp_path / "deep").mkdir()
    for name in ("README.md", ".gitattributes", "LICENSE.txt", "README.txt", "CHANGELOG.md", "deep/README.md"):
        (tmp_path / name).write_text("# A data set")
    assert list(read_rows(str(tmp_path))) == ROWS
    assert list(read_documents(str(tmp_path))) == [row["text"] for row in ROWS]
    # In a folder of texts, a README.md is one of them.
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "README.md").write_text("a text")
    assert list(read_documents(f"{tmp_path}/docs")) == ["a text"]


def test_linked_directories_are_read_once(tmp_path):
    for name in ("in/own", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.txt").write_text(name)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in" / "own")
    (tmp_path / "in" / "own" / "up").symlink_to(tmp_path / "in")
    assert sorted(read_documents(str(tmp_path / "in"))) == ["elsewhere", "in/own"]


def test_a_directory_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "secret").mkdir()
    (tmp_path / "a.txt").write_text("a")
    scandir = os.scandir

    def refusing(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("os.scandir", refusing)
    with pytest.raises(PermissionError, match="secret"):
        list(read_documents(str(tmp_path)))


def test_a_file_whose_name_is_not_utf_8_is_one_line(tmp_path):
    with open(os.fsencode(tmp_path) + b"/caf\xe9.txt", "w") as file:
        file.write("a")
    with pytest.raises(UserError, match=r"caf\\xe9\.txt': the name of the file is not UTF-8; rename it"):
        list(read_documents(str(tmp_path)))


def test_a_suffix_may_be_in_upper_case(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.JSONL").write_text(lines)
    (tmp_path / "b.Jsonl.GZ").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "c.CSV").write_text("text,label\na,b\n")
    (tmp_path / "d.TSV").write_text("text\tlabel\na\tb\n")
    (tmp_path / "e.JSON").write_text(json.dumps(ROWS))
    assert list(read_rows(str(tmp_path))) == [*ROWS, *ROWS, *[{"text": "a", "label": "b"}] * 2, *ROWS]
    assert unread_files(str(tmp_path)) == []


def test_files_of_a_directory_that_are_not_read_are_listed(tmp_path):
    (tmp_path / "deep").mkdir()
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    unread = [tmp_path / name for name in ("c.ndjson", "d.jsonl.bz2", "deep/e.parquet.gz", "readable")]
    quiet = [tmp_path / name for name in (".hidden", "README", "LICENSE", "deep/LICENSE.rtf", "README.md", "_SUCCESS")]
    for path in (*unread, *quiet):
        path.write_text("x")
    assert list(read_rows(str(tmp_path))) == ROWS
    assert unread_files(str(tmp_path)) == unread
    assert unread_files(f"{tmp_path}/a.jsonl, {tmp_path}/deep,hf:x") == unread[2:3]
    assert unread_files(f"{tmp_path}/*") == []


CLASSES = {"names": ["neg", "pos"], "_type": "ClassLabel"}


@pytest.mark.parametrize(
    ("feature", "value", "named"),
    [
        (CLASSES, 1, "pos"),
        (CLASSES, 0, "neg"),
        (CLASSES, -1, None),
        (CLASSES, None, None),
        ({"feature": CLASSES, "_type": "Sequence"}, [1, 0], ["pos", "neg"]),
        ({"feature": CLASSES, "_type": "List"}, [], []),
        ([CLASSES], [1], ["pos"]),
        ([{"k": CLASSES}], [{"k": 0}], [{"k": "neg"}]),
        ({"k": CLASSES, "n": {"dtype": "int64", "_type": "Value"}}, {"k": 1, "n": 1}, {"k": "pos", "n": 1}),
        ({"feature": {"k": CLASSES, "n": {"_type": "Value"}}, "_type": "Sequence"}, {"k": [1], "n": [1]},
         {"k": ["pos"], "n": [1]}),
        ({"dtype": "int64", "_type": "Value"}, 1, 1),
    ],
)  # fmt: skip
def test_classes_have_their_names(feature, value, named):
    assert with_class_names({"a": value, "b": 1}, {"a": feature}) == {"a": named, "b": 1}


def test_parquet_of_the_hub_has_the_names_of_classes(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    features = {"text": {"dtype": "string", "_type": "Value"}, "label": CLASSES}
    table = pa.Table.from_pylist([{"text": "a", "label": 1}, {"text": "b", "label": -1}])
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    pyarrow.parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "r.parquet")
    assert [row["label"] for row in read_rows(f"{tmp_path}/r.parquet")] == ["pos", None]
    placed = read_placed_rows(f"{tmp_path}/r.parquet", class_names=False)
    assert [row["label"] for _, row in placed] == [1, -1]
    pyarrow.parquet.write_table(pa.table([[1], [2]], names=["a", "a"]), tmp_path / "d.parquet")
    with pytest.raises(UserError, match="column 'a' occurs twice"):
        list(read_rows(f"{tmp_path}/d.parquet"))


@pytest.mark.parametrize(
    "metadata", [b'{"info": null}', b"[]", b'{"info": {"features": null}}', b"{", b'{"info": {"features": ["label"]}}',
                 b'{"info": {"features": {"label": {"_type": "ClassLabel"}}}}'],
)  # fmt: skip
def test_parquet_with_metadata_of_another_shape_has_no_names_of_classes(tmp_path, metadata):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pa.table({"label": [1, 0]}).replace_schema_metadata({b"huggingface": metadata})
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    assert list(read_rows(f"{tmp_path}/r.parquet")) == [{"label": 1}, {"label": 0}]


@pytest.mark.parametrize(
    ("value", "kind", "error"),
    [
        (10**15, ("timestamp", "ms"), r"column 'when' of type timestamp\[ms\] cannot be read: .*; remove the column"),
        (10**8, ("date32",), "column 'when' of type date32"),
        (1, ("timestamp", "us", "Mars/Phobos"), "column 'when' of type .*Mars/Phobos"),
    ],
)
def test_a_parquet_column_that_python_cannot_represent_matters_only_to_who_reads_it(tmp_path, value, kind, error):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    name, *arguments = kind
    table = pa.table({"meta": [{"body": "a"}], "when": pa.array([value], getattr(pa, name)(*arguments))})
    pyarrow.parquet.write_table(table, tmp_path / "r.parquet")
    assert list(read_documents(f"{tmp_path}/r.parquet", text_field="meta.body")) == ["a"]
    for read in (read_rows, read_rows_or_errors):
        with pytest.raises(UserError, match=rf"r\.parquet: {error}"):
            list(read(f"{tmp_path}/r.parquet"))


@pytest.mark.parametrize(
    ("pattern", "dataset"),
    [
        ("hf:glue", ("glue", "train", "")),
        ("hf:glue:test", ("glue", "test", "")),
        ("hf:nyu-mll/glue:sst2:validation", ("nyu-mll/glue", "validation", "sst2")),
        ("hf:glue:sst2:", ("glue", "train", "sst2")),
        ("hf:glue:train[:10%]", ("glue", "train[:10%]", "")),
        ("hf:glue:sst2:train[10:20]+test[:5]", ("glue", "train[10:20]+test[:5]", "sst2")),
    ],
)
def test_a_dataset_may_have_a_configuration_and_a_slice(pattern, dataset):
    (source,) = match_sources(pattern)
    assert source == HuggingFaceDataset(*dataset)
    assert match_sources(str(source)) == [source]


def test_lines_longer_than_a_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("data.lines.CHUNK_BYTES", 5)
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
    two = tmp_path / "two"
    for config, rows in (("small", ROWS[:1]), ("large", ROWS)):
        (two / config).mkdir(parents=True)
        write_jsonl(two / config / "train.jsonl", rows)
    listed = "".join(f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("small", "large"))
    (two / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    assert list(read_rows(f"hf:{two}:small:train")) == ROWS[:1] and list(read_rows(f"hf:{two}:large:")) == ROWS
    with pytest.raises(UserError, match=r"cannot be loaded: .*expected hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT"):
        list(read_rows(f"hf:{two}"))
    assert fingerprint(inventory(f"hf:{local}")) != fingerprint(inventory(f"hf:{local}:test"))
    with pytest.raises(UserError, match=r"^hf:.*set:nosuch cannot be loaded: ValueError: .*nosuch"):
        list(read_rows(f"hf:{local}:nosuch"))
    with pytest.raises(UserError, match=r"row 1: field 'body' is missing; the row has: text, label"):
        list(read_documents(f"hf:{local}", text_field="body"))


def test_a_dataset_with_a_value_that_python_cannot_represent_is_an_error(tmp_path, monkeypatch):
    datasets, pa = pytest.importorskip("datasets"), pytest.importorskip("pyarrow")
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    table = pa.table({"text": ["a"], "when": pa.array([10**8], pa.date32())})
    pyarrow.parquet.write_table(table, tmp_path / "set" / "train.parquet")
    for read in (read_documents, inventory):
        with pytest.raises(UserError, match="set:train cannot be read: OverflowError: "):
            list(read(f"hf:{tmp_path}/set"))


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
            r"n\.jsonl:1: 'text' is null; expected text: fill it in, or skip such rows with --nostrict \(in a config: ",
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


@pytest.mark.parametrize("window", [28, 31])
def test_a_zst_file_may_have_a_long_window(tmp_path, window):
    zstandard = pytest.importorskip("zstandard")
    parameters = zstandard.ZstdCompressionParameters(window_log=window)
    # Of one piece of known size, the header would have that size.
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    content = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    (tmp_path / "r.jsonl.zst").write_bytes(frame.compress(content) + frame.flush())
    assert list(read_rows(f"{tmp_path}/r.jsonl.zst")) == ROWS


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


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("value.csv", b'n,text\n1,one\n2,"two\nli\xffnes"\n3,three\n4,"four"\n', r"not UTF-8: byte 0xff at offset 22"),
        ("middle.csv", b'n,text\n1,one\n2,"two\nli\xff\nnes"\n3,three\n4,four\n', r"not UTF-8: byte 0xff at offset 22"),
        ("first.csv", b'n,text\n1,one\n\xff2,"two\nlines"\n3,three\n4,four\n', r"not UTF-8: byte 0xff at offset 13"),
        ("long.csv", b'n,text\n1,one\n2,"two\n%s"\n3,three\n4,four\n', r"long.csv:4: a line of 8,388,610 bytes"),
        ("open.csv", b'n,text\n1,one\n2,"two %s\nlines"\n3,three\n4,four\n', r"open.csv:3: a line of 8,388,616 bytes"),
        ("even.csv", b'n,text\n1,one\n2,"two\n""%s\n"\n3,three\n4,four\n', r"even.csv:4: a line of 8,388,611 bytes"),
        ("t.tsv", b'n\ttext\n1\tone\n2\t"t\xffwo\n3\tthree\n4\tfour\n', r"not UTF-8: byte 0xff at offset 17"),
    ],
)  # fmt: skip
def test_a_bad_line_of_a_csv_file_takes_only_its_row_with_it(tmp_path, name, content, error):
    path = tmp_path / name
    path.write_bytes(content.replace(b"%s", b"x" * LONGEST_LINE_BYTES))
    with pytest.raises(UserError, match=error):
        list(read_rows(str(path)))
    skipped = Counter()
    kept = [{"n": "1", "text": "one"}, {"n": "3", "text": "three"}, {"n": "4", "text": "four"}]
    assert list(read_rows(str(path), strict=False, skipped=skipped)) == kept
    assert skipped == {"too long" if "a line of" in error else "not UTF-8": 1}
    found = list(read_rows_or_errors(str(path)))
    assert [place.removeprefix(f"{path}: ") for place, _, _ in found] == ["row 1", "", "row 3", "row 4"]
    assert re.search(error, found[1][2])


def test_lines_of_a_csv_file_are_numbered_after_a_bad_one(tmp_path):
    (tmp_path / "r.csv").write_bytes(b"n,text\n\xff,one\n2,two,more\n")
    (_, _, _), (_, _, message) = read_rows_or_errors(f"{tmp_path}/r.csv")
    assert message.startswith(f"{tmp_path}/r.csv:3: 3 columns")


@pytest.mark.parametrize("header", [b"n,te\xffxt", b'n,"te"xt', b"n," + b"x" * LONGEST_LINE_BYTES])
def test_a_csv_file_with_a_bad_header_is_an_error_even_if_bad_rows_are_skipped(tmp_path, header):
    (tmp_path / "r.csv").write_bytes(header + b"\n1,one\n2,two\n")
    with pytest.raises(UserError, match=r"r\.csv"):
        list(read_rows(f"{tmp_path}/r.csv", strict=False))
    with pytest.raises(UserError, match=r"r\.csv"):
        list(read_rows_or_errors(f"{tmp_path}/r.csv"))
