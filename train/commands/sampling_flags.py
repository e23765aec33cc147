"""The sampling flags that `generate` and `chat` share."""

from absl import flags

from model.sampling import Sampling


def define_sampling_flags(values: flags.FlagValues, temperature: float) -> None:
    """Adds the flags of how a text is written."""
    flags.DEFINE_integer("max_new_tokens", 64, "Tokens to add at most.", lower_bound=1, flag_values=values)
    flags.DEFINE_float("temperature", temperature, "0 takes the most likely token.", flag_values=values)
    flags.DEFINE_integer("top_k", 0, "Draw among the k most likely; 0: all.", flag_values=values)
    flags.DEFINE_float("top_p", 1.0, "Draw among the fewest that have this probability.", flag_values=values)
    flags.DEFINE_float("min_p", 0.0, "Draw among those this part as likely as the first.", flag_values=values)
    flags.DEFINE_float("repetition_penalty", 1.0, "Above 1: less of what was said.", flag_values=values)
    flags.DEFINE_multi_string("stop", [], "Text that ends a continuation; may be given again.", flag_values=values)
    flags.DEFINE_integer("seed", 0, "Of the samples.", flag_values=values)
    text = (
        "Keys and values that are kept: as they are computed (auto), in half, or in a quarter of it; empty: the run's."
    )
    flags.DEFINE_enum("cache_dtype", "", ["", "auto", "bfloat16", "int8"], text, flag_values=values)


def sampling_of(values: flags.FlagValues) -> Sampling:
    """Returns what the flags say.

    Raises:
        UserError: a value out of range.
    """
    return Sampling(values.temperature, values.top_k, values.top_p, values.min_p, values.repetition_penalty)
