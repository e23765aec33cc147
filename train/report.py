"""The before/after table: a model's predictions on held-out rows -> figures with 95 % bootstrap intervals."""

from typing import Any

import numpy as np
from rich.table import Table

from configs.errors import UserError

RESAMPLES = 1000
Interval = tuple[float, float, float]


def require_metrics() -> None:
    """Raises UserError where scikit-learn is missing: asked before training, not after."""
    try:
        import sklearn.metrics  # noqa: F401
    except ImportError:
        raise UserError("task metrics need scikit-learn: pip install 'rootstock[tasks]'") from None


def classification_metrics(labels: np.ndarray, predicted: np.ndarray) -> dict[str, Interval]:
    """Returns {"accuracy", "macro_f1"}, each (value, low, high): percentile bootstrap over rows, 95 %.

    Macro-F1 averages over the classes that occur among the labels.
    """
    from sklearn.metrics import accuracy_score, f1_score

    classes = np.unique(labels)
    metrics = {
        "accuracy": accuracy_score,
        "macro_f1": lambda y, p: f1_score(y, p, labels=classes, average="macro", zero_division=0),
    }
    rng = np.random.default_rng(0)
    samples = rng.integers(0, len(labels), (RESAMPLES, len(labels)))
    result = {}
    for name, metric in metrics.items():
        resampled = [metric(labels[rows], predicted[rows]) for rows in samples]
        low, high = np.percentile(resampled, [2.5, 97.5])
        result[name] = (float(metric(labels, predicted)), float(low), float(high))
    return result


def as_json(metrics: dict[str, Interval]) -> dict[str, dict[str, float]]:
    """Returns the metrics as `results.json` and `--json` hold them."""
    return {name: {"value": v, "low": low, "high": high} for name, (v, low, high) in metrics.items()}


def comparison(title: str, rows: list[tuple[str, dict[str, Interval]]]) -> Table:
    """Returns the table a person sees: one model a row, each figure with its interval."""
    table = Table(title=title, title_justify="left")
    table.add_column("model", no_wrap=True)
    for name in rows[0][1]:
        table.add_column(name.replace("_", "-"), justify="right", no_wrap=True)
    for model, metrics in rows:
        table.add_row(
            model, *(f"{v:.3f}  [{low:.3f}, {high:.3f}]" for v, low, high in metrics.values()), end_section=False
        )
    return table


def gain(before: Interval, after: Interval) -> dict[str, Any]:
    """Returns the relative gain of a figure and whether the two intervals are apart."""
    return {"relative_gain": after[0] / before[0] - 1 if before[0] else None, "apart": after[1] > before[2]}
