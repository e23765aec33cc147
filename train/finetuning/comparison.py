"""A head grafted onto a foundation, and the proof of what that was worth: the models of the before/after table."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from configs import default
from configs.errors import UserError
from data.labeled import Example, draw
from data.tokenizer import Tokenizer
from model.flops import training_flops_per_token
from model.heads import Objective
from model.transformer import Params
from train.console import results_console
from train.distributed.processes import is_process_zero
from train.evaluation import zero_shot as untrained
from train.evaluation.interval import Interval, as_json, gain
from train.evaluation.metrics import confusion
from train.evaluation.scoring import held_out_loss
from train.finetuning.predictor import Predictor
from train.finetuning.report import html
from train.finetuning.report.table import comparison
from train.finetuning.rows import TaskRows, with_reference, with_shots
from train.generation.decode import complete
from train.job import Evaluate, Job
from train.loop import fit
from train.run import goodput
from train.run.record import Run, RunRecord, config_changes
from train.run.results import NAME, add_results, training_summary
from train.settings import Settings
from train.tasks.task import Prediction, Task

_GUESS, _RANDOM, _TUNED = "no model: the most frequent answer", "head from random weights", "fine-tuned"
_SAMPLES = 20
# Of which one is shown to the foundation as an answered example.
_CANDIDATES = 8


@dataclasses.dataclass(frozen=True)
class Scored:
    """A row of the table.

    Attributes:
        name: of the model.
        examples: held-out examples that it was scored on.
        predictions: of these.
        metrics: over these.
    """

    name: str
    examples: list[Example]
    predictions: list[Prediction]
    metrics: dict[str, Interval]


@dataclasses.dataclass(frozen=True)
class Graft:
    """A fine-tuning run, its data ready.

    Attributes:
        record: what `run.json` says.
        settings: the config.
        task: what is learnt.
        tokenizer: of the foundation.
        parts: "train", "validation" and "test".
        foundation: the run that is grafted onto.
        workdir: of the run.
        mesh: where it trains.
    """

    record: RunRecord
    settings: Settings
    task: Task
    tokenizer: Tokenizer
    parts: Mapping[str, TaskRows]
    foundation: Run
    workdir: Path
    mesh: Mesh

    def run(self) -> dict[str, Any]:
        """Trains, prints the table, writes `results.json` and `report.html`, and returns the former.

        Raises:
            UserError: see `loop.fit`; or a foundation that has not the head that the task goes on training.
        """
        table = []
        test, facts = self.parts["test"].examples, self.record.task
        if self.task.guess is not None:
            guess = self.task.guess(self.parts["train"].examples, facts)
            table.append(self._scored(_GUESS, test, [guess] * len(test)))
        foundation = self._foundation()
        graft = self._referenced(foundation)
        before = None
        if foundation is not None and self.settings.task.zero_shot_rows:
            asked = graft._as_it_is(foundation) if self.task.untrained is None else graft._in_words(foundation)
            before = asked[0].predictions if self.task.untrained is None else None
            table += asked
        # Against the foundation's own preferences, random weights have nothing to be compared with.
        if self.settings.task.baseline and not self.task.reference:
            table.append(graft._trained(_RANDOM, self.workdir / "from_random", None, before))
        table.append(graft._trained(_TUNED, self.workdir, self.foundation, before))
        return graft._publish(table)

    def referenced(self) -> "Graft":
        """Returns this with what the foundation says of the rows in them, where the task compares with that."""
        return self._referenced(self._foundation()) if self.task.reference else self

    def _referenced(self, foundation: Params | None) -> "Graft":
        if not self.task.reference:
            return self
        assert foundation is not None
        arguments = (self.record.model, foundation, self.settings.batch_size, self.mesh)
        parts = {name: with_reference(part, *arguments) for name, part in self.parts.items()}
        return dataclasses.replace(self, parts=parts)

    def _scored(
        self, name: str, examples: list[Example], predictions: list[Prediction], before: list[Prediction] | None = None
    ) -> Scored:
        return Scored(name, examples, predictions, self.task.metrics(examples, predictions, before, self.record.task))

    def _foundation(self) -> Params | None:
        """Returns the language model that is grafted onto, if it is one and the task has a use for it as it is."""
        speaks = self.foundation.is_language_model
        if self.task.language and not speaks:
            raise UserError(
                f"--init_from={self.foundation.directory} is a {self.foundation.record.task['name']} model, "
                "whose head cannot write; "
                f"legal for config.task.name={self.settings.task.name!r}: a pre-training run or one that kept its head"
            )
        asked = self.settings.task.zero_shot_rows and (self.task.language or self.task.untrained is not None)
        return self._grafted(("backbone", "head")) if speaks and (asked or self.task.reference) else None

    def _as_it_is(self, foundation: Params) -> list[Scored]:
        """Returns the foundation's rows of a task that goes on training its head: zero-shot and after some examples."""
        part, facts = self.parts["test"], self.record.task
        predictor = self._predictor(Run(self.workdir, self.record).objective(adapted=False))
        zero_shot = predictor(foundation, part)
        table = [self._scored("foundation, zero-shot", part.examples, zero_shot, zero_shot)]
        if self.settings.task.shots and not self.task.reference:
            shown = draw(self.parts["train"].examples, self.settings.task.shots)
            shots = with_shots(part, shown, self.task, facts, self.tokenizer)
            name = f"foundation, {self.settings.task.shots}-shot"
            table.append(self._scored(name, part.examples, predictor(foundation, shots), zero_shot))
        return table

    def _in_words(self, foundation: Params) -> list[Scored]:
        """Returns the rows of the foundation that is asked in words, without and with answered examples."""
        return [self._answered(foundation, shots) for shots in sorted({0, self.settings.task.shots})]

    def _answered(self, params: Params, shots: int) -> Scored:
        """Returns the row of the foundation that is asked in words, after so many answered examples."""
        assert self.task.untrained is not None
        how, facts, s = self.task.untrained, self.record.task, self.settings.task
        examples = draw(self.parts["test"].examples, s.zero_shot_rows)
        # Short ones, so that as many as are wanted fit.
        candidates = [how.prompt(e, facts) for e in draw(self.parts["train"].examples, _CANDIDATES * shots)]
        shown = sorted(candidates, key=lambda pair: sum(map(len, pair)))[:shots]
        choices = how.choices(facts) if how.choices is not None else []
        ids = self.tokenizer.encode_batch([f" {choice}" for choice in choices])
        longest = max(map(len, ids), default=s.max_new_tokens)
        room = self.settings.sequence_length - longest
        # The start of a text and a token of the question.
        if room < 2:
            raise UserError(
                f"config.sequence_length is {self.settings.sequence_length}, where the foundation can be asked nothing "
                f"before an answer of {longest} tokens; legal: at least {longest + 2}, or config.task.zero_shot_rows=0"
            )
        prompts = [
            untrained.few_shot_prompt(shown, how.prompt(example, facts)[0], self.tokenizer, room)
            for example in examples
        ]
        if how.choices is None:
            texts = complete(
                self.record.model,
                params,
                prompts,
                s.max_new_tokens,
                self.tokenizer,
                self.mesh,
                stop=(untrained.BETWEEN,),
            )
            answers = [[text.strip()] for text in texts]
        else:
            scores = untrained.choose(self.record.model, params, prompts, ids, self.tokenizer, self.mesh)
            answers = [[choices[i] for i in np.argsort(-row, kind="stable")] for row in scores]
        name = f"foundation, {f'{shots}-shot' if shots else 'zero-shot'}"
        return self._scored(name, examples, [how.read(answer, facts) for answer in answers])

    def _predictor(self, objective: Objective) -> Predictor:
        s = self.settings
        return Predictor(
            self.task,
            self.record.task,
            objective,
            s.adapt,
            self.record.model,
            self.tokenizer,
            s.batch_size,
            s.task.max_new_tokens,
            self.mesh,
        )

    def _trained(self, name: str, workdir: Path, foundation: Run | None, before: list[Prediction] | None) -> Scored:
        """Trains one model of the table and scores it on the held-out examples."""
        workdir.mkdir(parents=True, exist_ok=True)
        # What the pre-training was worth shows against a model in which all may train.
        objective = Run(self.workdir, self.record).objective(adapted=foundation is not None)
        settings = self.settings
        predictor = self._predictor(objective)
        validation = self.parts["validation"]

        def evaluate(params: Params) -> dict[str, float]:
            loss = held_out_loss(objective, params, validation.rows, settings.batch_size, self.mesh)
            if self.task.read is None:
                return {"loss": loss}
            predictions = predictor(params, validation)
            found = self.task.metrics(validation.examples, predictions, None, self.record.task)
            return {"loss": loss} | {metric: interval.value for metric, interval in found.items()}

        params = fit(self.job(name, objective, foundation, evaluate), settings, self.mesh, workdir)
        test = self.parts["test"]
        return self._scored(name, test.examples, predictor(params, test), before)

    def job(self, title: str, objective: Objective, foundation: Run | None, evaluate: Evaluate) -> Job:
        """Returns what the loop runs: from `foundation`, or from random weights."""
        # A classifier's few outputs cost nothing beside a vocabulary.
        counted = self.record.model if self.task.language else dataclasses.replace(self.record.model, vocab_size=1)
        length = self.settings.sequence_length
        return Job(
            title=title,
            objective=objective,
            rows=self.parts["train"].rows,
            evaluate=evaluate,
            load_initial=None if foundation is None else self._grafted,
            initial_groups=("backbone", "head") if self.task.language else ("backbone",),
            flops_per_step=self.settings.batch_size * length * training_flops_per_token(counted, length),
        )

    def _grafted(self, groups: tuple[str, ...]) -> Params:
        return self.foundation.load_merged(self.mesh, groups)

    def _publish(self, table: list[Scored]) -> dict[str, Any]:
        """Prints the table and writes the files, on process 0; returns what `results.json` holds."""
        tuned = table[-1]
        published = {
            "task": self.settings.task.name,
            "train_rows": len(self.parts["train"].examples),
            "held_out_rows": len(tuned.examples),
            "models": {row.name: {"rows": len(row.examples), **as_json(row.metrics)} for row in table},
            "gain": {
                row.name: {name: gain(row.metrics[name], tuned.metrics[name]) for name in row.metrics}
                for row in table[:-1]
            },
            "training": training_summary(self.workdir),
        }
        if is_process_zero():
            rows = [(row.name, len(row.examples), row.metrics) for row in table]
            results_console().print(comparison(f"{self.settings.task.name}: held-out rows", rows))
            add_results(self.workdir / NAME, lambda held: held.update(published))
            self._report(table)
        return published

    def _report(self, table: list[Scored]) -> None:
        """Writes `report.html`."""
        tuned, facts, s = table[-1], self.record.task, self.settings
        # "Before" is the foundation where it was asked, else the head from random weights.
        known: dict[int, Prediction] = {}
        for row in reversed(table[:-1]):
            if row.name != _GUESS:
                known = dict(zip(map(id, row.examples), row.predictions, strict=True))
        examples = [e for e in tuned.examples if id(e) in known] or tuned.examples
        after = dict(zip(map(id, tuned.examples), tuned.predictions, strict=True))
        samples = [
            (
                e.content,
                self.task.show(e, None, facts),
                self.task.show(e, known[id(e)], facts) if id(e) in known else "",
                self.task.show(e, after[id(e)], facts),
            )
            for e in draw(examples, _SAMPLES)
        ]
        curves = {_TUNED: self.workdir / "metrics.jsonl"}
        if s.task.baseline and not self.task.reference:
            curves[_RANDOM] = self.workdir / "from_random" / "metrics.jsonl"
        about = {
            "task": s.task.name,
            "foundation": " → ".join(run["directory"] for run in self.record.lineage),
            "this run": str(self.workdir.absolute()),
            "training": f"{len(self.parts['train'].examples):,} rows of {s.data.path}, {s.num_steps:,} steps of "
            f"{s.batch_size} x {s.sequence_length} tokens, {s.adapt.method}",
            "validation rows": f"{len(self.parts['validation'].examples):,}",
            "held-out rows": f"{len(tuned.examples):,}",
            "wall time": goodput.describe(training_summary(self.workdir)["seconds"]),
            "data fingerprint": self.record.data_fingerprint,
            "not the defaults": "; ".join(config_changes(default.get_config().to_dict(), self.record.config)),
        }
        rows = [(row.name, len(row.examples), row.metrics) for row in table]
        title = f"{s.task.name}: before and after fine-tuning"
        html.write(self.workdir / "report.html", title, rows, curves, self._confusion(tuned), samples, about)

    def _confusion(self, row: Scored) -> tuple[list[str], np.ndarray] | None:
        """Returns the classes and how often each was taken for each, where an example has one class."""
        show, facts = self.task.show, self.record.task
        classes = facts.get("classes", [])
        labels = [show(example, None, facts) for example in row.examples]
        predicted = [show(e, p, facts) for e, p in zip(row.examples, row.predictions, strict=True)]
        return (classes, confusion(labels, predicted, classes)) if {*labels, *predicted} <= {*classes} else None
