"""Reads ranges of an object of a bucket with TensorStore, many at the same time."""

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
    """An array of numbers in an object, read by ranges; pickles as its path."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.path, self.dtype = path, np.dtype(dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "dtype": self.dtype}

    @functools.cached_property
    def _store(self) -> ts.KvStore:
        context = ts.Context({"gcs_request_retries": _RETRIES, "s3_request_retries": _RETRIES})
        return ts.KvStore.open(kvstore_spec(f"{self.path.parent}/"), context=context).result()

    def read(self, starts: Sequence[int], stops: Sequence[int]) -> list[np.ndarray]:
        """Returns the elements of each range; all requests are sent before the first answer is awaited.

        Raises:
            UserError: the object is missing or shorter than a range, or the bucket cannot be read.
        """
        size = self.dtype.itemsize
        pairs = zip(starts, stops, strict=True)
        asked = [self._store.read(self.path.name, byte_range=slice(a * size, b * size)) for a, b in pairs]
        try:
            answers = [request.result() for request in asked]
        except (ValueError, RuntimeError) as error:
            raise Unreachable(f"{self.path} cannot be read: {describe(error)}") from None
        if any(answer.state != "value" for answer in answers):
            raise UserError(f"{self.path} is missing; prepare the store again")
        return [np.frombuffer(answer.value, self.dtype) for answer in answers]
