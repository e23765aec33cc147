"""Fixtures of several files in this folder."""

import pytest

from data import sources


@pytest.fixture
def hashed(monkeypatch):
    """The names of the input files that were read and hashed."""
    names = []
    hash_file = sources.hash_file
    monkeypatch.setattr(sources, "hash_file", lambda path, *rest: names.append(path.name) or hash_file(path, *rest))
    return names
