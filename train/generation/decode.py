"""Prompts in, texts out: prompts of similar length are decoded in batches until every text has ended."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from data.seams import split_spaces
from model.sampling import Prompts, advance, prefill
from train.distributed.placement import replicate, row_parts, to_host
from train.distributed.watchdog import tick
from train.generation.language_model import GenerationOptions, LanguageModel
from train.generation.stopping import stream_until_stop, text_until_stop
from train.trees import round_up

_BATCH_SIZE = 32
# Prompts of a part are sorted by length into batches; its texts are handed out when all of them are there.
_PART_BATCHES = 8
# Prompts are padded to a multiple of this, so that prompts of all lengths compile few shapes.
_WIDTH_MULTIPLE = 64
# Decoding steps between two searches for stop strings, in a batch and in a stream.
_BATCH_STEPS = 16
_STREAM_STEPS = 4


def continuations(
    language_model: LanguageModel, prompts: Sequence[str], options: GenerationOptions, raw: bool = False
) -> list[str]:
    """Returns the continuation of each prompt, or the answer to it if the model has a chat template.

    Args:
        language_model: the model.
        prompts: texts to continue, or messages to answer.
        options: how texts are generated.
        raw: continue the prompts even if the model has a chat template; names of special tokens are these tokens.

    Raises:
        UserError: a prompt does not fit the model's context.
    """
    return [text for part in parts_of_continuations(language_model, prompts, options, raw) for text in part]


def parts_of_continuations(
    language_model: LanguageModel, prompts: Sequence[str], options: GenerationOptions, raw: bool = False, done: int = 0
) -> Iterator[list[str]]:
    """Yields `continuations` in parts, in the order of the prompts; all prompts are checked before the first one.

    Args:
        language_model: the model.
        prompts: see `continuations`.
        options: how texts are generated.
        raw: see `continuations`.
        done: number of prompts whose texts are there already, from parts of an earlier call.

    Raises:
        UserError: a prompt does not fit the model's context.
    """
    if language_model.template and not raw:
        chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
        encoded = [language_model.encode(chat, options.max_new_tokens) for chat in chats]
        # The space before an answer can be a part of its first token.
        spaces = [" "] * len(prompts)
    else:
        # A space at the end of a prompt is a part of the first generated token.
        pairs = [split_spaces(language_model.tokenizer, prompt) for prompt in prompts]
        encoded = [language_model.encode_text(prompt, options.max_new_tokens, raw) for prompt, _ in pairs]
        spaces = [after for _, after in pairs]
    for start in range(done, len(prompts), _PART_BATCHES * _BATCH_SIZE):
        part = slice(start, start + _PART_BATCHES * _BATCH_SIZE)
        texts = generate_text(language_model, encoded[part], options, start // _BATCH_SIZE)
        yield [without_spaces(text, len(space)) for text, space in zip(texts, spaces[part], strict=True)]


def without_spaces(text: str, most: int) -> str:
    """Returns a generated text without the spaces, up to `most`, that its prompt ends with."""
    return text[min(len(text) - len(text.lstrip(" ")), most) :]


def generate_text(
    language_model: LanguageModel, prompts: Sequence[list[int]], options: GenerationOptions, first_batch: int = 0
) -> list[str]:
    """Returns the text generated after each prompt.

    Args:
        language_model: the model.
        prompts: tokens, with bos.
        options: how texts are generated.
        first_batch: number of the first batch; each number has its own random numbers.
    """
    texts: dict[int, str] = {}
    pad_id = language_model.tokenizer.pad_id
    for i, batch in enumerate(prompt_batches(prompts, pad_id, language_model.mesh), first_batch):
        rng = jax.random.fold_in(jax.random.key(options.seed), i)
        texts |= _generate_batch(language_model, batch, rng, options)
    return [texts[number] for number in range(len(prompts))]


def _generate_batch(
    language_model: LanguageModel,
    batch: tuple[list[int], np.ndarray, np.ndarray],
    rng: jax.Array,
    options: GenerationOptions,
) -> dict[int, str]:
    """Returns index of the prompt -> generated text, for one batch of `prompt_batches`."""
    model, params, mesh = language_model.model, language_model.params, language_model.mesh
    numbers, prompts_BP, lengths_B = batch
    placed = Prompts(*replicate((prompts_BP, lengths_B), mesh))
    state = prefill(model, params, placed, rng, options.sampling, max_new_tokens=options.max_new_tokens)
    generated: list[list[int]] = [[] for _ in numbers]
    texts = [""] * len(numbers)
    left = options.max_new_tokens
    while left:
        steps = min(_BATCH_STEPS, left) if options.stop else left
        left -= steps
        tokens_BM, state = advance(model, params, state, options.sampling, steps=steps, end_ids=language_model.end_ids)
        tick("a batch of generated text")
        for ids, more in zip(generated, to_host(tokens_BM, mesh).tolist(), strict=False):
            ids += [token for token in more if token not in language_model.end_ids]
        # Surplus rows of the batch count as ended.
        ended_B = np.ones(len(prompts_BP), bool)
        for i, ids in enumerate(generated):
            prompt = prompts_BP[i, -lengths_B[i] :].tolist()
            texts[i], ended_B[i] = text_until_stop(language_model.tokenizer, prompt, ids, options)
        done_B = state.done_B | replicate((ended_B,), mesh)[0]
        if left and to_host(done_B, mesh).all():
            break
        state = state._replace(done_B=done_B)
    return dict(zip(numbers, texts, strict=True))


def stream_text(language_model: LanguageModel, prompt: list[int], options: GenerationOptions) -> Iterator[str]:
    """Yields the text generated after a prompt in parts, as it is generated; together, they are all of the text."""
    yield from stream_until_stop(_growing_text(language_model, prompt, options), options.stop)


def _growing_text(
    language_model: LanguageModel, prompt: list[int], options: GenerationOptions
) -> Iterator[tuple[str, bool]]:
    """Yields (the text so far, whether it ended with a stop string)."""
    model, params, tokenizer = language_model.model, language_model.params, language_model.tokenizer
    _, rows, lengths = next(prompt_batches([prompt], tokenizer.pad_id, language_model.mesh))
    placed = Prompts(*replicate((rows, lengths), language_model.mesh))
    steps = round_up(options.max_new_tokens, _STREAM_STEPS)
    rng = jax.random.key(options.seed)
    state = prefill(model, params, placed, rng, options.sampling, max_new_tokens=steps)
    generated: list[int] = []
    while len(generated) < options.max_new_tokens and not bool(state.done_B[0]):
        tokens, state = advance(
            model, params, state, options.sampling, steps=_STREAM_STEPS, end_ids=language_model.end_ids
        )
        generated += [token for token in np.asarray(tokens)[0].tolist() if token not in language_model.end_ids]
        yield text_until_stop(tokenizer, prompt, generated[: options.max_new_tokens], options)


def prompt_batches(
    prompts: Sequence[list[int]], pad_id: int, mesh: Mesh
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Yields (indices of the prompts, prompts_BP, lengths_B) of prompts of similar length, each right-aligned.

    All batches have the same number of rows, a multiple of what the mesh needs; surplus rows repeat the first prompt.
    """
    # A single prompt, or full batches: few shapes to compile.
    size = round_up(_BATCH_SIZE if len(prompts) > 1 else 1, row_parts(mesh))
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        rows = [prompts[number] for number in numbers]
        rows += [rows[0]] * (size - len(rows))
        yield numbers, *padded_prompts(rows, pad_id)


def padded_prompts(prompts: Sequence[list[int]], pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns right-aligned prompts_BP, and lengths_B; P is a multiple of 64."""
    width = round_up(max(map(len, prompts)), _WIDTH_MULTIPLE)
    prompts_BP = np.full((len(prompts), width), pad_id, np.int32)
    for row, tokens in zip(prompts_BP, prompts, strict=True):
        row[width - len(tokens) :] = tokens
    return prompts_BP, np.array([len(tokens) for tokens in prompts], np.int32)
