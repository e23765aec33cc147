"""The generation flags that `generate` and `chat` share."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from absl import flags

from train.console import say

if TYPE_CHECKING:
    from train.generation.language_model import GenerationOptions

_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def define_sampling_flags(values: flags.FlagValues, temperature: float) -> None:
    """Adds the flags of generation; an imported model's generation_config.json replaces their defaults."""
    flags.DEFINE_integer(
        "max_new_tokens", 64, "Maximum number of tokens to generate.", lower_bound=1, flag_values=values
    )
    text = "Sampling temperature; 0: greedy. Without this flag, that of an imported model's generation_config.json."
    flags.DEFINE_float("temperature", temperature, text, flag_values=values)
    flags.DEFINE_integer("top_k", 0, "Sample from the k most likely tokens; 0: all.", flag_values=values)
    flags.DEFINE_float(
        "top_p",
        1.0,
        "Nucleus sampling: sample from the fewest tokens with this total probability; 1: all.",
        flag_values=values,
    )
    flags.DEFINE_float(
        "min_p",
        0.0,
        "Sample from tokens at least this fraction as likely as the most likely one; 0: all.",
        flag_values=values,
    )
    flags.DEFINE_float("repetition_penalty", 1.0, "Above 1: penalize tokens that already occurred.", flag_values=values)
    text = "Stop at this text, which may contain names of special tokens; repeatable."
    flags.DEFINE_multi_string("stop", [], text, flag_values=values)
    text, bound = "Random seed of the samples.", 2**63
    flags.DEFINE_integer("seed", 0, text, lower_bound=-bound, upper_bound=bound - 1, flag_values=values)
    text = "KV cache: auto (the compute dtype), bfloat16 or int8; empty: the run's setting."
    flags.DEFINE_enum("cache_dtype", "", ["", "auto", "bfloat16", "int8"], text, flag_values=values)


def options_of(values: flags.FlagValues, defaults: Mapping[str, Any], context_length: int) -> "GenerationOptions":
    """Returns the options of the flags; `defaults` (see `RunRecord`) fill in the flags that are not given.

    A default number of new tokens is a limit that nobody typed: it leaves half of the context to the prompt.

    Raises:
        UserError: a value is out of range.
    """
    from model.sampling import Sampling
    from train.generation.language_model import GenerationOptions

    used = {name: value for name, value in defaults.items() if not values[name].present}
    if "max_new_tokens" in used:
        used["max_new_tokens"] = min(used["max_new_tokens"], max(context_length // 2, 1))
    if used:
        say(f"generation defaults of the model: {', '.join(f'{name}={value:g}' for name, value in used.items())}")
    found: dict[str, Any] = {name: used.get(name, values[name].value) for name in (*_OPTIONS, "max_new_tokens")}
    sampling = Sampling(**{name: found[name] for name in _OPTIONS})
    return GenerationOptions(found["max_new_tokens"], sampling, values.seed, tuple(values.stop))
