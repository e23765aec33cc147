import json
import os
import re

import numpy as np
import pytest

from configs.errors import UserError
from data import prepare as preparation
from data.cleaning import clean_document
from data.preparation import tokenizing
from data.prepare import DataChanged, Execution, StoreOptions, prepare
from data.shared_tokenizer import training_texts
from data.storage.new_directory import new_directory
from data.store import open_store, read_manifest
from data.store_check import verify_store
from data.tokenizer import load_tokenizer
from data.tokenizer_training import train_tokenizer

TEXTS = [f"Document {i} of the set says that {i} times {i} is {i * i}." for i in range(200)]


def make(source, output, tokenizer, progress=lambda *step: None, **options):
    return prepare(source, output, StoreOptions(tokenizer, **options), progress=progress)


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def tokens_of(store):
    return store.read(np.array([0]), np.array([store.num_tokens]))[0]


def documents(path, split):
    store, tokenizer = open_store(path, split), load_tokenizer(path)
    parts = np.split(tokens_of(store), store.offsets[1:-1])
    for ids in parts:
        assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
        assert not set(ids[1:-1].tolist()) & {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    return [tokenizer.decode(ids.tolist()) for ids in parts]


@pytest.mark.parametrize("method", ["documents", "tail"])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("count", [2, 4, 40])
def test_a_shared_tokenizer_is_trained_on_the_training_split_of_small_sources(tmp_path, count, fraction, method):
    texts = [f"document number {number} about topic{number}" for number in range(count)]
    source = write(tmp_path / "in.jsonl", ["  ", *texts, *texts])
    options = StoreOptions("bytes", validation_fraction=fraction, validation_split=method)
    prepare(source, tmp_path / "store", options)
    assert set(training_texts(source, options)) == set(documents(tmp_path / "store", "train"))


def test_every_document_is_kept_once(tmp_path):
    source = write(tmp_path / "in.jsonl", TEXTS)
    manifest = make(source, tmp_path / "store", "bpe:400", validation_fraction=0.2)
    train, validation = (documents(tmp_path / "store", split) for split in ("train", "validation"))
    assert sorted(train + validation) == sorted(TEXTS)
    assert 20 <= len(validation) <= 60
    assert train != sorted(train, key=TEXTS.index)
    assert manifest["collected"] == {"read": 200, "empty": 0, "duplicate": 0}
    for split, texts in (("train", train), ("validation", validation)):
        counts = manifest["splits"][split]
        assert counts["documents"] == len(texts)
        assert counts["bytes"] == sum(len(text.encode()) for text in texts)
        store, tokenizer = open_store(tmp_path / "store", split), load_tokenizer(tmp_path / "store")
        assert tokenizer.token_bytes()[tokens_of(store)].sum() == counts["bytes"]
    verify_store(tmp_path / "store")


def test_tokenizer_is_trained_on_the_training_split_only(tmp_path):
    source = write(tmp_path / "in.jsonl", TEXTS)
    make(source, tmp_path / "store", "bpe:400", validation_fraction=0.2)
    train = documents(tmp_path / "store", "train")
    assert load_tokenizer(tmp_path / "store").sha256 == train_tokenizer("bpe:400", train).sha256
    assert load_tokenizer(tmp_path / "store").sha256 != train_tokenizer("bpe:400", TEXTS).sha256


def test_chars_tokenizer_includes_the_characters_of_the_held_out_tail(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 90 + "ü" * 10)
    make(f"{tmp_path}/a.txt", tmp_path / "store", "chars", validation_fraction=0.1, validation_split="tail")
    assert documents(tmp_path / "store", "train") == ["a" * 90]
    assert documents(tmp_path / "store", "validation") == ["ü" * 10]


def test_control_characters_and_duplicates_are_removed(tmp_path):
    assert clean_document("a\x00b\x07\tc\r\nd\x85\x9f\re \n\n") == "ab\tc\nd\ne"
    assert clean_document("x\ud800y") == "xy"
    source = write(tmp_path / "in.jsonl", ["one two", " \x00\n", "one\n  two ", "three", "three", "One two"])
    manifest = make(source, tmp_path / "store", "bytes")
    assert sorted(documents(tmp_path / "store", "train")) == ["One two", "one two", "three"]
    assert manifest["collected"] == {"read": 6, "empty": 1, "duplicate": 2, "control characters": 1}
    assert list(manifest["splits"]) == ["train"]


def test_added_documents_do_not_change_the_split_of_others(tmp_path):
    for name, texts in (("a", TEXTS[:100]), ("b", list(reversed(TEXTS)))):
        make(write(tmp_path / f"{name}.jsonl", texts), tmp_path / name, "bytes", validation_fraction=0.3)
    before, after = (set(documents(tmp_path / name, "validation")) for name in "ab")
    assert before == after & set(TEXTS[:100])
    assert len(after) > len(before) > 0


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_each_split_has_at_least_one_document(tmp_path, fraction):
    source = write(tmp_path / "in.jsonl", TEXTS[:20])
    splits = make(source, tmp_path / "store", "bytes", validation_fraction=fraction)["splits"]
    assert {splits["train"]["documents"], splits["validation"]["documents"]} == {1, 19}
    assert splits["validation"]["documents"] == (1 if fraction < 0.5 else 19)


def test_order_depends_only_on_the_seed(tmp_path):
    source = write(tmp_path / "in.jsonl", TEXTS)
    for name, seed in (("a", 0), ("b", 0), ("c", -1)):
        make(source, tmp_path / name, "bytes", seed=seed)
    a, b, c = (open_store(tmp_path / name, "train") for name in "abc")
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert sorted(documents(tmp_path / "a", "train")) == sorted(documents(tmp_path / "c", "train"))


def test_batch_size_of_tokenization_does_not_change_the_store(tmp_path, monkeypatch):
    source = write(tmp_path / "in.jsonl", TEXTS)
    whole = make(source, tmp_path / "a", "bytes")["splits"]
    monkeypatch.setattr(tokenizing, "_BATCH_CHARACTERS", 100)
    assert make(source, tmp_path / "b", "bytes")["splits"] == whole


def test_existing_store_is_reused_or_refused(tmp_path):
    source, store = write(tmp_path / "in.jsonl", TEXTS[:20]), tmp_path / "store"
    manifest = make(source, store, "bytes")
    before = (store / "manifest.json").stat().st_mtime_ns
    stages = []
    assert make(source, store, "bytes", progress=lambda *step: stages.append(step)) == manifest
    assert stages == [("already prepared", 20, 20)]
    with pytest.raises(UserError, match=r"store was prepared differently \(seed 0 -> 1\)"):
        make(source, store, "bytes", seed=1)
    write(tmp_path / "in.jsonl", TEXTS[:21])
    with pytest.raises(UserError, match=r"\(tokenizer 'bytes' -> 'chars'; files: in.jsonl: .* -> .*\)"):
        make(source, store, "chars")
    assert (store / "manifest.json").stat().st_mtime_ns == before
    write(tmp_path / "in.jsonl", TEXTS[:20])
    (store / "train" / "tokens-00000-of-00001.bin").write_bytes(b"")
    with pytest.raises(UserError, match="has 0 bytes"):
        make(source, store, "bytes")


def test_an_existing_store_with_shards_of_another_size_is_an_error(tmp_path):
    source = write(tmp_path / "in.jsonl", TEXTS)

    def run(shard_bytes):
        return prepare(source, tmp_path / "store", StoreOptions("bytes"), execution=Execution(shard_bytes=shard_bytes))

    manifest = run(4000)
    assert len(manifest["splits"]["train"]["shards"]) == 8
    assert run(4000) == run(0) == run(5000) == manifest
    with pytest.raises(
        UserError, match=r"store has 8 shards of 'train', but shards of 2,000 bytes would be 16; use a new"
    ):
        run(2000)


def test_second_start_reads_no_input_file(tmp_path, hashed):
    write(tmp_path / "a.jsonl", TEXTS[:10])
    write(tmp_path / "b.jsonl", TEXTS[10:20])
    manifest = make(f"{tmp_path}/*.jsonl", tmp_path / "store", "bytes")
    assert hashed == ["a.jsonl", "b.jsonl"]
    hashed.clear()
    assert make(f"{tmp_path}/*.jsonl", tmp_path / "store", "bytes") == manifest
    assert hashed == []


def test_touched_file_is_hashed_once_and_its_time_recorded(tmp_path, hashed):
    write(tmp_path / "a.jsonl", TEXTS[:10])
    write(tmp_path / "b.jsonl", TEXTS[10:20])
    before = make(f"{tmp_path}/*.jsonl", tmp_path / "store", "bytes")
    os.utime(tmp_path / "a.jsonl", ns=(1, 1))
    hashed.clear()
    after = make(f"{tmp_path}/*.jsonl", tmp_path / "store", "bytes")
    assert hashed == ["a.jsonl"] and after == read_manifest(tmp_path / "store")
    assert after == before | {"mtimes_ns": [1, before["mtimes_ns"][1]]}
    assert make(f"{tmp_path}/*.jsonl", tmp_path / "store", "bytes") == after
    assert hashed == ["a.jsonl"]


def test_touched_file_is_accepted_by_a_read_only_store(tmp_path, monkeypatch):
    source = write(tmp_path / "in.jsonl", TEXTS[:10])
    make(source, tmp_path / "store", "bytes")
    os.utime(source, ns=(1, 1))
    before = (tmp_path / "store" / "manifest.json").read_bytes()

    def refuse(*arguments):
        raise PermissionError("read-only")

    monkeypatch.setattr(preparation, "write_manifest", refuse)
    assert make(source, tmp_path / "store", "bytes")["mtimes_ns"] == [1]
    assert (tmp_path / "store" / "manifest.json").read_bytes() == before


def test_changed_file_of_the_same_size_is_an_error(tmp_path, hashed):
    source = write(tmp_path / "in.jsonl", TEXTS[:10])
    make(source, tmp_path / "store", "bytes")
    before = (tmp_path / "store" / "manifest.json").read_bytes()
    write(tmp_path / "in.jsonl", ["d" + text[1:] for text in TEXTS[:10]])
    os.utime(source, ns=(1, 1))
    hashed.clear()
    with pytest.raises(DataChanged, match=r"was prepared from other text \(files: in\.jsonl: 606 \w+ -> 606 \w+\)"):
        make(source, tmp_path / "store", "bytes")
    assert hashed == ["in.jsonl"]
    assert (tmp_path / "store" / "manifest.json").read_bytes() == before


def test_the_same_files_in_another_order_are_an_error(tmp_path):
    files = [write(tmp_path / name, TEXTS[:10]) for name in ("a.jsonl", "b.jsonl")]
    make(",".join(files), tmp_path / "store", "bytes")
    with pytest.raises(DataChanged, match=r"other text \(the same files in another order\); use a new directory"):
        make(",".join(reversed(files)), tmp_path / "store", "bytes")


@pytest.mark.parametrize("times", [None, "missing", [None], [], ["x"], {}])
def test_manifest_without_valid_times_falls_back_to_hashing(tmp_path, hashed, times):
    source = write(tmp_path / "in.jsonl", TEXTS[:10])
    manifest = make(source, tmp_path / "store", "bytes")
    old = manifest | {"mtimes_ns": times}
    if times == "missing":
        del old["mtimes_ns"]
    (tmp_path / "store" / "manifest.json").write_text(json.dumps(old))
    hashed.clear()
    assert make(source, tmp_path / "store", "bytes") == manifest
    assert make(source, tmp_path / "store", "bytes") == manifest
    assert hashed == ["in.jsonl"]


def test_existing_directory_is_never_overwritten(tmp_path):
    source = write(tmp_path / "in.jsonl", TEXTS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="mine exists and is not empty"):
        make(source, tmp_path / "mine", "bytes")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("target", ["empty", "new", "deep/new"])
def test_a_link_to_a_directory_is_an_output(tmp_path, target):
    source = write(tmp_path / "in.jsonl", TEXTS)
    (tmp_path / "there" / "empty").mkdir(parents=True)
    (tmp_path / "store").symlink_to(tmp_path / "there" / target)
    manifest = make(source, tmp_path / "store", "bytes")
    assert read_manifest(tmp_path / "there" / target) == manifest == make(source, tmp_path / "store", "bytes")
    assert (tmp_path / "store").is_symlink() and not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("kind", ["the current directory", "a mount point"])
def test_a_directory_that_cannot_be_replaced_is_refused_before_the_work(tmp_path, monkeypatch, kind):
    source = write(tmp_path / "in.jsonl", TEXTS)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    if kind == "a mount point":
        monkeypatch.setattr(os.path, "ismount", lambda path: os.path.samefile(path, tmp_path / "empty"))
    else:
        monkeypatch.chdir(tmp_path / "empty")
    stages = []
    for output in (tmp_path / "empty", tmp_path / "link"):
        with pytest.raises(UserError, match=f"is {kind}, which cannot be replaced; expected a new directory"):
            make(source, output, "bytes", progress=lambda *step: stages.append(step))
        with pytest.raises(UserError, match=f"is {kind}"), new_directory(output):
            stages.append("made")
    assert stages == []


@pytest.mark.parametrize("stage", ["reading", "training the tokenizer", "tokenizing", "writing shards"])
def test_interrupted_prepare_leaves_no_files(tmp_path, stage):
    source = write(tmp_path / "in.jsonl", TEXTS)

    def interrupt(name, done, total):
        if name == stage and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(source, tmp_path / "store", "bpe:300", validation_fraction=0.2, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_saved_tokenizer_is_identified_by_content_not_path(tmp_path):
    source = write(tmp_path / "in.jsonl", TEXTS)
    tokenizer = train_tokenizer("bpe:300", TEXTS)
    for name in ("here", "there"):
        tokenizer.save(tmp_path / name)
    manifest = make(source, tmp_path / "store", str(tmp_path / "here"))
    assert load_tokenizer(tmp_path / "store") == tokenizer
    assert make(source, tmp_path / "store", str(tmp_path / "there")) == manifest


def test_bad_rows_are_an_error_or_counted(tmp_path):
    source = write(tmp_path / "in.jsonl", TEXTS[:3])
    with open(source, "a") as file:
        file.write('{"body": 1}\n{\n')
    with pytest.raises(UserError, match=r"in\.jsonl:4: field 'text' is missing; the row has: body"):
        make(source, tmp_path / "store", "bytes")
    manifest = make(source, tmp_path / "store", "bytes", strict=False)
    assert manifest["collected"] == {"read": 3, "empty": 0, "duplicate": 0, "missing field": 1, "broken JSON": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.0}, "validation_fraction=1.0; expected at least 0 and less than 1"),
        ({"validation_fraction": -0.1}, "validation_fraction=-0.1; expected at least 0 and less than 1"),
        ({"validation_split": "random"}, "validation_split='random'; expected documents or tail"),
        ({"tokenizer": "bpe:12"}, "tokenizer 'bpe:12' is unknown"),
        ({"validation_fraction": 0.5}, "a single document cannot be split by documents; use validation_split=tail"),
        ({"text_field": "blank"}, "no documents remain (1 read, 1 empty, 0 duplicate)"),
    ],
)
def test_invalid_options_are_one_line_errors(tmp_path, options, message):
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "some text", "blank": " "}) + "\n")
    with pytest.raises(UserError, match=re.escape(message)):
        make(str(tmp_path / "in.jsonl"), tmp_path / "store", **{"tokenizer": "bytes"} | options)
    assert not (tmp_path / "store").exists()


def test_tail_split_cuts_every_document_by_its_own_length(tmp_path):
    for name, length in (("a", 10), ("b", 200), ("c", 1)):
        (tmp_path / f"{name}.txt").write_text(name * length)
    store = tmp_path / "store"
    splits = make(f"{tmp_path}/*.txt", store, "bytes", validation_fraction=0.1, validation_split="tail")["splits"]
    assert sorted(documents(store, "train")) == ["a" * 9, "b" * 180]
    assert sorted(documents(store, "validation")) == ["a", "b" * 20, "c"]
    assert (splits["train"]["bytes"], splits["validation"]["bytes"]) == (189, 22)
    with pytest.raises(UserError, match=r"c\.txt: too short to hold out a tail of 0.1; expected a longer text"):
        make(f"{tmp_path}/c.txt", tmp_path / "new", "bytes", validation_fraction=0.1, validation_split="tail")
