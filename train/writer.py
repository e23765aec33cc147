"""A run that can write: its model, its tokenizer, and how it was taught to be spoken to."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from configs.errors import UserError
from data.templates import Message, end_of_turn, render
from data.tokenizer import Tokenizer, load_tokenizer
from model.config import ModelConfig
from model.heads import language_model
from model.sampling import Sampling, advance, for_inference, prefill
from model.transformer import Params
from train import run as runs
from train.decode import complete, everywhere, prompt_batches
from train.mesh import decoding_mesh, spread_mesh
from train.tasks.contract import load

# Tokens between two looks at what has been written.
_STEPS = 4


@dataclasses.dataclass(frozen=True)
class Writer:
    """A language model that is ready to write.

    Attributes:
        model: its architecture.
        params: its parameters.
        tokenizer: its tokenizer.
        template: how turns become tokens; "": a text is continued as it is.
        eos_id: ends what it writes.
        mesh: where it runs.
    """

    model: ModelConfig
    params: Params
    tokenizer: Tokenizer
    template: str
    eos_id: int
    mesh: Mesh

    def encode(self, messages: Sequence[Message], max_new_tokens: int) -> list[int]:
        """Returns the tokens after which the model is to write.

        Raises:
            UserError: they do not fit the context beside `max_new_tokens`.
        """
        room = self.model.context_length - max_new_tokens
        if self.template:
            tokens = render(messages, self.template, self.tokenizer, prompt=True).tokens
        else:
            tokens = self.tokenizer.encode_alone(messages[-1]["content"])
        if len(tokens) > room:
            raise UserError(
                f"the prompt has {len(tokens)} tokens; legal: at most {max(room, 0)}, the model's context of "
                f"{self.model.context_length} less --max_new_tokens={max_new_tokens}"
            )
        return tokens

    def write(
        self, prompts: Sequence[list[int]], max_new_tokens: int, sampling: Sampling, seed: int, stop: Sequence[str] = ()
    ) -> list[str]:
        """Returns what follows each prompt, up to the earliest of `stop`."""
        return complete(
            self.model,
            self.params,
            prompts,
            max_new_tokens,
            self.tokenizer,
            self.mesh,
            stop,
            self.eos_id,
            sampling,
            seed,
        )

    def stream(self, prompt: list[int], max_new_tokens: int, sampling: Sampling, seed: int) -> Iterator[str]:
        """Yields what follows a prompt in parts, as it is written."""
        _, rows, lengths = next(prompt_batches([prompt], self.tokenizer.pad_id, self.mesh))
        placed = everywhere((rows, lengths), self.mesh)
        steps = -(-max_new_tokens // _STEPS) * _STEPS
        state = prefill(self.model, self.params, *placed, jax.random.key(seed), sampling, max_new_tokens=steps)
        written: list[int] = []
        shown = ""
        while len(written) < max_new_tokens and not bool(state.done_B[0]):
            tokens, state = advance(self.model, self.params, state, sampling, steps=_STEPS, eos_id=self.eos_id)
            written += [token for token in np.asarray(tokens)[0].tolist() if token != self.eos_id]
            text = self.tokenizer.decode(written[:max_new_tokens])
            # The bytes of one character can be several tokens; a half one shows as U+FFFD.
            if not text.endswith("\ufffd"):
                yield text[len(shown) :]
                shown = text


def open_writer(directory: Path, template: str = "", spread: bool = False, cache_dtype: str = "") -> Writer:
    """Returns a run's writer, on all devices that can share its parameters.

    Args:
        directory: of the run.
        template: instead of the one that the run was fine-tuned with; "": that one, or none of a foundation model.
        cache_dtype: of the keys and values that are kept; "": the run's own `config.model.cache_dtype`.
        spread: share rows and parameters out as scoring wants it, not writing.

    Raises:
        UserError: its head does not write, or see `runs.load_params`.
    """
    record = runs.read_record(directory)
    tuned = record.stage == "finetune"
    if tuned and not load(record.task["name"]).language:
        raise UserError(
            f"--checkpoint={directory} is a {record.task['name']} model; "
            "legal: a pre-training run, or one of generation, chat or preference"
        )
    tokenizer = load_tokenizer(directory / "tokenizer")
    template = template or (record.task["template"] if tuned else "")
    eos_id = end_of_turn(template, tokenizer) if template else tokenizer.eos_id
    model = record.model
    if cache_dtype:
        model = dataclasses.replace(model, cache_dtype=cache_dtype)  # type: ignore[arg-type]
    mesh = (spread_mesh if spread else decoding_mesh)(jax.eval_shape(language_model(model).init, jax.random.key(0)))
    with jax.set_mesh(mesh):
        params = for_inference(model, runs.load_plain(directory, model, mesh, ("backbone", "head")))
    return Writer(model, params, tokenizer, template, eos_id, mesh)
