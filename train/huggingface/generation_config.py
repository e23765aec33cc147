"""generation_config.json: how a model's authors sample from it, read at import and written at export."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.tokenizer import read_json
from model.sampling import Sampling
from train.console import warn

FILE = "generation_config.json"
# Our name -> the value that transformers assumes when a model samples and the file does not give another.
_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}
# Fields that do not change which tokens are drawn, and fields that `load_tokenizer` reads.
_HARMLESS = frozenset(
    "_from_model_config transformers_version use_cache cache_implementation cache_config return_dict_in_generate "
    "output_attentions output_hidden_states output_scores output_logits max_length max_time bos_token_id eos_token_id "
    "pad_token_id decoder_start_token_id num_return_sequences trust_remote_code chat_format max_window_size".split()
)
# Values with which other fields do nothing.
_NEUTRAL = {"num_beams": 1, "num_beam_groups": 1, "length_penalty": 1.0, "typical_p": 1.0, "diversity_penalty": 0.0}


def read_generation(directory: Path) -> dict[str, Any]:
    """Returns a model's sampling options and `max_new_tokens`, as far as its generation_config.json gives them.

    Fields that change the text and are not supported are listed in a warning.

    Raises:
        UserError: the file is damaged, or a value has the wrong type.
    """
    path = directory / FILE
    found = read_json(path)
    numbers = {name: found[name] for name in (*_SAMPLING, "max_new_tokens") if found.get(name) is not None}
    for name, value in numbers.items():
        whole = name in ("top_k", "max_new_tokens")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise UserError(f"{path}: {name}={value!r:.80}; expected {'an integer' if whole else 'a number'}")
    try:
        Sampling(**{name: value for name, value in numbers.items() if name in _SAMPLING})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    ignored = [
        f"{name}={value!r:.40}"
        for name, value in found.items()
        if name not in {*_HARMLESS, *_SAMPLING, "max_new_tokens", "do_sample"}
        and value not in (None, False, 0, [], {})
        and value != _NEUTRAL.get(name)
    ]
    if ignored:
        warn(f"{path}: {', '.join(ignored)}: not supported, so generated texts differ from those of transformers")
    defaults = {name: value for name, value in numbers.items() if name in ("repetition_penalty", "max_new_tokens")}
    if found.get("do_sample"):
        defaults |= {name: numbers[name] if name in numbers else value for name, value in _SAMPLING.items()}
    elif found.get("do_sample") is False:
        defaults |= {"temperature": 0.0}
    return defaults


def generation_config(ids: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the contents of generation_config.json.

    Args:
        ids: bos_token_id, eos_token_id and pad_token_id.
        defaults: what `read_generation` returned.
    """
    temperature = defaults.get("temperature")
    greedy = temperature == 0
    sampling = {name: value for name, value in defaults.items() if name != "temperature" or not greedy}
    return {**ids, **({} if temperature is None else {"do_sample": not greedy}), **sampling}
