"""Chat models, imported and exported: chat template, all tokens that end a turn, and how their authors sample."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import tokenizers

from configs.errors import UserError
from configs.finetune import assistant
from data.templates import render
from data.tokenizer import Tokenizer, load_tokenizer
from data.tokenizer_training import train_tokenizer
from tests.runs import rootstock
from train.finetuning.run import finetune
from train.huggingface.exporting import export_hf
from train.huggingface.generation_config import generation_config, read_generation
from train.huggingface.importing import import_hf
from train.run.language_model import open_language_model
from train.run.record import open_run

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "huggingface"
HAS_TRANSFORMERS = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
JINJA = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
SAMPLED = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.05}


def chat_tokenizer():
    """Bytes with the tokens of ChatML: <|im_start|> is 259, <|im_end|> is 260."""
    backend = tokenizers.Tokenizer.from_str(train_tokenizer("bytes", []).serialized)
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|eot|>"])
    return Tokenizer(backend.to_str(), 1, 2, 0)


def source(folder, generation=None, jinja="", eos=2):
    """Returns a stored model with a chat tokenizer, as a chat model of the Hub looks."""
    directory = folder / "source"
    shutil.copytree(GOLDEN / "llama3", directory)
    chat_tokenizer().save(directory)
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    if jinja:
        (directory / "chat_template.jinja").write_text(jinja)
    config = json.loads((directory / "config.json").read_text()) | {"eos_token_id": eos}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def chat_run(tmp_path_factory):
    """A run that was fine-tuned on chats with a built-in template, and its base."""
    folder = tmp_path_factory.mktemp("chat")
    import_hf(str(source(folder, SAMPLED | {"eos_token_id": [2, 261]})), folder / "base")
    rows = [
        {"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": "yes"}]}
        for i in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = assistant.get_config()
    config.data.path, config.task.template = str(folder / "rows.jsonl"), "chatml"
    config.batch_size, config.sequence_length, config.num_steps = 8, 48, 2
    config.evaluation.every = config.checkpoint.every = 2
    config.optimizer.warmup_steps, config.task.zero_shot_rows, config.task.baseline = 1, 0, False
    finetune(config.to_dict(), folder / "base", folder / "run")
    return folder / "run"


@pytest.mark.integration
@pytest.mark.parametrize(
    ("generation", "eos", "ends"),
    [
        ({"eos_token_id": [260, 2, 261]}, 2, (2, 260, 261)),
        ({"eos_token_id": 260}, 2, (2, 260)),
        (None, [2, 260], (2, 260)),
        ({"eos_token_id": [2, 9999]}, 2, (2,)),
        ({}, 2, (2,)),
        (None, None, (2,)),
    ],
)
def test_all_end_ids_are_imported(generation, eos, ends, tmp_path):
    import_hf(str(source(tmp_path, generation, eos=eos)), tmp_path / "run")
    assert open_language_model(tmp_path / "run").end_ids == ends
    export_hf(tmp_path / "run", tmp_path / "out")
    exported = json.loads((tmp_path / "out" / "generation_config.json").read_text())["eos_token_id"]
    assert exported == (list(ends) if len(ends) > 1 else ends[0])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["eos_token_id"] == exported
    assert load_tokenizer(tmp_path / "out").end_ids == ends[1:]


@pytest.mark.integration
def test_a_chat_template_file_is_imported_and_used_by_every_command(tmp_path):
    import_hf(str(source(tmp_path, SAMPLED | {"eos_token_id": [260]}, JINJA)), tmp_path / "run")
    said = rootstock("generate", "--run", tmp_path / "run", "--prompt=a", "--template=tokenizer", "--max_new_tokens=2")
    assert "temperature=0.6" in said.stderr and "top_k=20" in said.stderr
    told = rootstock("generate", "--run", tmp_path / "run", "--prompt=a", "--temperature=0", "--max_new_tokens=2")
    assert "temperature=0.6" not in told.stderr and "top_k=20" in told.stderr
    assert open_language_model(tmp_path / "run", "tokenizer").end_ids == (260, 2)
    export_hf(tmp_path / "run", tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").chat_template == JINJA


@pytest.mark.integration
def test_a_fine_tuned_chat_model_is_exported_with_its_template_ends_and_defaults(chat_run, tmp_path):
    export_hf(chat_run, tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    messages = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "yes"}]
    own = open_run(chat_run).tokenizer()
    assert render(messages, "tokenizer", tokenizer) == render(messages, "chatml", own)
    ends = [2, 260, 261]
    assert sorted(open_language_model(chat_run).end_ids) == ends
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert found == SAMPLED | {"min_p": 0.0, "bos_token_id": 1, "eos_token_id": ends, "pad_token_id": 0}
    import_hf(str(tmp_path / "out"), tmp_path / "again")
    assert sorted(open_language_model(tmp_path / "again").end_ids) == ends
    assert open_run(tmp_path / "again").record.generation == open_run(chat_run).record.generation


GREEDY = {"temperature": 0.0}
DRAWN = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@pytest.mark.parametrize(
    ("found", "defaults"),
    [
        (None, {}),
        ({"_from_model_config": True, "temperature": 0.6}, {}),
        ({"do_sample": False, "temperature": 0.6}, GREEDY),
        ({"do_sample": True}, DRAWN),
        (SAMPLED, DRAWN | {name: value for name, value in SAMPLED.items() if name != "do_sample"}),
        ({"repetition_penalty": 1.1, "max_new_tokens": 9}, {"repetition_penalty": 1.1, "max_new_tokens": 9}),
    ],
)
def test_generation_defaults_mean_what_transformers_means_by_them(found, defaults, tmp_path):
    if found is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(found))
    read = read_generation(tmp_path)
    assert read == defaults
    (tmp_path / "generation_config.json").write_text(json.dumps(generation_config({}, read)))
    assert read_generation(tmp_path) == defaults


@pytest.mark.parametrize("field", ["no_repeat_ngram_size", "num_beams", "suppress_tokens"])
def test_generation_fields_that_are_not_supported_are_named(field, tmp_path, capsys):
    value = [5] if field == "suppress_tokens" else 3
    text = {
        field: value,
        "num_return_sequences": 1,
        "typical_p": 1.0,
        "transformers_version": "4.51.0",
        "max_length": 99,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps(text))
    read_generation(tmp_path)
    shown = capsys.readouterr().err.replace("\n", " ")
    assert f"{field}={value}: not supported" in shown and "typical_p" not in shown


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"eos_token_id": "</s>"}, "eos_token_id='</s>'; expected a token id, or a list of them"),
        ({"temperature": "hot"}, "temperature='hot'; expected a number"),
        ({"top_k": 2.5}, "top_k=2.5; expected an integer"),
        ({"top_p": 3.0}, "top_p=3.0 must be above 0 and at most 1"),
    ],
)
def test_a_damaged_generation_config_is_a_one_line_error(found, message, tmp_path):
    with pytest.raises(UserError, match=f"generation_config.json: {message}") as caught:
        import_hf(str(source(tmp_path, found)), tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run" / "run.json").exists()


def test_an_imported_chat_model_is_evaluated_in_its_template(tmp_path, monkeypatch):
    harness = pytest.importorskip("train.evaluation.harness")
    seen = []
    monkeypatch.setattr(harness, "evaluate", lambda model, *_: seen.append((model.template, model.end_ids)) or {})
    import_hf(str(source(tmp_path, {"eos_token_id": [261]}, JINJA)), tmp_path / "run")
    for flags in ([], ["--chat"]):
        rootstock("evaluate", "--run", tmp_path / "run", "--tasks=intent", *flags)
    assert seen == [("", (2, 261)), ("tokenizer", (260, 2, 261))]


@pytest.mark.integration
@pytest.mark.skipif(not HAS_TRANSFORMERS, reason="torch and transformers are not installed")
def test_transformers_chats_in_the_exported_template_and_stops(chat_run, tmp_path):
    import transformers

    export_hf(chat_run, tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    own = open_run(chat_run).tokenizer()
    chats = [
        [{"role": "user", "content": "hello"}],
        [{"role": "system", "content": "be"}, {"role": "user", "content": " x"}],
    ]
    for messages in chats:
        answered = [*messages, {"role": "assistant", "content": "yes"}, {"role": "user", "content": "é"}]
        for turns in (messages, answered):
            ids = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
            assert ids == render(turns, "chatml", own, prompt=True).tokens
        full = theirs.apply_chat_template(
            answered[:-1], return_dict=True, return_assistant_tokens_mask=True, tokenize=True
        )
        rendered = render(answered[:-1], "chatml", own)
        assert full["input_ids"] == rendered.tokens and full["assistant_masks"] == [int(m) for m in rendered.mask]
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert sorted(model.generation_config.eos_token_id) == [2, 260, 261]
    assert model.generation_config.temperature == 0.6 and model.generation_config.do_sample
