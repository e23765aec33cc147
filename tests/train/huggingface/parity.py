"""Logits of transformers and ours for a config.json and random weights, without files; needs torch."""

import json
import math

import jax
import numpy as np

from model.config import model_config
from model.heads import language_model, unembedding
from model.huggingface.config_file import to_section
from model.huggingface.families import FAMILIES, table
from model.huggingface.weights import IGNORED, compare_shapes, expected_shapes, group_of, leaves
from model.losses import logits
from model.transformer import forward
from train.trees import boxed_params

LENGTH = 14
TINY = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "sliding_window": 6,
    "n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 64, "shared_intermediate_size": 24, "ffn_hidden_size": 24,
    "max_window_layers": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# Partial rotation needs wider heads, the dense Granite no experts. Granite's default multiplier makes attention so
# sharp that rounding shows.
OTHER = {
    "stablelm": {"hidden_size": 32},
    "gpt_neox": {"hidden_size": 32},
    "granitemoehybrid": {
        "layer_types": ["full_attention"] * 4, "num_local_experts": 0, "position_embedding_type": "rope",
        "mamba_n_heads": 4, "mamba_d_head": 8, "attention_multiplier": 0.3,
    },
    "granite": {"attention_multiplier": 0.3},
}  # fmt: skip


def tiny_config(family):
    """Returns config.json of a family's default config, with all of its fields, at a size that tests can afford."""
    import transformers

    default = transformers.AutoConfig.for_model(family).to_dict()
    sizes = {name: size for name, size in TINY.items() if default.get(name) is not None}
    made = transformers.AutoConfig.for_model(family, **sizes | OTHER.get(family, {}))
    written = json.loads(made.to_json_string(use_diff=False))
    written.pop("time_step_limit", None)  # of Mamba layers; the class rejects what it writes
    return written


def torch_model(config):
    """Returns the model of transformers with random weights of about unit scale."""
    import torch
    import transformers

    # `from_dict` reads a file's fields; the class also moves old spellings.
    torch.manual_seed(0)
    made = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    model = transformers.AutoModelForCausalLM.from_config(made, attn_implementation="eager").float().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weights in model.parameters():
            scale = 1.5 / math.sqrt(weights.shape[-1]) if weights.ndim > 1 else 0.3
            weights.add_(torch.randn(weights.shape, generator=generator) * scale)
    return model


def torch_logits(model, length=LENGTH):
    """Returns the logits of transformers for one text."""
    import torch

    ids = torch.arange(length)[None] * 7 % 37 + 3
    with torch.no_grad():
        return model(ids)[0][0].numpy()


def our_params(model, architecture, tensors):
    """Returns our parameters from tensors of transformers, by the table of weights."""
    params = {"backbone": {}, "head": {}}
    abstract = jax.tree.map(lambda x: x, boxed_params(language_model(model)))
    from flax import linen as nn

    abstract = nn.meta.unbox(abstract)
    rows = table(architecture, model)
    found = {name: x for name, x in tensors.items() if not name.endswith(IGNORED)}
    if model.tie_embeddings:
        found.pop(FAMILIES[architecture].output, None)
    compare_shapes({name: x.shape for name, x in found.items()}, expected_shapes(abstract, rows), architecture)
    for row, leaf in leaves(abstract, rows):
        shape = leaf.shape[1:] if row.stacked else leaf.shape
        parts = [row.to_ours(found[key], shape) for key in row.keys(leaf.shape[0])]
        tree = params[group_of(row)]
        *parents, last = row.leaf.split("/")
        for name in parents:
            tree = tree.setdefault(name, {})
        tree[last] = np.stack(parts) if row.stacked else parts[0]
    return params


def our_logits(config, tensors, length=LENGTH):
    """Returns our logits for one text, of a config.json and tensors of transformers."""
    architecture, section = to_section(config, "config.json")
    model = model_config(section)
    params = our_params(model, architecture, tensors)
    tokens = (np.arange(length, dtype=np.int32)[None] * 7) % 37 + 3
    positions = np.arange(length, dtype=np.int32)[None]
    batch = {"tokens": tokens, "segment_ids": np.ones_like(tokens), "positions": positions}
    with jax.disable_jit():
        x = forward(model, params["backbone"], batch)
        return np.asarray(logits(x, unembedding(params), model.logit_softcap))[0]


def tensors_of(model):
    """Returns {name in files: array} of a model of transformers."""
    # The module's own name, which `save_pretrained` replaces.
    renamed = {"lm_head.weight": "embed_out.weight"} if model.config.model_type == "gpt_neox" else {}
    return {renamed.get(name, name): tensor.detach().numpy() for name, tensor in model.state_dict().items()}
