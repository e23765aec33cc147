"""The thread that generates: waiting requests enter the slots of one decoding batch as others leave them.

Few programs are compiled: one that decodes, and one for each width of prompts. A request's answer depends neither on
when it comes nor on the others: see `model.slots`.
"""

import collections
import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from model.sampling import Prompts
from model.slots import Slots, decode, empty_slots, insert, prompt_widths, slot_sampling
from train.console import warn
from train.distributed.placement import replicate, row_parts, to_host
from train.generation.language_model import GenerationOptions, LanguageModel
from train.generation.stopping import GrowingText, sure_length
from train.serving.errors import overloaded
from train.serving.limits import Limits
from train.trees import round_up

# Decoding steps between two looks at the texts.
_STEPS = 4
Finish = Literal["", "stop", "length", "timeout", "error", "shutdown"]


class Part(NamedTuple):
    """What was added to an answer.

    Attributes:
        text: the new text.
        tokens: number of tokens of the answer so far.
        finish: why it ended; "": it goes on.
    """

    text: str
    tokens: int
    finish: Finish = ""


@dataclasses.dataclass(eq=False)
class Generation:
    """A request that waits or is being answered.

    Attributes:
        prompt: its tokens.
        options: how the answer is generated.
        listener: gets the parts of the answer, in the engine's thread; the last one has a `finish`.
        drop_spaces: spaces at the start of the generated text that are part of the prompt's last token.
        deadline: when it ends with "timeout", on the clock of `time.monotonic`.
        left: the client has gone.
    """

    prompt: Sequence[int]
    options: GenerationOptions
    listener: Callable[[Part], None]
    drop_spaces: int = 0
    deadline: float = float("inf")
    left: bool = False


class _Answer:
    """The text of a generation that has a slot."""

    def __init__(self, generation: Generation, language_model: LanguageModel) -> None:
        self.generation = generation
        self._end_ids = language_model.end_ids
        self._growing = GrowingText(
            language_model.tokenizer, generation.prompt, generation.options, generation.drop_spaces
        )
        self._tokens, self._shown = 0, 0

    def add(self, tokens: Sequence[int]) -> bool:
        """Adds tokens, reports the new text, and returns whether the answer has ended."""
        text = ""
        finish: Finish = ""
        for token in tokens:
            self._tokens += 1
            text, stopped = self._growing.add([] if token in self._end_ids else [token])
            if stopped or token in self._end_ids:
                finish = "stop"
            elif self._tokens == self.generation.options.max_new_tokens:
                finish = "length"
            if finish:
                break
        spaces = min(len(text) - len(text.lstrip(" ")), self.generation.drop_spaces)
        sure = len(text) if finish else sure_length(text, self.generation.options.stop)
        start = max(self._shown, spaces)
        self._shown = max(sure, start)
        if sure > start or finish:
            self.generation.listener(Part(text[start:sure], self._tokens, finish))
        return bool(finish)

    def end(self, finish: Finish) -> None:
        """Reports that the answer ends before it is complete."""
        self.generation.listener(Part("", self._tokens, finish))


class Engine:
    """Answers generations with a language model, `Limits.slots` of them at a time."""

    def __init__(self, language_model: LanguageModel, limits: Limits) -> None:
        self.language_model, self.limits = language_model, limits
        self._parts = row_parts(language_model.mesh)
        self._slots_count = round_up(limits.slots, self._parts)
        self.max_length = min(limits.max_length, language_model.model.context_length)
        self._slots = self._empty()
        self._answers: dict[int, _Answer] = {}
        self._waiting: collections.deque[Generation] = collections.deque()
        # Guards `_waiting` and `_closed`; the rest belongs to the thread.
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> int:
        """Compiles all programs, starts the thread, and returns the number of programs."""
        widths = prompt_widths(self.max_length)
        greedy = GenerationOptions(1)
        for width in widths:
            self._insert(Generation([0] * width, greedy, lambda part: None), 0)
            # After a prefill the state may be laid out in another way than after a step.
            self._decode()
        self._decode()
        self._thread.start()
        return len(widths) + 1

    def submit(self, generation: Generation) -> None:
        """Lets a generation wait for a slot.

        Raises:
            RequestError: too many others wait.
        """
        with self._changed:
            free = self._slots_count - len(self._answers)
            if len(self._waiting) >= self.limits.max_waiting + free:
                raise overloaded(self.limits.max_waiting)
            if self._closed:
                generation.listener(Part("", 0, "shutdown"))
                return
            self._waiting.append(generation)
            self._changed.notify()

    def leave(self, generation: Generation) -> None:
        """Frees the place of a generation whose client has gone."""
        generation.left = True
        with self._changed:
            if generation in self._waiting:
                self._waiting.remove(generation)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def counts(self) -> tuple[int, int]:
        """Returns the numbers of generations that are being answered and that wait."""
        return len(self._answers), len(self._waiting)

    def close(self) -> None:
        """Ends all generations with "shutdown", and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._has_work():
                try:
                    self._step()
                except Exception as error:
                    # Such as too little memory; the state was donated to the call that failed.
                    warn(f"serve: {type(error).__name__}: {error}; {len(self._answers)} answers end with an error")
                    self._end_all("error")
                    self._slots = self._empty()
        finally:
            with self._changed:
                self._closed = True
                waiting = list(self._waiting)
                self._waiting.clear()
            for generation in waiting:
                generation.listener(Part("", 0, "shutdown"))
            self._end_all("shutdown")

    def _end_all(self, finish: Finish) -> None:
        for answer in self._answers.values():
            answer.end(finish)
        self._answers.clear()

    def _has_work(self) -> bool:
        """Waits for a generation, and returns whether there is one; False when the engine is closed."""
        with self._changed:
            while not (self._waiting or self._answers or self._closed):
                self._changed.wait()
            return not self._closed

    def _step(self) -> None:
        """Fills the free slots, decodes a few tokens of each text, and reports them."""
        self._drop_late(time.monotonic())
        self._admit()
        if not self._answers:
            return
        tokens_SM = self._decode()
        for slot, answer in list(self._answers.items()):
            if answer.add(tokens_SM[slot].tolist()):
                del self._answers[slot]

    def _drop_late(self, now: float) -> None:
        """Ends what is too late, and frees the slots of clients that have gone."""
        with self._changed:
            late = [generation for generation in self._waiting if now > generation.deadline]
            for generation in late:
                self._waiting.remove(generation)
        for generation in late:
            generation.listener(Part("", 0, "timeout"))
        for slot, answer in list(self._answers.items()):
            if answer.generation.left:
                del self._answers[slot]
            elif now > answer.generation.deadline:
                del self._answers[slot]
                answer.end("timeout")

    def _admit(self) -> None:
        """Reads the prompts of waiting generations into the free slots."""
        for slot in range(self._slots_count):
            if slot in self._answers:
                continue
            with self._changed:
                if not self._waiting:
                    return
                generation = self._waiting.popleft()
            self._answers[slot] = _Answer(generation, self.language_model)
            self._insert(generation, slot)

    def _empty(self) -> Slots:
        model, params, mesh = self.language_model.model, self.language_model.params, self.language_model.mesh
        with jax.set_mesh(mesh):
            return empty_slots(model, params, slots=self._slots_count, columns=self.max_length)

    def _insert(self, generation: Generation, slot: int) -> None:
        language_model, options = self.language_model, generation.options
        length = len(generation.prompt)
        width = next(width for width in prompt_widths(self.max_length) if width >= length)
        tokens_RP = np.full((self._parts, width), language_model.tokenizer.pad_id, np.int32)
        tokens_RP[:, width - length :] = generation.prompt
        prompts = Prompts(*replicate((tokens_RP, np.full(self._parts, length, np.int32)), language_model.mesh))
        sampling = slot_sampling(options.sampling, options.seed)
        model, params, mesh = language_model.model, language_model.params, language_model.mesh
        with jax.set_mesh(mesh):
            self._slots = insert(model, params, self._slots, prompts, np.int32(slot), sampling, columns=self.max_length)

    def _decode(self) -> np.ndarray:
        """Returns the next tokens_SM of all slots."""
        language_model = self.language_model
        with jax.set_mesh(language_model.mesh):
            tokens_SM, self._slots = decode(language_model.model, language_model.params, self._slots, steps=_STEPS)
        return to_host(tokens_SM, language_model.mesh)
