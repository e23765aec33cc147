"""Errors of the clients of buckets are one line, and tell an unreachable bucket from a bad object."""

import errno

import pytest

from configs.errors import UserError
from data.storage.errors import Unreachable, bucket_errors, file_errors, is_unreachable
from data.storage.paths import at


class HttpError(Exception):
    """As gcsfs raises it."""


@pytest.mark.parametrize(
    "error",
    [
        HttpError("Backend Error, 503"),
        HttpError("Request had expired authentication credentials., 401"),
        OSError("Forbidden: https://storage.googleapis.com/b/x\nno access"),
        ValueError('UNAVAILABLE: Error reading "bucket/x/500/d": HTTP response code: 503 with body'),
        ValueError("Error opening driver: PERMISSION_DENIED: HTTP response code: 403"),
        PermissionError("Access Denied."),
        OSError(16, "Please reduce your request rate."),
        ConnectionError("Cannot connect to host storage.googleapis.com:443"),
        TimeoutError("timed out"),
    ],
    ids=str,
)
def test_a_bucket_that_cannot_be_reached(error):
    assert is_unreachable(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("b/bucket/o/runs%2Fx%2Fcheckpoints%2F500%2Fparams"),
        FileNotFoundError("gs://forbidden-timeout/503/manifest"),
        ValueError('DATA_LOSS: Error reading "bucket/expired/503/d/77": CRC mismatch'),
        ValueError("checksum differs at 403 places"),
        KeyError("params"),
    ],
    ids=str,
)
def test_an_object_that_is_missing_or_damaged(error):
    assert not is_unreachable(error)


def test_errors_of_a_client_are_one_line(bucket):
    with pytest.raises(Unreachable) as found, bucket_errors():
        at(f"{bucket[:2]}://no-such-bucket/x").write_text("x")
    assert "\n" not in str(found.value) and "check the network, your credentials and the permissions" in str(
        found.value
    )


@pytest.mark.parametrize("error", [TypeError("a bug"), UserError("an input"), FileNotFoundError("a local file")])
def test_other_errors_stay_as_they_are(bucket, error):
    at(bucket)
    with pytest.raises(type(error)) as found, bucket_errors():
        raise error
    assert found.value is error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left"), "the store cannot be read or written: No space left!"),
        (OSError(errno.EACCES, "Permission denied", "a/b"), "a/b cannot be read or written: Permission denied!"),
        (OSError(errno.ENAMETOOLONG, "too long", "x" * 300), f"{'x' * 100}... cannot be read or written: too long!"),
    ],
    ids=str,
)  # fmt: skip
def test_an_error_of_a_file_system_is_one_line(error, message):
    with pytest.raises(UserError) as found, file_errors("the store", "!"):
        raise error
    assert str(found.value) == message


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(errno.ENOENT, "No such file"), BrokenPipeError(), OSError("no number"), ValueError("a bug")],
)
def test_an_error_of_the_code_keeps_its_traceback(error):
    with pytest.raises(type(error)) as found, file_errors():
        raise error
    assert found.value is error
