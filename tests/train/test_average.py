"""The exponential average of the parameters: its values, what uses it, and that a restart keeps it."""

import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import mesh_of, random_documents, tiny_model

from configs import default
from configs.errors import UserError
from data.examples import pack, text_segment
from model.adapt import adapt
from model.heads import language_model
from tests.runs import records, rootstock
from train.checkpoint.manager import BEST_DIR, CHECKPOINTS_DIR
from train.checkpoint.restore import restore_params
from train.distributed.placement import put_batch
from train.job import Job
from train.loop import fit
from train.planner.sharding import explain
from train.run.record import open_run
from train.settings import from_config
from train.step import make_program
from train.trees import abstract_params, leaf_paths

MODEL = tiny_model()
STEPS = 8


def settings_of(**changes):
    config = default.get_config()
    config.batch_size, config.sequence_length, config.num_steps = 8, 32, STEPS
    config.evaluation.every, config.checkpoint.every, config.logging.every = 2, 4, 1
    config.optimizer.warmup_steps, config.optimizer.learning_rate, config.optimizer.ema = 2, 1e-2, 0.6
    config.update_from_flattened_dict(changes)
    return from_config(config.to_dict())


def rows():
    documents = random_documents(80, longest=20)
    return pack([(text_segment(tokens, [True] * len(tokens)),) for tokens in documents], 32, 0, seed=0)


def job_of(objective, evaluate=lambda params: {"loss": 1.0}):
    return Job("test", objective, rows(), evaluate, None, ("backbone", "head"), 1.0)


def trained(settings, objective, mesh, steps):
    """The states after each step, from fixed batches; batch 2 has a gradient that is not finite."""
    program = make_program(objective, settings, mesh)
    rng = np.random.default_rng(0)
    states = []
    with jax.set_mesh(mesh):
        state = program.initialize(jax.random.key_data(jax.random.key(0)))
        for step in range(steps):
            tokens = rng.integers(3, 60, (8, 32), np.int32)
            batch = {"tokens": tokens, "targets": np.roll(tokens, -1, 1), "segment_ids": np.ones_like(tokens),
                     "positions": np.tile(np.arange(32, dtype=np.int32), (8, 1)),
                     "weights": np.full(tokens.shape, np.nan if step == 2 else 1.0, np.float32)}  # fmt: skip
            states.append(jax.device_get(state))
            state, _ = program.step(state, put_batch(batch, mesh))
        return [*states, jax.device_get(state)], program


@pytest.mark.parametrize(
    ("name", "ema"),
    [
        ("adamw", 0.6),
        *(pytest.param(*case, marks=pytest.mark.integration) for case in (("adamw", 0.15), ("muon", 0.6))),
    ],
)
def test_the_average_is_that_of_the_steps_that_were_not_skipped(name, ema):
    settings = settings_of(**{"optimizer.name": name, "optimizer.ema": ema})
    states, _ = trained(settings, language_model(MODEL), mesh_of(), 6)
    expected = leaf_paths(states[0].params)
    for step, (before, after) in enumerate(itertools.pairwise(states)):
        if step != 2:
            factor = min(ema, (1 + step) / (10 + step))
            now = leaf_paths(after.params)
            expected = {path: factor * value + (1 - factor) * now[path] for path, value in expected.items()}
        assert (step == 2) == jax.tree.all(jax.tree.map(np.array_equal, before.average, after.average))
        for path, value in leaf_paths(after.average).items():
            np.testing.assert_allclose(value, expected[path], rtol=1e-5, atol=1e-6)


@pytest.mark.integration
def test_the_average_changes_no_step_and_is_sharded_as_the_parameters():
    mesh = mesh_of(fsdp=2, tensor=2)
    averaged, program = trained(settings_of(), language_model(MODEL), mesh, 3)
    plain, without = trained(settings_of(**{"optimizer.ema": 0.0}), language_model(MODEL), mesh, 3)
    jax.tree.map(np.testing.assert_array_equal, averaged[-1].params, plain[-1].params)
    assert plain[-1].average == {} == without.state.average
    params, average = (jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in program.state[1::3])
    assert params == average


@pytest.mark.parametrize("method", ["lora", "last", "head"])
def test_only_trained_parameters_are_averaged(method):
    settings = settings_of(**{"adapt.method": method, "adapt.rank": 2, "adapt.last_layers": 1})
    objective = adapt(language_model(tiny_model(tie_embeddings=False)), settings.adapt)
    state = make_program(objective, settings, mesh_of()).state
    assert jax.tree.structure(state.average) == jax.tree.structure(state.params)
    assert "backbone" not in state.average and "backbone" in state.final_params


@pytest.mark.parametrize("ema", [1.0, -0.1, 1.5])
def test_an_average_that_never_moves_is_refused(ema):
    with pytest.raises(UserError, match=r"config.optimizer.ema=.*(must be between 0 and 1|below 1)"):
        settings_of(**{"optimizer.ema": ema})


def test_a_plan_counts_the_average():
    mesh = mesh_of().abstract_mesh
    found = [explain(settings_of(**{"optimizer.ema": ema}), MODEL, mesh)["totals"] for ema in (0.0, 0.9)]
    assert found[1]["state_bytes"] - found[0]["state_bytes"] == found[0]["parameter_bytes"] > 0


@pytest.mark.integration
def test_evaluation_the_best_checkpoint_and_the_end_use_the_average(tmp_path):
    objective, mesh = language_model(MODEL), mesh_of()
    seen = []

    def evaluate(params):
        seen.append(jax.device_get(params))
        return {"loss": float(len(seen))}  # the first evaluation is the best

    def stored(name, item):
        return jax.device_get(
            restore_params(tmp_path, abstract_params(objective, mesh), mesh, objective.trained, name, item)
        )

    with jax.set_mesh(mesh):
        settings = settings_of(**{"checkpoint.best": True})
        final = fit(job_of(objective, evaluate), settings, mesh, tmp_path)
        best, newest, raw = (
            stored(*where)
            for where in ((BEST_DIR, "params"), (CHECKPOINTS_DIR, "average"), (CHECKPOINTS_DIR, "params"))
        )
    equal = lambda a, b: jax.tree.all(jax.tree.map(np.array_equal, a, b))  # noqa: E731
    assert equal(seen[0], best) and equal(final, best) and equal(seen[-1], newest) and not equal(newest, raw)


@pytest.mark.integration
def test_a_restart_continues_the_average_bit_for_bit(tmp_path):
    objective, losses, averages = language_model(MODEL), [], []
    for name in ("whole", "resumed"):
        mesh = mesh_of()
        workdir = tmp_path / name
        workdir.mkdir()
        with jax.set_mesh(mesh):
            fit(job_of(objective), settings_of(), mesh, workdir)
            if name == "resumed":
                shutil.rmtree(workdir / CHECKPOINTS_DIR / str(STEPS))
                fit(job_of(objective), settings_of(), mesh, workdir)
            abstract = abstract_params(objective, mesh)
            found = restore_params(workdir, abstract, mesh, objective.trained, CHECKPOINTS_DIR, "average")
            averages.append(jax.device_get(found))
        losses.append([r["loss"] for r in records(workdir) if r["phase"] == "train" and r["step"] > 4][-4:])
    assert losses[0] == losses[1]
    jax.tree.map(np.testing.assert_array_equal, *averages)


@pytest.mark.integration
def test_commands_read_the_average(text, tmp_path):
    """Scoring a text gives another loss with the average than with the last parameters."""
    run = tmp_path / "run"
    config = [
        "--config=configs/pretrain/tiny.py", f"--config.data.path={text}", "--config.tokenizer=bytes",
        "--config.data.validation_split=tail", "--config.batch_size=8", "--config.sequence_length=64",
        "--config.model.embed_dim=32", "--config.model.num_layers=2", "--config.model.mlp_dim=64",
        "--config.model.num_heads=2", "--config.model.num_kv_heads=2", "--config.num_steps=20",
        "--config.optimizer.warmup_steps=2", "--config.optimizer.ema=0.9", "--config.checkpoint.every=10",
        "--config.evaluation.every=20", "--config.evaluation.batches=0",
    ]  # fmt: skip
    rootstock("pretrain", f"--workdir={run}", *config)
    found = json.loads(rootstock("evaluate", "--run", run, "--text", text, "--json").stdout)
    assert open_run(run).checkpoint_item == "average"
    for command in (("ls", run), ("verify", run), ("diff", run, run)):
        assert rootstock("checkpoint", *command).returncode == 0
    record = json.loads((run / "run.json").read_text())
    record["config"]["optimizer"]["ema"] = 0.0
    (run / "run.json").write_text(json.dumps(record))
    other = json.loads(rootstock("evaluate", "--run", run, "--text", text, "--json").stdout)
    assert abs(other["nats_per_token"] - found["nats_per_token"]) > 1e-4
