"""`rootstock scaling`: a small sweep that is interrupted and resumed, external points, the plot, invalid input."""

import json
import sys

import pytest

from configs.errors import UserError
from train import cli
from train.commands import scaling
from train.scaling import law as laws
from train.scaling import sweep
from train.scaling.law import Law
from train.scaling.report import human

# 1, 2 and 3 heads of 8; 6, 12 and 24 steps of 8 x 16 tokens.
SMALL = [
    "--config=configs/pretrain/tiny.py", "--config.tokenizer=chars", "--config.data.validation_split=tail",
    "--config.batch_size=8", "--config.sequence_length=16", "--config.num_steps=24", "--config.evaluation.batches=4",
    "--config.optimizer.warmup_steps=4", "--config.model.embed_dim=24", "--config.model.num_layers=1",
    "--config.model.num_heads=3", "--config.model.num_kv_heads=3", "--config.model.mlp_dim=24", "--sizes=0.34,0.67,1",
]  # fmt: skip
RUNS = [f"width{width}-steps{steps}" for width in (8, 16, 24) for steps in (6, 12, 24)]


def command(*arguments):
    scaling.run(cli.parse("scaling", scaling, list(map(str, arguments))))


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """The intervals are tested in test_law.py; here they only have to be there."""
    monkeypatch.setattr(laws, "RESAMPLES", 20)


@pytest.fixture
def trained(monkeypatch):
    """The names of the runs that are trained; the sweep is interrupted after `trained.limit` of them."""

    class Trained(list):
        limit = 100

    calls, pretrain = Trained(), sweep.pretrain

    def counted(config, workdir):
        if len(calls) >= calls.limit:
            raise KeyboardInterrupt
        calls.append(workdir.name)
        pretrain(config, workdir)

    monkeypatch.setattr(sweep, "pretrain", counted)
    return calls


@pytest.mark.slow
def test_an_interrupted_sweep_resumes_and_fits_the_law(text, trained, tmp_path, capsys):
    arguments = [*SMALL, f"--config.data.path={text}", f"--workdir={tmp_path / 'sweep'}"]
    trained.limit = 4
    with pytest.raises(KeyboardInterrupt):
        command(*arguments)
    assert trained == RUNS[:4] and not (tmp_path / "sweep" / "scaling.json").exists()
    trained.limit = 100
    command(*arguments)
    assert trained == RUNS
    table = capsys.readouterr().out
    assert all(run in table for run in RUNS) and "caution: only 9 runs" in table and "held out" in table

    logs = {run: (tmp_path / "sweep" / run / "metrics.jsonl").read_text() for run in RUNS}
    command(*arguments, "--json", "--flops=3e9")
    assert trained == RUNS
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "sweep" / "scaling.json").read_text())
    for run in found["runs"]:
        *_, last = [line for line in map(json.loads, logs[run["run"]].splitlines()) if line["phase"] == "eval"]
        assert (last["loss"], last["tokens"]) == (run["loss"], run["tokens"])
        assert logs[run["run"]] == (tmp_path / "sweep" / run["run"] / "metrics.jsonl").read_text()
        record = json.loads((tmp_path / "sweep" / run["run"] / "run.json").read_text())
        assert record["stage"] == "pretrain" and f"width{record['model']['embed_dim']}-" in run["run"]
    assert found["held_out"]["loss"] == found["runs"][-1]["loss"]
    (budget,) = found["budgets"]
    assert budget["flops"] == 3e9 and budget["flags"][-1].startswith("--config.num_steps=")
    rate = found["flops_per_parameter_and_token"]
    assert budget["parameters"]["value"] * budget["tokens"]["value"] * rate == pytest.approx(3e9)

    refit = [
        f"--points={tmp_path / 'sweep' / 'points.jsonl'}",
        f"--workdir={tmp_path / 'refit'}",
        "--json",
        "--flops=3e9",
    ]
    command(*refit)
    again = json.loads(capsys.readouterr().out)
    assert again["law"] == found["law"] and again["budgets"][0]["loss"] == budget["loss"]

    with pytest.raises(
        UserError, match=r"width8-steps6 contains a run with a different config \(config.optimizer.beta1"
    ):
        command(*arguments, "--config.optimizer.beta1=0.8")


def test_points_that_a_user_added_stay_in_the_file_of_a_sweep(tmp_path):
    path, point = tmp_path / "[sweep] points.jsonl", laws.Point(10.0, 20.0, 1200.0, 3.0)
    sweep._write_points(path, {"width8-steps6": point})
    with path.open("a") as file:
        file.write('{"run": "elsewhere", "parameters": 5, "tokens": 9, "flops": 270, "loss": 4}\n{"loss": 5}\n')
    sweep._write_points(path, {"width8-steps6": point, "width8-steps12": point})
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row.get("run") for row in rows] == ["width8-steps6", "width8-steps12", "elsewhere", None]
    with path.open("a") as file:
        file.write("{\n")
    with pytest.raises(UserError, match=r"points.jsonl:5: broken JSON"):
        sweep._write_points(path, {"width8-steps6": point})


@pytest.mark.integration
def test_a_diverged_run_is_named_in_the_error(text, tmp_path):
    with pytest.raises(UserError, match="width8-steps6: 3 consecutive steps were skipped"):
        command(*SMALL, f"--config.data.path={text}", f"--workdir={tmp_path}", "--config.optimizer.learning_rate=1e30")


@pytest.fixture
def points(tmp_path):
    law = Law(1.8, 480.0, 0.35, 2100.0, 0.37)
    path = tmp_path / "points.jsonl"
    rows = [
        {"parameters": n, "tokens": d, "loss": law.loss(n, d)} for n in (1e7, 1e8, 1e9, 1e10) for d in (1e9, 1e10, 1e11)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.integration
def test_external_points_need_no_config(points, tmp_path, capsys):
    command(f"--points={points}", f"--workdir={tmp_path / 'fit'}", "--flops=5.76e22,1e23", "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["law"]["alpha"]["value"] == pytest.approx(0.35, rel=1e-3)
    assert found["held_out"]["relative_error"] == pytest.approx(0, abs=1e-4)
    assert found["flops_per_parameter_and_token"] == pytest.approx(6)
    assert [budget["flops"] for budget in found["budgets"]] == [5.76e22, 1e23] and found["cautions"] == []


@pytest.mark.integration
def test_the_plot_is_a_png_for_few_and_many_sizes(points, tmp_path):
    pytest.importorskip("matplotlib")
    rows = [json.loads(line) for line in points.read_text().splitlines()]
    many = tmp_path / "many.jsonl"
    many.write_text(
        "".join(json.dumps(row | {"parameters": row["parameters"] * (1 + i / 50)}) + "\n" for i, row in enumerate(rows))
    )
    for file in (points, many):
        command(f"--points={file}", f"--workdir={tmp_path / file.stem}")
        picture = (tmp_path / file.stem / "scaling.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and 10_000 < len(picture) < 150_000


def test_without_matplotlib_the_results_are_still_printed(points, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    command(f"--points={points}", f"--workdir={tmp_path / 'fit'}", "--json")
    printed = capsys.readouterr()
    assert json.loads(printed.out)["law"]["beta"]["value"] == pytest.approx(0.37, rel=1e-3)
    assert "pip install -e '.[plots]'" in printed.err and not (tmp_path / "fit" / "scaling.png").exists()


@pytest.mark.parametrize(
    "row, message",
    [
        ({"parameters": 1e6, "tokens": 1e7}, "row 13: loss is None"),
        ({"parameters": 1e6, "tokens": 1e7, "loss": float("nan")}, "row 13: loss is nan"),
        ({"parameters": 1e6, "tokens": 1e7, "loss": float("inf")}, "row 13: loss is inf"),
        ({"parameters": "big", "tokens": 1e7, "loss": 3.0}, "row 13: parameters is 'big'"),
        ({"parameters": 1e6, "tokens": -5, "loss": 3.0}, "row 13: tokens is -5; expected a finite number above 0"),
        ({"parameters": 1e6, "tokens": 1e7, "loss": 3.0, "flops": 0}, "row 13: flops is 0"),
        ([1, 2], "13: a JSON list"),
    ],
)
def test_an_invalid_point_is_named_in_the_error(points, tmp_path, row, message):
    with points.open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(UserError) as error:
        command(f"--points={points}", f"--workdir={tmp_path / 'fit'}")
    assert message in str(error.value)


def test_invalid_input_is_a_one_line_error_before_training(text, points, trained, tmp_path):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(points.read_text().splitlines(keepends=True)[:6]))
    sweep = [*SMALL, f"--config.data.path={text}", f"--workdir={tmp_path / 'sweep'}"]
    for arguments, message in (
        ([f"--workdir={tmp_path}"], "expected either --config or --points"),
        ([*sweep, f"--points={points}"], "expected either --config or --points"),
        ([f"--points={few}", f"--workdir={tmp_path}"], "6 runs of 2 model sizes and 3 numbers of tokens"),
        ([f"--points={tmp_path / 'none.jsonl'}", f"--workdir={tmp_path}"], "none.jsonl"),
        ([*sweep, "--sizes=0.5,1"], "--sizes=0.5,1 gives runs of [2, 3] heads"),
        ([*sweep, "--sizes=small,1"], "--sizes contains 'small'; expected comma-separated numbers above 0"),
        ([*sweep, "--lengths=0,1,2"], "--lengths contains '0'"),
        ([*sweep, "--flops=-1e20"], "--flops contains '-1e20'"),
        ([*sweep, "--config.optimizer.beta1=2.0"], "config.optimizer.beta1"),
        ([*SMALL, f"--workdir={tmp_path / 'sweep'}"], "config.data.path is empty"),
    ):
        with pytest.raises(UserError) as error:
            command(*arguments)
        assert message in str(error.value)
    assert trained == []


def test_numbers_have_three_digits_and_a_unit():
    shown = [human(x) for x in (5, 999, 126_192, 999_960, 2_164_800, 73.2e9, 1.31e12)]
    assert shown == ["5", "999", "126k", "1M", "2.16M", "73.2B", "1.31T"]
