"""Reads ranges of objects of a bucket with TensorStore, many at the same time."""

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from configs.errors import UserError
from data.storage.errors import Unreachable, describe

# TensorStore's default tries for a quarter of an hour; with these numbers it is about two minutes.
_RETRIES = {"max_retries": 8, "initial_delay": "1s", "max_delay": "32s"}


def kvstore_spec(path: str) -> dict[str, Any]:
    """Returns the TensorStore spec of an object or prefix of a bucket.

    For s3, the region is AWS_REGION, and AWS_ENDPOINT_URL names a service that is not Amazon's, as in its own tools.
    """
    scheme, _, key = path.partition("://")
    bucket, _, name = key.partition("/")
    if scheme == "gs":
        return {"driver": "gcs", "bucket": bucket, "path": name}
    spec = {"driver": "s3", "bucket": bucket, "path": name}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    # TensorStore's default looks for a profile first, and complains on stderr if there is none.
    own = {"aws_credentials": {"type": "environment"}} if os.environ.get("AWS_ACCESS_KEY_ID") else {}
    return spec | own | ({"aws_region": region} if region else {}) | ({"endpoint": endpoint} if endpoint else {})


class Ranges:
    """Arrays of numbers in the objects of a directory, read by ranges; pickles as its path."""

    def __init__(self, directory: Path, dtype: str) -> None:
        self.directory, self.dtype = directory, np.dtype(dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "dtype": self.dtype}

    @functools.cached_property
    def _store(self) -> ts.KvStore:
        context = ts.Context({"gcs_request_retries": _RETRIES, "s3_request_retries": _RETRIES})
        return ts.KvStore.open(kvstore_spec(f"{self.directory}/"), context=context).result()

    def read(self, ranges: Sequence[tuple[str, int, int]]) -> list[np.ndarray]:
        """Returns the elements from start to stop of each (name, start, stop); requests are sent all at once.

        Raises:
            UserError: an object is missing or shorter than a range, or the bucket cannot be read.
        """
        size = self.dtype.itemsize
        asked = [self._store.read(name, byte_range=slice(a * size, b * size)) for name, a, b in ranges]
        try:
            answers = [request.result() for request in asked]
        except (ValueError, RuntimeError) as error:
            raise Unreachable(f"{self.directory} cannot be read: {describe(error)}") from None
        for (name, _, _), answer in zip(ranges, answers, strict=True):
            if answer.state != "value":
                raise UserError(f"{self.directory}/{name} is missing; prepare the store again")
        return [np.frombuffer(answer.value, self.dtype) for answer in answers]
