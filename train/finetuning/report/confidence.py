"""How sure the fine-tuned model is, for the terminal and for the HTML report."""

from rich.table import Table

from data.pages import grid
from train.finetuning.confidence import Confidence, Scores
from train.finetuning.report import svg
from train.finetuning.report.table import shown


def confidence_table(found: Confidence) -> Table:
    """Returns Brier score and calibration error before and after the temperature, and what a threshold would do."""
    table = Table(title=_title(found), title_justify="left", caption=_answers(found), caption_justify="left")
    for name in ("probabilities", "Brier score (lower is better)", "calibration error (lower is better)"):
        table.add_column(name, justify="left" if name == "probabilities" else "right")
    for name, scores in _scores(found):
        table.add_row(name, shown(scores.brier), shown(scores.calibration_error))
    return table


def _title(found: Confidence) -> str:
    temperature, rows = found.calibration.temperature, found.calibration.rows
    if (weights := found.calibration.weights) is not None:
        how = f"weights {weights.model:.2f} and {weights.linear:.2f}"
        return f"how sure both models are together: {how}, of {rows:,} validation rows"
    return f"how sure the fine-tuned model is: temperature {temperature:.2f}, of {rows:,} validation rows"


def _scores(found: Confidence) -> list[tuple[str, Scores]]:
    if found.calibration.weights is not None:
        return [("calibrated by the weights", found.after)]
    return [("before calibration", found.before), ("after calibration", found.after)]


def _answers(found: Confidence) -> str:
    """Returns lines of text: what the options of `rootstock predict` would do, of those that the task has."""
    shares = [
        f"{a.threshold:g}: {a.share:.1%} at {a.accuracy:.3f}"
        for a in found.answered
        if a.threshold and a.accuracy is not None
    ]
    lines = [f"--abstain_below=P: share of rows answered, at which accuracy: {' · '.join(shares)}"] if shares else []
    lines += [
        f"--coverage={coverage:g}: {shown(sets.coverage)} of the sets contain the right class, {sets.size.value:.2f} "
        "classes each"
        for coverage, sets in found.sets.items()
    ]
    if found.out_of_scope is not None:
        lines.append(f"out of scope: AUROC of the abstention score {shown(found.out_of_scope)}")
    return "\n".join(lines)


def _what_calibrates(found: Confidence) -> str:
    calibration, rows = found.calibration, f"{found.calibration.rows:,} validation rows"
    if calibration.weights is not None:
        model, linear = calibration.weights
        return (
            f"Added are the logits of the fine-tuned model times {model:.2f} and the margins of the linear SVM times "
            f"{linear:.2f}. These weights were fitted on {rows}, so that the sums are calibrated."
        )
    if calibration.temperature == 1.0:
        return f"No temperature is clearly better than 1 on {rows}, so the probabilities stay as they are."
    return (
        f"Logits are divided by a temperature of {calibration.temperature:.3f}, which was fitted on {rows}. "
        "It changes no prediction, only its probability."
    )


def sections(found: Confidence) -> str:
    """Returns the same as HTML, with the reliability before and after as a chart."""
    scores = [
        ("tuned" if s is found.after else "", [name, shown(s.brier), shown(s.calibration_error)])
        for name, s in _scores(found)
    ]
    legend = "".join(f'<span class="line-{n}">{name}</span>' for n, (name, _) in enumerate(_scores(found)))
    lines = {n: [(b.confidence, b.accuracy) for b in s.bins] for n, (_, s) in enumerate(_scores(found))}
    chart = svg.reliability_chart("Accuracy over the probability of the prediction", lines)
    answered = [
        ("", [f"{a.threshold:g}", f"{a.share:.1%}", "-" if a.accuracy is None else f"{a.accuracy:.3f}"])
        for a in found.answered
    ]
    parts = [
        "<h2>How sure</h2>",
        f'<p class="note">{_what_calibrates(found)} In a calibrated model, of the predictions with a probability of '
        "0.8 eight in ten are right.</p>",
        grid(("probabilities", "Brier score, lower is better", "calibration error, lower is better"), scores),
        f'<p class="legend">{legend}</p><div class="charts"><div class="box">{chart}</div>',
        grid(("predict --abstain_below", "rows answered", "accuracy of these"), answered) if answered else "",
        "</div>",
    ]
    if found.sets:
        sets = [("", [f"{coverage:g}", shown(s.coverage), f"{s.size.value:.2f}"]) for coverage, s in found.sets.items()]
        parts.append(grid(("predict --coverage", "sets with the right class", "classes in a set"), sets))
    if found.out_of_scope is not None:
        parts.append(f"<p>Out of scope: AUROC of the abstention score {shown(found.out_of_scope)}</p>")
    return "".join(parts)
