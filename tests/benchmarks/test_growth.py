"""The benchmark of growth, at its smallest sizes, so that it cannot rot."""

import json

import pytest

from benchmarks import growth
from tests.often import often

# A process loads the TPU compiler once, for seconds; test_the_planner tests compile for TPUs.
IN_PROCESS = [name for name in growth.GROWTHS if name not in ("collectives", "predict")]


@pytest.mark.integration
@pytest.mark.parametrize("name", often(IN_PROCESS, *(name for name in IN_PROCESS if name != "batch")))
def test_every_cost_is_measured(name, one_device, tmp_path, capsys):
    one = growth.GROWTHS[name]
    found = growth.measure(one, one.tiny, tmp_path)
    assert set(one.expected) <= set(found["costs"]) and set(found["exponents"]) == set(found["costs"])
    assert all(len(values) == 2 and min(values) >= 0 and max(values) > 0 for values in found["costs"].values())
    assert capsys.readouterr().out.count(one.title) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_rows_are_predicted_by_a_classifier_that_the_benchmark_trains(one_device, tmp_path, monkeypatch):
    monkeypatch.setattr(growth.tempfile, "gettempdir", lambda: str(tmp_path))
    (tmp_path / "scratch").mkdir()
    assert growth.predict(20, tmp_path / "scratch")["predict s"] > 0
    assert len((tmp_path / "scratch" / "second.jsonl").read_text().splitlines()) == 20


@pytest.mark.parametrize(
    ("power", "costs"),
    [(0, [3, 3, 3, 3]), (1, [1, 10, 100, 1000]), (2, [1, 100, 10**4, 10**6]), (1, [5, 5, 100, 1000])],
)
def test_the_exponent_is_that_of_the_larger_half(power, costs):
    assert growth.exponent([10, 100, 1000, 10_000], costs) == pytest.approx(power)


def test_a_cost_that_grows_faster_than_it_should_is_marked(capsys, tmp_path):
    one = growth.Growth(
        "things", (), (), lambda size, scratch: {"a s": size**2.0, "b s": float(size)}, {"a s": 1, "b s": 1}
    )
    found = growth.measure(one, (10, 100), tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert found["exponents"] == pytest.approx({"a s": 2.0, "b s": 1.0})
    assert [line.endswith("<- grows faster") for line in lines] == [False, False, True, False]


@pytest.mark.integration
def test_the_command_writes_its_figures(one_device, tmp_path, monkeypatch):
    output = tmp_path / "growth.json"
    arguments = ["--size=tiny", "--only", "metrics", "--largest=50", f"--output={output}", f"--directory={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["growth", *arguments])
    growth.main()
    found = json.loads(output.read_text())
    assert found["metrics"]["sizes"] == [10] and found["metrics"]["exponents"] == {}
