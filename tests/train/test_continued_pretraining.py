"""`pretrain --init_from`: which runs can be continued, and on rows of which length."""

import json
import shutil

import pytest

from configs.errors import UserError
from train.pretraining import pretrain

pytestmark = pytest.mark.usefixtures("one_device")


def longer(foundation):
    """Returns the config of the foundation with rows of 128 tokens, twice its context, and two steps."""
    config = json.loads((foundation / "run.json").read_text())["config"]
    config |= {"sequence_length": 128, "num_steps": 2, "batch_size": 2, "mesh": dict.fromkeys(config["mesh"], 1)}
    config["optimizer"] = config["optimizer"] | {"warmup_steps": 0}
    return config


@pytest.fixture
def parent(foundation, tmp_path):
    """A copy of the foundation whose run.json a test changes."""
    shutil.copytree(foundation, tmp_path / "parent")

    def changed(**fields):
        path = tmp_path / "parent" / "run.json"
        record = json.loads(path.read_text())
        record["model"] |= fields
        path.write_text(json.dumps(record))
        return tmp_path / "parent"

    return changed


@pytest.mark.integration
def test_rows_longer_than_the_context_make_it_longer(foundation, tmp_path, capsys):
    pretrain(longer(foundation), tmp_path / "run", foundation)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model"]["context_length"] == 128
    assert "the context grows from 64 to 128 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("fields", [{"position": "learned"}, {"rope_scaling": "linear", "rope_scaling_factor": 2.0}])
def test_a_context_that_cannot_grow_refuses_longer_rows(fields, parent, foundation, tmp_path):
    with pytest.raises(UserError, match=r"sequence_length=128 exceeds the context of .*parent.*; expected at most 64"):
        pretrain(longer(foundation), tmp_path / "run", parent(**fields))
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_model_without_a_language_model_head_is_refused(foundation, parent, tmp_path):
    directory = parent()
    record = json.loads((directory / "run.json").read_text())
    record |= {"stage": "finetune", "task": {"name": "classification", "classes": ["a", "b"]}}
    (directory / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"parent is a model for classification; expected a pre-trained run"):
        pretrain(longer(foundation), tmp_path / "run", directory)


def test_text_that_changed_before_the_run_began_can_be_tokenized_again(foundation, tmp_path):
    """No run was trained on the store: the remedy is to delete it, and --accept_changed_data is none."""
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat\n" * 200)
    config = longer(foundation)
    config |= {"sequence_length": 64, "data": config["data"] | {"path": str(text), "max_epochs": 1e-3}}
    with pytest.raises(UserError, match="max_epochs"):
        pretrain(config, tmp_path / "run")
    text.write_text("a dog ran away again\n" * 200)
    with pytest.raises(UserError, match=rf"or the same text, or delete {tmp_path}/run/store$"):
        pretrain(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "store")
    with pytest.raises(UserError, match="max_epochs"):
        pretrain(config, tmp_path / "run")


@pytest.mark.integration
def test_the_sampling_options_of_an_imported_model_are_kept(foundation, parent, tmp_path):
    path = parent() / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"generation": {"temperature": 0.3, "top_k": 7}}))
    pretrain(longer(foundation), tmp_path / "run", path.parent)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["generation"] == {"temperature": 0.3, "top_k": 7}
