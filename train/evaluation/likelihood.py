"""Log-likelihoods of texts under a language model: segments of any length, batched by length, packed, on the mesh.

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
from model.heads import language_model as lm_objective
from model.heads import unembedding
from model.transformer import Batch, Params, forward
from train.evaluation.scoring import head_outputs
from train.generation.language_model import LanguageModel
from train.trees import round_up

_TOKENS_PER_BATCH = 8192
_LOGITS_PER_CHUNK = 2048  # positions whose logits are in memory together
_MIN_ROW_WIDTH = 64


@dataclasses.dataclass(frozen=True)
class Likelihoods:
    """Arrays with one element per segment.

    Attributes:
        nats: log-likelihood of all targets together, float64.
        targets: number of targets.
        greedy: whether each target is the most likely token at its position.
    """

    nats: np.ndarray
    targets: np.ndarray
    greedy: np.ndarray


def likelihoods(language_model: LanguageModel, segments: Sequence[Segment]) -> Likelihoods:
    """Returns the log-likelihood of the targets (weight 1) of each segment.

    Args:
        language_model: the model.
        segments: of at most the model's context (`data.examples.text_segment`); weights are 1 or 0.
    """
    model, mesh = language_model.model, language_model.mesh
    found = Likelihoods(np.zeros(len(segments)), np.zeros(len(segments), np.int64), np.ones(len(segments), bool))
    widths = np.array([_row_width(len(segment["tokens"]), model.context_length, mesh) for segment in segments])
    for width in np.unique(widths).tolist():
        numbers = np.flatnonzero(widths == width).tolist()
        rows = pack([(segments[number],) for number in numbers], width, language_model.tokenizer.pad_id, seed=0)
        batch = round_up(min(max(_TOKENS_PER_BATCH // width, 1), len(rows)), mesh.size)
        chunk = chunk_size(batch, width)
        objective = lm_objective(model)._replace(predict=_scorer(model, chunk))
        for example, (scores,) in head_outputs(objective, language_model.params, rows, batch, mesh):
            number = numbers[example]
            scored = segments[number]["weights"] > 0
            found.nats[number] = -scores[scored, 0].sum(dtype=np.float64)
            found.targets[number] = scored.sum()
            found.greedy[number] = (scores[scored, 0] == scores[scored, 1]).all()
    return found


def _row_width(length: int, context_length: int, mesh: Mesh) -> int:
    """Returns a power of two, so that texts of all lengths compile few programs and rows have little padding."""
    width = max(_MIN_ROW_WIDTH, 1 << (length - 1).bit_length())
    return round_up(min(width, max(context_length, length)), mesh.shape["context"])


def chunk_size(batch: int, width: int) -> int:
    """Returns the largest divisor of `width` for which a batch has at most `_LOGITS_PER_CHUNK` positions per chunk."""
    return losses.largest_divisor(width, max(_LOGITS_PER_CHUNK // batch, 1))


@functools.lru_cache(maxsize=32)
def _scorer(model: ModelConfig, chunk: int) -> Callable[[Params, Batch], jax.Array]:
    """Returns (params, batch) -> `losses.token_scores`; cached, because jit compiles once per function object."""

    def score(params: Params, batch: Batch) -> jax.Array:
        x_BTD = forward(model, params["backbone"], batch)
        return losses.token_scores(
            x_BTD, unembedding(params), batch["targets"], softcap=model.logit_softcap, chunk=chunk
        )

    return score
