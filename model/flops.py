"""Model FLOPs per token, for MFU and scaling laws; counted from the config, without tracing the model."""

from model.adaptation import Adaptation
from model.config import ModelConfig


def matmul_parameters(config: ModelConfig) -> int:
    """Returns the number of weights that multiply a token's activations: of its own experts, and the output table."""
    attention = config.embed_dim * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    per_unit, sparse = config.embed_dim * (3 if config.gated else 2), config.expert_layers
    active = config.experts_per_token * config.expert_width + config.shared_expert_dim
    experts = sparse * (per_unit * active + config.embed_dim * config.num_experts)
    dense = (config.num_layers - sparse) * per_unit * config.mlp_dim
    return config.num_layers * attention + dense + experts + config.vocab_size * config.embed_dim


def active_parameters(config: ModelConfig, parameters: int) -> int:
    """Returns how many of a model's parameters a token uses: without those of the experts that it does not go to."""
    per_expert = config.embed_dim * config.expert_width * (3 if config.gated else 2)
    return parameters - config.expert_layers * (config.num_experts - config.experts_per_token) * per_expert


def expert_forward_flops(config: ModelConfig) -> float:
    """Returns the FLOPs per token of its experts in all layers, forward only."""
    width = config.experts_per_token * config.expert_width
    return 2.0 * config.expert_layers * width * config.embed_dim * (3 if config.gated else 2)


def training_flops_per_token(config: ModelConfig, sequence_length: int, adaptation: Adaptation | None = None) -> float:
    """Returns the model FLOPs per token of a training step: forward and backward, without rematerialization.

    6 per matmul weight, plus 12 * layers * heads * head_dim * keys for QK^T and AV, where keys is the mean number of
    keys that a query attends to within its window (PaLM, arXiv:2204.02311, appendix B). A frozen weight has no gradient
    of its own (4 instead of 6), and nothing flows back below the first trained layer (2).

    Args:
        config: the model.
        sequence_length: tokens per row.
        adaptation: which parameters train; None: all. Factors of LoRA are not counted.
    """
    keys = visible_fraction(config, sequence_length) * config.num_layers * sequence_length
    table = config.vocab_size * config.embed_dim
    of_layers, of_table, of_scores = _flops_per_weight(config, adaptation)
    products = of_layers * (matmul_parameters(config) - table) + of_table * table
    return products + of_scores * config.num_heads * config.head_dim * keys


def _flops_per_weight(config: ModelConfig, adaptation: Adaptation | None) -> tuple[float, float, float]:
    """Returns the FLOPs per (weight of a layer, weight of the output table, product of a query and a key)."""
    if adaptation is None or adaptation.method == "full":
        return 6, 6, 12
    if adaptation.method == "head":
        return 2, 4, 4
    # An output table that is the embedding is frozen with it.
    table = 4 if config.tie_embeddings else 6
    if adaptation.method == "lora":
        return 4, table, 12
    trained = adaptation.last_layers / config.num_layers
    return 2 + 4 * trained, table, 4 + 8 * trained


def visible_fraction(config: ModelConfig, sequence_length: int) -> float:
    """Returns the fraction of a row's (query, key) pairs inside the windows, averaged over the layers."""
    keys = sum(_mean_keys(window, sequence_length, config.causal) for window in config.windows)
    return keys / (config.num_layers * sequence_length)


def _mean_keys(window: int, length: int, causal: bool) -> float:
    reach = min(window or length, length)
    back = (reach * (reach + 1) / 2 + (length - reach) * reach) / length
    # Both directions contain the query's own key.
    return back if causal else 2 * back - 1
