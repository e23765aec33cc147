"""Values as JSON can hold them: it has no NaN and no infinity."""

import math
from typing import Any


def finite(value: object) -> Any:  # noqa: ANN401 - a JSON value
    """Returns the value with None for each float that is not finite, also in lists, tuples and dicts."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
