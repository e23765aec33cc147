import os

import pytest

from configs.errors import UserError
from data.sources import differences, fingerprint, hash_sources, inventory, match_sources
from data.store import is_store


def fingerprint_of(pattern):
    return fingerprint(inventory(pattern))


def test_fingerprint_depends_on_the_content(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "b.txt").write_text("b")
    both = fingerprint_of(f"{tmp_path}/*.txt")
    assert both == fingerprint_of(f"{tmp_path}/a.txt,{tmp_path}/b.txt")
    assert both != fingerprint_of(f"{tmp_path}/a.txt")
    (tmp_path / "b.txt").write_text("c")
    assert both != fingerprint_of(f"{tmp_path}/*.txt")


def test_differences_list_each_changed_file(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    before = inventory(f"{tmp_path}/*.txt")
    (tmp_path / "a.txt").write_text("more")
    (tmp_path / "b.txt").rename(tmp_path / "d.txt")
    found = differences(before, inventory(f"{tmp_path}/*.txt"))
    assert [text.partition(":")[0] for text in found] == ["a.txt", "b.txt", "d.txt"]
    assert found[0].startswith("a.txt: 1 ca978112 -> 4 ")
    assert found[1].endswith("-> missing") and found[2].startswith("d.txt: missing -> 1 ")
    assert differences(before, before) == []


def test_files_with_known_size_and_time_are_not_read(tmp_path, hashed):
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name)
    known = hash_sources(str(tmp_path))
    assert hashed == ["a.txt", "b.txt", "c.txt"]
    hashed.clear()
    assert hash_sources(str(tmp_path), known) == known and hashed == []
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    (tmp_path / "b.txt").write_text("longer")
    found = hash_sources(str(tmp_path), known)
    assert hashed == ["a.txt", "b.txt"]
    assert found[0].sha256 == known[0].sha256 and found[1].sha256 != known[1].sha256 and found[2] == known[2]


def test_files_of_one_name_size_and_time_are_read(tmp_path, hashed):
    for folder in "xy":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text(folder)
        os.utime(tmp_path / folder / "a.txt", ns=(1, 1))
    known = hash_sources(str(tmp_path))
    (tmp_path / "x").rename(tmp_path / "z")
    assert [entry.sha256 for entry in hash_sources(str(tmp_path), known)] == [e.sha256 for e in reversed(known)]
    assert len(hashed) == 4


def test_unreadable_file_is_an_error(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "a.txt")
    with pytest.raises(UserError):
        inventory(str(tmp_path / "a.txt"))


@pytest.mark.parametrize("names", [20, 400])
def test_a_list_of_files_may_be_longer_than_a_path(tmp_path, names):
    files = [tmp_path / f"a-name-of-some-length-{number:03}.txt" for number in range(names)]
    for path in files:
        path.write_text("x")
    assert match_sources(",".join(map(str, files))) == files
    assert not is_store(tmp_path / ",".join(path.name for path in files))
    with pytest.raises(UserError, match="matches no readable file"):
        match_sources("x" * 300)
