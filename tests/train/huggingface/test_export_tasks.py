"""Exported classifiers, regressors and taggers answer in the pipelines of transformers as they do here.

Without torch, the files are compared with what the classes of transformers read: the rightmost token that is not pad.
"""

import dataclasses
import functools
import importlib.util
import json
import random
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizers
from conftest import tiny_model
from safetensors.numpy import load_file

from configs import default
from configs.errors import UserError
from data.tokenizer import Tokenizer, load_tokenizer
from data.tokenizer_training import train_tokenizer
from tests.runs import error_lines, rootstock
from train.distributed.mesh import single_device_mesh
from train.evaluation.scoring import head_outputs
from train.finetuning.rows import encode_rows
from train.finetuning.run import finetune, prepare_run
from train.huggingface.exported_tokenizer import with_own_pad
from train.huggingface.exporting import export_hf
from train.huggingface.heads import head_edits, head_of
from train.huggingface.importing import import_hf
from train.run.record import Run, RunRecord, open_run
from train.settings import from_config
from train.tasks.loading import task_from_record
from train.tasks.task import in_order

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "huggingface"
HAS_TRANSFORMERS = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
WORDS = "the cat sat on a mat and saw dog run far away home again".split()


def padded_with_eos():
    """A tokenizer like GPT-2's: bos, eos and pad are one token, and it fills the 272 rows of the stored models."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=272, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([f" {word}" for word in WORDS for _ in range(9)], trainer)
    assert backend.get_vocab_size() == 272
    return Tokenizer(backend.to_str(), 0, 0, 0)


TOKENIZERS = {
    "pad": lambda: train_tokenizer("bytes", []),
    # Two rows of the embedding are free.
    "eos is pad": lambda: dataclasses.replace(train_tokenizer("bytes", []), pad_id=2),
    "full": padded_with_eos,
}


def text_of(rng):
    return " ".join(rng.choices(WORDS, k=rng.randrange(1, 6)))


def tagged(words):
    return {"tokens": words, "label": ["N" if word in WORDS[:7] else "O" for word in words]}


ROWS = {
    "single": lambda rng, i: {"text": text_of(rng) + " <|endoftext|>" * (i % 7 == 0), "label": str(i % 11)},
    "multi": lambda rng, i: {"text": text_of(rng), "label": [n for n in ("b", "a", "c") if rng.random() < 0.5]},
    "value": lambda rng, i: {"text": text_of(rng), "label": 3.0 + i % 5},
    "tags": lambda rng, i: {
        "tokens": (w := text_of(rng).split()),
        "label": ["N" if x in WORDS[:7] else "O" for x in w],
    },
}
TASKS = {
    "single": {},
    "multi": {"task.multi_label": True},
    "value": {"task.name": "regression", "task.center": False},
    "centered": {"task.name": "regression"},
    "tags": {"task.name": "tagging"},
}
BOTH = " in both directions"  # end of the name of a task whose model attends so


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A function that returns a run of a few steps of a task from a stored model, and its rows."""

    @functools.lru_cache
    def train(architecture, tokenizer, task):
        folder = tmp_path_factory.mktemp("trained")
        shutil.copytree(GOLDEN / architecture, folder / "source")
        TOKENIZERS[tokenizer]().save(folder / "source")
        import_hf(str(folder / "source"), folder / "base")
        rng = random.Random(0)
        kind = task.removesuffix(BOTH)
        make = ROWS["value" if kind == "centered" else kind]
        rows = [make(rng, i) for i in range(120)]
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = default.get_config()
        config.batch_size, config.sequence_length, config.num_steps = 8, 48, 12
        config.data.path = str(folder / "rows.jsonl")
        config.evaluation.every = config.checkpoint.every = 12
        config.optimizer.warmup_steps, config.optimizer.learning_rate = 2, 0.02
        config.task.baseline = False
        if kind in ("single", "multi"):  # the others have no zero-shot baseline
            config.task.zero_shot_rows = 0
        config.task.attention = "bidirectional" if task.endswith(BOTH) else "causal"
        if kind != "tags":
            config.task.pooling = "last"
        config.update_from_flattened_dict(TASKS[kind])
        finetune(config.to_dict(), folder / "base", folder / "run")
        return folder / "run", rows

    return train


def ours(directory, rows):
    """Returns the head's outputs at all tokens of each row, and the encoded rows."""
    run, mesh = open_run(directory), single_device_mesh()
    task, settings = task_from_record(run.record.task), from_config(run.record.config)
    examples = [task.parse(row, settings.task) for row in rows]
    with jax.set_mesh(mesh):
        part = encode_rows(task, examples, run.tokenizer(), settings.sequence_length, seed=0)
        found = dict(head_outputs(run.objective(), run.load(mesh), part.rows, 8, mesh))
    return task, [found[i][0] for i in range(len(rows))], part


def exported(directory, output):
    export_hf(directory, output)
    return json.loads((output / "config.json").read_text())


@pytest.mark.integration
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_rightmost_token_that_is_not_pad_is_the_one_the_head_was_trained_at(name, trained, tmp_path):
    run, rows = trained("llama3", "pad", "single")
    shutil.copytree(run, tmp_path / "run")
    TOKENIZERS[name]().save(tmp_path / "run" / "tokenizer")
    config = exported(tmp_path / "run", tmp_path / "out")
    pad_id = config["pad_token_id"]
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    options = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    backend.encode_special_tokens = options["split_special_tokens"]
    backend.enable_padding(pad_id=pad_id, pad_token=backend.id_to_token(pad_id))
    tokens = TOKENIZERS[name]()
    for encoding, row in zip(backend.encode_batch([row["text"] for row in rows]), rows, strict=True):
        expected = [tokens.bos_id, *tokens.encode(row["text"]), tokens.eos_id]
        assert encoding.ids[: len(expected)] == expected
        assert np.flatnonzero(np.array(encoding.ids) != pad_id).max() == len(expected) - 1
    table = load_file(tmp_path / "out" / "model.safetensors")["model.embed_tokens.weight"]
    assert len(table) == config["vocab_size"] == 272 + (name == "full") and pad_id < len(table)
    assert load_tokenizer(tmp_path / "out").pad_id == pad_id and options["model_max_length"] == 48


RECORDS = {
    "single": {"name": "classification", "pooling": "last", "classes": ["0", "2", "10"], "multi_label": False},
    "multi": {"name": "classification", "pooling": "last", "classes": ["a", "b"], "multi_label": True},
    "value": {"name": "regression", "pooling": "last", "mean": 0.0, "std": 2.0},
    "centered": {"name": "regression", "pooling": "last", "mean": 3.0, "std": 2.0},
    "tags": {"name": "tagging", "classes": ["N", "O"]},
    "reward": {"name": "reward", "template": "plain"},
    "mean": {"name": "classification", "pooling": "mean", "classes": ["a", "b"], "multi_label": False},
}


def head(task, architecture="llama"):
    return head_of(Run(Path("run"), RunRecord("finetune", tiny_model(), {}, RECORDS[task], "", [])), architecture)


@pytest.mark.parametrize(
    ("names", "eos", "pad"),
    [
        (["</s>"], "</s>", "<|pad|>"),
        (["<|pad|>"], "<|pad|>", "<|pad_1|>"),
        (["<|pad|>", "<|pad_1|>"], "<|pad|>", "<|pad_2|>"),
        (["<|pad|>", "<pad>"], "<|pad|>", "<pad>"),
    ],
)
def test_a_pad_token_is_found_or_added_whatever_eos_is_called(names, eos, pad):
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    backend.add_special_tokens(names)
    end = backend.token_to_id(eos)
    padded = with_own_pad(Tokenizer(backend.to_str(), end, end, end))
    assert padded.pad_id != end and padded.token_name(padded.pad_id) == pad


@pytest.mark.parametrize(
    ("task", "name", "problem", "labels"),
    [
        ("single", "LlamaForSequenceClassification", "single_label_classification", ["0", "2", "10"]),
        ("multi", "LlamaForSequenceClassification", "multi_label_classification", ["a", "b"]),
        ("value", "LlamaForSequenceClassification", "regression", ["value"]),
        ("tags", "LlamaForTokenClassification", None, ["N", "O"]),
    ],
)
def test_class_and_problem_type(task, name, problem, labels):
    found = head(task)
    assert (found.name, found.config.get("problem_type")) == (name, problem)
    assert list(found.config["id2label"].values()) == labels == list(found.config["label2id"])
    assert found.config["num_labels"] == len(labels)


def test_the_exported_weights_give_values_in_the_units_of_the_data():
    rng = np.random.default_rng(0)
    states, table, bias = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 16), (1, 16), 16))
    for task in ("value", "centered"):
        edits = head_edits(head(task, "gpt2"), table, "transformer.ln_f.bias")
        weights = edits["score.weight"](table)
        shifted = states + edits["transformer.ln_f.bias"](bias) - bias if task == "centered" else states
        expected = (states @ table.T) * 2.0 + RECORDS[task]["mean"]
        np.testing.assert_allclose(shifted @ weights.T, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("export", "message"),
    [
        (lambda: head_edits(head("centered"), np.ones((1, 4)), ""), r"cannot add 3, .* config.task.center=False"),
        (lambda: head("tags", "olmo2"), "transformers has no Olmo2ForTokenClassification"),
        (lambda: head("reward"), "run is a reward model; expected a language model, a tagging model, or a class"),
        (lambda: head("mean"), "run is a classification model with pooling 'mean'; expected a language model"),
    ],
)
def test_what_no_class_of_transformers_computes_is_a_one_line_error(export, message):
    with pytest.raises(UserError, match=message) as caught:
        export()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("names", "ordered"),
    [
        (["10", "2", "0"], ("0", "2", "10")),
        (["5", "-1", "3"], ("-1", "3", "5")),
        (["b", "10", "2"], ("10", "2", "b")),
        (["02", "10", "1"], ("02", "1", "10")),
    ],
)
def test_integer_classes_are_in_numerical_order(names, ordered):
    assert in_order([*names, *names]) == ordered


@pytest.mark.integration
def test_a_resumed_run_keeps_the_order_of_its_classes(trained, tmp_path):
    run, _ = trained("llama3", "pad", "single")
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["task"]["classes"] = sorted(record["task"]["classes"])  # as older versions ordered them
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    settings = from_config(record["config"])
    parent = open_run(run.parent / "base").with_execution(settings.model)
    resumed, _ = prepare_run(record["config"], settings, parent, tmp_path / "run", single_device_mesh())
    assert resumed.data.task.classes[:3] == ("0", "1", "10") == tuple(resumed.record.task["classes"][:3])


@pytest.mark.integration
@pytest.mark.parametrize(
    ("architecture", "window"),
    [("llama3", None), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("gpt2", None), ("gemma2", 5)))],
)
def test_attention_in_both_directions_is_a_field_of_config_json(architecture, window, trained, tmp_path):
    """A window of transformers reaches that far in each direction; ours contains the query."""
    run, _ = trained(architecture, "full", f"tags{BOTH}")
    windows = {max(open_run(run).model.windows)}
    config = exported(run, tmp_path / "out")
    assert config["is_causal"] is False and not open_run(run).model.causal
    assert windows == {window + 1 if window else 0} and config.get("sliding_window") == window
    assert "is_causal" not in exported(trained(architecture, "full", "tags")[0], tmp_path / "causal")


@pytest.mark.integration
@pytest.mark.parametrize("command", [("chat",), ("generate", "--prompt=a")])
def test_a_classifier_generates_no_text(command, trained):
    run, _ = trained("llama3", "pad", "single")
    done = rootstock(*command, "--run", run, check=False)
    assert "is a classification model; expected a pre-trained run" in error_lines(done)[0]


@pytest.mark.integration
@pytest.mark.skipif(not HAS_TRANSFORMERS, reason="torch and transformers are not installed")
@pytest.mark.parametrize(
    ("architecture", "tokenizer", "task"),
    [
        *(("llama3", tokenizer, "single") for tokenizer in TOKENIZERS),
        *((architecture, "full", "single") for architecture in ("gpt2", "qwen2", "gemma2", "olmo2")),
        *((architecture, "full", "multi") for architecture in ("gpt2", "llama3", "gemma2")),
        *((architecture, "full", "value") for architecture in ("gpt2", "llama3", "qwen2")),
        ("gpt2", "full", "centered"),
        *((architecture, "eos is pad", "tags") for architecture in ("gpt2", "llama3", "gemma2")),
        *((architecture, "full", f"single{BOTH}") for architecture in ("gpt2", "llama3", "qwen2", "gemma2")),
        *((architecture, "full", f"tags{BOTH}") for architecture in ("gpt2", "llama3", "gemma2")),
    ],
)
def test_pipelines_of_transformers_answer_as_here(architecture, tokenizer, task, trained, tmp_path):
    run, rows = trained(architecture, tokenizer, task)
    out = tmp_path / "out"
    exported(run, out)
    fitted, outputs, part = ours(run, rows)
    task = task.removesuffix(BOTH)
    if task == "tags":
        return check_tags(out, rows, fitted, outputs, part)
    import transformers

    texts = [row["text"] for row in rows]
    answer = transformers.pipeline("text-classification", model=str(out))
    for size in (1, 16):
        found = answer(texts, batch_size=size, top_k=None, truncation=True)
        for scores, logits in zip(found, (o[-1] for o in outputs), strict=True):
            got = {score["label"]: score["score"] for score in scores}
            if task in ("value", "centered"):
                np.testing.assert_allclose(got["value"], logits * fitted.std + fitted.mean, rtol=2e-4)
                continue
            squash = {"single": lambda x: np.exp(x) / np.exp(x).sum(), "multi": lambda x: 1 / (1 + np.exp(-x))}[task]
            expected = squash(logits.astype(np.float64))
            np.testing.assert_allclose([got[name] for name in fitted.classes], expected, atol=1e-4)
    return None


def check_tags(out, rows, task, outputs, part):
    """The tag of a word is that of its last token."""
    import transformers

    answer = transformers.pipeline("token-classification", model=str(out), ignore_labels=[])
    texts = [" ".join(row["tokens"]) for row in rows]
    for size in (1, 16):
        for text, entities, example, out_TV, encoded in zip(
            texts, answer(texts, batch_size=size), part.examples, outputs, part.encoded, strict=True
        ):
            ends = [i for i in range(1, len(text) + 1) if i == len(text) or text[i] == " "]
            by_end = {entity["end"]: entity["entity"] for entity in entities}
            assert [by_end[end] for end in ends] == task.decode(example, (out_TV,), encoded, load_tokenizer(out))
