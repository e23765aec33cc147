"""show-batch prints the batch that training reads and marks the tokens in the loss, for every kind of target."""

import json

import numpy as np
import pytest
import tokenizers
from rich.console import Console
from rich.text import Text
from tokenizers import decoders, models

from configs.errors import UserError
from data.tokenizer import Tokenizer
from data.tokenizer_training import train_tokenizer
from train.cli import main, parse
from train.commands import show_batch
from train.show_batch import Shown, show, token_texts

TOKENIZER = train_tokenizer("bytes", [])


def text_of(*pieces):
    return [token for piece in pieces for token in (TOKENIZER.encode(piece) if isinstance(piece, str) else [piece])]


def row(*segments, length):
    """A batch of one row: each segment is (tokens, {place: target}, {place: weight})."""
    example = next(iter(segments[0][1].values()))
    batch = {
        "tokens": np.full((1, length), TOKENIZER.pad_id, np.int32),
        "targets": np.zeros((1, length, *np.shape(example)), np.asarray(example).dtype),
        "weights": np.zeros((1, length), np.float32),
        "segment_ids": np.zeros((1, length), np.int32),
    }
    start = 0
    for number, (tokens, targets, weights) in enumerate(segments, 1):
        batch["tokens"][0, start : start + len(tokens)] = tokens
        batch["segment_ids"][0, start : start + len(tokens)] = number
        for place, target in targets.items():
            batch["targets"][0, start + place] = target
            batch["weights"][0, start + place] = weights.get(place, 1.0)
        start += len(tokens)
    return batch


def lines(capsys, batch, classes=None, console=None):
    show(Shown(lambda t: batch, TOKENIZER, classes), 0, 4, console or Console(soft_wrap=True, highlight=False))
    return capsys.readouterr().out.splitlines()


def test_next_tokens_are_bracketed_and_one_beyond_the_segment_is_named(capsys):
    tokens = text_of(TOKENIZER.bos_id, "Q\n", "No")
    answer = {2: tokens[3], 3: tokens[4], 4: TOKENIZER.eos_id}
    found = lines(capsys, row((tokens, answer, {}), length=8))
    assert found[:3] == ["batch 0, row 0: segments 1, tokens 5 of 8, targets 3", "1 ⟨<|bos|>⟩Q⏎", "[N][o]{→ <|eos|>}"]
    assert found[-1].startswith("legend: [token in the loss]")


def test_a_target_that_is_not_the_next_token_is_no_mark_on_it(capsys):
    tokens = text_of("abc")
    found = lines(capsys, row((tokens, {0: tokens[2], 1: tokens[2]}, {}), length=4))
    assert found[1] == "1 a{→ c}b[c]"


def test_segments_are_numbered_and_never_run_into_each_other(capsys):
    a, b = text_of("ab"), text_of("bc")
    found = lines(capsys, row((a, {0: a[1], 1: b[0]}, {}), (b, {0: b[1]}, {}), length=4))
    assert found[:3] == ["batch 0, row 0: segments 2, tokens 4 of 4, targets 3", "1 a[b]{→ b}", "2 b[c]"]


@pytest.mark.parametrize(
    ("targets", "weights", "classes", "expected"),
    [
        ({1: 1}, {}, ["ham", "spam"], "1 ab{→ spam}"),
        ({1: 1}, {1: 0.25}, ["ham", "spam"], "1 ab{→ spam x0.25}"),
        ({0: 98 + 3, 1: 1}, {}, ["ham", "spam", *["x"] * 99 , "tag"], "1 a{→ tag}b{→ spam}"),
        ({1: np.array([1.0, 0.0, 1.0], np.float32)}, {}, ["joy", "fear", "awe"], "1 ab{→ joy, awe}"),
        ({1: np.zeros(3, np.float32)}, {}, ["joy", "fear", "awe"], "1 ab{→ none}"),
        ({1: np.float32(2.5)}, {}, None, "1 ab{→ 2.5}"),
    ],
)  # fmt: skip
def test_classes_vectors_and_numbers(capsys, targets, weights, classes, expected):
    assert lines(capsys, row((text_of("ab"), targets, weights), length=2), classes)[1] == expected


def test_colors_mark_tokens_in_the_loss_without_brackets(capsys):
    tokens = text_of(TOKENIZER.bos_id, "ab")
    batch = row((tokens, {1: tokens[2]}, {}), length=3)
    console = Console(force_terminal=True, color_system="truecolor", soft_wrap=True, highlight=False)
    text = Text.from_ansi(lines(capsys, batch, console=console)[1])
    assert text.plain == "1 <|bos|>ab"
    colours = [text.get_style_at_offset(console, place).color.number for place in (2, 9, 10)]
    assert colours[0] != colours[1] and colours[2] in (2, 10)  # white, grey, one of the greens
    assert text.get_style_at_offset(console, 2).italic and not text.get_style_at_offset(console, 9).italic


def test_a_text_in_colours_cannot_control_the_terminal(capsys):
    tokens = text_of("\x1b[2J", "é")
    found = lines(capsys, row((tokens, {0: tokens[1]}, {}), length=len(tokens)))
    assert found[1] == "1 �[[]2Jé"


def test_a_space_that_a_decoder_strips_from_the_first_token_is_not_lost_later():
    vocabulary = {name: i for i, name in enumerate(["<pad>", "<s>", "</s>", "▁a", "▁b", "c"])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [], unk_token="<pad>", fuse_unk=False))
    backend.decoder = decoders.Metaspace()
    assert token_texts([3, 4, 5, 4, 3], Tokenizer(backend.to_str(), 1, 2, 0)) == ["a", " b", "c", " b", " a"]


@pytest.mark.parametrize("spec", ["bytes", "bpe:300", "chars"])
def test_the_tokens_texts_are_the_text(spec):
    text = "naïve 日本語本日 🌱🌱\n\n  two <|eos|> \ufffd end"
    tokenizer = train_tokenizer(spec, [text] * 3)
    ids = tokenizer.encode(text)
    assert "".join(token_texts(ids, tokenizer)) == text
    middle = token_texts([*ids, tokenizer.eos_id, *ids], tokenizer)
    assert middle[: len(ids)] == middle[len(ids) + 1 :] and middle[len(ids)] == "<|eos|>"


def run(capsys, *arguments):
    main(["show-batch", *map(str, arguments)])
    return capsys.readouterr().out


def test_a_pre_training_config_shows_the_batch_that_it_trains_on(tmp_path, capsys):
    (tmp_path / "text.txt").write_text("".join(f"line {i} of some text\n" for i in range(200)))
    out = run(
        capsys, "--config=configs/pretrain/tiny.py", f"--config.data.path={tmp_path}/text.txt", "--rows=2",
        "--config.data.validation_split=tail", "--config.tokenizer=bytes", "--config.sequence_length=16",
    )  # fmt: skip
    assert "batch 0, row 1: segments 1, tokens 16 of 16, targets 16" in out and "row 2" not in out
    assert "[s][o][m][e][ ][t][e][x][t][⏎]\n" in out
    assert not any(path.name != "text.txt" for path in tmp_path.iterdir())


def test_a_fine_tuning_config_shows_classes(tmp_path, capfd):
    rows = [{"text": f"message {i}", "label": ("ham", "spam")[i % 2]} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    TOKENIZER.save(tmp_path / "run" / "tokenizer")
    arguments = ["--config=configs/finetune/email_spam.py", f"--config.data.path={tmp_path}/rows.jsonl", "--rows=1"]
    out = run(capfd, *arguments, f"--init_from={tmp_path}/run")
    assert "⟨<|eos|>⟩{→ spam}" in out and "[" not in out.partition("legend")[0]


def test_a_fine_tuning_config_without_a_foundation_is_an_error(tmp_path):
    values = parse("show-batch", show_batch, ["--config=configs/finetune/email_spam.py"])
    with pytest.raises(UserError, match=r"--init_from is missing: email_spam.py uses the tokenizer of the base model"):
        show_batch.run(values)
