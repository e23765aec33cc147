"""A tracker gets everything a run measures, and can neither end nor delay it."""

import contextlib
import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import types

import pytest

from configs.errors import UserError
from data.storage.paths import at
from tests.faults.tiny_run import settings_of, train
from tests.runs import ROOT
from train.run import trackers
from train.run.history import open_writer, read_records
from train.run.trackers import InBackground, check_trackers, git_revision, numbers, publish_results

TRACKED = {"logging.tracker": "wandb", "logging.project": "p"}


class Service(types.ModuleType):
    """Stands in for the package of a service; remembers what it is given."""

    def __init__(self, fails_at=None, waits_at=None, prints=""):
        super().__init__("wandb")
        self.__file__ = "wandb.py"
        self.calls, self.fails_at, self.waits_at, self.prints = [], fails_at, waits_at, prints
        self.release = threading.Event()
        self.Settings = dict
        self.Html = lambda text: ("html", text)
        self.Table = lambda columns, data: ("table", columns, data)

    def called(self, name, *values):
        if self.prints:
            print(self.prints)
        if name == self.fails_at:
            raise SystemExit("no key was found") if name == "init" else RuntimeError("the service\nsays no")
        if name == self.waits_at:
            self.release.wait(30)
        self.calls.append((name, *values))

    def init(self, **options):
        self.called("init", options)
        return types.SimpleNamespace(
            define_metric=lambda *names, **options: None,
            log=lambda values, step=None: self.called("log", values | ({} if step is None else {"step": step})),
            finish=lambda: self.called("finish"),
        )


@pytest.fixture
def service(monkeypatch):
    def install(**options):
        found = Service(**options)
        monkeypatch.setitem(sys.modules, "wandb", found)
        monkeypatch.setitem(sys.modules, "trackio", found)
        return found

    return install


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_gets_config_revision_and_every_number_of_metrics(name, service, tmp_path):
    found = service()
    train(tmp_path, settings_of(**TRACKED | {"logging.tracker": name}))
    (_, options), *logged, (last,) = found.calls
    assert last == "finish" and options["project"] == "p" and options["resume"] == "allow"
    assert options["config"]["optimizer"]["learning_rate"] == 1e-2
    assert options["config"]["git_revision"] == git_revision()
    expected = [{"step": record["step"], **numbers(record)} for record in read_records(tmp_path)]
    assert [values for _, values in logged] == expected
    for name in ("train/loss", "eval/loss", "goodput/parts/step"):
        assert any(name in values for values in expected)


def test_a_resumed_run_is_the_same_run_of_the_service(service, folder):
    found, workdir = service(), at(folder)
    for step in (0, 5):
        with open_writer(workdir, step, settings_of(**TRACKED), writing=True) as write:
            write({"step": step + 1, "phase": "train", "loss": 1.0, "load_max": [0.5, 0.25]})
    publish_results(workdir, settings_of(**TRACKED), {})
    first, second, third = (call[1]["id"] for call in found.calls if call[0] == "init")
    assert first == second == third
    assert ("log", {"step": 6, "train/loss": 1.0, "train/load_max/0": 0.5, "train/load_max/1": 0.25}) in found.calls


def test_results_report_and_table_are_published(service, tmp_path):
    found = service()
    (tmp_path / "report.html").write_text("<p>report</p>")
    models = {"random": {"rows": 9, "accuracy": {"value": 0.5, "low": 0.1}}, "tuned": {"rows": 9, "f1": {"value": 1.0}}}
    results = {"models": models, "task": "spam", "verdict": "beats"}
    publish_results(tmp_path, settings_of(**TRACKED), results, tmp_path / "report.html")
    (values,) = (call[1] for call in found.calls if call[0] == "log")
    assert values["report"] == ("html", "<p>report</p>") and values["results/models/random/accuracy/value"] == 0.5
    assert values["comparison"] == ("table", ["model", "accuracy", "f1"], [["random", 0.5, None], ["tuned", None, 1.0]])


@pytest.mark.parametrize("call", ["init", "log", "finish"])
def test_a_service_that_fails_ends_no_run_and_is_named_once(call, service, tmp_path, capsys):
    service(fails_at=call)
    train(tmp_path, settings_of(**TRACKED))
    assert read_records(tmp_path)[-1]["step"] == 12
    said = [line for line in capsys.readouterr().err.splitlines() if "wandb follows this run no longer" in line]
    assert len(said) == 1
    assert ("SystemExit: no key was found" if call == "init" else "RuntimeError: the service says no") in said[0]


@pytest.mark.parametrize("call", ["init", "log"])
def test_a_service_that_hangs_delays_no_step_and_not_the_end(call, service, capsys):
    found = service(waits_at=call)
    tracker = InBackground("wandb", lambda: _Logged(found), patience=0.2)
    began = time.perf_counter()
    for step in range(20_000):
        tracker.log(step, {"loss": 1.0})
    tracker.close()
    assert time.perf_counter() - began < 10
    found.release.set()
    assert "wandb did not take all records within 0.2 s; metrics.jsonl has them" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["wandb", "trackio"])
@pytest.mark.parametrize("call", ["init", "finish"])
def test_results_are_printed_while_a_service_hangs(name, call, service, tmp_path, capsys, monkeypatch):
    found = service(waits_at=call, prints="* project created")
    settings = settings_of(**TRACKED | {"logging.tracker": name})
    monkeypatch.setattr(trackers.InBackground.__init__, "__defaults__", (0.3,))
    with open_writer(tmp_path, 0, settings, writing=True) as write:
        write({"step": 1, "phase": "train", "loss": 1.0})
    publish_results(tmp_path, settings, {"models": {}})
    print("the table")
    assert capsys.readouterr().out == "the table\n"
    found.release.set()


class _Logged:
    def __init__(self, service):
        service.called("init")
        self.service = service

    def log(self, step, values):
        self.service.called("log", step)

    def close(self):
        pass


def test_a_folder_of_earlier_runs_is_not_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", types.ModuleType("wandb"))
    with pytest.raises(UserError, match="needs the package wandb"):
        check_trackers(settings_of(**TRACKED).logging)


def test_a_missing_package_is_one_line_before_the_work(monkeypatch, tmp_path):
    for name, field in {"wandb": "tracker", "trackio": "tracker", "tensorboardX": "tensorboard"}.items():
        monkeypatch.setitem(sys.modules, name, None)
        settings = settings_of(**{f"logging.{field}": name if field == "tracker" else True})
        with (
            pytest.raises(UserError, match=rf"config.logging.{field}.* needs the package {name}: pip install -e"),
            open_writer(tmp_path, 0, settings, writing=True),
        ):
            pass


_OFFLINE = """
import sys
from pathlib import Path
from tests.faults.tiny_run import settings_of
from train.run import trackers
from train.run.history import open_writer
from train.run.trackers import publish_results
workdir, name = Path(sys.argv[1]), sys.argv[2]
settings = settings_of(**{"logging.tracker": name, "logging.project": "p"})
for step in (0, 1):
    with open_writer(workdir, step, settings, writing=True) as write:
        write({"step": step + 1, "phase": "train", "loss": 2.0 + step})
(workdir / "report.html").write_text("<p>report</p>")
results = {"models": {"tuned": {"rows": 3, "accuracy": {"value": 0.75}}}}
publish_results(workdir, settings, results, workdir / "report.html")
"""


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_the_packages_themselves_take_a_run_offline(name, tmp_path):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    workdir = tmp_path / "run"
    workdir.mkdir()
    environment = os.environ | {"WANDB_MODE": "offline", "TRACKIO_DIR": str(tmp_path / "trackio")}
    command = [sys.executable, "-c", _OFFLINE, str(workdir), name]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0 and done.stdout == "" and "follows this run no longer" not in done.stderr, done.stderr
    losses, accuracy, reports = (_in_wandb if name == "wandb" else _in_trackio)(tmp_path)
    assert losses == [2.0, 3.0] and accuracy == [0.75] and reports == 1
    assert [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()] == [1, 2]


def _in_wandb(folder):
    from wandb.proto.wandb_internal_pb2 import Record

    rows = []
    for path in sorted((folder / "run" / "wandb").glob("offline-run-*/*.wandb")):
        for content in _log_records(path.read_bytes()):
            record = Record()
            record.ParseFromString(content)
            rows.append({"/".join(x.nested_key) or x.key: json.loads(x.value_json) for x in record.history.item})
    return _numbers(rows)


def _log_records(content, block=32768):
    """Yields the records of a file in the log format of LevelDB, which begins with 7 bytes of Weights & Biases."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if block - place % block < 7:
            place += block - place % block
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def _in_trackio(folder):
    (database,) = (folder / "trackio").glob("p*.db")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return _numbers([json.loads(row[0]) for row in connection.execute("select metrics from metrics order by id")])


def _numbers(rows):
    names = ("train/loss", "results/models/tuned/accuracy/value")
    losses, accuracy = ([row[name] for row in rows if name in row] for name in names)
    return losses, accuracy, sum(any(name.startswith("report") for name in row) for row in rows)
