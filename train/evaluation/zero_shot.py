"""Zero- and few-shot answers: a language model chooses among answers by likelihood, or generates one."""

from collections.abc import Sequence

import numpy as np

from configs.errors import UserError
from data.tokenizer import Tokenizer
from model.sampling import Prompts, score_choices
from train.distributed.placement import replicate, to_host
from train.generation.decode import generate_text, prompt_batches
from train.generation.language_model import GenerationOptions, LanguageModel
from train.trees import round_up

# Separates an answered example from the next question.
_SEPARATOR = "\n\n"


def answer_questions(
    language_model: LanguageModel,
    questions: Sequence[str],
    shots: Sequence[tuple[str, str]],
    choices: Sequence[str],
    max_new_tokens: int,
    sequence_length: int,
) -> list[list[str]]:
    """Returns the answers to each question: the choices by likelihood, or one greedily generated text.

    Args:
        language_model: the model.
        questions: as text.
        shots: (question, answer) of the examples shown before each question.
        choices: answers to choose from; empty: the model generates its answer.
        max_new_tokens: maximum length of a generated answer.
        sequence_length: maximum length of prompt and answer together; prompts are cut to it.

    Raises:
        UserError: the sequence length leaves no room for a question.
    """
    tokenizer = language_model.tokenizer
    ids = tokenizer.encode_batch([f" {choice}" for choice in choices])
    answer_len = max(map(len, ids), default=max_new_tokens)
    # The shortest prompt is bos and one token of the question.
    if sequence_length < answer_len + 2:
        raise UserError(
            f"config.sequence_length={sequence_length} leaves no room for a zero-shot question before an answer of "
            f"{answer_len} tokens; use at least {answer_len + 2}, or config.task.zero_shot_rows=0"
        )
    prompts = [few_shot_prompt(shots, question, tokenizer, sequence_length - answer_len) for question in questions]
    if not choices:
        texts = generate_text(language_model, prompts, GenerationOptions(max_new_tokens, stop=(_SEPARATOR,)))
        return [[text.strip()] for text in texts]
    scores = rank_choices(language_model, prompts, ids)
    return [[choices[i] for i in np.argsort(-row, kind="stable")] for row in scores]


def few_shot_prompt(
    shots: Sequence[tuple[str, str]], question: str, tokenizer: Tokenizer, max_prompt_len: int
) -> list[int]:
    """Returns the tokens of a question after as many answered examples as fit.

    Args:
        shots: (question, answer) of each example.
        question: cut at its start if it is too long.
        tokenizer: of the model.
        max_prompt_len: maximum number of tokens.
    """
    asked = tokenizer.encode(question)[-(max_prompt_len - 1) :]
    shown = [tokenizer.encode(f"{prompt} {answer}{_SEPARATOR}") for prompt, answer in shots]
    while shown and sum(map(len, shown)) + len(asked) + 1 > max_prompt_len:
        shown.pop()
    return [tokenizer.bos_id, *(token for example in shown for token in example), *asked]


def rank_choices(
    language_model: LanguageModel, prompts: Sequence[list[int]], choices: Sequence[list[int]]
) -> np.ndarray:
    """Returns float32 (prompts, choices): the log-likelihood of each choice after each prompt, in nats per token."""
    mesh, pad_id = language_model.mesh, language_model.tokenizer.pad_id
    # Each device of the `context` axis takes an equal part of a row.
    width = round_up(max(map(len, choices)), mesh.shape["context"])
    choices_CM = np.full((len(choices), width), pad_id, np.int32)
    weights_CM = np.zeros((len(choices), width), np.float32)
    for row, tokens in enumerate(choices):
        choices_CM[row, : len(tokens)] = tokens
        weights_CM[row, : len(tokens)] = 1.0
    scores = np.zeros((len(prompts), len(choices)), np.float32)
    for numbers, prompts_BP, lengths_B in prompt_batches(prompts, pad_id, mesh):
        arrays = replicate((prompts_BP, lengths_B, choices_CM, weights_CM), mesh)
        scores_BC = score_choices(language_model.model, language_model.params, Prompts(*arrays[:2]), *arrays[2:])
        scores[numbers] = to_host(scores_BC, mesh)[: len(numbers)]
    return scores
