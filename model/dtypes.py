"""The platform that is compiled for and the dtypes that follow from it."""

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from model.config import ModelConfig
from model.sharding import AnyMesh


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": the platform of the current mesh, whose devices need not be attached."""
    return platform_of(jax.sharding.get_abstract_mesh())


def on_one_cpu() -> bool:
    """Returns whether the program runs on one CPU, where some forms are faster that over several could move more."""
    return jax.sharding.get_abstract_mesh().size <= 1 and platform() == "cpu"


def platform_of(mesh: AnyMesh) -> str:
    """Returns "cpu", "gpu" or "tpu": the platform of the mesh's devices, or JAX's own for a mesh that has none."""
    device = (mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh).abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name == "cuda" else name


def compute_dtype(config: ModelConfig) -> jnp.dtype:
    """Returns the dtype of matrix products; "auto" means bfloat16 on accelerators and float32 on CPU."""
    if config.compute_dtype == "auto":
        return jnp.dtype(jnp.float32 if platform() == "cpu" else jnp.bfloat16)
    return jnp.dtype(config.compute_dtype)


def cache_dtype(config: ModelConfig) -> jnp.dtype:
    """Returns the dtype of the KV cache; "auto" means the compute dtype."""
    return compute_dtype(config) if config.cache_dtype == "auto" else jnp.dtype(config.cache_dtype)
