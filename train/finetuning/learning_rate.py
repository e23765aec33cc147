"""The learning rate of fine-tuning that `config.optimizer.learning_rate=0` asks for: by method and width of the model.

A rate is in inverse proportion to the width, as what AdamW's step changes in a hidden state is in proportion to it
(Yang et al. 2022, arXiv:2203.03466). The rates at one width were found on validation rows of four sets by
`benchmarks/learning_rates.py`; docs/results.md, "Learning rates", has the sweep.
"""

import dataclasses
from typing import Any

from train.settings import Settings

_WIDTH = 192
# {config.adapt.method: the rate at a width of _WIDTH}
_RATES = {"full": 2e-3, "last": 2e-3, "lora": 1e-2, "head": 3e-2}


def learning_rate_for(method: str, width: int) -> float:
    """Returns the peak learning rate of AdamW, rounded to two digits.

    Args:
        method: `config.adapt.method`.
        width: `config.model.embed_dim` of the model that is fine-tuned.
    """
    return float(f"{_RATES[method] * _WIDTH / width:.1e}")


def with_learning_rate(config: dict[str, Any], width: int) -> dict[str, Any]:
    """Returns the config with its learning rate decided, if it is 0."""
    if config["optimizer"]["learning_rate"]:
        return config
    rate = learning_rate_for(config["adapt"]["method"], width)
    return config | {"optimizer": config["optimizer"] | {"learning_rate": rate}}


def for_all_weights(settings: Settings, width: int) -> Settings:
    """Returns the settings for a model of this run whose weights all train although `config.adapt.method` trains few.

    Its learning rate is at most the one chosen for all weights: adapters and heads bear higher rates.
    """
    if settings.adapt.method == "full":
        return settings
    rate = min(settings.optimizer.learning_rate, learning_rate_for("full", width))
    return dataclasses.replace(settings, optimizer=dataclasses.replace(settings.optimizer, learning_rate=rate))
