"""Zero- and few-shot answers: a language model chooses among answers by likelihood, or generates one."""

from collections.abc import Sequence

import numpy as np

from configs.errors import UserError
from data.seams import encode_endings, split_spaces
from data.tokenizer import Tokenizer
from train.evaluation.continuations import continuation_likelihoods
from train.generation.decode import generate_text
from train.generation.language_model import GenerationOptions, LanguageModel

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
    asked = [
        few_shot_prompt(shots, question, choices, language_model.tokenizer, sequence_length, max_new_tokens)
        for question in questions
    ]
    prompts = [prompt for prompt, _ in asked]
    if not choices:
        texts = generate_text(language_model, prompts, GenerationOptions(max_new_tokens, stop=(_SEPARATOR,)))
        return [[text.strip()] for text in texts]
    scores = rank_choices(language_model, prompts, [answers for _, answers in asked])
    return [[choices[i] for i in np.argsort(-row, kind="stable")] for row in scores]


def few_shot_prompt(
    shots: Sequence[tuple[str, str]],
    question: str,
    choices: Sequence[str],
    tokenizer: Tokenizer,
    sequence_length: int,
    max_new_tokens: int,
) -> tuple[list[int], list[list[int]]]:
    """Returns the tokens of a question after as many answered examples as fit, and of each choice as its answer.

    Args:
        shots: (question, answer) of each example.
        question: cut at its start if it is too long.
        choices: answers to choose from; empty: the answer is generated.
        tokenizer: of the model.
        sequence_length: maximum number of tokens of prompt and answer together.
        max_new_tokens: number of tokens of a generated answer.

    Raises:
        UserError: the sequence length leaves no room for a question.
    """
    for count in range(len(shots), -1, -1):
        text = "".join(f"{shown} {answer}{_SEPARATOR}" for shown, answer in shots[:count]) + question
        if choices:
            prompt, answers = encode_endings(tokenizer.encode_prompt, text, [f" {choice}" for choice in choices])
        else:
            prompt, answers = tokenizer.encode_prompt(split_spaces(tokenizer, text)[0]), []
        prompt = prompt or [tokenizer.bos_id]
        answer_len = max(map(len, answers), default=max_new_tokens)
        if len(prompt) + answer_len <= sequence_length:
            return prompt, answers
    # The shortest prompt is bos and one token of the question.
    if sequence_length < answer_len + 2:
        raise UserError(
            f"config.sequence_length={sequence_length} leaves no room for a zero-shot question before an answer of "
            f"{answer_len} tokens; use at least {answer_len + 2}, or config.task.zero_shot_rows=0"
        )
    bos = prompt[: tokenizer.starts_with_bos]
    return [*bos, *prompt[len(bos) + answer_len - sequence_length :]], answers


def rank_choices(
    language_model: LanguageModel, prompts: Sequence[list[int]], choices: Sequence[Sequence[list[int]]]
) -> np.ndarray:
    """Returns float32 (prompts, choices): the log-likelihood of each choice after each prompt, in nats per token.

    Args:
        language_model: the model.
        prompts: tokens of each prompt.
        choices: tokens of the choices for each prompt: the same number for all.
    """
    found = continuation_likelihoods(language_model, prompts, choices)
    return np.array(
        [
            [score.nats / len(tokens) for score, tokens in zip(scores, answers, strict=True)]
            for scores, answers in zip(found, choices, strict=True)
        ],
        np.float32,
    )
