import json
import pickle

import numpy as np
import pytest

from configs.errors import UserError
from data.offsets import documents_of_pairs
from data.storage.new_directory import new_directory
from data.store import open_store, store_from_documents, token_dtype, write_manifest
from data.store_check import verify_store
from data.store_writer import split_record, write_shard
from data.tokenizer_training import train_tokenizer

DOCUMENTS = [[1, 7, 258, 9, 2], [1, 5, 6, 2], [1, 2]]
TOKENS, OFFSETS = "tokens-00000-of-00001.bin", "offsets-00000-of-00001.npy"


def write_store(path, shards, tokenizer=None):
    """Writes a store of lists of documents, one per shard."""
    tokenizer = tokenizer or train_tokenizer("bytes", [])
    with new_directory(path) as directory:
        tokenizer.save(directory)
        places = [(number, len(shards)) for number in range(len(shards))]
        written = [
            write_shard(directory / "train", place, documents, "uint16")
            for place, documents in zip(places, shards, strict=True)
        ]
        described = {"vocab_size": 259, "dtype": "uint16", "tokenizer_sha256": tokenizer.sha256}
        write_manifest(directory, described | {"splits": {"train": split_record(directory / "train", written)}})
    return path


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "store", [DOCUMENTS])


def all_tokens(store):
    return store.read(np.array([0]), np.array([store.num_tokens]))[0]


def test_documents_are_stored_in_order(store):
    train = open_store(store, "train")
    assert all_tokens(train).tolist() == [1, 7, 258, 9, 2, 1, 5, 6, 2, 1, 2]
    assert train.offsets[:].tolist() == [0, 5, 9, 11]
    assert all_tokens(train).dtype == np.uint16 and train.offsets[:].dtype == np.int64
    assert train.num_tokens == 11
    assert sorted(path.name for path in (store / "train").iterdir()) == [OFFSETS, TOKENS]
    verify_store(store)


@pytest.mark.parametrize(
    "shards",
    [
        [DOCUMENTS[:1], DOCUMENTS[1:]],
        [DOCUMENTS[:1], DOCUMENTS[1:2], DOCUMENTS[2:]],
        [[], DOCUMENTS[:1], [], [], DOCUMENTS[1:], []],
        [DOCUMENTS, []],
    ],
)
def test_shards_do_not_change_the_content(store, tmp_path, shards):
    write_store(tmp_path / "sharded", shards)
    verify_store(tmp_path / "sharded")
    whole, parts = open_store(store, "train"), open_store(tmp_path / "sharded", "train")
    assert len(parts.shards) == len(shards)
    assert parts.fingerprint == whole.fingerprint
    assert len(parts.offsets) == 4
    for start in range(12):
        for stop in range(start, 12):
            one, other = (s.read(np.array([start]), np.array([stop]))[0].tolist() for s in (whole, parts))
            assert one == other, (start, stop)
    for start in range(5):
        for stop in range(start, 5):
            assert parts.offsets[start:stop].tolist() == whole.offsets[start:stop].tolist()
    for index in (0, 1, 2, 3, -1, -4, np.array([3, 0, 2]), np.array([[1, 1], [-1, 2]]), slice(None, None, 2)):
        np.testing.assert_array_equal(parts.offsets[index], np.array([0, 5, 9, 11])[index])
    for index in (4, -5, np.array([0, 4])):
        with pytest.raises(IndexError):
            parts.offsets[index]
    assert documents_of_pairs(parts.offsets, np.arange(8)).tolist() == [0, 0, 0, 0, 1, 1, 1, 2]


def test_store_pickles_as_its_path(store):
    train = open_store(str(store), "train")
    assert all_tokens(train).size and len(train.offsets)
    data = pickle.dumps(train)
    assert len(data) < 400 + len(str(store))
    assert all_tokens(pickle.loads(data)).tolist() == all_tokens(train).tolist()


def test_memory_store_has_the_same_interface(store):
    memory = store_from_documents(DOCUMENTS)
    train = open_store(store, "train")
    assert all_tokens(memory).tolist() == all_tokens(train).tolist()
    assert memory.offsets.tolist() == train.offsets[:].tolist() and memory.offsets.dtype == np.int64
    assert memory.num_tokens == 11
    assert memory.fingerprint != store_from_documents(DOCUMENTS[::-1]).fingerprint
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
    tokens = store / "train" / TOKENS
    data = bytearray(tokens.read_bytes())
    data[3] ^= 1
    tokens.write_bytes(data)
    open_store(store, "train")  # the sizes are right, so only a full read detects it
    with pytest.raises(UserError, match=rf"is damaged: train/{TOKENS} differ"):
        verify_store(store)


def test_truncated_or_missing_tokens_are_an_error(store):
    tokens = store / "train" / TOKENS
    tokens.write_bytes(tokens.read_bytes()[:-2])
    with pytest.raises(UserError, match=rf"{TOKENS} has 20 bytes, expected 22"):
        open_store(store, "train")
    tokens.unlink()
    with pytest.raises(UserError, match=rf"{TOKENS} is missing"):
        open_store(store, "train")


def test_damaged_offsets_are_an_error(store):
    offsets = store / "train" / OFFSETS
    whole = offsets.read_bytes()
    for content in (b"", whole[:-8], whole + b"x"):
        offsets.write_bytes(content)
        with pytest.raises(UserError, match=rf"{OFFSETS} has {len(content)} bytes, expected {len(whole)}"):
            open_store(store, "train")
    offsets.write_bytes(b"x" * len(whole))
    with pytest.raises(UserError, match=rf"{OFFSETS} is damaged"):
        open_store(store, "train").offsets[1]
    for wrong in ([0, 5, 10, 11], [0, 9, 5, 11], [1, 5, 9, 11], [0, 5, 9, 12]):
        np.save(offsets, np.array(wrong, np.int64))
        with pytest.raises(UserError, match=rf"{OFFSETS} does not match the manifest"):
            open_store(store, "train").offsets[1]


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([[1, 5, 2], [5, 6, 2]], "document 1 does not start with bos"),
        ([[1, 5, 2], [1, 5, 6], [1, 2]], "document 1 does not end with eos"),
        ([[1, 5, 2], [1, 2], [1, 259, 2]], "document 2 has token 259; the vocabulary has 259"),
    ],
)
def test_verify_looks_at_every_document(tmp_path, monkeypatch, documents, message):
    for chunk in (2, 3, 100):
        monkeypatch.setattr("data.store_check._CHUNK_TOKENS", chunk)
        write_store(tmp_path / f"sound-{chunk}", [DOCUMENTS[:2], DOCUMENTS[2:]])
        verify_store(tmp_path / f"sound-{chunk}")
        write_store(tmp_path / f"bad-{chunk}", [documents[:1], documents[1:]])
        with pytest.raises(UserError, match=f"train/tokens-00001-of-00002.bin: {message}"):
            verify_store(tmp_path / f"bad-{chunk}")


@pytest.mark.parametrize("change", [{"shards": []}, {"shards": None}, {"documents": 4}, {"tokens": 10}])
def test_manifest_whose_shards_do_not_add_up_is_an_error(store, change):
    manifest = json.loads((store / "manifest.json").read_text())
    manifest["splits"]["train"] |= change
    (store / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"is damaged: .*shards"):
        open_store(store, "train")


def test_directory_that_is_not_a_store_is_an_error(store, tmp_path):
    with pytest.raises(UserError, match=r"is not a token store: manifest\.json is missing"):
        open_store(tmp_path / "gone", "train")
    with pytest.raises(UserError, match="has no 'validation' split; it has: train"):
        open_store(store, "validation")
    path = store / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"version": 99}))
    with pytest.raises(UserError, match="version 99; expected version 1 or 2"):
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
        yield [1, 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "store") as directory:
        write_shard(directory / "train", (0, 1), documents(), "uint16")
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
