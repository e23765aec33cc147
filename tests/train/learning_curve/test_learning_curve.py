"""`rootstock learning-curve`: nested subsets that leave test rows alone, a table, a page, early stops, resuming."""

import json
import random
import shutil
from unittest import mock

import pytest

from data.labeled import Example, Splits, fewer_labels
from tests.runs import ROOT, error_lines, rootstock
from tests.train.finetuning.test_confidence import labeled, write
from train.learning_curve import sweep

FOUNDATION = ROOT / "tests" / "golden" / "runs" / "foundation"
pytestmark = pytest.mark.usefixtures("one_device")


def splits(classes, train=200, validation=40, test=30):
    rng = random.Random(0)

    def part(name, count):
        drawn = [rng.choice(classes) for _ in range(count)]
        return [Example(f"{name} {i}", f"{name} {i}", {}, tuple(c.split())) for i, c in enumerate(drawn)]

    return Splits(part("train", train), part("validation", validation), part("test", test))


def counted(examples):
    return {name: sum(e.classes == name for e in examples) for name in {e.classes for e in examples}}


@pytest.mark.parametrize("classes", [["a", "b"], ["a", "b", "b", "b"], [str(i) for i in range(10)]])
def test_subsets_are_nested_and_leave_test_rows_alone(classes):
    whole = splits(classes)
    small, large = (fewer_labels(whole, count, seed=3) for count in (2, 8))
    for part in ("train", "validation"):
        chosen = [getattr(s, part) for s in (small, large, whole)]
        assert all(e in chosen[1] for e in chosen[0]) and all(e in chosen[2] for e in chosen[1])
        assert chosen[0] == sorted(chosen[0], key=chosen[2].index)
    assert set(counted(small.train).values()) == {2} and set(counted(small.validation).values()) == {1}
    assert max(counted(large.train).values()) == 8 and max(counted(large.validation).values()) == 2
    assert small.test == large.test == whole.test


def test_another_seed_draws_other_rows_and_zero_means_all():
    whole = splits(["a", "b"])
    assert fewer_labels(whole, 4, 0).train != fewer_labels(whole, 4, 1).train
    assert fewer_labels(whole, 0, 0) is whole and fewer_labels(whole, 10_000, 0) == whole


@pytest.mark.parametrize("classes", [[""], ["a b", "a", "b"]])
def test_rows_without_one_class_each_count_together(classes):
    assert len(fewer_labels(splits(classes), 8, 0).train) == 8


def arguments(folder, *more, rows=None):
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "train.jsonl").exists():
        write(folder / "train.jsonl", rows or labeled(120, 1))
        write(folder / "test.jsonl", labeled(30, 2))
    return (
        *("learning-curve", "--config=configs/finetune/email_spam.py", f"--init_from={FOUNDATION}"),
        *(f"--workdir={folder / 'curve'}", f"--config.data.path={folder / 'train.jsonl'}"),
        *(f"--config.task.test_path={folder / 'test.jsonl'}", "--config.num_steps=3", "--config.batch_size=4"),
        *("--config.optimizer.warmup_steps=1", "--config.sequence_length=48", "--config.task.zero_shot_rows=5"),
        *("--config.task.validation_fraction=0.2", *more),
    )


@pytest.fixture(scope="module")
def curve(tmp_path_factory, one_device):
    """(directory, JSON) of a curve of three points with two seeds."""
    folder = tmp_path_factory.mktemp("curve")
    with mock.patch.object(sweep, "is_flat", lambda _: False), mock.patch.object(sweep, "helped", lambda *_: False):
        done = rootstock(*arguments(folder, "--labels=4,12", "--seeds=2", "--json"))
    return folder, json.loads(done.stdout)


@pytest.mark.integration
def test_each_point_is_a_run_with_so_many_labels(curve):
    folder, found = curve
    assert [p["labels_per_class"] for p in found["points"]] == [4, 12, None]
    rows = [p["train_rows"] for p in found["points"]]
    assert rows[:2] == [12, 36] and 80 < rows[2] < 120 and found["test_rows"] == 30
    assert all(len(m["seeds"]) == 2 for p in found["points"] for m in p["models"].values())
    models = ["majority-class baseline", "TF-IDF + linear SVM", "foundation, zero-shot", "fine-tuned"]
    assert all([*p["models"]] == models for p in found["points"])
    untrained = [p["models"]["foundation, zero-shot"] for p in found["points"]]
    assert untrained == untrained[:1] * 3 and not found["stopped_early"]
    config = json.loads((folder / "curve" / "labels-12-seed-1" / "run.json").read_text())["config"]
    assert (config["task"]["labels_per_class"], config["seed"], config["task"]["baseline"]) == (12, 1, False)


@pytest.mark.integration
def test_the_page_has_the_picture_the_table_and_the_sentences(curve):
    folder, found = curve
    page = (folder / "curve" / "learning_curve.html").read_text()
    assert page.count("<polyline") == 3 * (3 + 1) and "TF-IDF + linear SVM" in page
    assert len(found["sentences"]) == 4 and all(s[1:] in page for s in found["sentences"])
    assert json.loads((folder / "curve" / "learning_curve.json").read_text()) == found


@pytest.mark.integration
def test_finished_points_are_kept_and_others_trained(curve):
    folder, found = curve
    shutil.rmtree(folder / "curve" / "labels-12-seed-0")
    (folder / "curve" / "labels-4-seed-1" / "results.json").unlink()
    trained = []

    def recorded(config, foundation, directory, **given):
        trained.append(directory.name)
        return finetune(config, foundation, directory, **given)

    finetune = sweep.finetune
    with (
        mock.patch.object(sweep, "finetune", recorded),
        mock.patch.object(sweep, "is_flat", lambda _: False),
        mock.patch.object(sweep, "helped", lambda *_: False),
    ):
        again = rootstock(*arguments(folder, "--labels=4,12", "--seeds=2", "--json"))
    assert trained == ["labels-4-seed-1", "labels-12-seed-0"]
    assert json.loads(again.stdout)["points"] == found["points"]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("nothing", []),
        ("test rows", ["labels-4-seed-0"]),
        ("no results of this length", ["labels-4-seed-0"]),
    ],
)
def test_a_point_of_other_rows_or_another_length_is_not_kept(curve, tmp_path, changed, expected):
    folder, _ = curve
    shutil.copytree(folder / "curve" / "labels-4-seed-0", tmp_path / "curve" / "labels-4-seed-0")
    given = arguments(folder, f"--workdir={tmp_path / 'curve'}", "--labels=4", "--seeds=2")
    if changed == "test rows":
        write(tmp_path / "test.jsonl", labeled(29, 2))
        given += (f"--config.task.test_path={tmp_path / 'test.jsonl'}",)
    path = tmp_path / "curve" / "labels-4-seed-0" / "results.json"
    if changed == "no results of this length":
        stored = json.loads(path.read_text())
        stored["training"]["held_out"]["step"] = 2
        path.write_text(json.dumps(stored))
    trained = []

    def made(config, _, directory, quiet):
        trained.append(directory.name)
        directory.mkdir(parents=True, exist_ok=True)
        return results(0.5)

    # The results made here have no baselines to publish.
    publish = mock.patch("train.learning_curve.report.publish", lambda *_: None)
    with mock.patch.object(sweep, "finetune", made), publish:
        rootstock(*given)
    others = ["labels-4-seed-1", "labels-all-seed-0", "labels-all-seed-1"]
    assert trained == [*expected, *others]


def test_one_seed_is_refused(tmp_path):
    done = rootstock(*arguments(tmp_path, "--labels=4", "--seeds=1"), check=False)
    assert done.returncode == 2 and "--seeds=1" in done.stderr


def results(value):
    figures = {"rows": 30, "accuracy": {"value": value, "low": value - 0.01, "high": value + 0.01}}
    first = {"name": "accuracy", "better": "higher"}
    return {"first_metric": first, "models": {"fine-tuned": figures}, "train_rows": 9, "held_out_rows": 30}


def test_it_stops_where_a_point_is_clear(tmp_path):
    values = {8: 0.5, 32: 0.7, 128: 0.7, 512: 0.7}
    trained = []

    def made(config, _, directory, quiet):
        trained.append(directory.name)
        directory.mkdir(parents=True, exist_ok=True)
        return results(values[config["task"]["labels_per_class"]])

    rows = [{"text": f"{i} {name}", "label": name} for i in range(1000) for name in ("a", "b")]
    with mock.patch.object(sweep, "finetune", made):
        done = rootstock(*arguments(tmp_path, rows=rows))
    # Of the clear point two seeds, of the others three; after two steps without a gain none.
    counts = {n: sum(name.startswith(f"labels-{n}-") for name in trained) for n in ("8", "32", "128", "512", "all")}
    assert counts == {"8": 3, "32": 2, "128": 3, "512": 3, "all": 0}
    assert "more labels do not help from 32 labels per class on" in done.stdout
    assert "the remaining points are skipped" in done.stdout


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--labels=8,x"], "--labels contains 'x'"),
        (["--labels=0"], "--labels contains '0'"),
        (["--labels=1000"], "training rows are too few for two points"),
        (["--config.task.labels_per_class=4"], "config.task.labels_per_class=4 has no effect on a learning curve"),
    ],
)
def test_an_invalid_curve_is_one_line(tmp_path, flags, expected):
    done = rootstock(*arguments(tmp_path, *flags), check=False)
    assert done.returncode == 1 and len(error_lines(done)) == 1 and expected in done.stderr


@pytest.mark.integration
def test_the_test_rows_choose_nothing(tmp_path, curve):
    """With wrong labels of the test rows every point is trained on the same rows, to the same parameters."""
    folder, _ = curve
    arguments(tmp_path)
    wrong = [row | {"label": {"a": "b", "b": "oos", "oos": "a"}[row["label"]]} for row in labeled(30, 2)]
    write(tmp_path / "test.jsonl", wrong)
    with mock.patch.object(sweep, "is_flat", lambda _: False), mock.patch.object(sweep, "helped", lambda *_: False):
        rootstock(*arguments(tmp_path, "--labels=4", "--seeds=2"))
    runs = [base / "curve" / "labels-4-seed-0" for base in (folder, tmp_path)]
    records = [json.loads((run / "run.json").read_text()) for run in runs]
    assert records[0]["data_fingerprint"] == records[1]["data_fingerprint"]
    losses = [[json.loads(line)["loss"] for line in (r / "metrics.jsonl").open() if '"train"' in line] for r in runs]
    assert losses[0] == losses[1] != []
