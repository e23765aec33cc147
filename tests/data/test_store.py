import json
import pickle

import numpy as np
import pytest

from configs.errors import UserError
from data.storage.new_directory import new_directory
from data.store import (
    open_store,
    store_from_documents,
    token_dtype,
    verify_store,
    write_manifest,
    write_split,
)
from data.tokenizer_training import train_tokenizer

DOCUMENTS = [[1, 5, 6, 2], [1, 2], [1, 7, 258, 9, 2]]


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "store"
    tokenizer = train_tokenizer("bytes", [])
    with new_directory(path) as directory:
        tokenizer.save(directory)
        split = write_split(directory / "train", zip([b"b", b"c", b"a"], DOCUMENTS, strict=True), "uint16")
        described = {"vocab_size": 259, "dtype": "uint16", "tokenizer_sha256": tokenizer.sha256}
        write_manifest(directory, described | {"splits": {"train": split}})
    return path


def test_documents_are_stored_in_key_order(store):
    train = open_store(store, "train")
    assert train.tokens.tolist() == [1, 7, 258, 9, 2, 1, 5, 6, 2, 1, 2]
    assert train.offsets.tolist() == [0, 5, 9, 11]
    assert train.tokens.dtype == np.uint16 and train.offsets.dtype == np.int64
    assert isinstance(train.tokens, np.memmap)
    assert train.num_tokens == 11
    assert sorted(path.name for path in (store / "train").iterdir()) == ["offsets.npy", "tokens.bin"]
    verify_store(store)


def test_store_pickles_as_its_path(store):
    train = open_store(str(store), "train")
    assert train.tokens.size and train.offsets.size
    data = pickle.dumps(train)
    assert len(data) < 400 + len(str(store))
    assert pickle.loads(data).tokens.tolist() == train.tokens.tolist()


def test_memory_store_has_the_same_interface(store):
    memory = store_from_documents([DOCUMENTS[2], DOCUMENTS[0], DOCUMENTS[1]])
    train = open_store(store, "train")
    assert memory.tokens.tolist() == train.tokens.tolist()
    assert memory.offsets.tolist() == train.offsets.tolist() and memory.offsets.dtype == np.int64
    assert memory.num_tokens == 11
    assert memory.fingerprint != store_from_documents(DOCUMENTS).fingerprint
    with pytest.raises(UserError, match="no documents"):
        store_from_documents([])


def test_token_dtype_is_the_smallest_that_fits():
    assert token_dtype(65536) == "uint16"
    assert token_dtype(65537) == "uint32"


def test_fingerprint_depends_on_content_and_tokenizer(store):
    before = open_store(store, "train").fingerprint
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["tokenizer_sha256"] = "0" * 64
    (store / "manifest.json").write_text(json.dumps(manifest))
    assert open_store(store, "train").fingerprint != before


def test_verify_store_detects_corruption(store):
    tokens = store / "train" / "tokens.bin"
    data = bytearray(tokens.read_bytes())
    data[3] ^= 1
    tokens.write_bytes(data)
    open_store(store, "train")  # the sizes are right, so only a full read detects it
    with pytest.raises(UserError, match=r"is damaged: train/tokens\.bin differ"):
        verify_store(store)


def test_truncated_or_missing_tokens_are_an_error(store):
    tokens = store / "train" / "tokens.bin"
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"tokens\.bin has 20 bytes, expected 22"):
        open_store(store, "train")
    tokens.unlink()
    with pytest.raises(UserError, match=r"tokens\.bin is missing"):
        open_store(store, "train")


def test_damaged_offsets_are_an_error(store):
    offsets = store / "train" / "offsets.npy"
    whole = offsets.read_bytes()
    for content in (b"", whole[:-8], b"x" * len(whole)):
        offsets.write_bytes(content)
        with pytest.raises(UserError, match=r"offsets\.npy is damaged"):
            open_store(store, "train")
    np.save(offsets, np.array([0, 5, 11], np.int64))
    with pytest.raises(UserError, match=r"offsets\.npy does not match the manifest"):
        open_store(store, "train")


def test_directory_that_is_not_a_store_is_an_error(store, tmp_path):
    with pytest.raises(UserError, match=r"is not a token store: manifest\.json is missing"):
        open_store(tmp_path / "gone", "train")
    with pytest.raises(UserError, match="has no 'validation' split; it has: train"):
        open_store(store, "validation")
    path = store / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(UserError, match="version 99; expected version 1"):
        open_store(store, "train")
    path.write_text(json.dumps(manifest | {"format": "checkpoint"}))
    with pytest.raises(UserError, match="has format='checkpoint'; expected 'token store'"):
        open_store(store, "train")
    for content in ("{", "[]", "{}"):
        path.write_text(content)
        with pytest.raises(UserError, match="is not the manifest of a token store"):
            open_store(store, "train")


def test_failed_write_leaves_no_files(tmp_path):
    def documents():
        yield b"a", [1, 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "store") as directory:
        write_split(directory / "train", documents(), "uint16")
    assert list(tmp_path.iterdir()) == []


def test_existing_files_are_not_overwritten(store, tmp_path):
    for path in (store, store / "manifest.json"):
        with pytest.raises(UserError, match="exists and is not empty"), new_directory(path):
            pytest.fail("the block must not run")
    verify_store(store)
    with pytest.raises(UserError, match="cannot be written"), new_directory(store / "manifest.json" / "below"):
        pytest.fail("the block must not run")
    (tmp_path / "empty").mkdir()
    with new_directory(tmp_path / "empty") as directory:
        (directory / "x").touch()
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["x"]
