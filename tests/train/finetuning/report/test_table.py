"""The before/after table is not truncated on a narrow terminal."""

import re

import pytest

from train.console import results_console
from train.evaluation.interval import Interval
from train.finetuning.report.table import comparison

ROWS = [
    ("foundation, zero-shot", 500, {"accuracy": Interval(0.1, 0.05, 0.15), "loss": Interval(4.0, 3.9, 4.1, "lower")}),
    ("fine-tuned", 3079, {"accuracy": Interval(0.9, 0.85, 0.95), "loss": Interval(3.0, 2.9, 3.1, "lower")}),
]


@pytest.mark.parametrize("columns", [40, 200])
def test_table_shows_every_metric_at_any_width(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    results_console().print(comparison("intent", [("majority-class baseline", 10, {}), *ROWS]))
    shown = re.sub(r"[^\w.\[\],-]", "", capsys.readouterr().out)
    for text in ("0.900[0.850,0.950]", "3.000[2.900,3.100]", "3,079", "foundation,zero-shot", "lowerisbetter"):
        assert text in shown, shown
