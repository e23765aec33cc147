"""Going on for longer: what a run does when `config.num_steps` changes, which schedules allow it, and its history."""

import json
import shutil
from pathlib import Path

import pytest
from golden import recipes

from configs.errors import UserError
from configs.pretrain import tiny
from tests.often import often
from tests.runs import records
from train.optimizer import make_schedule
from train.pretraining import pretrain
from train.replay import replay
from train.run.length import TASK_TEXT_DIR, earlier_lengths, length_change
from train.run.record import open_run
from train.settings import from_config

PEAK = 1e-2
pytestmark = pytest.mark.usefixtures("one_device")


def config_of(text, num_steps, schedule, **changes):
    config = tiny.get_config()
    config.tokenizer, config.data.path, config.data.validation_split = "bytes", str(text), "tail"
    config.batch_size, config.sequence_length, config.num_steps = 8, 16, num_steps
    config.model.update({"embed_dim": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 16})
    config.optimizer.update({"schedule": schedule, "warmup_steps": 2, "learning_rate": PEAK})
    config.evaluation.every, config.evaluation.batches, config.logging.every = 100, 1, 1
    config.checkpoint.every, config.checkpoint.keep = 4, 9
    if schedule == "wsd":
        config.optimizer.decay_fraction = 0.25
    config.update_from_flattened_dict(changes)
    return config.to_dict()


def rates(workdir):
    return {r["step"]: r["learning_rate"] for r in records(workdir) if r["phase"] == "train"}


def losses(workdir):
    return {r["step"]: r["loss"] for r in records(workdir) if r["phase"] == "train"}


def leaves(workdir, step):
    """Returns the manifest of a checkpoint: shape, dtype and checksum of each parameter and optimizer state."""
    return json.loads((workdir / "checkpoints" / str(step) / "manifest" / "metadata").read_text())["leaves"]


def lengths(workdir):
    return [(r["step"], r["before"], r["after"]) for r in records(workdir) if r["phase"] == "length"]


def schedule_of(config, num_steps, earlier=()):
    return make_schedule(from_config(config).optimizer, PEAK, num_steps, earlier)


@pytest.fixture(scope="module", params=["linear", "wsd"])
def extended(request, one_device, text, tmp_path_factory):
    """(schedule, a finished run of 8 steps that went on to 12, its config)."""
    workdir = tmp_path_factory.mktemp(request.param) / "run"
    pretrain(config_of(text, 8, request.param), workdir)
    config = config_of(text, 12, request.param)
    pretrain(config, workdir)
    return request.param, workdir, config


@pytest.mark.integration
def test_a_finished_run_goes_on_with_the_rates_of_a_longer_run(extended):
    schedule, workdir, config = extended
    short, long = schedule_of(config, 8), schedule_of(config, 12)
    expected = {step: float((short if step <= 8 else long)(step - 1)) for step in range(1, 13)}
    assert rates(workdir) == pytest.approx(expected, rel=1e-6)
    if schedule == "wsd":
        # The decay of 8 steps began after 6, that of 12 begins after 9.
        assert rates(workdir)[8] < PEAK == pytest.approx(rates(workdir)[9]) and rates(workdir)[12] < PEAK


@pytest.mark.integration
def test_the_history_shows_the_join(extended):
    _, workdir, config = extended
    assert lengths(workdir) == [(8, 8, 12)]
    steps = [r["step"] for r in records(workdir) if r["phase"] == "train"]
    assert steps == list(range(1, 13))
    record = open_run(workdir).record
    assert record.config["num_steps"] == 12
    assert record.length_changes == [{"before": 8, "after": 12, "steps": {".": 8}}]
    # The same command again changes nothing.
    pretrain(config, workdir)
    assert lengths(workdir) == [(8, 8, 12)] and open_run(workdir).record == record


@pytest.mark.integration
@pytest.mark.parametrize("step", [8, 9])
def test_steps_on_both_sides_of_the_join_replay_bit_for_bit(extended, step):
    _, workdir, _ = extended
    assert replay(workdir, step)["equal"]


@pytest.mark.integration
@pytest.mark.parametrize("schedule", often(("constant", "wsd"), "wsd"))
def test_a_run_before_its_decay_becomes_the_longer_run_bit_for_bit(schedule, text, tmp_path):
    pretrain(config_of(text, 16, schedule), tmp_path / "whole")
    pretrain(config_of(text, 8, schedule), tmp_path / "parts")
    # As if it had been interrupted after 4 steps: the decay began after 6.
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "8")
    pretrain(config_of(text, 16, schedule), tmp_path / "parts")
    assert lengths(tmp_path / "parts") == [(4, 8, 16)]
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert rates(tmp_path / "parts") == rates(tmp_path / "whole")
    assert leaves(tmp_path / "parts", 16) == leaves(tmp_path / "whole", 16)


@pytest.mark.slow
def test_a_length_changes_twice_and_a_damaged_join_is_done_again(text, tmp_path):
    workdir = tmp_path / "run"
    for num_steps in (4, 8, 12):
        pretrain(config_of(text, num_steps, "linear"), workdir)
    assert lengths(workdir) == [(4, 4, 8), (8, 8, 12)]
    before = losses(workdir)
    for step in (8, 12):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    pretrain(config_of(text, 12, "linear"), workdir)
    assert losses(workdir) == before and sorted(lengths(workdir)) == [(4, 4, 8), (8, 8, 12)]


@pytest.mark.integration
def test_a_run_cut_to_its_newest_checkpoint_is_evaluated_there(text, tmp_path):
    """As if it had been killed after an evaluation that followed its newest checkpoint."""
    workdir = tmp_path / "run"
    pretrain(config_of(text, 8, "constant", **{"checkpoint.every": 3, "evaluation.every": 4}), workdir)
    for step in (6, 8):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    pretrain(config_of(text, 3, "constant", **{"checkpoint.every": 3, "evaluation.every": 4}), workdir)
    found = records(workdir)
    assert [r["step"] for r in found if r["phase"] == "eval"] == [3]
    assert max(r["step"] for r in found) == 3 and lengths(workdir) == [(3, 8, 3)]
    results = json.loads((workdir / "results.json").read_text())
    assert results["training"]["held_out"]["step"] == 3


def test_the_stage_on_task_texts_has_a_length_of_its_own(text, tmp_path):
    (tmp_path / "checkpoints" / "6").mkdir(parents=True)
    (tmp_path / TASK_TEXT_DIR / "checkpoints" / "20").mkdir(parents=True)
    before, now = (config_of(text, steps, "constant") for steps in (6, 9))
    assert length_change(tmp_path, before, now) == {"before": 6, "after": 9, "steps": {".": 6}}


@pytest.mark.integration
def test_what_a_run_cannot_do_is_one_line(extended, text):
    schedule, workdir, _ = extended
    before = (workdir / "run.json").read_text()
    with pytest.raises(UserError, match=r"config\.num_steps=11 must be at least 12, the number of steps that .* done"):
        pretrain(config_of(text, 11, schedule), workdir)
    with pytest.raises(UserError, match=r"contains a run with a different config \(config\.optimizer\.learning_rate"):
        pretrain(config_of(text, 16, schedule, **{"optimizer.learning_rate": 0.1}), workdir)
    assert (workdir / "run.json").read_text() == before


def test_a_cosine_keeps_its_length(text, tmp_path):
    config = config_of(text, 4, "cosine")
    for num_steps in (3, 8):
        with pytest.raises(UserError, match=rf"config.num_steps={num_steps}: .*='cosine', whose every step depends on"):
            length_change(tmp_path / "run", config, config | {"num_steps": num_steps})


def test_a_run_may_become_shorter_but_not_than_its_schedule(text, tmp_path):
    config = config_of(text, 20, "wsd")
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    assert length_change(tmp_path, config, config) is None
    shorter = length_change(tmp_path, config, config | {"num_steps": 12})
    assert shorter == {"before": 20, "after": 12, "steps": {".": 2}}
    assert earlier_lengths([shorter]) == ((2, 20),) and earlier_lengths([shorter], "from_random") == ((0, 20),)
    with pytest.raises(UserError, match=r"config\.optimizer\.warmup_steps=2 must be less than config\.num_steps=2"):
        length_change(tmp_path, config, config | {"num_steps": 2})


@pytest.mark.slow
def test_fine_tuning_goes_on_for_both_of_its_models(tmp_path):
    recipes.write_data(tmp_path)
    shutil.copytree(Path(__file__).parents[2] / "golden" / "runs" / "foundation", tmp_path / "base")
    changes = {
        "optimizer.schedule": "linear",
        "optimizer.warmup_steps": 1,
        "task.baseline": True,
        "checkpoint.every": 2,
        **dict.fromkeys(("mesh.data", "mesh.fsdp", "mesh.tensor"), 1),
    }
    for num_steps in (2, 4):
        recipes.finetune_lora(tmp_path, tmp_path / "base", tmp_path / "run", **changes, num_steps=num_steps)
    for directory in (tmp_path / "run", tmp_path / "run" / "from_random"):
        assert lengths(directory) == [(2, 2, 4)]
        assert list(losses(directory)) == [1, 2, 3, 4]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["training"]["held_out"]["step"] == 4
