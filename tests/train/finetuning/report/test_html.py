"""The report escapes its contents, and is one file that loads nothing from the network."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from train.evaluation.interval import Interval
from train.finetuning.report import html, svg

ATTACK = "<script>alert('&')</script>"
ROWS = [
    ("baseline", 40, {"accuracy": Interval(0.25, 0.2, 0.3), "error": Interval(2.0, 1.8, 2.2, "lower")}),
    ("tuned", 3080, {"accuracy": Interval(0.5, 0.4, 0.6), "error": Interval(1.0, 0.9, 1.1, "lower")}),
]


def written(directory, **changes):
    path = directory / "report.html"
    given = {"rows": ROWS, "curves": {}, "confusion": None, "samples": [], "about": {}}
    html.write(path, html.Report(**{"title": "intent", **given, **changes}))
    return path.read_text(encoding="utf-8")


class Nested(HTMLParser):
    """Fails if an element is not closed by its own end tag; collects elements and attributes."""

    def __init__(self, page):
        super().__init__()
        self.open, self.seen, self.attributes = [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)


def full_report(directory):
    lines = [{"step": s, "phase": phase, "loss": 5 - s / 300} for s in range(1, 1001) for phase in ("train", "eval")]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 7, "pha')
    return written(
        directory,
        title=ATTACK,
        rows=[(ATTACK, 7, {ATTACK: Interval(0.1, 0.1, 0.2)}), (ATTACK, 7, {ATTACK: Interval(0.3, 0.2, 0.4)})],
        curves={ATTACK: directory / "metrics.jsonl", "missing": directory / "none.jsonl"},
        confusion=([ATTACK, "b"], np.array([[1, 2], [3, 4]])),
        samples=[(ATTACK, ATTACK, ATTACK, "a\nb \ud800")],
        about={ATTACK: ATTACK},
    )


def test_report_escapes_data_and_nests_elements(tmp_path):
    page = Nested(full_report(tmp_path))
    assert "script" not in page.seen and {"h1", "polyline", "rect"} <= {*page.seen}


def test_report_loads_nothing_from_the_network(tmp_path):
    page = full_report(tmp_path)
    assert not re.search(r"https?:|//\w|url\(|@import", page)
    assert not {"src", "href", "srcset", "data", "action"} & {name for name, _ in Nested(page).attributes}


def test_report_contains_metrics_gains_and_row_counts(tmp_path):
    page = written(tmp_path)
    for text in ("3,080", "0.500", "[0.400, 0.600]", "+100.0%", "+50.0%", "lower is better"):
        assert text in page
    assert "overlap<" not in page


def test_gain_with_overlapping_intervals_is_marked_and_gain_over_zero_is_omitted(tmp_path):
    rows = [("a", 9, {"r2": Interval(-0.1, -0.2, 0.35)}), ("b", 9, {"r2": Interval(0.3, 0.2, 0.4)})]
    tuned = ("tuned", 9, {"r2": Interval(0.33, 0.3, 0.5)})
    page = written(tmp_path, rows=[*rows, tuned])
    assert "+10.0%</span> <span" in page and "overlap<" in page
    assert '<th scope="row">a</th><td>-</td>' in page


def test_missing_or_nan_metric_is_a_dash(tmp_path):
    page = written(tmp_path, rows=[("a", 9, {}), ("b", 9, {"x": Interval(*[float("nan")] * 3)}), ROWS[-1]])
    assert page.count("<td>-</td>") == 8 and "nan" not in page


def test_single_model_has_no_gain_table(tmp_path):
    assert "Gain of" not in written(tmp_path, rows=ROWS[-1:])


@pytest.mark.parametrize("content", [None, "", "no json\n", '{"step": 1, "phase": "train", "loss": null}\n'])
def test_curves_are_omitted_without_losses(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    assert "Curves" not in written(tmp_path, curves={"tuned": path})


def test_curve_of_one_point_is_drawn_as_a_dot(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "phase": "eval", "loss": 2.0}\n')
    page = written(tmp_path, curves={"tuned": tmp_path / "metrics.jsonl"})
    assert page.count("<polyline") == 1 and 'r="2.5"' in page


def test_long_curves_are_thinned():
    points = [(step, 1.0) for step in range(10_000)]
    chart = svg.line_chart("loss", {0: points}, svg.Axis("step", [0, 10_000]), svg.Axis("loss", [0, 2]))
    assert len(re.search('points="([^"]*)"', chart)[1].split()) == 400


def test_confusion_matrix_of_one_class(tmp_path):
    assert "<title>only</title>" in written(tmp_path, confusion=(["only"], np.array([[0]])))


def test_confusion_matrix_of_many_classes_shows_the_most_confused(tmp_path):
    counts = np.diag(np.full(50, 9))
    for i in range(20, 40):
        counts[i, i - 1 if i % 2 else i + 1] = 3
    page = written(tmp_path, confusion=([f"class {i:02}" for i in range(50)], counts))
    assert "20 of 50 classes" in page
    assert {*re.findall(r"class \d\d", page)} == {f"class {i}" for i in range(20, 40)}


def test_samples_keep_line_breaks_mark_correct_answers_and_show_truncation(tmp_path):
    page = written(tmp_path, samples=[("a\nb", "yes", "no", "yes "), ("x" * 5000, "yes", "no", "no")])
    assert "a\nb" in page and "1,000 more characters" in page
    assert "<h3>before</h3>" in page and page.count("✓</h3>") == 1


def test_samples_omit_the_before_column_if_it_is_empty(tmp_path):
    assert "<h3>before" not in written(tmp_path, samples=[("a", "yes", "", "yes")])


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.0003, 0.0004), (-0.4, 0.2), (3, 3), (0, 0), (0, 123_456), (1e-15, 9e-15)]
)
def test_ticks_span_the_range_in_few_round_steps(low, high):
    found = svg.ticks(low, high)
    assert found[0] <= low and found[-1] >= high and 2 <= len(found) <= 8 and len(set(found)) == len(found)
