"""Training on longer rows than the run that training starts from."""

import dataclasses

from configs.errors import UserError
from model.config import ModelConfig
from train.console import warn
from train.run.record import Run


def longer_context(parent: Run, length: int, title: str) -> ModelConfig:
    """Returns the architecture of a run for rows of `length` tokens.

    Longer rows make the context longer, with a warning, where positions are rotations alone.

    Args:
        parent: the run that training starts from.
        length: of a row.
        title: the command, for the warning.

    Raises:
        UserError: the rows are longer than a context that cannot grow.
    """
    model = parent.model
    if length <= model.context_length:
        return model
    if model.position != "rope" or model.rope_scaling != "none":
        raise UserError(
            f"config.sequence_length={length} exceeds the context of {parent.directory}, whose positions "
            f"(position={model.position!r}, rope_scaling={model.rope_scaling!r}) are made for its length; "
            f"expected at most {model.context_length}"
        )
    warn(f"{title}: the context grows from {model.context_length} to {length} tokens")
    return dataclasses.replace(model, context_length=length)
