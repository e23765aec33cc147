"""Rows as users have them, from the file to the table: rare and unseen classes, line ends, values that are not text."""

import json
import random

import pytest

from configs import default
from configs.errors import UserError
from configs.finetune import assistant, email_spam
from tests.often import often
from tests.runs import WORDS, error_lines, rootstock
from train.finetuning.rows import TaskRows, read_task, say_dropped
from train.finetuning.run import finetune
from train.run.record import open_run
from train.settings import from_config

pytestmark = pytest.mark.usefixtures("one_device")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config_of(config, path, **changes):
    config.batch_size, config.sequence_length, config.num_steps = 8, 64, 4
    config.data.path = path
    config.evaluation.every = config.checkpoint.every = 4
    config.optimizer.warmup_steps = 2
    config.task.baseline, config.task.zero_shot_rows = False, 0
    config.update_from_flattened_dict(changes)
    return config.to_dict()


def sentences(count, seed=0):
    rng = random.Random(seed)
    return [f"{' '.join(rng.choices(WORDS, k=3))} {i}" for i in range(count)]


RARE_ROW = 43


def labeled(kind, count=60):
    """Rows of two classes; one row, which its hash holds out, has a class of its own."""
    for i, text in enumerate(sentences(count)):
        label = "rare" if i == RARE_ROW else ("odd", "even")[i % 2]
        if kind == "tagging":
            yield {"tokens": text.split(), "label": [label, *["O"] * (len(text.split()) - 1)]}
        else:
            yield {"text": text, "label": [label, "all"] if kind == "several" else label}


KINDS = {
    "one class": {},
    "several": {"task.multi_label": True},
    "tagging": {
        "task.name": "tagging",
        "task.pooling": "auto",
        "task.prompt": default.task().prompt,
        "task.zero_shot_rows": 500,
    },
}


@pytest.mark.integration
@pytest.mark.parametrize("kind", often(KINDS, "one class", "tagging"))
def test_rare_class_is_trained_on_and_an_unseen_one_counts_as_an_error(kind, foundation, tmp_path, capsys):
    path = write(tmp_path / "rows.jsonl", labeled(kind))
    config = config_of(email_spam.get_config(), path, **KINDS[kind])
    old = read_task(from_config(config | {"task": config["task"] | {"row_rules": 1}}))[1]
    assert not any("rare" in e.classes for e in old.train)
    splits = read_task(from_config(config))[1]
    assert splits.rare == {"rare": 1} and any("rare" in e.classes for e in splits.train)
    test = [row | ({"label": ["new", *row["label"][1:]]} if kind != "one class" else {"label": "new"})
            for row in list(labeled(kind, 40))[:8]]  # fmt: skip
    held_out = write(tmp_path / "test.jsonl", [*test, *list(labeled(kind, 50))[10:18]])
    run = tmp_path / "run"
    published = finetune(config | {"task": config["task"] | {"test_path": held_out}}, foundation, run)
    assert published["held_out_rows"] == 16 and published["unseen_label_rows"] == 8
    assert (
        "8 of 16 rows have labels that the training rows lack and count as errors: new (8)" in capsys.readouterr().err
    )
    done = rootstock("evaluate", f"--run={run}", f"--data={held_out}", "--json")
    found = json.loads(done.stdout)
    assert found["rows"] == 16 and found["unseen_label_rows"] == 8 and "new (8)" in done.stderr
    main = {"one class": "accuracy", "several": "exact_match", "tagging": "macro_f1"}[kind]
    assert 0 <= found[main]["value"] <= 0.5
    assert found[main] == published["models"]["fine-tuned"][main]


@pytest.mark.integration
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_resumes_with_a_new_class_is_a_one_line_error(kind, foundation, tmp_path):
    path = tmp_path / "rows.jsonl"
    config = config_of(email_spam.get_config(), write(path, labeled(kind)), **KINDS[kind])
    finetune(config, foundation, tmp_path / "run")
    label = {"one class": "new", "several": ["new"], "tagging": ["new"]}[kind]
    text = {"tokens": ["word"]} if kind == "tagging" else {"text": "word"}
    write(path, [*labeled(kind), text | {"label": label}])
    with pytest.raises(UserError, match=r"labels that the run in .*run was started without: new; remove these rows"):
        finetune(config, foundation, tmp_path / "run", accept_changed_data=True)


def chats(count=60, system="Be kind."):
    for i, text in enumerate(sentences(count)):
        turns = [("system", system), ("user", text), ("assistant", WORDS[i % 7])]
        yield {"messages": [{"role": role, "content": content} for role, content in turns]}


def preferences(count=60):
    for i, row in enumerate(chats(count)):
        answers = {"chosen": WORDS[i % 7], "rejected": WORDS[i % 5 + 7]}
        yield {"prompt": row["messages"][:2]} | {
            name: [{"role": "assistant", "content": text}] for name, text in answers.items()
        }


def whole_preferences(count=60):
    for row in preferences(count):
        yield {name: row["prompt"] + row[name] for name in ("chosen", "rejected")}


@pytest.mark.parametrize(
    ("name", "rows"), [("chat", chats), ("preference", preferences), ("preference", whole_preferences)]
)
def test_conversations_that_share_a_system_message_are_split(name, rows, tmp_path):
    changes = {"task.name": name, "task.input": "{prompt}", "task.validation_fraction": 0.1}
    path = write(tmp_path / "rows.jsonl", rows())
    _, splits = read_task(from_config(config_of(assistant.get_config(), path, **changes)))
    assert len(splits.train) > 30 and len(splits.validation) > 1 and 5 < len(splits.test) < 20
    groups = [{e.group for e in part} for part in (splits.train, splits.validation, splits.test)]
    assert not groups[0] & groups[2] and not groups[0] & groups[1]
    if name == "chat":
        with pytest.raises(UserError, match=r"60 training, 0 validation|0 training"):
            read_task(from_config(config_of(assistant.get_config(), path, **changes, **{"task.row_rules": 1})))


@pytest.mark.integration
@pytest.mark.parametrize("kind", often(["one class", "chat"], "chat"))
def test_a_run_of_the_first_version_keeps_its_splits_when_it_resumes(kind, foundation, tmp_path, capsys):
    get_config = assistant.get_config if kind == "chat" else email_spam.get_config
    rows = chats(system="") if kind == "chat" else labeled("one class")
    if kind == "chat":
        rows = [{"messages": row["messages"][1:]} for row in rows]
    config = config_of(get_config(), write(tmp_path / "rows.jsonl", rows))
    old = config | {"task": config["task"] | {"row_rules": 1}}
    finetune(old, foundation, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    for name in ("row_rules", "missing"):
        del record["config"]["task"][name]
    path.write_text(json.dumps(record))
    before = path.read_text()
    assert open_run(tmp_path / "run").record.config["task"]["row_rules"] == 1
    assert not open_run(tmp_path / "run").cleans_text
    finetune(config, foundation, tmp_path / "run")
    assert "was started with config.task.row_rules=1 and keeps these rules" in capsys.readouterr().err
    assert path.read_text() == before
    now = read_task(from_config(config))[1].fingerprint
    assert now != record["data_fingerprint"] == read_task(from_config(old))[1].fingerprint


DIRTY = ("\r\n", "\r", "\x00\n", "\ufeff\n")


@pytest.mark.integration
@pytest.mark.parametrize("line_end", DIRTY, ids=repr)
def test_text_prompts_and_rows_are_cleaned_like_training_text(line_end, foundation, tmp_path):
    clean = "\n".join(f"{line}." for line in sentences(12))
    dirty = clean.replace("\n", line_end)
    (tmp_path / "clean.txt").write_bytes(clean.encode())
    (tmp_path / "dirty.txt").write_bytes(f"\ufeff{dirty}\r\n".encode())
    write(tmp_path / "dirty.jsonl", [{"text": dirty}])
    figures = []
    for name in ("clean.txt", "dirty.txt", "dirty.jsonl"):
        done = rootstock("evaluate", f"--run={foundation}", f"--text={tmp_path / name}", "--json")
        figures.append(json.loads(done.stdout))
    assert figures[0] == figures[1] == figures[2]
    (tmp_path / "empty.txt").write_text("\x00 \x1b\n")
    done = rootstock("evaluate", f"--run={foundation}", f"--text={tmp_path / 'empty.txt'}", check=False)
    assert "empty.txt contains no text but white space" in error_lines(done)[0]
    prompts = [
        rootstock(
            "generate", f"--run={foundation}", f"--prompt={prompt}", "--max_new_tokens=4", "--temperature=0"
        ).stdout
        for prompt in ("the cat\nsat", f"the cat{line_end}sat")
    ]
    assert prompts[0].removeprefix("the cat\nsat") == prompts[1].split("sat", 1)[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": None}, "rows.jsonl: row 3: 'label' is null; expected text"),
        ({"text": float("nan"), "label": "odd"}, "rows.jsonl: row 3: 'text' is NaN; expected text"),
        ({"text": {"a": 1}, "label": "odd"}, "rows.jsonl: row 3: 'text' is an object: {'a': 1}; expected text"),
        ({"text": "a", "label": {"a": 1}}, "rows.jsonl: row 3: 'label' is an object: {'a': 1}; expected the name"),
    ],
)
def test_a_value_that_is_not_text_names_file_row_and_column(row, message, foundation, tmp_path):
    rows = list(labeled("one class"))
    path = write(tmp_path / "rows.jsonl", [*rows[:2], row, *rows[2:]])
    flags = ["finetune", "--config=configs/finetune/email_spam.py", f"--config.data.path={path}",
             f"--init_from={foundation}", f"--workdir={tmp_path / 'run'}"]  # fmt: skip
    done = rootstock(*flags, check=False)
    (line,) = error_lines(done)
    assert done.returncode == 1 and message in line
    settings = from_config(config_of(email_spam.get_config(), path, **{"data.strict": False}))
    task, splits = read_task(settings)
    kind = "missing value" if "expected text:" in line else "not a row of the task"
    assert splits.skipped == {kind: 1} and "None" not in task.classes and "nan" not in task.classes


@pytest.mark.parametrize("zero", [0, 0.0, False])
def test_zero_is_a_value(zero, tmp_path):
    rows = [{"text": i, "label": zero if i % 2 else 1} for i in range(60)]
    task, splits = read_task(from_config(config_of(email_spam.get_config(), write(tmp_path / "rows.jsonl", rows))))
    assert set(task.classes) == {json.dumps(zero), "1"} and "0" in {
        e.content for part in (splits.train, splits.validation, splits.test) for e in part
    }


def test_rows_without_a_target_are_counted_and_named(capsys):
    part = TaskRows([1, 2, 3], [], None, 2)
    assert say_dropped("evaluate", part, 32) == 2
    assert (
        "2 of 5 rows have no target within config.sequence_length=32 tokens and are not scored"
        in capsys.readouterr().err
    )
    assert say_dropped("evaluate", TaskRows([1], [], None, 0), 32) == 0 and not capsys.readouterr().err
