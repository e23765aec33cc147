"""How likely a language model finds texts: segments of any length, batched by length, packed, on the whole mesh.

B batch, T length.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from data.examples import Segment, pack
from model import losses
from model.config import ModelConfig
from model.heads import language_model, unembedding
from model.transformer import Batch, Params, forward
from train.evaluation.scoring import head_outputs

_TOKENS_AT_ONCE = 8192
_LOGITS_AT_ONCE = 2048  # positions whose logits exist at once
_SHORTEST_ROW = 64


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """One number a segment.

    Attributes:
        nats: log-likelihood of its targets together, float64.
        targets: how many they are.
        greedy: whether each target is the likeliest token at its place.
    """

    nats: np.ndarray
    targets: np.ndarray
    greedy: np.ndarray


def likelihoods(
    model: ModelConfig, params: Params, segments: Sequence[Segment], pad_id: int, mesh: Mesh
) -> Likelihoods:
    """Returns how likely the targets of each segment are, whose weights are 1 or 0.

    Args:
        model: its architecture.
        params: `{"backbone", "head"}` of a language model, on `mesh`.
        segments: of at most the model's context (`data.examples.text_segment`).
        pad_id: fills rows up.
        mesh: where it runs.
    """
    found = Likelihoods(np.zeros(len(segments)), np.zeros(len(segments), np.int64), np.ones(len(segments), bool))
    widths = np.array([_row_width(len(segment["tokens"]), model.context_length, mesh) for segment in segments])
    for width in np.unique(widths).tolist():
        numbers = np.flatnonzero(widths == width).tolist()
        rows = pack([(segments[number],) for number in numbers], width, pad_id, seed=0)
        batch = _round_up(min(max(_TOKENS_AT_ONCE // width, 1), len(rows)), mesh.size)
        chunk = width // next(n for n in range(1, width + 1) if width % n == 0 and batch * width <= n * _LOGITS_AT_ONCE)
        objective = language_model(model)._replace(predict=_scorer(model, chunk))
        for example, (scores,) in head_outputs(objective, params, rows, batch, mesh):
            number = numbers[example]
            scored = segments[number]["weights"] > 0
            found.nats[number] = -scores[scored, 0].sum(dtype=np.float64)
            found.targets[number] = scored.sum()
            found.greedy[number] = (scores[scored, 0] == scores[scored, 1]).all()
    return found


def _row_width(length: int, longest: int, mesh: Mesh) -> int:
    """Returns a power of two, so that texts of all lengths compile few programs and rows are not mostly mask."""
    width = max(_SHORTEST_ROW, 1 << (length - 1).bit_length())
    return _round_up(min(width, max(longest, length)), mesh.shape["context"])


def _round_up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


@functools.lru_cache(maxsize=32)
def _scorer(model: ModelConfig, chunk: int) -> Callable[[Params, Batch], jax.Array]:
    """Returns (params, batch) -> `losses.token_scores`: the same function each time, so that it compiles once."""

    def score(params: Params, batch: Batch) -> jax.Array:
        x_BTD = forward(model, params["backbone"], batch)
        return losses.token_scores(
            x_BTD, unembedding(params), batch["targets"], softcap=model.logit_softcap, chunk=chunk
        )

    return score
