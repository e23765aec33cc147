"""One contract for a folder of this machine and for buckets; and what is refused."""

import pickle
import subprocess
import sys
import threading

import pytest

from configs.errors import UserError
from data.storage import files
from data.storage.new_directory import new_directory
from data.storage.paths import at, is_remote

_WRITE = """
import sys
from data.storage.paths import at
at(sys.argv[1]).write_text("from another process")
"""


class TestContract:
    """What a command may rely on, wherever its files are."""

    def test_a_file_is_read_as_it_was_written(self, folder):
        path = at(folder) / "a" / "text.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("häl\nlo", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "häl\nlo"
        path.write_bytes(bytes(range(256)))
        assert path.read_bytes() == bytes(range(256))
        with path.open("rb") as file:
            file.seek(250)
            assert file.read() == bytes(range(250, 256))
        assert path.stat().st_size == 256 and path.stat().st_mtime_ns > 1.7e18
        assert path.is_file() and path.exists() and not path.is_dir()
        assert path.parent.is_dir() and path.parent.exists() and not path.parent.is_file()

    def test_what_is_missing(self, folder):
        path = at(folder) / "nothing"
        assert not path.exists() and not path.is_file() and not path.is_dir()
        for read in (path.read_text, path.read_bytes, path.stat, lambda: list(path.iterdir()), path.unlink):
            with pytest.raises(FileNotFoundError):
                read()
        path.unlink(missing_ok=True)

    def test_listings(self, folder):
        root = at(folder)
        for name in ("b/c/3.txt", "b/2.txt", "1.txt", "b/c/4.csv"):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(name)
        assert sorted(path.name for path in root.iterdir()) == ["1.txt", "b"]
        assert [str(path.relative_to(root)) for path in files.files_below(root)] == [
            "1.txt", "b/2.txt", "b/c/3.txt", "b/c/4.csv",
        ]  # fmt: skip
        assert sorted(path.name for path in root.glob("*/*.txt")) == ["2.txt"]
        assert sorted(path.name for path in root.glob("b/[0-9]*")) == ["2.txt"]
        found = files.match_files(f"{folder}/**/*.txt")
        assert [path.read_text() for path in found] == ["1.txt", "b/2.txt", "b/c/3.txt"]
        assert [path.name for path in files.match_files(f"{folder}/b/*.txt")] == ["2.txt"]
        assert files.match_files(f"{folder}/*.json") == []

    @pytest.mark.integration
    def test_files_of_other_processes_appear(self, folder):
        path = at(folder) / "a" / "b.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "first.txt").write_text("")
        assert not path.exists() and [found.name for found in path.parent.iterdir()] == ["first.txt"]
        subprocess.run([sys.executable, "-c", _WRITE, str(path)], check=True)
        assert path.read_text() == "from another process" and path.exists()
        assert sorted(found.name for found in path.parent.iterdir()) == ["b.txt", "first.txt"]

    def test_a_file_is_replaced_whole(self, folder):
        path = at(folder) / "state.json"
        texts = ["a" * 50_000, "b" * 50_000]
        files.write_atomically(path, texts[0])
        seen, done = set(), threading.Event()

        def read():
            while not done.is_set():
                seen.add(path.read_text())

        reader = threading.Thread(target=read)
        reader.start()
        for number in range(12):
            files.write_atomically(path, texts[number % 2])
        done.set()
        reader.join()
        assert seen <= set(texts) and path.read_text() == texts[1]
        assert [found.name for found in path.parent.iterdir()] == ["state.json"]

    def test_trees_are_copied_moved_and_deleted(self, folder, tmp_path):
        source = tmp_path / "source"
        (source / "inside").mkdir(parents=True)
        (source / "inside" / "a.bin").write_bytes(b"a")
        (source / "manifest.json").write_text("{}")
        target = at(folder) / "copy"
        files.copy_tree(source, target, last="manifest.json")
        moved = at(folder) / "moved"
        files.move_tree(target, moved)
        assert not target.exists() and (moved / "inside" / "a.bin").read_bytes() == b"a"
        with files.local_copy(moved) as local:
            assert (local / "inside" / "a.bin").read_bytes() == b"a" and not is_remote(local)
        files.delete_tree(moved)
        assert not moved.exists()

    def test_a_path_is_pickled(self, folder):
        path = at(folder) / "a"
        path.write_text("content")
        copy = pickle.loads(pickle.dumps(path))
        assert copy == path and str(copy) == f"{folder}/a" and copy.read_text() == "content"
        assert path.absolute() == path and str(path.parent / "b") == f"{folder}/b" and path.suffix == ""

    def test_a_directory_appears_when_it_is_complete(self, folder):
        path = at(folder) / "store"
        with pytest.raises(ValueError, match="stop"), new_directory(path) as directory:
            (directory / "tokens.bin").write_text("")
            raise ValueError("stop")
        assert not path.exists()
        with new_directory(path) as directory:
            (directory / "manifest.json").write_text("{}")
            assert not (path / "manifest.json").exists()
        assert [found.name for found in path.iterdir()] == ["manifest.json"]
        with pytest.raises(UserError, match="not empty"), new_directory(path):
            pass


def test_in_a_bucket_the_manifest_is_written_last(bucket, monkeypatch):
    written = []
    copy = files.copy_file
    monkeypatch.setattr(files, "copy_file", lambda source, target: (written.append(target.name), copy(source, target)))
    with new_directory(at(bucket)) as directory:
        for name in ("z.bin", "manifest.json", "a.bin"):
            (directory / name).write_text(name)
    assert sorted(written) != written and written[-1] == "manifest.json" and len(written) == 3


def test_what_a_killed_command_left_in_a_bucket_is_replaced(bucket):
    code = (
        "import os, sys\nfrom data.storage.new_directory import new_directory\nfrom data.storage.paths import at\n"
        "with new_directory(at(sys.argv[1]), in_place=True) as path:\n"
        "    (path / 'half.bin').write_text('')\n    os.kill(os.getpid(), 9)\n"
    )
    path = at(bucket) / "run"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    assert (path / "half.bin").exists()
    with new_directory(path) as directory:
        (directory / "manifest.json").write_text("{}")
    assert [found.name for found in path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("complete", [False, True])
def test_sigterm_leaves_no_half_of_a_directory(complete, tmp_path):
    """After the block, the signal ends a process as it did before."""
    code = (
        "import os, signal, sys\nfrom data.storage.new_directory import new_directory\n"
        "from data.storage.paths import at\n"
        "with new_directory(at(sys.argv[1])) as path:\n    (path / 'half.bin').write_text('')\n"
        f"    if not {complete}: os.kill(os.getpid(), signal.SIGTERM)\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], check=False)
    assert done.returncode == (-15 if complete else 143)
    assert [path.name for path in tmp_path.iterdir()] == (["run"] if complete else [])


def test_two_commands_do_not_make_one_directory_of_a_bucket(bucket):
    path = at(bucket) / "store"
    with new_directory(path):
        with (
            pytest.raises(UserError, match=r"is being made by another command \(host .*, pid \d+"),
            new_directory(path),
        ):
            pass


def test_an_object_is_not_appended_to(bucket):
    path = at(bucket) / "log.txt"
    path.write_text("first")
    with pytest.raises(NotImplementedError, match="cannot be appended to"):
        path.open("a")
    assert path.read_text() == "first"


def test_the_empty_object_that_a_console_makes_of_a_directory_is_not_a_file(bucket):
    path = at(bucket) / "folder"
    path.filesystem.pipe_file(f"{path.key}/", b"")
    (path / "a.txt").write_text("a")
    assert [found.name for found in path.iterdir()] == ["a.txt"]
    assert [found.name for found in files.files_below(path)] == ["a.txt"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://host/x", "http:// is not supported"),
        ("https://storage.googleapis.com/bucket/x", "https:// is not supported"),
        ("file:///tmp/x", "file:// is not supported"),
        ("az://container/x", "az:// is not supported"),
        ("GS://bucket/x", "GS:// is not supported"),
        ("gs:/bucket/x", "one slash after gs:"),
        ("s3:/bucket/x", "one slash after s3:"),
        ("gs://", "does not name a bucket"),
        ("s3:///x", "does not name a bucket"),
        ("gs://bucket//x", "has an empty part"),
        ("gs://bucket/../x", r"has an empty part, '\.' or '\.\.'"),
    ],
)
def test_other_urls_are_refused(url, expected):
    with pytest.raises(UserError, match=expected) as found:
        at(url)
    assert "gs://BUCKET/NAME" in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(("scheme", "needed", "extra"), [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")])
def test_a_url_without_its_extra_says_what_to_install(monkeypatch, scheme, needed, extra):
    monkeypatch.setitem(sys.modules, needed, None)
    with pytest.raises(UserError, match=rf"{scheme}://bucket/x needs {needed}: pip install -e '\.\[{extra}\]'"):
        at(f"{scheme}://bucket/x")


@pytest.mark.integration
def test_local_paths_need_no_library_of_buckets():
    code = (
        "import sys, train.pretraining, data.prepare, train.cli\nfrom data.storage.paths import at\n"
        "at('runs/x'); at('/tmp/gs:/x')\n"
        "assert not {'gcsfs', 's3fs', 'botocore', 'aiohttp', 'google.cloud.storage'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
