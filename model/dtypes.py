"""The platform that is compiled for and the dtypes that follow from it."""

import functools
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from model.config import ModelConfig
from model.sharding import AnyMesh


def platform() -> str:
    """Returns "cpu", "gpu" or "tpu": the platform of the current mesh, whose devices need not be attached."""
    return platform_of(jax.sharding.get_abstract_mesh())


def on_one_cpu() -> bool:
    """Returns whether the program runs on one CPU, for forms that are faster there and exchange more over several."""
    return jax.sharding.get_abstract_mesh().size <= 1 and platform() == "cpu"


def platform_of(mesh: AnyMesh) -> str:
    """Returns "cpu", "gpu" or "tpu": the platform of the mesh's devices, or JAX's own for a mesh that has none."""
    device = (mesh if isinstance(mesh, AbstractMesh) else mesh.abstract_mesh).abstract_device
    name = jax.default_backend() if device is None else device.platform
    return "gpu" if name == "cuda" else name


def compute_dtype(config: ModelConfig) -> jnp.dtype:
    """Returns the dtype of matrix products, that of `config.compute_dtype`."""
    return dtype_of_products(config.compute_dtype)


def dtype_of_products(name: str) -> jnp.dtype:
    """Returns a dtype by its name; "auto" means bfloat16 where training is faster in it: accelerators and some CPUs.

    Several devices on a CPU are for tests, which compare meshes, so all of these compute in float32.
    """
    if name == "auto":
        fast = on_one_cpu() and jax.device_count() == 1 and cpu_is_fast_in_bfloat16()
        return jnp.dtype(jnp.float32 if platform() == "cpu" and not fast else jnp.bfloat16)
    return jnp.dtype(name)


@functools.cache
def cpu_is_fast_in_bfloat16() -> bool:
    """Returns whether this CPU multiplies faster in bfloat16: it has instructions for it, and XLA uses them."""
    if jax.version.__version_info__ < (0, 12):  # which has kernels for them
        return False
    limits = re.findall(r"--xla_cpu_max_isa=(\S+)", os.environ.get("XLA_FLAGS", ""))
    if limits and limits[-1].upper() not in ("AVX512_BF16", "AMX", "AMX_FP16"):
        return False
    try:
        return "avx512_bf16" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


def cache_dtype(config: ModelConfig) -> jnp.dtype:
    """Returns the dtype of the KV cache; "auto" means the compute dtype."""
    return compute_dtype(config) if config.cache_dtype == "auto" else jnp.dtype(config.cache_dtype)
