"""The sampling flags that `generate` and `chat` share."""

from absl import flags

from model.sampling import Sampling


def define_sampling_flags(values: flags.FlagValues, temperature: float) -> None:
    """Adds the flags for sampling."""
    flags.DEFINE_integer(
        "max_new_tokens", 64, "Maximum number of tokens to generate.", lower_bound=1, flag_values=values
    )
    flags.DEFINE_float("temperature", temperature, "Sampling temperature; 0: greedy.", flag_values=values)
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
    flags.DEFINE_integer("seed", 0, "Random seed of the samples.", flag_values=values)
    text = "KV cache: auto (the compute dtype), bfloat16 or int8; empty: the run's setting."
    flags.DEFINE_enum("cache_dtype", "", ["", "auto", "bfloat16", "int8"], text, flag_values=values)


def sampling_of(values: flags.FlagValues) -> Sampling:
    """Returns the sampling options of the flags.

    Raises:
        UserError: a value is out of range.
    """
    return Sampling(values.temperature, values.top_k, values.top_p, values.min_p, values.repetition_penalty)
