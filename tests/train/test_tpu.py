"""The train step compiled ahead of time for a TPU: forward and backward kernels, meshes, host memory."""

import jax
import pytest
from conftest import tiny_model

from configs import default
from model.heads import language_model
from train.distributed.mesh import make_mesh
from train.planner.topology import compiler_devices, parse_topology
from train.settings import from_config
from train.step import make_program


@pytest.mark.integration
def test_splash_and_offload_compile_for_a_tpu_slice():
    devices, note = compiler_devices(parse_topology("v5e-4"))
    if not devices:
        pytest.skip(note)
    config = default.get_config()
    config.batch_size, config.sequence_length = 2, 512
    config.mesh.update({"data": 1, "tensor": 2, "context": 2})
    settings = from_config(config.to_dict())
    # Layers with different windows need different kernels; heads of 64 are narrower than a vector register.
    model = tiny_model(
        attention="auto", num_layers=4, head_dim=64, context_length=512, sliding_window=(100, 0), remat="offload"
    )
    mesh = make_mesh(settings.mesh, devices)
    program = make_program(language_model(model, chunk=64), settings, mesh)
    with jax.set_mesh(mesh):
        compiled = program.step.lower(program.state, program.batch).compile()
    kernels = compiled.as_text().count('custom_call_target="tpu_custom_call"')
    # Two windows, each with one forward and two backward kernels; the backward pass also recomputes the forward one.
    assert kernels >= 2 * 4
    layer_inputs = 4 * (2 * 512 // 2 * 32) * 2  # layers x activations per device x bytes per bfloat16
    assert compiled.memory_analysis().host_temp_size_in_bytes >= layer_inputs
