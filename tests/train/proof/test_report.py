"""The table and the report: nothing cut on a narrow terminal, everything from data escaped, nothing from a network."""

import itertools
import json
import re

import numpy as np
import pytest

from train.metrics import results_console
from train.proof.html import write
from train.proof.interval import Interval
from train.proof.svg import line_chart, ticks
from train.proof.table import comparison

ROWS = [
    ("foundation, zero-shot", 500, {"accuracy": Interval(0.1, 0.05, 0.15), "loss": Interval(4.0, 3.9, 4.1, "lower")}),
    ("fine-tuned", 3079, {"accuracy": Interval(0.9, 0.85, 0.95), "loss": Interval(3.0, 2.9, 3.1, "lower")}),
]


@pytest.mark.parametrize("columns", [40, 200])
def test_the_table_shows_every_figure_at_any_width(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    results_console().print(comparison("intent", [("no model", 10, {}), *ROWS]))
    shown = re.sub(r"[^\w.\[\],-]", "", capsys.readouterr().out)
    for text in ("0.900[0.850,0.950]", "3.000[2.900,3.100]", "3,079", "foundation,zero-shot", "lowerisbetter"):
        assert text in shown, shown


def report(tmp_path, **changes):
    lines = [{"step": s, "phase": p, "loss": 5 / s} for s in (1, 2, 4) for p in ("train", "eval")]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = {
        "title": "a run",
        "about": {"task": "classification"},
        "rows": ROWS,
        "curves": {"fine-tuned": tmp_path / "metrics.jsonl", "gone": tmp_path / "none.jsonl"},
        "confusion": (["a", "b"], np.array([[3, 1], [0, 2]])),
        "samples": [("in", "a", "b", "a")],
    } | changes
    write(tmp_path / "report.html", **arguments)
    return (tmp_path / "report.html").read_text()


def test_the_report_has_its_parts_and_needs_no_network(tmp_path):
    text = report(tmp_path)
    for part in ("a run", "0.9 [0.85, 0.95]", "gain +800% *", "gain +25% *", "<svg", "Confusions", ">3<", "Samples"):
        assert part in text, part
    assert not re.search(r"https?:|src=|<script|<link|url\(|@import", text)
    assert text.count("<circle") == 3


def test_what_comes_from_data_is_escaped(tmp_path):
    evil = "<script>alert(1)</script>"
    text = report(
        tmp_path,
        title=evil,
        about={evil: evil},
        confusion=([evil, "b"], np.eye(2, dtype=int)),
        samples=[(evil,) * 4],
        rows=[(evil, 1, ROWS[0][2]), ROWS[1]],
        curves={evil: tmp_path / "metrics.jsonl"},
    )
    assert "<script" not in text and text.count("&lt;script&gt;") >= 9


def test_many_classes_show_those_that_are_confused(tmp_path):
    counts = np.eye(50, dtype=int) * 9
    counts[40, 41] = 5
    text = report(tmp_path, confusion=([f"class {i}" for i in range(50)], counts))
    assert "The 20 classes that are most confused" in text and "class 40" in text and "class 49" not in text


def test_a_report_without_confusions_or_curves(tmp_path):
    text = report(tmp_path, confusion=None, curves={}, samples=[])
    assert "Confusions" not in text and "<svg" not in text


def test_ticks_are_round_and_hold_the_range():
    for low, high in ((0.0, 1.0), (3.21, 9.87), (0.0013, 0.0042), (5.0, 5.0), (0.0, 450.0)):
        found = ticks(low, high)
        assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8
        assert len({round(b - a, 9) for a, b in itertools.pairwise(found)}) == 1
    assert line_chart({"empty": ([], [])}, "x", "y") == ""
