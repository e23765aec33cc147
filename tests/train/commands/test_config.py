"""`rootstock config` prints the resolved config, marks what differs from the defaults, and rejects invalid values."""

import json

import pytest

from configs.errors import UserError
from tests.runs import rootstock
from train.cli import main, parse
from train.commands import config

TINY = "--config=configs/pretrain/tiny.py"


def test_changed_fields_are_marked_with_their_default(capsys):
    main(["config", TINY, "--config.optimizer.learning_rate=0.5"])
    lines = capsys.readouterr().out.splitlines()
    assert "* batch_size = 16  (default: 32)" in lines and "  seed = 0" in lines
    assert "* optimizer.learning_rate = 0.5  (default: 0.001)" in lines
    assert "config.mesh: devices per axis, whose product is the device count; -1: all that remain" in lines


def test_json_has_the_config_and_what_changed(capsys):
    main(["config", TINY, "--json", "--config.model.attention_softcap=50.0"])
    found = json.loads(capsys.readouterr().out)
    assert found["config"]["num_steps"] == 300 and found["config"]["mesh"]["data"] == -1
    assert found["changed"]["batch_size"] == {"value": 16, "default": 32}
    assert found["changed"]["model.attention_softcap"] == {"value": 50.0, "default": 0.0}
    assert "seed" not in found["changed"]


def test_an_invalid_value_is_the_same_error_as_in_training():
    values = parse("config", config, [TINY, "--config.batch_size=0", "--config.optimizer.beta1=2.0"])
    with pytest.raises(UserError, match=r"config.batch_size=0 must be at least 1; config.optimizer.beta1=2.0 must be"):
        config.run(values)


def test_an_imported_model_is_fine_tuned_for_any_task(capsys):
    main(["config", "--config=configs/finetune/imported.py:question_answering:generative", "--json"])
    found = json.loads(capsys.readouterr().out)["config"]
    assert (found["task"]["name"], found["task"]["metrics"], found["adapt"]["method"]) == (
        "generation",
        ["squad"],
        "lora",
    )
    main(["config", "--config=configs/finetune/imported.py", "--json"])
    assert json.loads(capsys.readouterr().out)["config"]["task"]["name"] == "classification"


@pytest.mark.parametrize(
    ("variant", "error"),
    [
        ("intent.py:foo", "--config=configs/finetune/intent.py:foo: this config has no variants"),
        ("imported.py:intent:foo", "--config=configs/finetune/imported.py:intent:foo: this config has no variants"),
        ("imported.py:nothing", "imported.py:nothing is unknown; expected one of assistant, contract_clause"),
        ("question_answering.py:x", "question_answering.py:x is unknown; expected span or generative"),
    ],
)
def test_an_unknown_variant_is_one_line(variant, error):
    for arguments in ([f"--config=configs/finetune/{variant}"], ["--config", f"configs/finetune/{variant}"]):
        ended = rootstock("config", *arguments, check=False)
        printed = ended.stderr.strip().splitlines()
        assert ended.returncode == 2 and len(printed) == 1 and error in printed[0]
