"""A language model ready to generate: parameters, tokenizer and chat template."""

import dataclasses
from collections.abc import Sequence

from jax.sharding import Mesh

from configs.errors import UserError
from data.cleaning import clean
from data.templates import Message, render
from data.tokenizer import Tokenizer
from model.config import ModelConfig
from model.sampling import Sampling
from model.transformer import Params


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """A language model ready to generate.

    Attributes:
        model: its architecture.
        params: `{"backbone", "head"}`, on `mesh`.
        tokenizer: its tokenizer.
        template: the chat template; "": prompts are continued as plain text.
        eos_id: the token that ends a generated text; see also `end_ids`.
        mesh: the devices it runs on.
        cleans_text: prompts and other texts are cleaned, because the text that it was trained on was.
    """

    model: ModelConfig
    params: Params
    tokenizer: Tokenizer
    template: str
    eos_id: int
    mesh: Mesh
    cleans_text: bool = True

    def cleaned(self, text: str) -> str:
        """Returns a text as the model's training text was: cleaned, or as it is."""
        return clean(text) if self.cleans_text else text

    @property
    def end_ids(self) -> tuple[int, ...]:
        """All tokens that end a generated text: `eos_id`, and those of the tokenizer."""
        return tuple(dict.fromkeys((self.eos_id, self.tokenizer.eos_id, *self.tokenizer.end_ids)))

    def encode(self, messages: Sequence[Message], max_new_tokens: int) -> list[int]:
        """Returns the prompt tokens of a conversation; without a template, those of its last message.

        Raises:
            UserError: the prompt and `max_new_tokens` together exceed the model's context.
        """
        if not self.template:
            return self.encode_text(messages[-1]["content"], max_new_tokens)
        return self._checked(self.chat_tokens(messages), max_new_tokens)

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Returns the prompt tokens of a conversation in the chat template, of any number.

        Raises:
            UserError: the template cannot render the messages.
        """
        messages = [{**message, "content": self.cleaned(message["content"])} for message in messages]
        return render(messages, self.template, self.tokenizer, prompt=True).tokens

    def encode_text(self, text: str, max_new_tokens: int, raw: bool = False) -> list[int]:
        """Returns the tokens of a prompt to continue; see `encode`.

        Args:
            text: the prompt.
            max_new_tokens: number of tokens to generate.
            raw: names of special tokens in the text are these tokens.
        """
        return self._checked(self.text_tokens(text, raw), max_new_tokens)

    def text_tokens(self, text: str, raw: bool = False) -> list[int]:
        """Returns the tokens of a prompt to continue, of any number; see `encode_text`."""
        encode = self.tokenizer.encode_raw_prompt if raw else self.tokenizer.encode_prompt
        return encode(self.cleaned(text))

    def _checked(self, tokens: list[int], max_new_tokens: int) -> list[int]:
        max_prompt_len = self.model.context_length - max_new_tokens
        if not tokens:
            raise UserError("the prompt has no tokens; expected some text, since the model has no token for a start")
        if len(tokens) > max_prompt_len:
            raise UserError(
                f"the prompt has {len(tokens)} tokens; expected at most {max(max_prompt_len, 0)}, the model's context "
                f"of {self.model.context_length} minus --max_new_tokens={max_new_tokens}"
            )
        return tokens


@dataclasses.dataclass(frozen=True)
class GenerationOptions:
    """How texts are generated.

    Attributes:
        max_new_tokens: maximum number of generated tokens per text.
        sampling: how tokens are drawn; the default is greedy decoding.
        seed: of the samples.
        stop: a text ends before the first of these strings.
        stop_at_start: a stop string also counts before any text other than white space.
    """

    max_new_tokens: int
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen
    seed: int = 0
    stop: tuple[str, ...] = ()
    stop_at_start: bool = False
