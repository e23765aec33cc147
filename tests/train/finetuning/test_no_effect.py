"""Every config field of every task acts or is refused: `config.task`, `config.loss` and what fine-tuning ignores."""

import dataclasses
import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from conftest import mesh_of, tiny_model
from flax import linen as nn

from configs import default, models, reference
from configs.errors import UserError
from configs.finetune import intent
from configs.inactive import CONDITIONS, inactive_fields
from configs.pretrain import llm, tiny
from data.examples import pack
from data.tokenizer_training import train_tokenizer
from tests.often import often
from train.finetuning import baselines, comparison, ensembling
from train.finetuning.finetune_run import FinetuneRun, Scored
from train.finetuning.rows import TaskData, TaskRows, encode_rows
from train.finetuning.run import finetune
from train.pretraining import pretrain
from train.run.new_run import FINETUNE_UNUSED, PRETRAIN_UNUSED, check_new_run
from train.schedule import schedule_errors
from train.settings import from_config
from train.tasks.loading import attention_of, load_task
from train.tasks.task import check_prompt, fields_without_effect

TOKENIZER = train_tokenizer("bytes", [])
MODEL = tiny_model(vocab_size=320, num_experts=2, experts_per_token=1)
MESH = mesh_of()
ROOT = Path(__file__).parents[3]
FOUNDATION = ROOT / "tests" / "golden" / "runs" / "foundation"
# Rows from which each task can read everything that a changed field names.
ROWS = [
    {
        "text": f"text {i}", "context": "Ann is in Rome", "other": f"other {i}", "tokens": ["Ann", f"w{i}"],
        "chosen": "yes", "rejected": "no", "question": f"who {i}",
    } for i in range(6)
]  # fmt: skip
TARGETS = {
    "classification": lambda i: "a" if i else "b",
    "multi_label": lambda i: ["a", "b"] if i else ["b"],
    "regression": float,
    "tagging": lambda i: ["PER", "O" if i else "PER"],
    "span": lambda i: [{"text": "Ann", "answer_start": 0}] if i else [],
    "generation": lambda i: f"answer {i}",
    "chat": lambda i: [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": "a"}],
    "preference": lambda i: "unused",
    "reward": lambda i: "unused",
}
INPUTS = {"span": "{question}", "chat": "{text}"}
# A value other than the default, for each field of a task.
CHANGES = {
    "task.input": "{other}", "task.context": "{context}.", "task.target": "second", "task.group": "{other}",
    "task.attention": "causal",
    "task.pooling": "mean", "task.multi_label": True, "task.class_weights": "balanced", "task.template": "chatml",
    "task.metrics": ("bleu",), "task.max_new_tokens": 7, "task.beta": 0.5, "task.baseline": False,
    "task.center": False, "task.alternatives": False, "task.ensemble": False, "task.out_of_scope": "b",
    "task.prompt": "{input}?", "task.zero_shot_rows": 0, "task.shots": 1,
    "loss.z_loss": 0.5, "loss.label_smoothing": 0.3, "loss.chunk": 16, "loss.router_z_loss": 0.1,
    "loss.balance_loss": 0.1,
}  # fmt: skip
# These act where rows are read and split, which has tests of its own (`tests/data`), and choose the task itself.
SPLITS = {"task.test_path", "task.test_fraction", "task.test_rows", "task.validation_fraction", "task.name"}
SPLITS |= {"task.missing", "task.row_rules", "task.labels_per_class", "task.min_epochs"}


def config_of(kind, **changes):
    config = default.get_config()
    config.batch_size, config.sequence_length = 2, 256
    config.task.name = "classification" if kind == "multi_label" else kind
    config.task.multi_label = kind == "multi_label"
    config.task.zero_shot_rows, config.task.input = 4, INPUTS.get(kind, "{text}")
    config.update_from_flattened_dict(changes)
    return config.to_dict()


def behavior(kind, config, monkeypatch):
    """Returns what a fine-tuning run does with a config except for training: rows, loss, models of the table."""
    settings = from_config(config)
    cls = load_task(settings.task.name)
    rows = [row | {"label": TARGETS[kind](i), "second": TARGETS[kind](0)} for i, row in enumerate(ROWS)]
    try:
        attention = attention_of(settings.task, settings.adapt.method)
        examples = [cls.parse(row, settings.task) for row in rows]
        task = cls.fit(examples, settings.task)
    except UserError as error:
        return str(error)
    part = encode_rows(task, examples, TOKENIZER, settings.sequence_length, 0)
    if task.needs_reference:
        part = with_zero_reference(part)
    calls = []
    stub_models(monkeypatch, calls)
    record = SimpleNamespace(model=MODEL)
    parent = SimpleNamespace(model=MODEL, is_language_model=True, load_merged=lambda *_: {}, directory="base")
    parts = dict.fromkeys(("train", "validation", "test"), part)
    comparison.compare(FinetuneRun("work", record, settings, parent, TaskData(task, TOKENIZER, parts), MESH, parent))
    segments = [{k: v.tolist() for k, v in s.items()} for r in part.encoded for s in r.segments]
    read = [dataclasses.asdict(example) for example in examples]
    scored_by = getattr(task, "metric_names", ()), getattr(task, "out_of_scope", "")
    return read, segments, loss_of(task, settings, part), calls, scored_by, attention


def loss_of(task, settings, part):
    """Returns the loss as a program, with its constants."""
    objective = task.objective(MODEL, settings.loss)
    params = jax.eval_shape(lambda rng: nn.meta.unbox(objective.init(rng)), jax.random.key(0))
    with jax.set_mesh(MESH):
        program = jax.make_jaxpr(objective.loss)(params, part.rows.rows(np.zeros(1, int)))
    return re.sub(r"0x[0-9a-f]+", "", str(program)), [np.asarray(x).tolist() for x in program.consts]


def with_zero_reference(part):
    encoded = [
        r._replace(segments=tuple(s | {"reference": np.zeros(len(s["tokens"]), np.float32)} for s in r.segments))
        for r in part.encoded
    ]
    rows = pack([r.segments for r in encoded], part.rows.sequence_length, part.rows.pad_id, 0)
    return TaskRows(part.examples, encoded, rows, part.dropped)


def stub_models(monkeypatch, calls):
    """Replaces training, generation and scores by a record of the calls."""

    def answer(foundation, questions, shown, choices, max_new_tokens, *_):
        calls.append(["answer", questions, shown, choices or max_new_tokens])
        return [choices or ["text"] for _ in questions]

    def score(run, name, examples, predictions, zero_shot=None):
        calls.append([name, len(examples)])
        return Scored(name, examples, predictions, {})

    def predict(params, part):
        calls.append([segment["tokens"].tolist() for r in part.encoded for segment in r.segments])
        return [None] * len(part.examples)

    def train_and_score(run, name, zero_shot):
        calls.append(name)
        return Scored(name, [], [], {}, decisions=(None, None), confidence=calls)

    monkeypatch.setattr(baselines, "answer_questions", answer)
    monkeypatch.setattr(baselines, "score", score)
    monkeypatch.setattr(comparison, "_predictor", lambda run, objective: predict)
    monkeypatch.setattr(FinetuneRun, "objective", lambda self, adapted: None)
    monkeypatch.setattr(comparison, "_with_references", lambda run, foundation: run)
    monkeypatch.setattr(comparison, "_train_and_score", train_and_score)
    monkeypatch.setattr(ensembling, "fit_weights", lambda decisions, margins_NV: calls.append(margins_NV.shape))


@pytest.mark.integration
@pytest.mark.parametrize("kind", often(TARGETS, "classification", "generation", "preference"))
def test_a_field_acts_or_is_refused(kind, monkeypatch):
    """Both ways: what is refused changes nothing, and what changes nothing is refused."""
    config = config_of(kind)
    before = behavior(kind, config, monkeypatch)
    assert behavior(kind, config, monkeypatch) == before
    refused = fields_without_effect(load_task(config["task"]["name"]))
    # Several labels per row are the same task, for which a condition refuses it.
    refused |= {"task.ensemble"} if kind == "multi_label" else set()
    for name, usual in CHANGES.items():
        value = usual
        if (kind, name) == ("multi_label", "task.multi_label"):
            value = False
        if name == "task.attention" and load_task(config["task"]["name"]).default_attention == value:
            value = "bidirectional"
        changed = config_of(kind, **{name: value})
        same = behavior(kind, changed, monkeypatch) == before
        assert same == (name in refused), f"{kind}: {name}"


def test_every_field_is_covered():
    fields = {f"{section}.{name}" for section in ("task", "loss") for name in default.get_config()[section]}
    assert fields - set(FINETUNE_UNUSED) == set(CHANGES) | SPLITS
    for kind in set(TARGETS) - {"multi_label"}:
        assert set(CHANGES) >= fields_without_effect(load_task(kind))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task.name": "tagging", "task.pooling": "mean"},
         "config.task.pooling='mean' has no effect with config.task.name='tagging'; expected 'auto', the default"),
        ({"task.name": "regression", "task.class_weights": "balanced"}, "class_weights='balanced' has no effect with"),
        ({"task.name": "reward", "task.beta": 0.5}, "config.task.beta=0.5 has no effect with .*='reward'"),
        ({"loss.z_loss": 0.1}, "config.loss.z_loss=0.1 has no effect with config.task.name='classification'"),
        ({"task.name": "chat", "task.multi_label": True}, "config.task.multi_label=True has no effect"),
        ({"task.name": "tagging", "task.ensemble": False}, "config.task.ensemble=False has no effect with"),
        ({"task.multi_label": True, "task.ensemble": False}, "ensemble=False .* without config.task.multi_label=False"),
        ({"adapt.rank": 64}, "config.adapt.rank=64 has no effect without config.adapt.method='lora'"),
        ({"data.validation_split": "tail"}, "has no effect in fine-tuning"),
        ({"loss.router_z_loss": 0.1}, "loss.router_z_loss=0.1 has no effect without config.model.num_experts"),
        ({"model.embed_dim": 512}, "config.model.embed_dim=512 has no effect with --init_from=.*, which has 16"),
        ({"tokenizer": "bpe:99"}, "config.tokenizer='bpe:99' has no effect with --init_from=.*, which has 'bytes'"),
    ],
)  # fmt: skip
def test_fine_tuning_refuses_a_field_without_effect(changes, message, tmp_path):
    config = default.get_config()
    config.data.path = str(tmp_path / "none.jsonl")
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        finetune(config.to_dict(), FOUNDATION, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_losses_of_routers_act_where_the_foundation_has_experts(tmp_path):
    config = default.get_config()
    config.loss.balance_loss = config.loss.router_z_loss = 0.1
    values = config.to_dict()
    record = SimpleNamespace(config={"tokenizer": config.tokenizer})
    parent = SimpleNamespace(model=MODEL, directory="base", record=record)
    check_new_run(tmp_path, values, from_config(values), FINETUNE_UNUSED, parent)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapt.method": "lora"}, "config.adapt.method='lora' has no effect in pre-training"),
        ({"task.name": "chat", "task.shots": 9}, "config.task.name='chat' .*; config.task.shots=9 has no effect"),
        ({"loss.balance_loss": 0.1}, "balance_loss=0.1 has no effect without config.model.num_experts"),
        ({"model.router": "sigmoid"}, "router='sigmoid' has no effect without config.model.num_experts"),
        ({"model.shared_expert_dim": 8}, "shared_expert_dim=8 has no effect without config.model.num_experts"),
        ({"optimizer.decay_fraction": 0.5}, "decay_fraction=0.5 has no effect without config.optimizer.schedule='wsd'"),
        ({"optimizer.muon_iterations": 3}, "has no effect without config.optimizer.name='muon'"),
        ({"evaluation.metric": "bits_per_byte"}, "without config.evaluation.patience or config.checkpoint.best"),
    ],
)
def test_pre_training_refuses_a_field_without_effect(changes, message, tmp_path):
    config = tiny.get_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        pretrain(config.to_dict(), tmp_path / "run")


def changed(config, name, value):
    section, field = name.split(".")
    return config | {section: config[section] | {field: value}}


def test_every_condition_is_met_by_one_config_and_not_by_another():
    defaults = default.get_config().to_dict()
    values = {
        "adapt.method": ("last", "lora", "head"), "optimizer.name": ("muon",), "checkpoint.best": (True,),
        "optimizer.schedule": ("wsd", "constant"), "model.position": ("learned",), "model.qk_norm": (False,),
        "model.rope_scaling": ("llama3", "yarn", "longrope"), "model.rope_layers": (("local",),),
        "model.norm": ("layernorm",), "model.num_experts": (4,), "model.router_bias": (True,),
        "checkpoint.local_path": ("here",), "task.multi_label": (True,), "logging.tracker": ("wandb",),
        "task.alternatives": (False,), "data.mixture": ((("a", "a.txt", 1.0),),),
    }  # fmt: skip
    configs = [defaults, *(changed(defaults, name, value) for name, some in values.items() for value in some)]
    known = {field.name for field in reference.fields()}
    for condition in CONDITIONS:
        assert set(condition.fields) <= known
        assert {bool(condition.acts(config)) for config in configs} == {True, False}, condition.needs


@pytest.mark.parametrize(
    ("without", "name", "value"),
    [
        ({"model.position": "learned"}, "model.rope_theta", 5e5),
        ({}, "model.rope_scaling_factor", 8.0),
        ({"model.qk_norm": False}, "model.qk_norm_joint", True),
        ({"adapt.method": "head"}, "optimizer.layer_decay", 0.9),
        ({"adapt.method": "lora"}, "adapt.last_layers", 1),
        ({"optimizer.schedule": "constant"}, "optimizer.final_fraction", 0.5),
    ],
)
def test_a_field_without_the_value_that_it_needs_is_refused(without, name, value):
    config = default.get_config().to_dict()
    for switch, found in without.items():
        config = changed(config, switch, found)
    assert inactive_fields(config, {}) == []
    (message,) = inactive_fields(changed(config, name, value), {})
    assert message.startswith(f"config.{name}={value!r} has no effect without ")


@pytest.mark.parametrize("name", sorted(models._ARCHITECTURES))
def test_published_architectures_set_no_field_without_effect(name):
    assert inactive_fields(llm.get_config(name).to_dict(), PRETRAIN_UNUSED) == []


SHIPPED = [
    *((path.parent.name, path.stem) for path in sorted(ROOT.glob("configs/*/*.py")) if path.stem != "__init__"),
    ("finetune", "question_answering:generative"),
    *(
        ("finetune", f"imported:{path.stem}")
        for path in sorted(ROOT.glob("configs/finetune/*.py"))
        if path.stem not in ("__init__", "imported")
    ),
]


@pytest.mark.parametrize(("folder", "name"), SHIPPED, ids=[name for _, name in SHIPPED])
def test_shipped_configs_set_no_field_without_effect(folder, name):
    file, _, variant = name.partition(":")
    config = importlib.import_module(f"configs.{folder}.{file}").get_config(*[variant] * bool(variant)).to_dict()
    unused = PRETRAIN_UNUSED
    if folder == "finetune":
        task = load_task(config["task"]["name"])
        unused = FINETUNE_UNUSED | dict.fromkeys(fields_without_effect(task), "")
        check_prompt(task, from_config(config).task)
    assert inactive_fields(config, unused) == []
    assert schedule_errors(from_config(config).optimizer, config["num_steps"]) == []


def test_a_run_that_exists_resumes_with_a_warning(tmp_path, capsys):
    config = intent.get_config()
    config.adapt.rank = 3
    values = config.to_dict()
    (tmp_path / "run.json").write_text("{}")
    check_new_run(tmp_path, values, from_config(values), FINETUNE_UNUSED, None)
    assert "config.adapt.rank=3 has no effect" in capsys.readouterr().err
    assert inactive_fields(tiny.get_config().to_dict(), PRETRAIN_UNUSED) == []
