"""A language model asked in words, without training for the task: it writes an answer or chooses one by likelihood."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.sampling import generate, score_choices
from model.transformer import Params
from train.mesh import replicated

# Between an answered example and the next question.
BETWEEN = "\n\n"
_PROMPTS_AT_ONCE = 32
# Prompts are padded to a multiple, so that a session of many prompts compiles few shapes.
_WIDTH_MULTIPLE = 64


def few_shot_prompt(shots: Sequence[tuple[str, str]], prompt: str, tokenizer: Tokenizer, room: int) -> list[int]:
    """Returns the tokens of answered examples and a question, of as many examples as fit.

    Args:
        shots: (prompt, answer) of each example.
        prompt: the question.
        tokenizer: of the model.
        room: tokens at most; a question that is longer loses its start.
    """
    asked = tokenizer.encode(prompt)[-(room - 1) :]
    shown = [tokenizer.encode(f"{question} {answer}{BETWEEN}") for question, answer in shots]
    while shown and sum(map(len, shown)) + len(asked) + 1 > room:
        shown.pop()
    return [tokenizer.bos_id, *(token for example in shown for token in example), *asked]


def complete(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    tokenizer: Tokenizer,
    mesh: Mesh,
    stop: str = "",
    eos_id: int | None = None,
) -> list[str]:
    """Returns the most likely continuation of each prompt, token by token (greedy).

    Args:
        config: the model.
        params: `{"backbone", "head"}` of a language model.
        prompts: tokens, with bos.
        max_new_tokens: tokens a continuation at most.
        tokenizer: of the model.
        mesh: where it runs.
        stop: text that ends a continuation where it occurs after other text; it is left out. "": none.
        eos_id: token that ends a continuation; the tokenizer's unless told.
    """
    end = tokenizer.eos_id if eos_id is None else eos_id
    texts: dict[int, str] = {}
    for numbers, prompts_BP, lengths_B in _batches(prompts, tokenizer.pad_id):
        tokens_BM = generate(
            config,
            params,
            *_everywhere((prompts_BP, lengths_B), mesh),
            jax.random.key(0),
            jnp.float32(0.0),
            max_new_tokens=max_new_tokens,
            top_k=0,
            eos_id=end,
        )
        for number, tokens in zip(numbers, _whole(tokens_BM, mesh), strict=False):
            text = tokenizer.decode([int(token) for token in tokens if token != end]).strip()
            texts[number] = text.partition(stop)[0].strip() if stop else text
    return [texts[number] for number in range(len(prompts))]


def choose(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[list[int]],
    choices: Sequence[list[int]],
    tokenizer: Tokenizer,
    mesh: Mesh,
) -> np.ndarray:
    """Returns float32 (prompts, choices): the log-likelihood a token of each choice after each prompt, in nats."""
    width = max(map(len, choices))
    choices_CM = np.full((len(choices), width), tokenizer.pad_id, np.int32)
    weights_CM = np.zeros((len(choices), width), np.float32)
    for row, tokens in enumerate(choices):
        choices_CM[row, : len(tokens)] = tokens
        weights_CM[row, : len(tokens)] = 1.0
    scores = np.zeros((len(prompts), len(choices)), np.float32)
    for numbers, prompts_BP, lengths_B in _batches(prompts, tokenizer.pad_id):
        arrays = _everywhere((prompts_BP, lengths_B, choices_CM, weights_CM), mesh)
        scores[numbers] = _whole(score_choices(config, params, *arrays), mesh)[: len(numbers)]
    return scores


def _batches(prompts: Sequence[list[int]], pad_id: int) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yields (numbers, prompts_BP, lengths_B) of prompts of about one length, each at the end of its row.

    All batches have the same number of rows; the last one's surplus repeats its first prompt.
    """
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for start in range(0, len(order), _PROMPTS_AT_ONCE):
        numbers = order[start : start + _PROMPTS_AT_ONCE]
        rows = [prompts[number] for number in numbers]
        rows += [rows[0]] * (_PROMPTS_AT_ONCE - len(rows))
        width = -(-max(map(len, rows)) // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
        prompts_BP = np.full((len(rows), width), pad_id, np.int32)
        for row, tokens in zip(prompts_BP, rows, strict=True):
            row[width - len(tokens) :] = tokens
        yield numbers, prompts_BP, np.array([len(tokens) for tokens in rows], np.int32)


def _everywhere(arrays: tuple[np.ndarray, ...], mesh: Mesh) -> tuple[jax.Array, ...]:
    """Returns the arrays whole on every device of the mesh; all processes have the same."""
    return tuple(jax.make_array_from_callback(a.shape, replicated(mesh), a.__getitem__) for a in arrays)


def _whole(x: jax.Array, mesh: Mesh) -> np.ndarray:
    """Returns an array that may be laid out over several processes."""
    return np.asarray(jax.device_put(x, replicated(mesh)))
