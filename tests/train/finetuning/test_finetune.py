"""Fine-tuning for every task on a mesh of eight devices, from the foundation to the table; adapters; invalid input."""

import contextlib
import json
import random
import shutil

import jax
import numpy as np
import pytest

from configs import reference
from configs.errors import UserError
from configs.finetune import (
    assistant,
    contract_clause,
    dialogue_summary,
    imported,
    intent,
    preference,
    question_answering,
    sentiment,
)
from tests.often import often
from tests.runs import WORDS, records
from train.distributed.mesh import single_device_mesh
from train.finetuning.run import finetune
from train.finetuning.score_rows import score_rows
from train.generation.decode import continuations
from train.generation.language_model import GenerationOptions
from train.run.language_model import open_language_model
from train.run.merging import merge
from train.run.record import open_run
from train.tasks.loading import load_task
from train.tasks.task import fields_without_effect


def small(config, path, **changes):
    config.batch_size, config.sequence_length, config.num_steps = 8, 64, 8
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
    config.data.path = str(path)
    config.evaluation.every = config.checkpoint.every = 8
    config.optimizer.warmup_steps = 2
    config.task.max_new_tokens = 4
    config.task.zero_shot_rows, config.task.shots, config.task.baseline = 6, 1, False
    if changes.get("adapt.method") == "lora":
        config.adapt.targets, config.adapt.rank = ("query", "up"), 2
    config.update_from_flattened_dict(changes)
    # What the task does not read must keep its default; there may be no such task.
    with contextlib.suppress(UserError):
        unused = fields_without_effect(load_task(config.task.name))
        config.update_from_flattened_dict({f.name: f.default for f in reference.fields() if f.name in unused})
    return config.to_dict()


def rows(kind, count=80):
    rng = random.Random(1)

    def text(words=4):
        return " ".join(rng.choices(WORDS, k=words))

    for i in range(count):
        if kind == "labels":
            yield {"text": f"{text()} {i}", "label": "odd" if i % 2 else "even", "contract": f"c{i % 40}"}
        elif kind == "several":
            yield {"text": f"{text()} {i}", "label": [name for name in ("a", "b") if rng.random() < 0.5]}
        elif kind == "values":
            yield {"text": f"{text()} {i}", "label": i % 5}
        elif kind == "tags":
            words = [*text().split(), str(i)]
            yield {"tokens": words, "label": ["N" if word in ("cat", "dog") else "O" for word in words]}
        elif kind == "squad":
            context = f"{text(2)} {i} cat {text(2)}"
            answers = [{"text": "cat", "answer_start": context.index("cat")}] if i % 3 else []
            yield {"title": f"t{i % 40}", "context": context, "question": f"who {i}?", "answers": answers}
        elif kind == "pairs":
            yield {"dialogue": f"{text()} {i}", "summary": text(2)}
        elif kind == "chat":
            yield {
                "messages": [{"role": "user", "content": f"{text(2)} {i}"}, {"role": "assistant", "content": text(2)}]
            }
        else:
            yield {"text": f"{text(2)} {i}", "chosen": text(2), "rejected": text(3)}


def written(folder, kind):
    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(kind)))
    return path


SQUAD_FIGURES = {"exact_match", "f1", "answerable_exact_match", "answerable_f1", "no_answer_accuracy"}
TASKS = {
    "classification": (intent.get_config, "labels", {"task.baseline": True}, {"accuracy", "macro_f1"}),
    "imported": (imported.get_config, "labels", {}, {"accuracy", "macro_f1"}),
    "by contract": (contract_clause.get_config, "labels", {"task.class_weights": "balanced"}, {"accuracy"}),
    "several": (sentiment.get_config, "several", {"task.multi_label": True}, {"micro_f1", "macro_f1", "exact_match"}),
    "regression": (intent.get_config, "values", {"task.name": "regression"}, {"r2", "mean_absolute_error", "spearman"}),
    "tagging": (intent.get_config, "tags", {"task.name": "tagging"}, {"accuracy", "macro_f1"}),
    "span": (question_answering.get_config, "squad", {}, SQUAD_FIGURES),
    "answers": (lambda: question_answering.get_config("generative"), "squad", {}, SQUAD_FIGURES),
    "summary": (dialogue_summary.get_config, "pairs", {"adapt.method": "lora"}, {"rouge_1", "rouge_2", "rouge_l"}),
    "chat": (assistant.get_config, "chat", {"adapt.method": "last", "adapt.last_layers": 1}, {"assistant_loss"}),
    "preference": (preference.get_config, "preferences", {"task.input": "{text}"}, {"accuracy", "margin_gained"}),
    "reward": (
        preference.get_config,
        "preferences",
        {"task.input": "{text}", "task.name": "reward", "adapt.method": "head"},
        {"accuracy"},
    ),
}


@pytest.mark.integration
# A head that pools and one that reads every token.
@pytest.mark.parametrize("name", often(TASKS, "classification", "span"))
def test_finetune_every_task(name, foundation, tmp_path):
    get_config, kind, changes, figures = TASKS[name]
    config = small(get_config(), written(tmp_path, kind), **changes)
    published = finetune(config, foundation, tmp_path / "run")
    assert published == json.loads((tmp_path / "run" / "results.json").read_text())
    models = published["models"]
    for figure in figures:
        found = models["fine-tuned"][figure]
        assert found["low"] <= found["value"] <= found["high"] and np.isfinite(found["value"])
    evaluated = [record for record in records(tmp_path / "run") if record["phase"] == "eval"][-1]
    assert name in ("summary", "answers") or figures <= set(evaluated["better"])
    scored_foundation = [model for model in models if model.startswith("foundation")]
    assert bool(scored_foundation) == (name not in ("regression", "tagging", "reward"))
    assert ("random initialization" in models) == (name == "classification")
    assert set(published["gain"]) == set(models) - {"fine-tuned"}
    assert "fine-tuned" in (tmp_path / "run" / "report.html").read_text()
    # Any rows with the same columns can be scored from the directory alone.
    scored = score_rows(open_run(tmp_path / "run"), config["data"]["path"])
    if name in ("summary", "chat", "preference"):
        language_model = open_language_model(tmp_path / "run")
        assert language_model.template == ("plain" if name == "summary" else "plain_chat")
        assert len(continuations(language_model, ["the cat", "a dog ran far"], GenerationOptions(4))) == 2
    assert set(scored) == {"rows", *set(models["fine-tuned"])} - {"win_by_likelihood"} and scored["rows"] == 80


QUICK = {"task.baseline": False, "task.zero_shot_rows": 0}
LORA = QUICK | {"adapt.method": "lora", "optimizer.learning_rate": 0.05, "num_steps": 16}


@pytest.fixture(scope="module")
def adapters(foundation, tmp_path_factory):
    """Two LoRA runs on one foundation."""
    folder = tmp_path_factory.mktemp("adapters")
    path = written(folder, "labels")
    for seed in (0, 1):
        finetune(small(intent.get_config(), path, **LORA, seed=seed), foundation, folder / f"lora{seed}")
    return folder, path


def logits_of(directory):
    """What a run predicts for one row."""
    mesh, run = single_device_mesh(), open_run(directory)
    tokens = np.arange(3, 35, dtype=np.int32)[None]
    with jax.set_mesh(mesh):
        batch = {"tokens": tokens, "segment_ids": tokens * 0 + 1, "positions": tokens - 3}
        return run.objective().predict(run.load(mesh), batch)


@pytest.mark.slow
def test_merged_run_predicts_like_its_quantized_base_and_adapter(adapters, foundation, tmp_path):
    _, path = adapters
    config = small(intent.get_config(), path, **LORA, **{"adapt.base_quantization": "int8"})
    finetune(config, foundation, tmp_path / "qlora")
    merge(tmp_path / "qlora", tmp_path / "merged")
    applied, merged = map(logits_of, (tmp_path / "qlora", tmp_path / "merged"))
    np.testing.assert_allclose(applied, merged, rtol=1e-5, atol=1e-5)


@pytest.mark.integration
def test_merged_run_predicts_like_its_adapter_and_can_be_finetuned(adapters, foundation, tmp_path):
    folder, path = adapters
    merge(folder / "lora0", tmp_path / "merged")
    np.testing.assert_allclose(*map(logits_of, (folder / "lora0", tmp_path / "merged")), rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="nothing to merge"):
        merge(tmp_path / "merged", tmp_path / "again")
    with pytest.raises(UserError, match="is not empty"):
        merge(folder / "lora0", tmp_path / "merged")
    # A merged run can be a foundation.
    config = small(intent.get_config(), path, **{"task.baseline": False, "num_steps": 3})
    finetune(config, tmp_path / "merged", tmp_path / "onto")
    assert len(open_run(tmp_path / "onto").record.lineage) == 2


@pytest.mark.integration
def test_an_adapter_checkpoint_contains_no_base_parameters(adapters):
    folder, _ = adapters
    manifest = json.loads(next((folder / "lora0" / "checkpoints").glob("*/manifest/metadata")).read_text())
    assert not any("kernel" in path or "embedding" in path for path in manifest["leaves"])


@pytest.mark.integration
def test_adapter_without_its_foundation_is_a_one_line_error(adapters, foundation, tmp_path):
    folder, _ = adapters
    shutil.copytree(folder / "lora0", tmp_path / "moved")
    record = json.loads((tmp_path / "moved" / "run.json").read_text())
    record["lineage"][-1]["directory"] = str(tmp_path / "gone")
    (tmp_path / "moved" / "run.json").write_text(json.dumps(record))
    mesh = single_device_mesh()
    with (
        jax.set_mesh(mesh),
        pytest.raises(UserError, match=r"is an adapter and its base model .* is missing or was replaced"),
    ):
        open_run(tmp_path / "moved").load(mesh)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.name": "clasification"}, "did you mean 'classification'"),
        ({"task.target": "class"}, "row 1: no 'class'; columns found: text, label, contract; set config.task.target"),
        ({"task.input": "{body}"}, "no 'body'; columns found: text, label, contract; set config.task.input"),
        ({"task.input": "{text"}, "config.task.input='{text'"),
        ({"task.input": "{text!r}"}, "no 'text!r'; columns found: text, label, contract; set config.task.input"),
        ({"task.target": "text", "task.name": "generation", "task.template": "tokenizer"}, "has no chat_template"),
        ({"adapt.method": "lora", "adapt.targets": ("querry",)}, "'querry', which is not a projection"),
        ({"evaluation.metric": "acuracy", "evaluation.patience": 1},
         "'acuracy' is not computed; expected one of: loss, accuracy"),
        ({"task.validation_fraction": 0.0}, "0 validation"),
        ({"task.target": "text", "task.name": "generation", "task.max_new_tokens": 64},
         "max_new_tokens=64 must be less than config.sequence_length=64"),
        ({"sequence_length": 6, "task.zero_shot_rows": 6}, "before an answer of 5 tokens; use at least 7"),
    ],
)  # fmt: skip
def test_invalid_config_is_a_one_line_error(changes, message, foundation, tmp_path):
    changes = QUICK | changes
    with pytest.raises(UserError, match=message) as caught:
        finetune(small(intent.get_config(), written(tmp_path, "labels"), **changes), foundation, tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.integration
def test_finetuning_a_classifier_to_generate_text_is_an_error(adapters, tmp_path):
    folder, _ = adapters
    merge(folder / "lora1", tmp_path / "merged")
    config = small(dialogue_summary.get_config(), written(tmp_path, "pairs"))
    with pytest.raises(UserError, match="is a classification model and cannot generate text"):
        finetune(config, tmp_path / "merged", tmp_path / "run")


@pytest.mark.integration
def test_foundation_of_another_architecture_is_an_error_that_lists_the_differences(foundation, adapters, tmp_path):
    folder, path = adapters
    other = tmp_path / "other"
    shutil.copytree(foundation, other)
    record = json.loads((other / "run.json").read_text())
    record["model"]["num_layers"] = 3
    (other / "run.json").write_text(json.dumps(record))
    config = small(intent.get_config(), path, **QUICK)
    with pytest.raises(UserError, match=r"does not match the model: .*layers"):
        finetune(config, other, tmp_path / "run")
    with pytest.raises(UserError, match="model num_layers: 2 != 3"):
        finetune(small(intent.get_config(), path, **LORA), other, folder / "lora0")
