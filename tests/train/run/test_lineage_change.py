"""A run resumes from the run that it started from, and from no other."""

import dataclasses
import json

import pytest
from conftest import tiny_model

from configs import default
from configs.errors import UserError
from data.tokenizer_training import train_tokenizer
from train.run.lineage_change import lineage_errors_on_resume
from train.run.record import RunRecord, start


def entry(directory, stage="pretrain", fingerprint="f"):
    return [{"stage": stage, "directory": str(directory), "data_fingerprint": fingerprint}]


def run_in(directory):
    directory.mkdir()
    (directory / "run.json").write_text(json.dumps({}))
    return directory


def test_the_same_run_by_another_path_is_no_change(tmp_path):
    one = run_in(tmp_path / "one")
    (tmp_path / "link").symlink_to(one)
    assert lineage_errors_on_resume([], []) == []
    assert lineage_errors_on_resume(entry(one), entry(one)) == []
    assert lineage_errors_on_resume(entry(one), entry(tmp_path / "link")) == []


def test_a_run_that_was_moved_is_the_same_if_its_data_are(tmp_path):
    gone, here = tmp_path / "gone", run_in(tmp_path / "here")
    assert lineage_errors_on_resume(entry(gone), entry(here)) == []
    assert lineage_errors_on_resume(entry(gone), entry(here, fingerprint="g")) == [f"--init_from: {gone} -> {here}"]
    assert lineage_errors_on_resume(entry(gone), entry(here, stage="finetune")) == [f"--init_from: {gone} -> {here}"]


def test_the_stage_on_task_texts_of_a_copied_run_is_its_own(tmp_path):
    one, other = run_in(tmp_path / "one"), run_in(tmp_path / "other")
    before, copied = ([*entry(one), *entry(run_in(directory / "task_text"))] for directory in (one, other))
    assert lineage_errors_on_resume(before, copied) == []
    assert lineage_errors_on_resume(before, [*entry(other), *copied[1:]]) == [f"--init_from: {one} -> {other}"]


def test_another_run_or_none_is_refused_by_name(tmp_path):
    """Two runs on the same data have the same fingerprint and other weights."""
    one, other = run_in(tmp_path / "one"), run_in(tmp_path / "other")
    tokenizer, config = train_tokenizer("bytes", []), default.get_config().to_dict()
    record = RunRecord("pretrain", tiny_model(), config, {}, "0123456789abcdef", entry(one))
    start(tmp_path / "run", record, tokenizer)
    start(tmp_path / "run", record, tokenizer)
    for lineage, name in ((entry(other), str(other)), ([], "none")):
        with pytest.raises(UserError, match=rf"\(--init_from: {one} -> {name}\)"):
            start(tmp_path / "run", dataclasses.replace(record, lineage=lineage), tokenizer)
    start(tmp_path / "fresh", dataclasses.replace(record, lineage=[]), tokenizer)
    with pytest.raises(UserError, match=rf"\(--init_from: none -> {one}\)"):
        start(tmp_path / "fresh", record, tokenizer)
