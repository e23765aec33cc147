"""The parts of a learning-rate schedule: their lengths, and what is wrong with them; without JAX."""

import math

from train.settings import OptimizerSettings


def decay_steps(settings: OptimizerSettings, num_steps: int) -> int:
    """Returns the number of steps at the end in which "wsd" decays."""
    return max(round(num_steps * settings.decay_fraction), 1)


def schedule_errors(settings: OptimizerSettings, num_steps: int) -> list[str]:
    """Returns what is wrong with a schedule whose warm-up leaves no room for the rest; a list of at most one line."""
    warmup = settings.warmup_steps
    if warmup and warmup >= num_steps:
        return [
            f"config.optimizer.warmup_steps={warmup} must be less than config.num_steps={num_steps}; "
            f"expected at most {num_steps - 1}, or config.num_steps of at least {warmup + 1}"
        ]
    decay = decay_steps(settings, num_steps)
    if settings.schedule != "wsd" or warmup + decay <= num_steps:
        return []
    longest = num_steps - warmup
    # Rounded down, so that the steps of the decay, which are rounded, still fit.
    fraction = math.floor(1000 * longest / num_steps) / 1000
    return [
        f"config.optimizer.decay_fraction={settings.decay_fraction:g} ({decay} of {num_steps} steps) overlaps "
        f"config.optimizer.warmup_steps={warmup}; expected a decay_fraction of at most {fraction:g} ({longest} steps)"
        + (f", or warmup_steps of at most {num_steps - decay}" if decay <= num_steps else "")
    ]
