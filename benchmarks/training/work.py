"""What every program of the comparison trains: the sizes and the batch."""

import dataclasses
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"vocab": 320, "embed": 64, "mlp": 128, "layers": 2, "heads": 2, "kv_heads": 1},
    "10M": {"vocab": 16_000, "embed": 256, "mlp": 704, "layers": 8, "heads": 4, "kv_heads": 4},
    "42M": {"vocab": 32_000, "embed": 512, "mlp": 1408, "layers": 8, "heads": 8, "kv_heads": 8},
    # The shape of SmolLM2 135M.
    "135M": {"vocab": 49_152, "embed": 576, "mlp": 1536, "layers": 30, "heads": 9, "kv_heads": 3},
}


@dataclasses.dataclass(frozen=True)
class Work:
    """One program's part of the comparison; a Llama with tied embeddings, trained on one batch of random tokens.

    Attributes:
        size: key of `SIZES`.
        rows: rows of the batch.
        length: tokens per row.
        steps: train steps per turn.
        dtype: "float32" or "bfloat16", of the products; parameters are float32.
        rank: of LoRA on queries and values; 0: all parameters are trained.
        answer: tokens at the end of a row that are in the loss; 0: all.
        options: what one program alone needs.
    """

    size: str
    rows: int
    length: int
    steps: int
    dtype: str
    rank: int
    answer: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens per turn."""
        return self.rows * self.length * self.steps

    def as_json(self) -> dict[str, Any]:
        """Returns what a program of the comparison reads: the shape and all fields."""
        return SIZES[self.size] | dataclasses.asdict(self)
