"""Compiled programs are kept for later commands, in a folder that can be chosen or switched off."""

import os

import jax
import pytest
from runs import ROOT, error_lines, rootstock

from configs.errors import UserError
from train import cli, compilation_cache
from train.commands import generate


@pytest.fixture
def updates(monkeypatch):
    """The changes of JAX's config, which are not made."""
    made = {}
    monkeypatch.setattr(jax.config, "update", made.__setitem__)
    return made


def test_the_default_is_a_folder_of_this_processor_and_is_announced_once(tmp_path, monkeypatch, updates, capsys):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.use("auto")
    first = capsys.readouterr().err
    folder = next((tmp_path / "rootstock").iterdir())
    assert f"kept in {folder}" in first.replace("\n", "") and updates["jax_compilation_cache_dir"] == str(folder)
    compilation_cache.use("auto")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(compilation_cache, "_processor", lambda: "another processor")
    compilation_cache.use("auto")
    assert updates["jax_compilation_cache_dir"] != str(folder)


def test_the_variable_of_jax_comes_before_the_default(tmp_path, monkeypatch, updates):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    compilation_cache.use("auto")
    assert updates == {}
    compilation_cache.use(str(tmp_path / "own"))
    assert updates["jax_compilation_cache_dir"] == str(tmp_path / "own")


def test_an_empty_flag_keeps_nothing(updates):
    compilation_cache.use("")
    assert updates == {"jax_enable_compilation_cache": False}


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path, updates, capsys):
    (tmp_path / "file").write_text("")
    compilation_cache.use(str(tmp_path / "file" / "folder"))
    assert updates == {} and "warning: compiled programs are not kept" in capsys.readouterr().err


def test_commands_that_compile_have_the_flag():
    assert "--compilation_cache" in rootstock("generate", "--help").stdout
    assert "--compilation_cache" not in rootstock("prepare", "--help").stdout
    assert "filelock" in (ROOT / "pyproject.toml").read_text()  # JAX needs it to delete the oldest programs


def test_the_folder_is_a_path_like_any_other(tmp_path, monkeypatch, updates):
    values = cli.parse("generate", generate, ["--run=r", "--prompt=p", "--compilation_cache=~/programs"])
    assert values.compilation_cache == os.path.expanduser("~/programs")
    with pytest.raises(UserError, match=r"--compilation_cache=gs://b/programs is in a bucket; expected a folder"):
        compilation_cache.use("gs://b/programs")
    assert error_lines(
        rootstock(
            "plan", "--config=configs/pretrain/tiny.py", "--topology=v5e-1", "--compilation_cache=s3://b/c", check=False
        )
    )[0].startswith("rootstock: error: --compilation_cache=s3://b/c is in a bucket")
