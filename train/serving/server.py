"""Opens a run and serves it until SIGTERM or Ctrl-C."""

import contextlib
import dataclasses
import ipaddress
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from configs.errors import UserError
from train.console import say
from train.prediction.task_model import PredictOptions, calibration_line, load
from train.run.language_model import chat_template_of, open_language_model
from train.run.record import Run, open_run
from train.serving.app import Access, build_app
from train.serving.completions import Completions
from train.serving.engine import Engine
from train.serving.limits import Limits
from train.serving.predictions import Batcher, Predictions
from train.tasks.classification import Classification
from train.tasks.loading import task_from_record

# Seconds that running answers have to end after SIGTERM or Ctrl-C.
_GRACE_SECONDS = 5
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: name or address.
        port: 0: one that is free.
    """

    host: str = "127.0.0.1"
    port: int = 8000

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclasses.dataclass(frozen=True)
class ServeOptions:
    """How a run is served.

    Attributes:
        name: of the model; "": that of the run's directory.
        api_key: what clients must send; "": nothing.
        template: chat template; "": the one that the run was fine-tuned with, its tokenizer's, or "plain_chat".
        cache_dtype: of the KV cache; "": the run's setting.
        top_k: classes per row.
    """

    name: str = ""
    api_key: str = ""
    template: str = ""
    cache_dtype: str = ""
    top_k: int = 5


def serve(directory: Path, address: Address, limits: Limits, options: ServeOptions) -> None:
    """Serves a run until SIGTERM or Ctrl-C.

    Raises:
        UserError: an address that cannot be listened on or needs a key, or a run that cannot be opened.
    """
    if not address.is_loopback and not options.api_key:
        raise UserError(
            f"--host={address.host} can be reached from other machines; set --api_key, or ROOTSTOCK_API_KEY in the "
            "environment"
        )
    run = open_run(directory)
    # Before the model is loaded and compiled, which takes longer.
    with contextlib.closing(listen(address)) as listener:
        endpoints = open_endpoints(run, limits, options)
        hosts = (*_LOOPBACK_NAMES, address.host) if address.is_loopback else ()
        app = build_app(endpoints, Access(options.api_key, hosts))
        port = listener.getsockname()[1]
        shown = f"[{address.host}]" if ":" in address.host else address.host
        paths = "/v1/chat/completions and /v1/completions" if isinstance(endpoints, Completions) else "/predict"
        say(f"serve: http://{shown}:{port}/ is the page; {paths} for programs; Ctrl-C stops it")
        _Server(server_config(app, limits)).run(sockets=[listener])
    say("serve: stopped")


def server_config(app: Starlette, limits: Limits) -> uvicorn.Config:
    """Returns the config of a server for an application."""
    return uvicorn.Config(
        app,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        # A connection without a request costs little, but not nothing.
        limit_concurrency=limits.slots + 4 * limits.max_waiting + 64,
    )


def listen(address: Address) -> socket.socket:
    """Returns a socket that listens at an address.

    Raises:
        UserError: it cannot.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(1024)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"--host={address.host} --port={address.port}: cannot listen there: {reason}") from None
    return listener


def open_endpoints(run: Run, limits: Limits, options: ServeOptions) -> Completions | Predictions:
    """Returns the endpoints of a run, whose engine or batcher is running.

    Raises:
        UserError: the run cannot be opened, or has no use for an option.
    """
    name = options.name or run.directory.absolute().name
    if run.is_language_model:
        return _open_completions(run, name, limits, options)
    for flag in ("template", "cache_dtype"):
        if value := getattr(options, flag):
            raise UserError(f"--{flag}={value} has no effect with the task of {run.directory}; leave it out")
    task = task_from_record(run.record.task)
    top_k = min(options.top_k, len(task.classes)) if isinstance(task, Classification) else 1
    model = load(run.directory, PredictOptions(top_k))
    calibration = calibration_line(model)
    batcher = Batcher(model, limits.max_waiting)
    batcher.start()
    say(f"serve: {name}, {run.record.task['name']}{f'; {calibration}' if calibration else ''}")
    return Predictions(name, model, batcher, limits, calibration)


def _open_completions(run: Run, name: str, limits: Limits, options: ServeOptions) -> Completions:
    trained = chat_template_of(run)
    language_model = open_language_model(
        run.directory, options.template or trained or "plain_chat", cache_dtype=options.cache_dtype
    )
    engine = Engine(language_model, limits)
    say(f"serve: {name} compiles its programs for {limits.slots} texts of up to {engine.max_length:,} tokens")
    start = time.perf_counter()
    programs = engine.start()
    about = f"template {language_model.template}" + (
        "" if trained or options.template else ": it was not trained to chat"
    )
    say(f"serve: {programs} programs in {time.perf_counter() - start:.1f} s; {about}")
    defaults = {key: value for key, value in run.record.generation.items() if key != "max_new_tokens"}
    return Completions(name, engine, defaults, bool(trained or options.template))


class _Server(uvicorn.Server):
    """A server that ends after SIGTERM or Ctrl-C as after a finished command: uvicorn's raises the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A context in which both signals make the server end."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
