"""How large the measurements are: `full` for an accelerator, `tiny` to try the program on a CPU."""

import dataclasses
from typing import Any

import jax
from ml_collections import ConfigDict

from configs import default, models


@dataclasses.dataclass(frozen=True)
class TrainWork:
    """A model and its batch.

    Attributes:
        model: key of `SHAPES`.
        rows: rows per device.
        length: tokens per row.
        steps: timed steps.
    """

    model: str
    rows: int
    length: int
    steps: int


@dataclasses.dataclass(frozen=True)
class Size:
    """Every number of the benchmark.

    Attributes:
        product_width: width of the square matrix products.
        models: {name in the tables: model and batch}.
        train_order: names, in the order in which they are trained.
        main: the name that is compared with the peer, decoded, and trained with each attention backend.
        saved: the name whose state is saved and restored, and that LoRA adapts.
        decode_rows: batch sizes of decoding.
        peer_rows: batch sizes of the peer's decoding.
        prompt: tokens per prompt.
        new_tokens: generated tokens per prompt.
        steps: timed steps of LoRA.
        repeat_steps: steps of the runs that must be equal.
        repeat_width: their `embed_dim`.
        demo_scale: of `rootstock demo`.
    """

    product_width: int
    models: dict[str, TrainWork]
    train_order: tuple[str, ...]
    main: str
    saved: str
    decode_rows: tuple[int, ...]
    peer_rows: tuple[int, ...]
    prompt: int
    new_tokens: int
    steps: int
    repeat_steps: int
    repeat_width: int
    demo_scale: float


# Llama 3.2 3B: config.json of meta-llama/Llama-3.2-3B.
_LLAMA_3B = {"embed_dim": 3072, "num_layers": 28, "num_heads": 24, "num_kv_heads": 8, "mlp_dim": 8192, "head_dim": 128}
_TINY = {"embed_dim": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "mlp_dim": 128, "head_dim": 32}
SHAPES: dict[str, dict[str, Any]] = {
    "135M": models.architecture("smollm2_135m"),
    "1B": models.architecture("llama3_2_1b"),
    "3B": models.architecture("llama3_2_1b") | _LLAMA_3B,
    "tiny": models.architecture("smollm2_135m") | _TINY | {"vocab_size": 320},
}
SIZES = {
    "full": Size(
        product_width=8192,
        models={
            "135M": TrainWork("135M", 16, 2048, 20),
            "1B": TrainWork("1B", 8, 2048, 12),
            "3B": TrainWork("3B", 4, 2048, 8),
        },
        train_order=("1B", "135M", "3B"),
        main="1B",
        saved="135M",
        decode_rows=(1, 8, 64, 512),
        peer_rows=(1, 8),
        prompt=128,
        new_tokens=128,
        steps=20,
        repeat_steps=200,
        repeat_width=512,
        demo_scale=1.0,
    ),
    "tiny": Size(
        product_width=256,
        models={"tiny": TrainWork("tiny", 2, 32, 3)},
        train_order=("tiny",),
        main="tiny",
        saved="tiny",
        decode_rows=(1, 2),
        peer_rows=(1,),
        prompt=8,
        new_tokens=4,
        steps=3,
        repeat_steps=6,
        repeat_width=32,
        demo_scale=0.02,
    ),
}


def config_of(model: str, rows: int, length: int) -> ConfigDict:
    """Returns the config that trains a model of `SHAPES` in bfloat16 by AdamW on a global batch of `rows`."""
    config = default.get_config()
    config.batch_size, config.sequence_length = rows, length
    config.mesh.data, config.mesh.fsdp = 1, -1
    config.model.update(SHAPES[model])
    config.model.context_length = max(length, SHAPES[model]["context_length"])
    config.model.compute_dtype = "bfloat16"
    # A GPU copies what a scan over layers reads and saves; docs/tried.md has the figures.
    config.model.scan_layers = jax.default_backend() != "gpu"
    # With outputs of zero, the first steps of LoRA would change nothing.
    config.model.output_init = "scaled"
    config.tokenizer = "bytes"
    config.optimizer.warmup_steps = 0
    return config
