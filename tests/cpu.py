"""The CPU devices of tests; without JAX, so that it can be imported before JAX starts."""


def cpu_flags(devices: int) -> str:
    """Returns XLA's flags for so many CPU devices; with AVX2, `compute_dtype="auto"` is float32 on every machine."""
    return f"--xla_force_host_platform_device_count={devices} --xla_cpu_max_isa=AVX2"
