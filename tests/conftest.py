"""Test setup: eight virtual CPU devices and a compilation cache, set before JAX starts; models and data of tests."""

import math
import os
from pathlib import Path

from tests.cpu import cpu_flags
from train.compilation_cache import folder_name

_ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {cpu_flags(8)}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache" / folder_name()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.02")
# Compiling takes half the time, and the programs of tests are too small to gain from optimized loops.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402
from flax import linen as nn  # noqa: E402
from jax.sharding import Mesh  # noqa: E402

from configs import default  # noqa: E402
from model.config import ModelConfig, model_config  # noqa: E402
from model.sharding import MESH_AXES  # noqa: E402
from tests.buckets import bucket, folder, storage_environment  # noqa: E402, F401 - fixtures of every test file
from tests.runs import foundation, one_device, text  # noqa: E402, F401
from train.distributed.mesh import make_mesh  # noqa: E402
from train.settings import MeshSettings  # noqa: E402

flags.FLAGS(["tests"])


# These files start first, so that both workers end at about the same time.
_LONGEST_FIRST = (
    "train/distributed/test_multihost.py", "train/test_step.py", "train/finetuning/test_finetune.py",
    "model/test_attend.py", "train/test_parallel.py", "train/test_balance.py", "train/test_moments.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    def rank(item):
        ranks = (i for i, name in enumerate(_LONGEST_FIRST) if str(item.path).endswith(name))
        return next(ranks, len(_LONGEST_FIRST))

    items.sort(key=rank)


def pytest_addoption(parser):
    what = "write tests/fingerprints/ for this version of JAX"
    parser.addoption("--update-fingerprints", action="store_true", help=what)
    what = "write tests/golden/losses/ for this version of JAX; allowed only in a commit that says why losses change"
    parser.addoption("--update-goldens", action="store_true", help=what)


# Of the 65,530 that Linux allows a process. Each compiled program takes several, and one more than allowed ends a
# worker with a segmentation fault.
_MANY_MEMORY_MAPS = 20_000


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Drops the compiled programs of earlier test files before they are too many for one process."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MANY_MEMORY_MAPS:
        jax.clear_caches()


VOCAB = 64


def tiny_model(**changes: object) -> ModelConfig:
    """Returns a two-layer model with 64 tokens in which every parameter affects the first step."""
    section = default.model()
    section.update(
        {"vocab_size": VOCAB, "embed_dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 48,
         "context_length": 64, "output_init": "scaled"}
    )  # fmt: skip
    section.update(changes)
    return model_config(section)


def init(objective, seed: int = 0):
    """Returns unboxed parameters, each moved away from its initial zeros and ones."""
    # Compiled as one program: operation by operation, each of a hundred shapes would be compiled.
    params = nn.meta.unbox(jax.jit(objective.init)(jax.random.key(seed)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), params)


def random_documents(count: int, seed: int = 0, longest: int = 40):
    """Returns documents of random tokens between 3 and VOCAB - 1, each with bos (1) and eos (2)."""
    rng = np.random.default_rng(seed)
    return [[1, *rng.integers(3, VOCAB, rng.integers(1, longest)).tolist(), 2] for _ in range(count)]


def mesh_of(**axes: int) -> Mesh:
    """Returns a mesh over as many of the eight devices as `axes` needs; axes that are not given have size 1."""
    sizes = dict.fromkeys(MESH_AXES, 1) | axes
    return make_mesh(MeshSettings(**sizes), jax.devices()[: math.prod(sizes.values())])
