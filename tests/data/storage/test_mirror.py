"""Files that grow during a run are readable where the run is, wherever that is."""

import time

import pytest

from data.storage import mirror
from data.storage.mirror import mirrored
from data.storage.paths import at


def append(path, text):
    with path.open("a") as file:
        file.write(text)


@pytest.mark.integration
def test_what_is_published_is_readable(folder):
    directory = at(folder)
    with mirrored(directory, "log") as copy:
        append(copy.local / "log", "one\n")
        copy.publish()
        assert (directory / "log").read_text() == "one\n"
        append(copy.local / "log", "two\n")
        (copy.local / "inside").mkdir()
        append(copy.local / "inside" / "events", "e")
    assert (directory / "log").read_text() == "one\ntwo\n" and (directory / "inside" / "events").read_text() == "e"
    with mirrored(directory, "log") as copy:
        append(copy.local / "log", "three\n")
    assert (directory / "log").read_text() == "one\ntwo\nthree\n"


def test_what_was_written_before_an_error_is_readable(folder):
    with pytest.raises(ValueError, match="stop"), mirrored(at(folder), "log") as copy:
        append(copy.local / "log", "one\n")
        raise ValueError("stop")
    assert (at(folder) / "log").read_text() == "one\n"


def test_what_changed_is_uploaded_after_a_while(bucket, monkeypatch):
    monkeypatch.setattr(mirror, "UPLOAD_SECONDS", 0.1)
    uploaded, copy_file = [], mirror.copy_file
    monkeypatch.setattr(mirror, "copy_file", lambda *pair: (copy_file(*pair), uploaded.append(pair)))
    with mirrored(at(bucket), "log") as copy:
        append(copy.local / "log", "one\n")
        deadline = time.monotonic() + 20
        while not uploaded and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (at(bucket) / "log").read_text() == "one\n"
        time.sleep(0.5)
    assert len(uploaded) == 1, "a file that did not change is uploaded once"


def test_a_bucket_that_is_away_for_a_while_does_not_end_the_run(bucket, monkeypatch):
    monkeypatch.setattr(mirror, "UPLOAD_SECONDS", 0.1)
    failures, copy_file = [], mirror.copy_file

    def fail_twice(source, target):
        if len(failures) < 2:
            failures.append(source)
            raise OSError("503")
        copy_file(source, target)

    monkeypatch.setattr(mirror, "copy_file", fail_twice)
    with mirrored(at(bucket), "log") as copy:
        append(copy.local / "log", "one\n")
        while len(failures) < 2:
            time.sleep(0.05)
    assert (at(bucket) / "log").read_text() == "one\n"
