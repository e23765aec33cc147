"""`finetune --seeds`: mean and range over seeds, of which none is chosen by the held-out rows."""

import json
import statistics

import jax
import numpy as np
import pytest

from tests.runs import error_lines, rootstock, write_rows
from train.distributed.mesh import single_device_mesh
from train.finetuning.seeds import summarized
from train.run.record import open_run

pytestmark = pytest.mark.usefixtures("one_device")


def metrics_of(**values):
    return {"models": {"fine-tuned": {"rows": 5} | {name: {"value": value} for name, value in values.items()}}}


@pytest.mark.parametrize(("values", "mean"), [([0.5, 0.9, 0.7], 0.7), ([1.0, 1.0], 1.0), ([-2.0, 0.0, 1.0, 3.0], 0.5)])
def test_a_metric_has_the_mean_and_the_range_of_its_values(values, mean):
    found = summarized([metrics_of(accuracy=value, loss=-value) for value in values])
    range_of = {"lowest": min(values), "highest": max(values), "values": values}
    assert found["accuracy"] == {"mean": pytest.approx(mean), **range_of}
    assert found["loss"]["lowest"] == -max(values) and set(found) == {"accuracy", "loss"}


@pytest.mark.parametrize("second", [{}, {"win": float("nan")}])
def test_a_metric_that_is_not_known_for_every_seed_is_left_out(second):
    found = summarized([metrics_of(loss=1.0, win=0.9), metrics_of(loss=2.0, **second)])
    assert set(found) == {"loss"} and found["loss"]["values"] == [1.0, 2.0]


def weights_of(directory):
    run, mesh = open_run(directory), single_device_mesh()
    with jax.set_mesh(mesh):
        return jax.device_get(run.load_merged(mesh, ("backbone", "head")))


@pytest.mark.integration
def test_the_run_is_that_of_the_first_seed_whatever_the_test_rows_say(foundation, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", 120)
    for name, label in (("odd", "odd"), ("even", "even")):
        test = [{"text": f"home again {i}", "label": label} for i in range(6)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
        done = rootstock(
            "finetune", "--config=configs/finetune/intent.py", f"--init_from={foundation}",
            f"--workdir={tmp_path / f'run-{name}'}", f"--config.data.path={rows}", "--seeds=2",
            f"--config.task.test_path={tmp_path / f'{name}.jsonl'}", "--config.seed=3", "--config.batch_size=8",
            "--config.sequence_length=32", "--config.num_steps=4", "--config.optimizer.warmup_steps=1",
            "--config.task.zero_shot_rows=0", "--config.task.baseline=False", "--config.evaluation.every=4",
        )  # fmt: skip
        found = json.loads((tmp_path / f"run-{name}" / "results.json").read_text())
        accuracy = found["seeds"]["metrics"]["accuracy"]
        assert found["seeds"]["seeds"] == [3, 4] and accuracy["mean"] == statistics.fmean(accuracy["values"])
        assert accuracy["values"][0] == found["models"]["fine-tuned"]["accuracy"]["value"]
        assert "seeds 3 to 4: mean [lowest, highest]" in done.stdout
        assert open_run(tmp_path / f"run-{name}" / "seeds" / "4").record.config["seed"] == 4
    jax.tree.map(np.testing.assert_array_equal, *(weights_of(tmp_path / f"run-{name}") for name in ("odd", "even")))


@pytest.mark.parametrize("seeds", ["0", "-1", "two"])
def test_an_invalid_number_of_seeds_is_a_one_line_error(seeds, tmp_path):
    done = rootstock(
        "finetune", "--config=configs/finetune/intent.py", f"--init_from={tmp_path}", f"--workdir={tmp_path / 'run'}",
        f"--seeds={seeds}", check=False,
    )  # fmt: skip
    assert len(error_lines(done)) == 1 and "seeds" in error_lines(done)[0]


@pytest.mark.integration
def test_later_seeds_train_without_the_linear_model_also_where_it_may_not_join(foundation, tmp_path):
    rows = write_rows(tmp_path / "rows.jsonl", 60)
    arguments = (
        "finetune", "--config=configs/finetune/intent.py", f"--init_from={foundation}", f"--workdir={tmp_path / 'run'}",
        f"--config.data.path={rows}", "--config.batch_size=8", "--config.sequence_length=32", "--config.num_steps=2",
        "--config.optimizer.warmup_steps=1", "--config.task.zero_shot_rows=0", "--config.task.baseline=False",
        "--config.task.ensemble=False", "--config.evaluation.every=2",
    )  # fmt: skip
    rootstock(*arguments, "--seeds=2")
    results = tmp_path / "run" / "results.json"
    assert json.loads(results.read_text())["seeds"]["seeds"] == [0, 1]
    rootstock(*arguments)
    assert "seeds" not in json.loads(results.read_text())
