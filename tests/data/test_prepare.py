import json
import re

import numpy as np
import pytest

from configs.errors import UserError
from data import prepare as preparation
from data.prepare import clean, prepare
from data.store import open_store, verify_store
from data.tokenizer import load_tokenizer
from data.tokenizer_training import train_tokenizer

TEXTS = [f"Document {i} of the set says that {i} times {i} is {i * i}." for i in range(200)]


def write(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def documents(path, split):
    store, tokenizer = open_store(path, split), load_tokenizer(path)
    parts = np.split(np.asarray(store.tokens), store.offsets[1:-1])
    for ids in parts:
        assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
        assert not set(ids[1:-1].tolist()) & {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
    return [tokenizer.decode(ids.tolist()) for ids in parts]


def test_every_document_is_kept_once(tmp_path):
    source = write(tmp_path / "in.jsonl", TEXTS)
    manifest = prepare(source, tmp_path / "store", "bpe:400", validation_fraction=0.2)
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
        assert tokenizer.token_bytes()[store.tokens].sum() == counts["bytes"]
    verify_store(tmp_path / "store")


def test_the_tokenizer_sees_the_training_part_only(tmp_path):
    source = write(tmp_path / "in.jsonl", TEXTS)
    prepare(source, tmp_path / "store", "bpe:400", validation_fraction=0.2)
    train = documents(tmp_path / "store", "train")
    assert load_tokenizer(tmp_path / "store").sha256 == train_tokenizer("bpe:400", train).sha256
    assert load_tokenizer(tmp_path / "store").sha256 != train_tokenizer("bpe:400", TEXTS).sha256


def test_chars_know_the_characters_of_the_tail(tmp_path):
    (tmp_path / "a.txt").write_text("a" * 90 + "ü" * 10)
    prepare(f"{tmp_path}/a.txt", tmp_path / "store", "chars", validation_fraction=0.1, validation_split="tail")
    assert documents(tmp_path / "store", "train") == ["a" * 90]
    assert documents(tmp_path / "store", "validation") == ["ü" * 10]


def test_cleaning_and_duplicates(tmp_path):
    assert clean("a\x00b\x07\tc\r\nd\x85\x9f\re \n\n") == "ab\tc\nd\ne"
    assert clean("x\ud800y") == "xy"
    source = write(tmp_path / "in.jsonl", ["one two", " \x00\n", "one\n  two ", "three", "three", "One two"])
    manifest = prepare(source, tmp_path / "store", "bytes")
    assert sorted(documents(tmp_path / "store", "train")) == ["One two", "one two", "three"]
    assert manifest["collected"] == {"read": 6, "empty": 1, "duplicate": 2, "control characters": 1}
    assert list(manifest["splits"]) == ["train"]


def test_split_does_not_move_when_documents_are_added(tmp_path):
    for name, texts in (("a", TEXTS[:100]), ("b", list(reversed(TEXTS)))):
        prepare(write(tmp_path / f"{name}.jsonl", texts), tmp_path / name, "bytes", validation_fraction=0.3)
    before, after = (set(documents(tmp_path / name, "validation")) for name in "ab")
    assert before == after & set(TEXTS[:100])
    assert len(after) > len(before) > 0


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_at_least_one_document_on_each_side(tmp_path, fraction):
    source = write(tmp_path / "in.jsonl", TEXTS[:20])
    splits = prepare(source, tmp_path / "store", "bytes", validation_fraction=fraction)["splits"]
    assert {splits["train"]["documents"], splits["validation"]["documents"]} == {1, 19}
    assert splits["validation"]["documents"] == (1 if fraction < 0.5 else 19)


def test_deterministic_and_shuffled_by_seed(tmp_path):
    source = write(tmp_path / "in.jsonl", TEXTS)
    for name, seed in (("a", 0), ("b", 0), ("c", -1)):
        prepare(source, tmp_path / name, "bytes", seed=seed)
    a, b, c = (open_store(tmp_path / name, "train") for name in "abc")
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()
    assert a.fingerprint == b.fingerprint != c.fingerprint
    assert sorted(documents(tmp_path / "a", "train")) == sorted(documents(tmp_path / "c", "train"))


def test_batches_lose_nothing(tmp_path, monkeypatch):
    source = write(tmp_path / "in.jsonl", TEXTS)
    whole = prepare(source, tmp_path / "a", "bytes")["splits"]
    monkeypatch.setattr(preparation, "_BATCH_CHARACTERS", 100)
    assert prepare(source, tmp_path / "b", "bytes")["splits"] == whole


def test_an_existing_store_is_reused_or_refused(tmp_path):
    source, store = write(tmp_path / "in.jsonl", TEXTS[:20]), tmp_path / "store"
    manifest = prepare(source, store, "bytes")
    before = (store / "manifest.json").stat().st_mtime_ns
    stages = []
    assert prepare(source, store, "bytes", progress=lambda *step: stages.append(step)) == manifest
    assert stages == [("already prepared", 20, 20)]
    with pytest.raises(UserError, match=r"store holds a store made otherwise \(seed 0 -> 1\)"):
        prepare(source, store, "bytes", seed=1)
    write(tmp_path / "in.jsonl", TEXTS[:21])
    with pytest.raises(UserError, match=r"\(tokenizer 'bytes' -> 'chars'; the text itself: in.jsonl: .* -> .*\)"):
        prepare(source, store, "chars")
    assert (store / "manifest.json").stat().st_mtime_ns == before
    write(tmp_path / "in.jsonl", TEXTS[:20])
    (store / "train" / "tokens.bin").write_bytes(b"")
    with pytest.raises(UserError, match="has 0 bytes"):
        prepare(source, store, "bytes")


def test_another_directory_is_never_overwritten(tmp_path):
    source = write(tmp_path / "in.jsonl", TEXTS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="mine exists and is not empty"):
        prepare(source, tmp_path / "mine", "bytes")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("stage", ["reading", "tokenizer", "tokenizing train", "tokenizing validation"])
def test_an_interrupted_prepare_leaves_nothing(tmp_path, stage):
    source = write(tmp_path / "in.jsonl", TEXTS)

    def interrupt(name, done, total):
        if name == stage and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(source, tmp_path / "store", "bpe:300", validation_fraction=0.2, progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_saved_tokenizer_is_used_and_named_by_content(tmp_path):
    source = write(tmp_path / "in.jsonl", TEXTS)
    tokenizer = train_tokenizer("bpe:300", TEXTS)
    for name in ("here", "there"):
        tokenizer.save(tmp_path / name)
    manifest = prepare(source, tmp_path / "store", str(tmp_path / "here"))
    assert load_tokenizer(tmp_path / "store") == tokenizer
    assert prepare(source, tmp_path / "store", str(tmp_path / "there")) == manifest


def test_faults_of_the_source(tmp_path):
    source = write(tmp_path / "in.jsonl", TEXTS[:3])
    with open(source, "a") as file:
        file.write('{"body": 1}\n{\n')
    with pytest.raises(UserError, match=r"in\.jsonl:4: no field 'text'; fields found: body"):
        prepare(source, tmp_path / "store", "bytes")
    manifest = prepare(source, tmp_path / "store", "bytes", strict=False)
    assert manifest["collected"] == {"read": 3, "empty": 0, "duplicate": 0, "missing field": 1, "broken JSON": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0; legal: from 0 to below 1"),
        ({"validation_fraction": -0.1}, "validation_fraction is -0.1; legal: from 0 to below 1"),
        ({"validation_split": "random"}, "validation_split is 'random'; legal: documents, tail"),
        ({"tokenizer_spec": "bpe:12"}, "tokenizer 'bpe:12' is unknown"),
        ({"validation_fraction": 0.5}, "one document cannot be split by documents; legal: validation_split=tail"),
        ({"text_field": "blank"}, "no documents remain (1 read, 1 empty, 0 duplicate)"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    (tmp_path / "in.jsonl").write_text(json.dumps({"text": "some text", "blank": " "}) + "\n")
    with pytest.raises(UserError, match=re.escape(message)):
        prepare(str(tmp_path / "in.jsonl"), tmp_path / "store", **{"tokenizer_spec": "bytes"} | options)
    assert not (tmp_path / "store").exists()


def test_tail_cuts_every_document_at_its_own_length(tmp_path):
    for name, length in (("a", 10), ("b", 200), ("c", 1)):
        (tmp_path / f"{name}.txt").write_text(name * length)
    store = tmp_path / "store"
    splits = prepare(f"{tmp_path}/*.txt", store, "bytes", validation_fraction=0.1, validation_split="tail")["splits"]
    assert sorted(documents(store, "train")) == ["a" * 9, "b" * 180]
    assert sorted(documents(store, "validation")) == ["a", "b" * 20, "c"]
    assert (splits["train"]["bytes"], splits["validation"]["bytes"]) == (189, 22)
    with pytest.raises(UserError, match=r"c\.txt: too short to cut off a tail of 0.1; legal: a longer text"):
        prepare(f"{tmp_path}/c.txt", tmp_path / "new", "bytes", validation_fraction=0.1, validation_split="tail")
