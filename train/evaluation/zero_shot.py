"""A language model asked in words, without training for the task: it writes an answer or chooses one by likelihood."""

from collections.abc import Sequence

import numpy as np
from jax.sharding import Mesh

from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.sampling import Prompts, score_choices
from model.transformer import Params
from train.distributed.placement import replicate, to_host
from train.generation.decode import prompt_batches
from train.trees import round_up

# Between an answered example and the next question.
BETWEEN = "\n\n"


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


def choose(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[list[int]],
    choices: Sequence[list[int]],
    tokenizer: Tokenizer,
    mesh: Mesh,
) -> np.ndarray:
    """Returns float32 (prompts, choices): the log-likelihood a token of each choice after each prompt, in nats."""
    # Each device of the `context` axis takes an equal part of a row.
    width = round_up(max(map(len, choices)), mesh.shape["context"])
    choices_CM = np.full((len(choices), width), tokenizer.pad_id, np.int32)
    weights_CM = np.zeros((len(choices), width), np.float32)
    for row, tokens in enumerate(choices):
        choices_CM[row, : len(tokens)] = tokens
        weights_CM[row, : len(tokens)] = 1.0
    scores = np.zeros((len(prompts), len(choices)), np.float32)
    for numbers, prompts_BP, lengths_B in prompt_batches(prompts, tokenizer.pad_id, mesh):
        arrays = replicate((prompts_BP, lengths_B, choices_CM, weights_CM), mesh)
        scores_BC = score_choices(config, params, Prompts(*arrays[:2]), *arrays[2:])
        scores[numbers] = to_host(scores_BC, mesh)[: len(numbers)]
    return scores
