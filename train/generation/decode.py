"""Prompts in, texts out: batches of prompts of about one length, written on a mesh until each text has ended."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.sampling import Prompts, Sampling, advance, prefill
from model.transformer import Params
from train.distributed.placement import replicate, row_parts, to_host
from train.distributed.watchdog import tick
from train.trees import round_up

_PROMPTS_AT_ONCE = 32


# Prompts are padded to a multiple, so that a session of many prompts compiles few shapes.
_WIDTH_MULTIPLE = 64


# Tokens between two looks for what ends a text.
_STEPS = 16


def complete(
    config: ModelConfig,
    params: Params,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    tokenizer: Tokenizer,
    mesh: Mesh,
    stop: Sequence[str] = (),
    eos_id: int | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    seed: int = 0,
    after_text: bool = True,
) -> list[str]:
    """Returns a continuation of each prompt: by default the most likely one, token by token (greedy).

    Args:
        config: the model.
        params: `{"backbone", "head"}` of a language model.
        prompts: tokens, with bos.
        max_new_tokens: tokens a continuation at most.
        tokenizer: of the model.
        mesh: where it runs.
        stop: texts that end a continuation, the earliest of them; it is left out.
        eos_id: token that ends a continuation; the tokenizer's unless told.
        sampling: how tokens are drawn.
        seed: of the samples.
        after_text: a stop counts only after other text than blanks.
    """
    end = tokenizer.eos_id if eos_id is None else eos_id
    texts: dict[int, str] = {}
    for batch, (numbers, prompts_BP, lengths_B) in enumerate(prompt_batches(prompts, tokenizer.pad_id, mesh)):
        rng = jax.random.fold_in(jax.random.key(seed), batch)
        placed = Prompts(*replicate((prompts_BP, lengths_B), mesh))
        state = prefill(config, params, placed, rng, sampling, max_new_tokens=max_new_tokens)
        written: list[list[int]] = [[] for _ in numbers]
        left = max_new_tokens
        while left:
            steps = min(_STEPS, left) if stop else left
            left -= steps
            tokens_BM, state = advance(config, params, state, sampling, steps=steps, eos_id=end)
            tick("a batch of writing")
            for ids, more in zip(written, to_host(tokens_BM, mesh).tolist(), strict=False):
                ids += [token for token in more if token != end]
            cut = [before(tokenizer.decode(ids), stop, after_text) for ids in written]
            ended_B = np.ones(len(prompts_BP), bool)
            ended_B[: len(numbers)] = [ended for _, ended in cut]
            done_B = state.done_B | replicate((ended_B,), mesh)[0]
            if left and to_host(done_B, mesh).all():
                break
            state = state._replace(done_B=done_B)
        texts |= {number: text for number, (text, _) in zip(numbers, cut, strict=True)}
    return [texts[number] for number in range(len(prompts))]


def before(text: str, stop: Sequence[str], after_text: bool = True) -> tuple[str, bool]:
    """Returns what stands before the earliest of `stop`, and whether there was one; see `complete`."""
    first = len(text) - len(text.lstrip()) if after_text else 0
    ends = [place for end in stop if end and (place := text.find(end, first)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def prompt_batches(
    prompts: Sequence[list[int]], pad_id: int, mesh: Mesh
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yields (numbers, prompts_BP, lengths_B) of prompts of about one length, each at the end of its row.

    All batches have the same number of rows, which the mesh divides; the surplus repeats a batch's first prompt.
    """
    # A session of many prompts compiles few shapes: a batch of one, and full ones.
    size = round_up(_PROMPTS_AT_ONCE if len(prompts) > 1 else 1, row_parts(mesh))
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        rows = [prompts[number] for number in numbers]
        rows += [rows[0]] * (size - len(rows))
        yield numbers, *padded_prompts(rows, pad_id)


def padded_prompts(prompts: Sequence[list[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns prompts_BP, each at the end of its row, and lengths_B; P is a multiple of 64."""
    width = round_up(max(map(len, prompts)), _WIDTH_MULTIPLE)
    prompts_BP = np.full((len(prompts), width), pad_id, np.int32)
    for row, tokens in zip(prompts_BP, prompts, strict=True):
        row[width - len(tokens) :] = tokens
    return prompts_BP, np.array([len(tokens) for tokens in prompts], np.int32)
