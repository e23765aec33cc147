"""EleutherAI's lm-evaluation-harness over a model of ours, in this process: `evaluate --tasks` imports this.

What a text's tokens are, what precedes it and where it is cut is as in the harness's own Hugging Face backend, so that
the same weights get the same scores.
"""

import itertools
import json
import logging
import os
import random
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.tasks import TaskManager

from configs.errors import UserError, did_you_mean
from data.examples import Segment, sliding_windows, text_segment
from data.readers import read_rows
from data.templates import render
from model.sampling import Sampling
from train.evaluation.likelihood import likelihoods
from train.evaluation.squad import exact_match, token_f1
from train.generation.decode import complete
from train.generation.language_model import Writer

Pair = tuple[Any, list[int], list[int]]  # (texts, tokens of the context, of the continuation)


class Harness(TemplateLM):
    """What the harness asks of a model."""

    backend = "causal"

    def __init__(self, writer: Writer) -> None:
        super().__init__()
        self.writer = writer
        self._context = writer.model.context_length

    @property
    def eot_token_id(self) -> int:
        """Ends what the model writes."""
        return self.writer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """Stands before a text that has nothing before it."""
        return self.writer.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """Names the chat template in the harness's caches."""
        return self.writer.tokenizer.sha256

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Returns the name of the template, for the record."""
        return self.writer.template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns a chat as the text that the model reads.

        Raises:
            UserError: the model has no template, or it cannot render these turns.
        """
        if not self.writer.template:
            raise UserError("--chat: the model has no chat template; legal: a model that was fine-tuned to chat")
        rendered = render(chat_history, self.writer.template, self.writer.tokenizer, prompt=add_generation_prompt)
        return self.writer.tokenizer.decode(rendered.tokens, specials=True)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:  # noqa: ANN401
        """Returns the tokens of a text, special tokens by their names, after bos where the tokenizer puts one."""
        tokenizer = self.writer.tokenizer
        tokens, _places = tokenizer.encode_with_specials(string)
        framed = add_special_tokens is not False and tokenizer.starts_with_bos
        return [tokenizer.bos_id, *tokens] if framed and tokens[:1] != [tokenizer.bos_id] else tokens

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[tuple[float, bool]]:  # noqa: ANN401
        """Returns (log-likelihood in nats, whether greedy decoding would write it) of each continuation."""
        found = self._scored([_continuation(context, more, self._context) for _, context, more in requests])
        scores = [(nats, greedy) for nats, _, greedy in found]
        for request, score in zip(requests, scores, strict=True):
            self.cache_hook.add_partial("loglikelihood", request[0], score)
        return scores

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each whole text, in nats."""
        texts = [request.args[0] for request in requests]
        windows = [
            sliding_windows([self.prefix_token_id, *self.tok_encode(text)], self._context, self._context)
            for text in texts
        ]
        found = iter(self._scored(list(itertools.chain.from_iterable(windows))))
        totals = [sum(next(found)[0] for _ in parts) for parts in windows]
        for text, total in zip(texts, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return totals

    def _scored(self, segments: Sequence[Segment]) -> list[tuple[float, int, bool]]:
        w = self.writer
        found = likelihoods(w.model, w.params, segments, w.tokenizer.pad_id, w.mesh)
        return list(zip(found.nats.tolist(), found.targets.tolist(), found.greedy.tolist(), strict=True))

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns what the model writes after each context, up to the first of its stops."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        written: dict[int, str] = {}
        for numbers in groups.values():
            texts = self._written([requests[n].args[0] for n in numbers], requests[numbers[0]].args[1])
            written |= dict(zip(numbers, texts, strict=True))
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, written[number])
        return [written[number] for number in range(len(requests))]

    def _written(self, contexts: list[str], asked: dict[str, Any]) -> list[str]:
        w = self.writer
        how = normalize_gen_kwargs(asked, 256)
        room = w.model.context_length - how["max_gen_toks"]
        if room <= 0:
            raise UserError(
                f"a task asks for {how['max_gen_toks']} new tokens; "
                f"legal: below the model's context of {w.model.context_length}"
            )
        temperature = how.get("temperature", 1.0 if how.get("do_sample") else 0.0)
        filters = {name: how[name] for name in ("top_k", "top_p", "min_p", "repetition_penalty") if name in how}
        sampling = Sampling(temperature, **filters)
        prompts = [self.tok_encode(context)[-room:] for context in contexts]
        ends = w.tokenizer.token_name(w.eos_id)
        until = [*how["until"], ends]
        texts = complete(
            w.model,
            w.params,
            prompts,
            how["max_gen_toks"],
            w.tokenizer,
            w.mesh,
            tuple(how["until"]),
            w.eos_id,
            sampling,
            after_text=False,
        )
        return [postprocess_generated_text(text, until, None) for text in texts]


def _continuation(context: list[int], more: list[int], longest: int) -> Segment:
    """Returns the segment whose targets are the continuation's tokens; a context that is too long loses its start."""
    tokens = (context + more)[-(longest + 1) :]
    return text_segment(tokens, [place >= len(tokens) - len(more) for place in range(len(tokens))])


def evaluate(
    writer: Writer,
    tasks: Sequence[str],
    folders: Sequence[str],
    *,
    shots: int | None,
    limit: int,
    data: Mapping[str, str],
    chat: bool,
) -> dict[str, dict[str, Any]]:
    """Returns {task: its figures as the harness names them, with "num_fewshot" and "rows"}.

    Args:
        writer: the model.
        tasks: names of the harness or of task files.
        folders: where task files are; those with `metadata.columns` read the rows of `data`.
        shots: answered examples before each question; None: as each task says.
        limit: rows of a task, the first ones of the harness's, drawn at random from ours; 0: all.
        data: {"test": rows of the questions, "train": rows to show, which may be left out}.
        chat: put each question into the model's chat template.

    Raises:
        UserError: an unknown task, or data that cannot be read.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # The harness would fork for its bootstrap, and JAX's threads do not survive that.
    os.environ["DISABLE_MULTIPROC"] = "1"
    own = TaskManager(include_path=list(folders), include_defaults=False)
    manager = own if set(tasks) <= set(own.all_tasks) else TaskManager(include_path=list(folders))
    for name in tasks:
        if manager.match_tasks([name]) != [name]:
            legal = f"ours: {', '.join(own.all_tasks)}, or one of the harness"
            raise UserError(f"--tasks: {name!r} is unknown{did_you_mean(name, manager.all_tasks)} legal: {legal}")
    configs = {name: own.task_index[name].cfg or {} for name in own.all_tasks}
    given = [_with_rows(configs[name], data) if name in configs else name for name in tasks]
    with jax.set_mesh(writer.mesh):
        try:
            found = simple_evaluate(
                model=Harness(writer),
                tasks=given,
                num_fewshot=shots,
                limit=limit or None,
                task_manager=manager,
                apply_chat_template=chat,
                log_samples=False,
                bootstrap_iters=1000,
            )
        # `datasets` and the hub's client raise many types where a data set or the hub is not there.
        except (OSError, ValueError, ConnectionError) as error:
            raise UserError(f"--tasks={','.join(tasks)}: {' '.join(str(error).split())[:300]}") from None
    assert found is not None
    results = {name: _figures(figures) for name, figures in found["results"].items()}
    for name, figures in results.items():
        figures |= {"num_fewshot": found["n-shot"].get(name), "rows": found["n-samples"].get(name, {}).get("effective")}
    return results


def _with_rows(config: Mapping[str, Any], data: Mapping[str, str]) -> str | dict[str, Any]:
    """Returns a task of ours with its rows, read as everywhere; one that names its own data set stays as it is."""
    name, metadata = config["task"], config.get("metadata") or {}
    if "columns" not in metadata:
        return name
    if "test" not in data:
        columns = ", ".join(metadata["columns"])
        raise UserError(f"--data is missing: task {name!r} reads rows with the columns {columns}")
    rows = {split: _read(path, metadata["columns"]) for split, path in data.items()}
    filled = {**config, "custom_dataset": lambda **_: rows, "fewshot_split": "test"}
    if "train" in rows:
        filled |= {"training_split": "train", "fewshot_split": "train"}
    return filled | ({"process_results": _squad} if metadata.get("scorer") == "squad" else {})


def _read(path: str, columns: Sequence[str]) -> Dataset:
    """Returns rows with what task files read: "choices" and "answer" of labels, "first_answer" of answers."""
    rows = []
    for number, row in enumerate(read_rows(path), 1):
        missing = [name for name in columns if name not in row]
        if missing:
            raise UserError(f"{path}: row {number}: no {missing[0]!r}; columns found: {', '.join(map(str, row))}")
        rows.append({name: row[name] for name in columns})
    if not rows:
        raise UserError(f"{path} holds no rows")
    # A limit takes the first ones, and files are often sorted by label.
    random.Random(0).shuffle(rows)
    if "label" in columns:
        labels = sorted({str(row["label"]) for row in rows})
        names = [label.replace("_", " ") for label in labels]
        rows = [row | {"choices": names, "answer": labels.index(str(row["label"]))} for row in rows]
    if "answers" in columns:
        rows = [row | {"first_answer": next(iter(_answers(row)), "")} for row in rows]
    return Dataset.from_list(rows)


def _answers(row: Mapping[str, Any]) -> list[str]:
    """Returns the right answers of a row, each a text or {"text"}."""
    return [answer["text"] if isinstance(answer, Mapping) else str(answer) for answer in row["answers"]]


def _squad(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Returns what the best of the right answers gives: SQuAD's own scores."""
    answers = _answers(doc) or [""]
    return {
        "exact_match": max(exact_match(answer, results[0]) for answer in answers),
        "f1": max(token_f1(answer, results[0]) for answer in answers),
    }


def _figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the numbers, named as "acc" or, where a filter made them, "exact_match (strict)"."""
    named = {}
    for key, value in figures.items():
        name, _, kind = key.partition(",")
        if isinstance(value, int | float) and kind:
            named[name if kind == "none" else f"{name} ({kind})"] = value
    return named
