"""Runs EleutherAI's lm-evaluation-harness on a language model, in this process; used by `evaluate --tasks`.

Tokenization, the prefix token and truncation follow the harness's own Hugging Face backend, so that the same weights
get the same scores.
"""

import dataclasses
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
from data.columns import RowRules, answers_of, column, is_missing, is_parts, text_of
from data.examples import Segment, sliding_windows, text_segment
from data.marked import GUARD, encode_marked
from data.readers import read_placed_rows
from data.seams import encode_endings
from data.templates import render_text
from model.sampling import Sampling
from train.evaluation.contamination import LookUp, harness_figures
from train.evaluation.continuations import continuation_likelihoods
from train.evaluation.likelihood import likelihoods
from train.evaluation.squad import exact_match, token_f1
from train.generation.decode import generate_text
from train.generation.language_model import GenerationOptions, LanguageModel

_LABEL = "label"
_ANSWERS = "answers"  # the column of the correct answers: texts, or SQuAD's answers
Pair = tuple[Any, list[int], list[int]]  # (texts, tokens of the context, of the continuation)


class Harness(TemplateLM):
    """The model interface of the harness."""

    backend = "causal"

    def __init__(self, language_model: LanguageModel) -> None:
        super().__init__()
        self.language_model = language_model
        self._context = language_model.model.context_length

    @property
    def eot_token_id(self) -> int:
        """The token that ends a generated text."""
        return self.language_model.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        return self.language_model.tokenizer.bos_id

    @property
    def tokenizer_name(self) -> str:
        """Identifies the tokenizer in the harness's caches."""
        return self.language_model.tokenizer.sha256

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Returns the name of the chat template."""
        return self.language_model.template

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns a conversation in the model's chat template.

        Raises:
            UserError: the model has no template, or the template does not allow these turns.
        """
        template, tokenizer = self.language_model.template, self.language_model.tokenizer
        if not template:
            raise UserError("--chat: the model has no chat template; use a model that was fine-tuned with one")
        return render_text(chat_history, template, tokenizer, prompt=add_generation_prompt)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:  # noqa: ANN401
        """Returns the tokens of a text that may name special tokens, after bos if the tokenizer adds one."""
        tokenizer = self.language_model.tokenizer
        if GUARD in string:  # a chat in which a message contains the name of a token
            tokens = encode_marked(string, tokenizer)
        else:
            tokens, _places = tokenizer.encode_with_specials(string)
        return tokens if add_special_tokens is False else tokenizer.after_bos(tokens)

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns (log-likelihood in nats, whether greedy decoding would generate it) of each continuation."""
        endings: dict[str, list[str]] = {}
        for request in requests:
            endings.setdefault(request.args[0], []).append(request.args[1])
        encoded: dict[tuple[str, str], tuple[list[int], list[int]]] = {}
        for context, several in endings.items():
            before, after = self._encode_endings(context, several)
            encoded |= {(context, ending): (before, tokens) for ending, tokens in zip(several, after, strict=True)}
        return self._loglikelihood_tokens([(request.args, *encoded[request.args]) for request in requests])

    def _encode_endings(self, context: str, endings: Sequence[str]) -> tuple[list[int], list[list[int]]]:
        """Returns the tokens of a context and of the texts that may follow; a text without a context follows bos."""
        prefix = [self.prefix_token_id]
        if context:
            before, after = encode_endings(self.tok_encode, context, endings)
            return before or prefix, after
        tokens = [self.tok_encode(ending, add_special_tokens=False) for ending in endings]
        return prefix, [ids[1:] if ids[:1] == prefix else ids for ids in tokens]

    def _loglikelihood_tokens(self, requests: Sequence[Pair], **_: Any) -> list[tuple[float, bool]]:  # noqa: ANN401
        """Returns (log-likelihood in nats, whether greedy decoding would generate it) of each continuation."""
        pairs = [(context, more) for _, context, more in requests]
        room = self._context + 1  # the last token is not read
        fitting = {n: pair for n, pair in enumerate(pairs) if all(pair) and len(pair[0]) + len(pair[1]) <= room}
        others = [number for number in range(len(pairs)) if number not in fitting]
        segments = [_continuation(*pairs[number], self._context) for number in others]
        found = dict(zip(others, ((nats, greedy) for nats, _, greedy in self._scored(segments)), strict=True))
        found |= self._after_shared_contexts(fitting)
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("loglikelihood", request[0], found[number])
        return [found[number] for number in range(len(requests))]

    def _after_shared_contexts(self, pairs: Mapping[int, tuple[list[int], list[int]]]) -> dict[int, tuple[float, bool]]:
        """Returns the score of each continuation; a context that several of them follow is read once."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, (context, _) in pairs.items():
            groups.setdefault(tuple(context), []).append(number)
        continuations = [[pairs[number][1] for number in numbers] for numbers in groups.values()]
        found = continuation_likelihoods(self.language_model, list(map(list, groups)), continuations)
        return {
            number: (score.nats, score.greedy)
            for numbers, scores in zip(groups.values(), found, strict=True)
            for number, score in zip(numbers, scores, strict=True)
        }

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each complete text, in nats."""
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
        found = likelihoods(self.language_model, segments)
        return list(zip(found.nats.tolist(), found.targets.tolist(), found.greedy.tolist(), strict=True))

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns the text generated after each context, up to the first of its stop strings."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        generated: dict[int, str] = {}
        for numbers in groups.values():
            texts = self._generated([requests[n].args[0] for n in numbers], requests[numbers[0]].args[1])
            generated |= dict(zip(numbers, texts, strict=True))
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, generated[number])
        return [generated[number] for number in range(len(requests))]

    def _generated(self, contexts: list[str], arguments: dict[str, Any]) -> list[str]:
        tokenizer = self.language_model.tokenizer
        how = normalize_gen_kwargs(arguments, 256)
        max_prompt_len = self._context - how["max_gen_toks"]
        if max_prompt_len <= 0:
            raise UserError(
                f"a task generates {how['max_gen_toks']} new tokens; "
                f"expected fewer than the model's context of {self._context}"
            )
        temperature = how.get("temperature", 1.0 if how.get("do_sample") else 0.0)
        filters = {name: how[name] for name in ("top_k", "top_p", "min_p", "repetition_penalty") if name in how}
        sampling = Sampling(temperature, **filters)
        prompts = [self.tok_encode(context)[-max_prompt_len:] for context in contexts]
        until = [*how["until"], *map(tokenizer.token_name, self.language_model.end_ids)]
        options = GenerationOptions(how["max_gen_toks"], sampling, stop=tuple(how["until"]), stop_at_start=True)
        texts = generate_text(self.language_model, prompts, options)
        return [postprocess_generated_text(text, until, None) for text in texts]


def _continuation(context: list[int], more: list[int], context_length: int) -> Segment:
    """Returns the segment whose targets are the continuation's tokens; a long context is cut at its start."""
    tokens = (context + more)[-(context_length + 1) :]
    return text_segment(tokens, [place >= len(tokens) - len(more) for place in range(len(tokens))])


@dataclasses.dataclass(frozen=True)
class HarnessOptions:
    """How tasks are evaluated.

    Attributes:
        folders: folders of task files; those with `metadata.columns` read the rows of `data`.
        shots: answered examples before each question; None: as each task file says.
        limit: rows per task: the harness's first ones, or ours drawn at random; 0: all.
        data: {"test": rows of the questions, "train": rows to show, optional}.
        chat: put each question into the model's chat template.
        look_up: looks for the questions in the training text; None: they are not looked for.
    """

    folders: Sequence[str]
    shots: int | None = None
    limit: int = 0
    data: Mapping[str, str] = dataclasses.field(default_factory=dict)
    chat: bool = False
    look_up: LookUp | None = None


def evaluate(language_model: LanguageModel, tasks: Sequence[str], options: HarnessOptions) -> dict[str, dict[str, Any]]:
    """Returns {task: its metrics under the harness's names, with "num_fewshot" and "rows"}.

    Args:
        language_model: the model.
        tasks: names of the harness's tasks or of task files.
        options: see `HarnessOptions`.

    Raises:
        UserError: an unknown task, or data that cannot be read.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # The harness would fork for its bootstrap, which JAX's threads do not survive.
    os.environ["DISABLE_MULTIPROC"] = "1"
    own = TaskManager(include_path=list(options.folders), include_defaults=False)
    manager = own if set(tasks) <= set(own.all_tasks) else TaskManager(include_path=list(options.folders))
    for name in tasks:
        if manager.match_tasks([name]) != [name]:
            expected = f"{', '.join(own.all_tasks)}, or a task of the harness"
            hint = did_you_mean(name, manager.all_tasks)
            raise UserError(f"--tasks: {name!r} is unknown{hint}; expected one of {expected}")
    configs = {name: own.task_index[name].cfg or {} for name in own.all_tasks}
    rules = RowRules(clean=language_model.cleans_text)
    given = [_with_rows(configs[name], options.data, rules) if name in configs else name for name in tasks]
    if options.data and all(isinstance(task, str) for task in given):
        raise UserError(
            f"--data has no effect for --tasks={','.join(tasks)}: they have their own data sets; expected a task file "
            "whose metadata.columns names the columns of --data, or no --data"
        )
    with jax.set_mesh(language_model.mesh):
        try:
            found = simple_evaluate(
                model=Harness(language_model),
                tasks=given,
                num_fewshot=options.shots,
                limit=options.limit or None,
                task_manager=manager,
                apply_chat_template=options.chat,
                log_samples=options.look_up is not None,
                bootstrap_iters=1000,
            )
        # `datasets` and the Hub's client raise many types if a dataset or the Hub is not available.
        except (OSError, ValueError, ConnectionError) as error:
            raise UserError(f"--tasks={','.join(tasks)}: {' '.join(str(error).split())[:300]}") from None
    assert found is not None
    results = {name: _figures(figures) for name, figures in found["results"].items()}
    for name, figures in results.items():
        figures |= {"num_fewshot": found["n-shot"].get(name), "rows": found["n-samples"].get(name, {}).get("effective")}
        if options.look_up is not None and name in found["samples"]:
            figures |= harness_figures(found["samples"][name], options.look_up)
    return results


def _with_rows(config: Mapping[str, Any], data: Mapping[str, str], rules: RowRules) -> str | dict[str, Any]:
    """Returns a task file's config with its rows, or its name if it names its own dataset."""
    name, metadata = config["task"], config.get("metadata") or {}
    if "columns" not in metadata:
        if not any(config.get(key) for key in ("dataset_path", "custom_dataset", "include")):
            raise UserError(
                f"--tasks: the file of task {name!r} has no rows; expected metadata.columns, the columns of --data "
                "that it reads, or dataset_path, a data set of the Hub"
            )
        return name
    if "test" not in data:
        columns = ", ".join(metadata["columns"])
        raise UserError(f"--data is missing: task {name!r} reads rows with the columns {columns}")
    read = {split: _read(path, metadata["columns"], rules) for split, path in data.items()}
    # The choices are those of the task, not of the rows that happen to be scored.
    labels = sorted({row[_LABEL] for rows in read.values() for row in rows if _LABEL in row})
    if len(labels) == 1:
        raise UserError(
            f"{', '.join(data.values())}: all rows have the label {labels[0]!r}; expected at least two labels, in "
            "--data or --shots_data"
        )
    rows = {split: _dataset(data[split], rows, labels) for split, rows in read.items()}
    filled = {**config, "custom_dataset": lambda **_: rows, "fewshot_split": "test"}
    if "train" in rows:
        filled |= {"training_split": "train", "fewshot_split": "train"}
    return filled | ({"process_results": _squad} if metadata.get("scorer") == "squad" else {})


def _read(path: str, columns: Sequence[str], rules: RowRules) -> list[dict[str, Any]]:
    """Returns the rows of a file, shuffled."""
    rows: list[dict[str, Any]] = []
    for place, row in read_placed_rows(path):
        try:
            rows.append({n: _value(column(row, n, "a column of that name"), n, rules) for n in columns})
        except UserError as error:
            raise UserError(f"{place}: {error}") from None
    if not rows:
        raise UserError(f"{path} contains no rows")
    # A limit takes the first rows, and files are often sorted by label.
    random.Random(0).shuffle(rows)
    return rows


def _dataset(path: str, rows: list[dict[str, Any]], labels: list[str]) -> Dataset:
    """Returns rows with the added columns that task files read: "choices", "answer" and "first_answer".

    A column of texts and numbers becomes one of texts.

    Raises:
        UserError: lists of a column have items of different types.
    """
    texts = {name for row in rows for name, value in row.items() if isinstance(value, str)}
    rows = [{n: str(v) if n in texts and not isinstance(v, list) else v for n, v in row.items()} for row in rows]
    if labels:
        names = [label.replace("_", " ") for label in labels]
        rows = [row | {"choices": names, "answer": labels.index(row[_LABEL])} for row in rows]
    if rows and _ANSWERS in rows[0]:
        rows = [row | {"first_answer": next(iter(row[_ANSWERS]), "")} for row in rows]
    try:
        return Dataset.from_list(rows)
    except (TypeError, ValueError) as error:  # pyarrow's errors
        raise UserError(f"{path}: {error}; expected values of one type in each column") from None


def _value(value: object, name: str, rules: RowRules) -> object:
    """Returns a value as text, or as it is if a template may need it: a number, such as an index, or a list of choices.

    Raises:
        UserError: the value is missing, an object or of another type that is not text.
    """
    if name == _ANSWERS:
        return answers_of(value, name, rules)
    if isinstance(value, list) and not is_parts(value):
        return [_value(item, name, rules) for item in value]
    keeps_type = isinstance(value, int | float) and not isinstance(value, bool) and not is_missing(value)
    return value if keeps_type and name != _LABEL else text_of(value, repr(name), rules)


def _squad(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Returns SQuAD's scores against the correct answer that matches best."""
    answers = doc[_ANSWERS] or [""]
    return {
        "exact_match": max(exact_match(answer, results[0]) for answer in answers),
        "f1": max(token_f1(answer, results[0]) for answer in answers),
    }


def _figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the metrics under names such as "acc" or, for a filtered one, "exact_match (strict)"."""
    named = {}
    for key, value in figures.items():
        name, _, kind = key.partition(",")
        if isinstance(value, int | float) and kind:
            named[name if kind == "none" else f"{name} ({kind})"] = value
    return named
