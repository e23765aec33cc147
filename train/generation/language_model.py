"""A run that can write: its model, its tokenizer, and how it was taught to be spoken to."""

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from configs.errors import UserError
from data.templates import Message, render
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.sampling import Prompts, Sampling, advance, prefill
from model.transformer import Params
from train.distributed.placement import replicate
from train.generation.decode import complete, prompt_batches

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
            tokens = self.tokenizer.encode_prompt(messages[-1]["content"])
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
        placed = Prompts(*replicate((rows, lengths), self.mesh))
        steps = -(-max_new_tokens // _STEPS) * _STEPS
        state = prefill(self.model, self.params, placed, jax.random.key(seed), sampling, max_new_tokens=steps)
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


def continuations(
    writer: Writer, prompts: list[str], max_new_tokens: int, sampling: Sampling, seed: int, stop: Sequence[str] = ()
) -> list[str]:
    """Returns the continuation of each prompt; the answer, of a model that was fine-tuned to write one.

    Raises:
        UserError: a prompt that does not fit the context.
    """
    encoded = [writer.encode([{"role": "user", "content": prompt}], max_new_tokens) for prompt in prompts]
    return writer.write(encoded, max_new_tokens, sampling, seed, stop)
