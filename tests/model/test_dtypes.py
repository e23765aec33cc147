"""What "auto" means for the dtype of products."""

import jax
import jax.numpy as jnp
import pytest
from conftest import mesh_of, tiny_model

from model import dtypes
from tests.runs import visible_devices

FLAGS = "flags\t\t: fpu sse2 avx512f avx512_bf16\n"


@pytest.fixture(autouse=True)
def asked_again():
    answer = dtypes.cpu_is_fast_in_bfloat16  # which a test may replace
    answer.cache_clear()
    yield
    answer.cache_clear()


@pytest.mark.parametrize(
    ("cpuinfo", "version", "flags", "fast"),
    [
        (FLAGS, (0, 12, 0), "", True),
        (FLAGS, (0, 10, 2), "", False),
        (FLAGS.replace("avx512_bf16", ""), (0, 12, 0), "", False),
        (FLAGS, (0, 12, 0), "--a=1 --xla_cpu_max_isa=AVX2", False),
        (FLAGS, (0, 12, 0), "--xla_cpu_max_isa=amx --a=1", True),
        (FLAGS, (0, 12, 0), "--xla_cpu_max_isa=AMX --xla_cpu_max_isa=AVX2", False),
    ],
)
def test_a_cpu_needs_instructions_and_kernels_that_may_be_used(cpuinfo, version, flags, fast, monkeypatch):
    monkeypatch.setattr(dtypes.Path, "read_text", lambda path: cpuinfo)
    monkeypatch.setattr(jax.version, "__version_info__", version)
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert dtypes.cpu_is_fast_in_bfloat16() == fast


def test_a_machine_that_describes_no_processor_computes_in_float32(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(dtypes.Path, "read_text", missing)
    monkeypatch.setattr(jax.version, "__version_info__", (0, 12, 0))
    monkeypatch.setenv("XLA_FLAGS", "")
    assert not dtypes.cpu_is_fast_in_bfloat16()


def test_auto_is_bfloat16_on_one_fast_cpu_and_float32_on_several_devices(monkeypatch):
    monkeypatch.setattr(dtypes, "cpu_is_fast_in_bfloat16", lambda: True)
    assert dtypes.compute_dtype(tiny_model()) == jnp.float32  # of eight devices
    with visible_devices(1):
        assert dtypes.compute_dtype(tiny_model()) == jnp.bfloat16
        assert dtypes.compute_dtype(tiny_model(compute_dtype="float32")) == jnp.float32
    with jax.set_mesh(mesh_of(data=2)), visible_devices(2):
        assert dtypes.compute_dtype(tiny_model()) == jnp.float32
