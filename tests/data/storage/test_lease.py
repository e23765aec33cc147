"""The lock of a bucket: one conditional create, renewed, taken over when it expired by the clock of the bucket."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time

import pytest

from data.storage import lease as leases
from data.storage.conditional import read_version, write_if
from data.storage.lease import Held, lease, mark_of
from data.storage.paths import at


def _fail(reason):
    raise AssertionError(reason)


def _leave_a_lock(path, **changes):
    """Writes a lock as a process of another host that is gone left it."""
    owner = {"mark": "theirs", "host": "elsewhere", "pid": 7, "pids": "other", "renewed": 0} | changes
    path.write_text(json.dumps(owner))


def test_an_object_is_created_once(bucket):
    path = at(bucket) / "x"
    first = write_if(path, b"one", None)
    assert first.data == b"one" and write_if(path, b"two", None) is None and path.read_bytes() == b"one"


def test_an_object_is_replaced_only_if_nobody_else_wrote(bucket):
    path = at(bucket) / "x"
    first = write_if(path, b"one", None)
    second = write_if(path, b"two", first)
    assert second.data == b"two" and write_if(path, b"three", first) is None and path.read_bytes() == b"two"
    path.unlink()
    assert write_if(path, b"four", second) is None and not path.exists()


def test_of_many_that_try_at_the_same_time_one_gets_the_lock(bucket):
    path, got, done = at(bucket) / ".lock", [], threading.Event()

    def attempt():
        with contextlib.suppress(Held), lease(path, _fail) as mark:
            got.append(mark)
            done.wait(10)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    while sum(thread.is_alive() for thread in threads) > 1:
        time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    assert len(got) == 1


def test_a_held_lock_names_host_and_pid_and_a_released_one_is_free(bucket):
    path = at(bucket) / ".lock"
    with lease(path, _fail) as mark:
        assert mark_of(path) == mark
        with pytest.raises(Held, match=rf"pid {os.getpid()}.*its lock ends in \d+ s"), lease(path, _fail):
            pass
    assert mark_of(path) == ""
    with lease(path, _fail) as again:
        assert again != mark


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_over_at_once(bucket):
    path = at(bucket) / ".lock"
    code = (
        "import os, sys\nfrom data.storage.lease import lease\nfrom data.storage.paths import at\n"
        "with lease(at(sys.argv[1]), print):\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    before = mark_of(path)
    with lease(path, _fail) as mark:
        assert before and mark != before


@pytest.mark.integration
@pytest.mark.parametrize(
    "owner", [{}, {"host": "elsewhere", "pid": 1}, {"pids": ""}], ids=["another host", "pid 1", "unknown processes"]
)
def test_the_lock_of_another_host_is_kept_until_it_expires(bucket, owner):
    path = at(bucket) / ".lock"
    _leave_a_lock(path, **owner)
    with pytest.raises(Held, match="host elsewhere"), lease(path, _fail):
        pass
    # A bucket of Amazon's kind knows whole seconds.
    time.sleep(2.1)
    with lease(path, _fail, seconds=1.0) as mark:
        assert mark_of(path) == mark


@pytest.mark.parametrize("skew", [-90.0, 90.0])
def test_the_clock_of_this_host_does_not_matter(bucket, monkeypatch, skew):
    path, now = at(bucket) / ".lock", time.time
    monkeypatch.setattr(time, "time", lambda: now() + skew)
    _leave_a_lock(path)
    with pytest.raises(Held), lease(path, _fail):
        pass


def test_a_lock_is_renewed(bucket):
    path = at(bucket) / ".lock"
    with lease(path, _fail, seconds=0.3):
        first = read_version(path)
        deadline = time.monotonic() + 20
        while read_version(path).tag == first.tag:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert mark_of(path) == json.loads(first.data)["mark"]


@pytest.mark.parametrize("change", ["taken over", "deleted"])
def test_the_owner_is_told_that_its_lock_is_gone(bucket, change):
    path, told = at(bucket) / ".lock", []
    with lease(path, told.append, seconds=0.3):
        if change == "deleted":
            path.unlink()
        else:
            _leave_a_lock(path)
        deadline = time.monotonic() + 20
        while not told and time.monotonic() < deadline:
            time.sleep(0.05)
    assert len(told) == 1 and ("host elsewhere, pid 7" if change == "taken over" else "was deleted") in told[0]
    assert (mark_of(path) == "theirs") == (change == "taken over")


def test_the_process_that_has_the_pid_of_a_dead_owner_is_not_its_owner(bucket):
    path = at(bucket) / ".lock"
    _leave_a_lock(path, host=leases.socket.gethostname(), pid=os.getpid(), pids=leases._pids())
    with lease(path, _fail) as mark:
        assert mark_of(path) == mark
    assert sys.platform != "linux" or leases._pids()
