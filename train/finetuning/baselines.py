"""The rows of the table that need no training: a constant prediction, and the foundation, zero- and few-shot."""

import dataclasses

from data.labeled import draw
from train.evaluation.zero_shot import answer_questions
from train.finetuning.finetune_run import FinetuneRun, Scored, measured, score
from train.finetuning.predictor import Predictor
from train.finetuning.rows import with_shots
from train.generation.language_model import LanguageModel
from train.tasks.task import Fitted

FOUNDATION = "foundation, "  # what the names of its rows begin with
# Examples drawn per shot; the shortest ones are shown.
_CANDIDATES_PER_SHOT = 8


def constant_baseline(run: FinetuneRun) -> list[Scored]:
    """Returns the row of the task's constant prediction; empty: the task has none."""
    task, test = run.data.task, run.data.parts["test"].examples
    with measured() as cost:
        prediction = task.baseline_prediction(run.data.parts["train"].examples)
        if prediction is None:
            return []
        scored = score(run, task.baseline_name, test, [prediction] * len(test))
        return [dataclasses.replace(scored, cost=cost())]


def alternatives(run: FinetuneRun) -> tuple[list[Scored], dict[str, Fitted]]:
    """Returns (the rows of what a user would do instead, what was learned); choices are made by the validation rows."""
    train, validation, test = (run.data.parts[name].examples for name in ("train", "validation", "test"))
    rows, found = [], {}
    for name, learn in run.data.task.alternatives().items():
        with measured() as cost:
            found[name] = learn(train, validation)
            rows.append(dataclasses.replace(score(run, name, test, found[name](test)), cost=cost()))
    return rows, found


def prompted_foundation(run: FinetuneRun, foundation: LanguageModel) -> list[Scored]:
    """Returns the rows of the foundation answering the task's question, without and with answered examples.

    Raises:
        UserError: no question fits config.sequence_length.
    """
    return [_prompted(run, foundation, shots) for shots in sorted({0, run.settings.task.shots})]


def _prompted(run: FinetuneRun, foundation: LanguageModel, shots: int) -> Scored:
    task, s = run.data.task, run.settings.task
    examples = draw(run.data.parts["test"].examples, s.zero_shot_rows)
    candidates = draw(run.data.parts["train"].examples, _CANDIDATES_PER_SHOT * shots)
    # Short ones, so that as many as possible fit.
    shown = sorted(map(task.question, candidates), key=lambda pair: sum(map(len, pair)))[:shots]
    questions = [task.question(example)[0] for example in examples]
    with measured() as cost:
        answers = answer_questions(
            foundation, questions, shown, task.choices(), s.max_new_tokens, run.settings.sequence_length
        )
    name = f"{FOUNDATION}{f'{shots}-shot' if shots else 'zero-shot'}"
    scored = score(run, name, examples, [task.read_answers(answer) for answer in answers])
    return dataclasses.replace(scored, cost=cost())


def foundation_head(run: FinetuneRun, foundation: LanguageModel, predictor: Predictor) -> list[Scored]:
    """Returns the rows of the foundation's own head, for tasks that train it: zero-shot and after some examples."""
    task, part, shots = run.data.task, run.data.parts["test"], run.settings.task.shots
    zero_shot = predictor(foundation.params, part)
    table = [score(run, f"{FOUNDATION}zero-shot", part.examples, zero_shot, zero_shot)]
    if shots and not task.needs_reference:
        shown = draw(run.data.parts["train"].examples, shots)
        predictions = predictor(foundation.params, with_shots(part, shown, task, run.data.tokenizer))
        table.append(score(run, f"{FOUNDATION}{shots}-shot", part.examples, predictions, zero_shot))
    return table
