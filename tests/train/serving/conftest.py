"""Servers of small models, in this process."""

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("starlette")
pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")

from tests.runs import visible_devices, write_rows  # noqa: E402
from train.run.record import open_run  # noqa: E402
from train.serving.app import Access, build_app  # noqa: E402
from train.serving.limits import Limits  # noqa: E402
from train.serving.server import Address, ServeOptions, listen, open_endpoints, server_config  # noqa: E402

LIMITS = Limits(slots=4, max_length=48, max_tokens=40, max_waiting=80, max_body=20_000, max_rows=8, timeout=60)


@contextlib.contextmanager
def served(run, limits=LIMITS, access=Access(), devices=1) -> Iterator[tuple[str, object]]:  # noqa: B008 - frozen
    """Yields (the address, the endpoints) of a server of a run."""
    with visible_devices(devices):
        endpoints = open_endpoints(open_run(run), limits, ServeOptions())
    server = uvicorn.Server(server_config(build_app(endpoints, access), limits))
    listener = listen(Address(port=0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", endpoints
    finally:
        server.should_exit = True
        thread.join()


def until(condition, seconds: float = 30.0) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def language_server(foundation):
    """(address, endpoints) of a server of the small foundation model."""
    with served(foundation) as found:
        yield found


@pytest.fixture
def gated(language_server, monkeypatch):
    """A server whose decoding waits: `gate.set()` lets it go on."""
    url, endpoints = language_server
    gate, decode = threading.Event(), endpoints.engine._decode

    def wait_and_decode():
        gate.wait(30)
        return decode()

    monkeypatch.setattr(endpoints.engine, "_decode", wait_and_decode)
    yield url, endpoints, gate
    gate.set()
    until(lambda: endpoints.engine.counts() == (0, 0))


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """A file of labeled rows."""
    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")
