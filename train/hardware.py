"""Peak matrix throughput of a device, the denominator of MFU."""

import functools
import time

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

# Dense bfloat16 FLOP/s a device as JAX counts devices. Sources: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}
# (TPU7x: 2,307 TFLOP/s a chip, two devices); NVIDIA data sheets of V100 (float16), A100, H100 SXM, H200, B200.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 1153.5e12,
    "Tesla V100-SXM2": 125e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


@functools.cache
def peak_flops() -> float:
    """Returns FLOP/s of all devices together: from the table, or measured where a device is not in it (a CPU).

    Virtual devices of one CPU share its cores, so a CPU is measured once, whole.
    """
    device = jax.local_devices()[0]
    for kind, flops in PEAK_FLOPS.items():
        if device.device_kind.startswith(kind):
            return flops * jax.device_count()
    share = jax.process_count() if device.platform == "cpu" else jax.device_count()
    return _measured_flops(device) * share


def _measured_flops(device: jax.Device, size: int = 1024, repeats: int = 5) -> float:
    seconds = []
    with jax.set_mesh(Mesh([device], ("alone",))):
        x = jnp.ones((size, size), jnp.float32)
        product = jax.jit(lambda x: x @ x)
        product(x).block_until_ready()
        for _ in range(repeats):
            start = time.perf_counter()
            product(x).block_until_ready()
            seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)
