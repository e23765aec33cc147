"""Names of the classes that Hugging Face datasets store as numbers (`ClassLabel`), in a dataset or a Parquet file."""

import json
from collections.abc import Mapping
from typing import Any

from data.columns import Row

# {column: its feature}, as `datasets` writes features to JSON.
Features = Mapping[str, Any]


def features_in(metadata: bytes) -> Features:
    """Returns the features in what `datasets` writes into a Parquet file; none if it has another shape."""
    try:
        features = json.loads(metadata)["info"]["features"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, Mapping) else {}


def with_class_names(row: Row, features: Features) -> Row:
    """Returns the row with each class as its name, also in lists and objects; a number without a name is None.

    Datasets store -1 for a row whose class is not published.
    """
    named = {name: _named(row[name], feature) for name, feature in features.items() if name in row and _has(feature)}
    return row | named


def _has(feature: object) -> bool:
    """Returns whether there is a class in a feature."""
    if isinstance(feature, Mapping):
        return feature.get("_type") == "ClassLabel" or any(map(_has, feature.values()))
    return isinstance(feature, list) and any(map(_has, feature))


def _named(value: object, feature: object) -> object:
    if not _has(feature):
        return value
    if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel":
        names = feature.get("names")
        if not isinstance(names, list):
            return value
        return names[value] if isinstance(value, int) and 0 <= value < len(names) else None
    # A list is [feature], or an object with its kind and the feature of its items.
    of_items = feature[0] if isinstance(feature, list) else None
    if isinstance(feature, Mapping) and "_type" in feature:
        of_items = feature.get("feature")
    if isinstance(value, list):
        return [_named(item, of_items) for item in value]
    if isinstance(value, Mapping) and isinstance(of_items, Mapping):  # a list of objects, stored as an object of lists
        return {key: [_named(item, of_items.get(key)) for item in items] for key, items in value.items()}
    if isinstance(value, Mapping) and isinstance(feature, Mapping):
        return {key: _named(item, feature.get(key)) for key, item in value.items()}
    return value
