import json
import pickle
import random

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from configs.errors import UserError
from data import tokenizer_training
from data.tokenizer import Tokenizer, load_tokenizer
from data.tokenizer_training import get_tokenizer, train_tokenizer

TEXTS = [
    "The quick brown fox jumps over   the lazy dog. " * 20,
    "naïve café 日本語 🌱\n\n\tindent  two\r\n",
    "    x = {1: 'a'}\n" * 60,
]


@pytest.fixture(scope="module")
def trained():
    return {spec: train_tokenizer(spec, TEXTS) for spec in ("bpe:300", "bytes", "chars")}


def any_unicode(number):
    """Random texts of every Unicode plane, with control and unassigned characters but without lone surrogates."""
    draw = random.Random(0)
    ranges = [(0, 0x20), (0x20, 0x7F), (0x7F, 0x300), (0x300, 0xD800), (0xE000, 0x110000)]
    for _ in range(number):
        yield "".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(40)))


@pytest.mark.parametrize("spec", ["bpe:300", "bytes"])
def test_byte_level_round_trips_any_unicode(trained, spec):
    tokenizer = trained[spec]
    counts = tokenizer.token_bytes()
    for text in [*any_unicode(500), *TEXTS, "  two  blanks  ", "\r\n\r", "e\u0301 \ufb01 \ufeff"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert counts[ids].sum() == len(text.encode())


def test_chars_round_trip_known_characters(trained):
    tokenizer = trained["chars"]
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert len(ids) == len(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert tokenizer.encode("Ω") == [3]


def test_vocabulary_sizes_and_special_ids(trained):
    assert trained["bytes"].vocab_size == 259
    assert trained["bytes"].encode("\x00A\xff") == [3, 3 + 65, 3 + 0xC3, 3 + 0xBF]
    assert trained["bpe:300"].vocab_size == 300
    assert trained["chars"].vocab_size == 4 + len(set("".join(TEXTS)))
    for tokenizer in trained.values():
        assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2)
        assert tokenizer.decode([1, *tokenizer.encode("fox"), 2, 0]) == "fox"


@pytest.mark.parametrize("spec", ["bpe:300", "bytes"])
def test_special_token_names_in_text_stay_text(trained, spec, tmp_path):
    text = "a<|eos|>b<|bos|><|pad|>"
    trained[spec].save(tmp_path)
    for tokenizer in (trained[spec], load_tokenizer(tmp_path), pickle.loads(pickle.dumps(trained[spec]))):
        ids = tokenizer.encode(text)
        assert min(ids) > 2
        assert tokenizer.decode(ids) == text


def test_training_is_deterministic(trained):
    assert train_tokenizer("bpe:300", iter(TEXTS)).sha256 == trained["bpe:300"].sha256
    assert train_tokenizer("chars", reversed(TEXTS)).sha256 == trained["chars"].sha256
    assert len(trained["bpe:300"].encode(TEXTS[0])) < len(TEXTS[0]) / 2


def test_save_load_and_pickle_round_trip(trained, tmp_path):
    for spec, tokenizer in trained.items():
        directory = tmp_path / spec.replace(":", "")
        tokenizer.save(directory)
        for copy in (load_tokenizer(directory), load_tokenizer(directory / "tokenizer.json")):
            assert copy == tokenizer
            assert copy.sha256 == tokenizer.sha256
        tokenizer.encode("warm the cache")
        copy = pickle.loads(pickle.dumps(tokenizer))
        assert copy.encode(TEXTS[1]) == tokenizer.encode(TEXTS[1])


def test_texts_are_cut_for_training_where_nothing_that_is_counted_lies(trained, monkeypatch):
    for size in (1, 7, 100):
        monkeypatch.setattr(tokenizer_training, "_PIECE_CHARACTERS", size)
        assert train_tokenizer("bpe:300", TEXTS).sha256 == trained["bpe:300"].sha256


def test_token_bytes_are_padded_to_the_requested_size(trained):
    counts = trained["bytes"].token_bytes(320)
    assert counts.dtype == np.int32 and counts.shape == (320,)
    assert counts[:3].sum() == 0 and counts[259:].sum() == 0 and counts[3:259].tolist() == [1] * 256


def _sentencepiece_like(directory, specials):
    vocabulary = {name: i for i, name in enumerate([*specials, "<0x0A>", "▁", "a", "b", "▁a", "é"])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(specials)
    backend.enable_truncation(2)
    backend.save(str(directory / "tokenizer.json"))


def test_sentencepiece_vocabulary_loads(tmp_path):
    _sentencepiece_like(tmp_path, ["<unk>", "<s>", "</s>"])
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    text = "a ab\né a"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text  # the truncation to 2 tokens in the file is turned off
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


def test_special_tokens_of_tokenizer_config_json(tmp_path):
    _sentencepiece_like(tmp_path, ["<unk>", "<|endoftext|>", "<stop>"])
    assert (load_tokenizer(tmp_path).bos_id, load_tokenizer(tmp_path).eos_id) == (1, 1)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": {"content": "<stop>"}, "bos_token": None}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (1, 2, 2)
    tokenizer.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy") == tokenizer
    config.write_text(json.dumps({"eos_token": "<gone>"}))
    with pytest.raises(
        UserError, match=r"tokenizer_config.json or special_tokens_map.json: eos_token='<gone>'; expected a"
    ):
        load_tokenizer(tmp_path)
    for content in ("[]", "[" * 100_000):
        config.write_text(content)
        with pytest.raises(UserError, match="is not a JSON object"):
            load_tokenizer(tmp_path)


def test_special_tokens_map_json_is_read_and_overridden(tmp_path):
    _sentencepiece_like(tmp_path, ["<unk>", "<|endoftext|>", "<stop>", "<fill>"])
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<stop>", "pad_token": "<fill>"}))
    assert (load_tokenizer(tmp_path).eos_id, load_tokenizer(tmp_path).pad_id) == (2, 3)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>", "pad_token": None}))
    assert (load_tokenizer(tmp_path).eos_id, load_tokenizer(tmp_path).pad_id) == (1, 3)


@pytest.mark.parametrize(
    ("config", "has_bos"),
    [
        ({}, True),
        ({"bos_token": None}, False),
        ({"tokenizer_class": "Qwen2Tokenizer"}, False),
        ({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|endoftext|>"}, True),
        # Its class in transformers has a bos by default.
        ({"tokenizer_class": "LlamaTokenizerFast"}, True),
    ],
)
def test_a_model_without_bos_is_known_by_its_files(config, has_bos, tmp_path):
    _sentencepiece_like(tmp_path, ["<unk>", "<|endoftext|>", "<stop>"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<stop>", **config}))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.bos_id, tokenizer.has_bos) == (1, has_bos)
    bos = {"bos_token": "<|endoftext|>"} if has_bos else {}
    assert tokenizer.template_names == {**bos, "eos_token": "<stop>"}
    tokenizer.save(tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy") == tokenizer
    written = json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())
    assert written["bos_token"] == bos.get("bos_token")


def test_missing_or_invalid_tokenizer_file_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json is missing; expected a tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer.json is not a tokenizer.json: "):
        load_tokenizer(tmp_path)
    _sentencepiece_like(tmp_path, ["<unk>"])
    with pytest.raises(
        UserError, match=r"has no end-of-sequence token; expected eos_token in the tokenizer_config\.json"
    ):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("spec", ["bpe", "bpe:258", "bpe:x", "words", ""])
def test_unknown_spec_is_an_error(spec):
    with pytest.raises(UserError, match="expected bpe:N"):
        train_tokenizer(spec, [])
    if spec:
        with pytest.raises(UserError, match=f"tokenizer '{spec}' is unknown.*expected bpe:N"):
            get_tokenizer(spec, lambda: [])


def test_get_tokenizer_trains_or_loads(trained, tmp_path):
    trained["bytes"].save(tmp_path)
    assert get_tokenizer(str(tmp_path), lambda: pytest.fail("the texts must not be read")) == trained["bytes"]
    assert get_tokenizer("bytes", lambda: pytest.fail("the texts must not be read")) == trained["bytes"]
    assert get_tokenizer("chars", lambda: TEXTS) == trained["chars"]


def test_user_errors_while_reading_texts_are_not_changed_by_training():
    def texts():
        yield "a"
        raise UserError("line 2 is broken")

    with pytest.raises(UserError, match=r"^line 2 is broken$"):
        train_tokenizer("bpe:300", texts())


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (models.Unigram([("<unk>", 0.0), ("a", -1.0)], 0, False), 0),
        (models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"), 1),
        (models.BPE({"a": 0, "b": 1}, []), -1),
    ],
    ids=["Unigram", "WordLevel", "BPE"],
)
def test_the_token_of_what_a_vocabulary_lacks_is_known(model, expected):
    assert Tokenizer(tokenizers.Tokenizer(model).to_str(), 0, 0, 0).unknown_id == expected
