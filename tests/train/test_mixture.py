"""A run on several sources: prepared from text or from stores, evaluated, resumed, replayed and refused per source."""

import json
import shutil

import numpy as np
import pytest

from configs.errors import UserError
from configs.finetune import intent
from configs.pretrain import tiny
from data.prepare import StoreOptions, prepare
from tests.runs import WORDS, error_lines, records, rootstock, write_text
from train.evaluation.scoring import mixed_metrics
from train.finetuning.run import finetune
from train.planner.certificate import packed_batches, shrink
from train.pretraining import pretrain
from train.replay import replay
from train.run.mixture_change import mixture_errors_on_resume
from train.run.record import open_run
from train.run.rollback import roll_back
from train.run.training_stores import training_stores
from train.scaling.sizes import scaled
from train.settings import from_config, planned_model

pytestmark = pytest.mark.usefixtures("one_device")
CHANGE = (5, {"cats": 1.0, "dogs": 1.0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A store "cats" and a text "dogs.txt", of different words."""
    folder = tmp_path_factory.mktemp("sources")
    write_text(folder / "cats.txt", 300, WORDS[:7])
    write_text(folder / "dogs.txt", 100, WORDS[7:])
    options = StoreOptions("bytes", validation_fraction=0.1, validation_split="tail")
    prepare(str(folder / "cats.txt"), folder / "cats", options)
    return folder


def config_of(folder, weights=(3.0, 1.0), schedule=(CHANGE,), **changes):
    config = tiny.get_config()
    config.data.mixture = (("dogs", str(folder / "dogs.txt"), weights[1]), ("cats", str(folder / "cats"), weights[0]))
    config.data.mixture_schedule = schedule
    config.tokenizer, config.data.validation_split = "bytes", "tail"
    config.batch_size, config.sequence_length, config.num_steps = 8, 16, 8
    config.model.update({"embed_dim": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 16})
    config.optimizer.warmup_steps, config.logging.every, config.checkpoint.every = 2, 1, 4
    config.optimizer.schedule = "constant"
    config.evaluation.every, config.evaluation.batches, config.checkpoint.keep = 4, 2, 9
    config.update_from_flattened_dict(changes)
    return config.to_dict()


@pytest.fixture(scope="module")
def trained(folder, one_device):
    pretrain(config_of(folder), folder / "run")
    return folder / "run"


@pytest.fixture
def started(trained, tmp_path):
    """A copy of the run that was interrupted after step 4."""
    shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "8")
    return tmp_path / "run"


def losses(workdir):
    return {r["step"]: r["loss"] for r in records(workdir) if r["phase"] == "train"}


def test_each_source_is_evaluated_and_named(trained, folder):
    evaluated = [r for r in records(trained) if r["phase"] == "eval"]
    assert [r["step"] for r in evaluated] == [4, 8]
    for figures in evaluated:
        for name in ("loss", "bits_per_byte"):
            each = [figures[f"{name}/{source}"] for source in ("cats", "dogs")]
            assert min(each) < figures[name] < max(each)
    shares = {"cats": (5 * 8 * 0.75 + 3 * 8 * 0.5) / 64, "dogs": (5 * 8 * 0.25 + 3 * 8 * 0.5) / 64}
    last = evaluated[-1]
    assert last["loss"] == pytest.approx(sum(share * last[f"loss/{name}"] for name, share in shares.items()))
    record = open_run(trained).record
    assert set(record.data_sources) == {"cats", "dogs"} and record.data_fingerprint not in record.data_sources.values()
    assert [file[0] for file in record.data_files] == ["cats: cats.txt", "dogs: dogs.txt"]
    assert (trained / "stores" / "dogs" / "manifest.json").exists() and not (trained / "stores" / "cats").exists()
    held_out = json.loads((trained / "results.json").read_text())["training"]["held_out"]
    assert held_out["loss/dogs"] == last["loss/dogs"]


def test_metrics_of_one_source_are_its_own_and_of_several_by_share():
    alone = mixed_metrics({"": (np.array([6.0, 3.0, 4.0]), 1.0)})
    assert alone == {"loss": 2.0, "bits_per_byte": pytest.approx(1.5 / 0.6931471805599453), "targets": 3}
    sums = {"a": (np.array([6.0, 3.0, 4.0]), 0.25), "b": (np.array([400.0, 100.0, 200.0]), 0.75)}
    both = mixed_metrics(sums)
    assert (both["loss"], both["loss/a"], both["loss/b"], both["targets"]) == (3.5, 2.0, 4.0, 103)


@pytest.mark.parametrize("step", [3, 7])
def test_replay_names_the_source_of_each_row(trained, step):
    found = replay(trained, step)
    assert found["equal"] and len(found["rows"]) == len(found["sources"]) == 8
    assert found["sources"].count("dogs") == (2 if step == 3 else 4)
    for document in found["documents"]:
        name = "dogs" if any(len(word) > 2 and word in document.text for word in WORDS[7:]) else "cats"
        assert f" of {name} (" in document.source and document.source.endswith("/train)")


def test_replay_reads_stores_that_moved(trained, folder, tmp_path):
    shutil.copytree(folder / "cats", tmp_path / "moved")
    assert replay(trained, 3, f"cats={tmp_path / 'moved'}")["equal"]
    with pytest.raises(UserError, match=r"--data=/x; expected NAME=STORE,... with names of: dogs, cats"):
        replay(trained, 3, "/x")


def test_a_resumed_run_is_the_uninterrupted_one(trained, started, folder):
    """Also with the sources in another order, and with the same weights written otherwise."""
    config = config_of(folder, weights=(0.75, 0.25))
    config["data"]["mixture"] = config["data"]["mixture"][::-1]
    pretrain(config, started)
    assert losses(started) == losses(trained)
    assert open_run(started).record.mixture_changes == []


def test_weights_of_later_steps_may_change(trained, started, folder):
    later = (6, {"cats": 0.0, "dogs": 1.0})
    pretrain(config_of(folder, schedule=(later,)), started)
    assert replay(started, 8)["sources"] == ["dogs"] * 8 and replay(started, 6)["sources"].count("dogs") == 2
    assert {step: losses(started)[step] for step in range(1, 6)} == {
        step: losses(trained)[step] for step in range(1, 6)
    }
    record = open_run(started).record
    assert [change["step"] for change in record.mixture_changes] == [4]
    # What run.json says now is what the next start compares with.
    with pytest.raises(UserError, match="but 8 batches are done"):
        pretrain(config_of(folder), started)


@pytest.mark.parametrize(
    ("weights", "schedule", "error"),
    [
        ((2.0, 1.0), (CHANGE,), "weights at batch 0: {'cats': 3.0, 'dogs': 1.0} -> {'cats': 2.0, 'dogs': 1.0}"),
        (
            (3.0, 1.0),
            ((3, {"cats": 1.0, "dogs": 1.0}),),
            "weights at batch 3: {'cats': 3.0, 'dogs': 1.0} -> {'cats': 1.0",
        ),
        ((1.0, 1.0), ((1, {"cats": 3.0, "dogs": 1.0}),), "but 4 batches are done; change those of later ones with"),
    ],
)
def test_weights_of_the_past_do_not_change(weights, schedule, error, started, folder):
    with pytest.raises(UserError, match="run with a different config") as raised:
        pretrain(config_of(folder, weights, schedule), started)
    assert error in str(raised.value)


def test_weights_of_batches_before_which_a_roll_back_passed_do_not_change(started, folder):
    """After batches 2 and 3 were passed over, step 4 had batch 5."""
    roll_back(started, 2, 4)
    with pytest.raises(UserError, match=r"weights at batch 5: .* but 6 batches are done"):
        pretrain(config_of(folder, schedule=((5, {"cats": 0.0, "dogs": 1.0}),)), started)


def test_the_stores_of_a_mixture_are_searched_for_questions(trained, folder):
    assert training_stores(open_run(trained), "auto") == [folder / "cats", trained / "stores" / "dogs"]


def test_sources_do_not_change_on_resume(folder):
    before, now = config_of(folder), config_of(folder)
    now["data"]["mixture"] = (*now["data"]["mixture"], ("birds", "x", 0.0))
    now["data"]["mixture_schedule"] = ()
    expected = ["config.data.mixture: sources cats, dogs -> birds, cats, dogs"]
    assert mixture_errors_on_resume(before, now, 4) == expected
    now["data"].update(mixture=(), path=str(folder / "cats"))
    assert mixture_errors_on_resume(before, now, 4) == ["config.data.mixture: sources cats, dogs -> none"]
    assert mixture_errors_on_resume(now, now, 4) == []


def refused(folder, tmp_path, **changes):
    with pytest.raises(UserError) as raised:
        pretrain(config_of(folder, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists() and "\n" not in str(raised.value)
    return str(raised.value)


def test_a_source_that_starves_is_refused(folder, tmp_path):
    found = refused(folder, tmp_path, weights=(1.0, 1e-3), schedule=())
    assert "source 'dogs' gives none of the 64 rows of config.num_steps=8" in found
    assert "raise it to at least 0.016 of the sum of weights, or remove the source" in found
    found = refused(folder, tmp_path, weights=(1.0, 0.0), schedule=())
    assert "source 'dogs' gives none" in found


def test_a_source_that_repeats_too_often_is_refused(folder, tmp_path):
    found = refused(folder, tmp_path, weights=(1.0, 9.0), num_steps=300, schedule=(), **{"data.max_epochs": 4.0})
    assert (
        "config.data.mixture: source 'dogs' would be read" in found
        and "config.data.max_epochs=4; lower its weight" in found
    )
    assert "'cats'" not in found
    config = config_of(folder, num_steps=300, schedule=(), **{"data.max_epochs": 2.0})
    config["data"] |= {"mixture": (), "path": str(folder / "cats")}
    with pytest.raises(UserError, match=r"config\.data\.path='.*' would be read .* lower config\.num_steps"):
        pretrain(config, tmp_path / "run")


def test_a_source_that_cannot_be_read_is_named(folder, tmp_path):
    def with_dogs(path):
        config = config_of(folder, schedule=())
        config["data"]["mixture"] = (("cats", str(folder / "cats"), 1.0), ("dogs", str(path), 1.0))
        with pytest.raises(UserError) as raised:
            pretrain(config, tmp_path / "run")
        return str(raised.value)

    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text": 1\n')
    (tmp_path / "other.jsonl").write_text('{"name": "a"}\n')
    for path, cause in (
        (tmp_path / "missing.txt", "matches no readable file"),
        (tmp_path / "broken.jsonl", "broken JSON"),
        (tmp_path / "other.jsonl", "field 'text' is missing"),
    ):
        found = with_dogs(path)
        assert found.startswith("config.data.mixture: source 'dogs': ") and cause in found, found
    damaged = tmp_path / "damaged"
    shutil.copytree(folder / "cats", damaged)
    (tokens,) = (damaged / "train").glob("tokens*.bin")
    tokens.write_bytes(b"")
    assert "source 'dogs': " in with_dogs(damaged) and "prepare the store again" in with_dogs(damaged)
    prepare(str(folder / "dogs.txt"), tmp_path / "whole", StoreOptions("bytes"))
    assert "source 'dogs': " in with_dogs(tmp_path / "whole") and "no 'validation' split" in with_dogs(
        tmp_path / "whole"
    )
    options = StoreOptions("chars", validation_fraction=0.1, validation_split="tail")
    prepare(str(folder / "dogs.txt"), tmp_path / "chars", options)
    found = with_dogs(tmp_path / "chars")
    assert "source 'dogs'" in found and "another tokenizer than source 'cats'; prepare its text again" in found
    assert f"rootstock prepare --tokenizer={folder / 'cats'}" in found


def test_texts_share_one_tokenizer_trained_on_all_of_them(folder, tmp_path):
    config = config_of(folder, schedule=(), num_steps=1, tokenizer="chars", **{"optimizer.warmup_steps": 0})
    config["data"]["mixture"] = (("a", str(folder / "cats.txt"), 1.0), ("b", str(folder / "dogs.txt"), 1.0))
    pretrain(config, tmp_path / "run")
    tokenizer = open_run(tmp_path / "run").tokenizer()
    assert tokenizer.decode(tokenizer.encode("the cat far away")) == "the cat far away"


@pytest.mark.parametrize("field", ["data.mixture", "data.mixture_schedule", "data.max_epochs"])
def test_fine_tuning_refuses_a_mixture(field, foundation, tmp_path):
    config = intent.get_config()
    values = {"data.mixture": (("a", "x", 1.0),), "data.mixture_schedule": ((5, {"a": 1.0}),), "data.max_epochs": 2.0}
    config.update_from_flattened_dict({"data.path": "rows.jsonl", field: values[field]})
    if field == "data.mixture_schedule":
        config.data.mixture = values["data.mixture"]
    with pytest.raises(UserError, match=rf"config\.{field}=.* has no effect in fine-tuning"):
        finetune(config.to_dict(), foundation, tmp_path / "run")


def test_a_new_run_refuses_what_would_do_nothing(folder, tmp_path):
    found = refused(folder, tmp_path, schedule=((8, CHANGE[1]),))
    assert "config.data.mixture_schedule: step 8 is not reached by config.num_steps=8" in found
    config = config_of(folder)
    with pytest.raises(UserError, match=r"config\.data\.path='x' has no effect with config\.data\.mixture"):
        pretrain(config | {"data": config["data"] | {"path": "x"}}, tmp_path / "both")


def test_commands_without_data_take_a_mixture(folder):
    config = config_of(folder, tokenizer="chars")
    settings = from_config(config)
    # The size of the vocabulary is that of the store among the sources.
    assert planned_model(settings).vocab_size == 320
    assert len(packed_batches(shrink(settings))) > 0
    half = scaled(config, 1, 0.5)
    assert half["data"]["mixture_schedule"] == ((2, CHANGE[1]),) and half["num_steps"] == 4


def test_the_command_line_names_the_source(folder, tmp_path):
    flags = [f"--config.data.mixture=(('cats','{folder / 'cats'}',1.0),('dogs','{folder / 'dogs.txt'}',1))"]
    flags += ["--config.data.validation_split=tail", "--config.sequence_length=16"]
    done = rootstock("show-batch", "--config=configs/pretrain/tiny.py", *flags, "--rows=3")
    assert [line.split(":")[0] for line in done.stdout.splitlines() if line.startswith("batch")] == [
        f"batch 0, row {row} of {name}" for row, name in enumerate(["cats", "dogs", "cats"])
    ]
    wrong = flags[0].replace(str(folder / "cats"), "ftp://x/y")
    done = rootstock("show-batch", "--config=configs/pretrain/tiny.py", wrong, check=False)
    assert "source 'cats'" in error_lines(done)[0] and "ftp" in error_lines(done)[0]
