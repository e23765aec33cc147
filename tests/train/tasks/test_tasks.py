"""What each task makes of a row: where its targets are, that labels are not in the input, and one-line errors."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import linen as nn

from configs import default
from configs.errors import UserError
from configs.schema import build
from data.examples import Rendered
from data.templates import render
from data.tokenizer_training import train_tokenizer
from model.heads import language_model
from tests.conftest import tiny_model
from tests.designs import DESIGNS, design
from train.settings import LossSettings, TaskSettings
from train.tasks.classification import Classification
from train.tasks.loading import load_task, task_from_record, task_to_record
from train.tasks.span import best_span
from train.tasks.task import check_prompt, filled_prompt

TOKENIZER = train_tokenizer("bytes", [])
LENGTH = 64


def settings(name, **changes):
    return dataclasses.replace(build(TaskSettings, default.task(), "config.task"), name=name, **changes)


def encoded(name, rows, length=LENGTH, **changes):
    """The task, and each row's example with its segments."""
    cls, s = load_task(name), settings(name, **changes)
    examples = [cls.parse(row, s) for row in rows]
    task = cls.fit(examples, s)
    return task, [(example, task.encode(example, TOKENIZER, length)) for example in examples]


def text_of(tokens):
    return TOKENIZER.decode(tokens.tolist())


def test_class_is_the_target_of_the_last_token_only():
    rows = [{"text": "some words", "label": "spam"}, {"text": "x" * 100, "label": "ham"}]
    task, [(_, first), (_, second)] = encoded("classification", rows)
    segment = first.segments[0]
    assert text_of(segment["tokens"]) == "some words" and not first.cut
    assert segment["weights"].tolist() == [0.0] * (len(segment["tokens"]) - 1) + [1.0]
    assert segment["targets"][-1] == task.classes.index("spam") and not segment["targets"][:-1].any()
    assert second.cut and len(second.segments[0]["tokens"]) == LENGTH
    assert second.segments[0]["tokens"][-1] == TOKENIZER.eos_id
    assert task.decode(None, (np.array([[9.0, 0], [0, 2.0]]),), first, TOKENIZER) == ["spam", "ham"]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("generation", {"text": "2 + 2", "label": "4"}),
        ("chat", {"label": [{"role": "user", "content": "2 + 2"}, {"role": "assistant", "content": "4"}]}),
    ],
)
def test_logits_outside_of_answers_are_skipped(name, row):
    """The loss has a loop that ends early; that of pre-training, where every position is a target, has none."""
    task, _ = encoded(name, [row])
    model, loss = tiny_model(), build(LossSettings, default.loss(), "config.loss")
    shapes = {"tokens": int, "targets": int, "segment_ids": int, "positions": int, "weights": float}
    batch = {field: np.zeros((2, 32), kind) for field, kind in shapes.items()}

    def program(objective):
        params = nn.meta.unbox(jax.eval_shape(objective.init, jax.random.key(0)))
        return str(jax.make_jaxpr(lambda params: objective.loss(params, batch).objective)(params))

    assert "while[" in program(task.objective(model, loss))
    assert "while[" not in program(language_model(model))


def test_balanced_weights_give_every_class_the_same_total():
    rows = [{"text": f"t{i}", "label": "rare" if i == 0 else "common"} for i in range(8)]
    task, made = encoded("classification", rows, class_weights="balanced")
    total = dict.fromkeys(task.classes, 0.0)
    for example, r in made:
        total[example.fields["labels"][0]] += float(r.segments[0]["weights"].sum())
    assert total["rare"] == pytest.approx(total["common"]) == pytest.approx(4.0)


def test_balanced_weights_give_every_tag_the_same_total():
    rows = [{"tokens": "a b c d", "label": "N O O O"}, {"tokens": "a b", "label": "O V"}]
    task, made = encoded("tagging", rows, class_weights="balanced")
    total = dict.fromkeys(task.classes, 0.0)
    for _, r in made:
        for target, weight in zip(r.segments[0]["targets"], r.segments[0]["weights"], strict=True):
            total[task.classes[target]] += float(weight)
    assert list(total.values()) == pytest.approx([2.0, 2.0, 2.0])
    before = dataclasses.replace(task, weights=())
    assert before.encode(made[0][0], TOKENIZER, LENGTH).segments[0]["weights"].max() == 1.0


def test_balanced_weights_make_having_and_lacking_each_class_count_the_same():
    rows = [{"text": f"t{i}", "label": ["all", *(["rare"] if i == 0 else [])]} for i in range(8)]
    task, _ = encoded("classification", rows, multi_label=True, class_weights="balanced")
    assert task.classes == ("all", "rare")
    assert task.weights == pytest.approx((0.5, 4.0)) and task.absent_weights[1] == pytest.approx(4 / 7)
    plain, _ = encoded("classification", rows, multi_label=True)
    assert plain.absent_weights == ()


def test_multi_label_targets_are_ones_at_the_last_token():
    rows = [{"text": "a", "label": ["x", "z"]}, {"text": "b", "label": "y|z"}, {"text": "c", "label": []}]
    task, made = encoded("classification", rows, multi_label=True)
    assert [r.segments[0]["targets"][-1].tolist() for _, r in made] == [[1, 0, 1], [0, 1, 1], [0, 0, 0]]
    assert not made[0][1].segments[0]["targets"][:-1].any()
    assert task.decode(None, (np.array([[-1.0, 2.0, 3.0]]),), made[0][1], TOKENIZER) == ["y", "z"]


def test_tag_is_the_target_of_the_last_token_of_its_word():
    rows = [{"tokens": ["Ann", "saw", "Rome"], "label": ["PER", "O", "LOC"]}, {"tokens": "a b", "label": "O O"}]
    task, [(example, r), _] = encoded("tagging", rows)
    segment = r.segments[0]
    places = np.flatnonzero(segment["weights"])
    assert [text_of(segment["tokens"][: p + 1]) for p in places] == ["Ann", "Ann saw", "Ann saw Rome"]
    assert [task.classes[t] for t in segment["targets"][places]] == ["PER", "O", "LOC"]
    logits = np.zeros((len(segment["tokens"]), 3))
    logits[places, segment["targets"][places]] = 1
    assert task.decode(example, (logits,), r, TOKENIZER) == ["PER", "O", "LOC"]
    short = task.encode(example, TOKENIZER, 9)
    assert short.cut and task.decode(example, (logits[:9],), short, TOKENIZER)[2] == "O"


@pytest.mark.parametrize("name", DESIGNS)
def test_tagged_words_are_encoded_as_a_sentence(name):
    tokenizer = design(name)
    task, [(example, _)] = encoded(
        "tagging", [{"tokens": ["dog", "sat", "\u200b", "home"], "label": ["A", "B", "C", "B"]}]
    )
    made = task.encode(example, tokenizer, LENGTH)
    segment = made.segments[0]
    assert segment["tokens"].tolist() == [tokenizer.bos_id, *tokenizer.encode("dog sat \u200b home"), tokenizer.eos_id]
    places = np.flatnonzero(segment["weights"])
    texts = [tokenizer.decode(segment["tokens"][1 : place + 1].tolist()).strip() for place in places[:2]]
    assert texts == ["dog", "dog sat"]
    logits = np.zeros((len(segment["tokens"]), 3))
    logits[places, segment["targets"][places]] = 1
    predicted = task.decode(example, (logits,), made, tokenizer)
    assert predicted == ["A", "B", "C" if len(places) == 4 else "O", "B"] and not made.cut


def test_value_is_standardized_and_decoded():
    task, made = encoded("regression", [{"text": "a", "label": 3}, {"text": "b", "label": "7.0"}])
    targets = [r.segments[0]["targets"][-1] for _, r in made]
    assert targets == [-1.0, 1.0]
    assert task.decode(None, (np.array([0.0, 1.0]),), made[0][1], TOKENIZER) == pytest.approx(7.0)


SQUAD = [
    {"context": "Ann lives in Rome now.", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 13}]},
    {"context": "Ann lives in Rome now.", "question": "Why?", "answers": []},
    {"context": "Ann. " * 20, "question": "Who?", "answers": {"text": ["Ann"], "answer_start": [90]}},
]


def test_span_targets_mark_the_answer_and_decode_to_it():
    task, made = encoded("span", SQUAD, input="{question}", target="answers")
    for example, r in made:
        flags, segment = r.segments[0]["targets"], r.segments[0]
        start, end = np.flatnonzero(flags & 2), np.flatnonzero(flags & 4)
        assert len(start) == len(end) == 1 and segment["weights"].sum() == 1.0
        assert text_of(segment["tokens"][flags > 0]) == example.fields["context"][: (flags > 0).sum() - 1]
        outputs = np.zeros((len(flags), 2), np.float32)
        outputs[start, 0] = outputs[end, 1] = 5.0
        told = task.decode(example, (outputs,), r, TOKENIZER)
        unanswered = not example.fields["answers"] or r.cut
        assert told == ("" if unanswered else example.fields["answers"][0]["text"])
        if unanswered:
            assert start[0] == end[0] == len(flags) - 1


def test_balanced_questions_with_and_without_an_answer_have_the_same_total_weight():
    rows = [SQUAD[0] | {"question": f"Where {i}?"} for i in range(3)] + [SQUAD[1], SQUAD[2]]
    for balanced, expected in (("none", [1.0] * 5), ("balanced", [5 / 8] * 3 + [5 / 2, 5 / 2])):
        _, made = encoded("span", rows, input="{question}", target="answers", class_weights=balanced)
        weights = [r.segments[0]["weights"].sum() for _, r in made]
        # The answer of the last row is cut off, so that the row is one without an answer.
        assert weights == pytest.approx(expected) and made[-1][1].cut
    # One kind alone is not weighted.
    task, _ = encoded("span", SQUAD[:1], input="{question}", target="answers", class_weights="balanced")
    assert task.weights == (1.0, 1.0)


def test_best_span_is_ordered_short_enough_and_beats_no_answer():
    start, end = np.array([0.0, 5, 0, 0, 1]), np.array([6.0, 0, 0, 4, 1])
    assert best_span(start, end, 30) == (1, 3)  # not (1, 0), which would be higher, but ends before it starts
    assert best_span(start, end, 2) == (0, 0)  # (1, 3) is too long
    assert best_span(start, np.array([0.0, 0, 0, 0, 9]), 30) is None
    assert best_span(np.array([1.0]), np.array([1.0]), 30) is None


def targets_of(segment):
    return TOKENIZER.decode(segment["targets"][segment["weights"] > 0].tolist())


def test_only_the_answer_is_in_the_loss_and_long_inputs_are_cut_before_it():
    rows = [{"text": "a question", "out": "an answer"}, {"text": "long " * 40, "out": ["first", "second"]}]
    task, [(_, first), (example, second)] = encoded("generation", rows, target="out")
    assert targets_of(first.segments[0]) == "an answer" and not first.cut
    assert (
        targets_of(second.segments[0]) == "first" and second.cut and example.fields["references"] == ["first", "second"]
    )
    assert second.segments[0]["targets"][-1] == TOKENIZER.eos_id and len(second.segments[0]["tokens"]) <= LENGTH
    asked = task.prompt_tokens(example, TOKENIZER, 20)
    assert len(asked) <= 20 and "first" not in TOKENIZER.decode(asked)


def test_missing_answer_is_trained_as_text_and_scored_as_no_answer():
    rows = [{"text": "q", "out": []}, {"text": "p", "out": [{"text": "yes", "answer_start": 1}]}]
    task, made = encoded("generation", rows, target="out", metrics=("squad",))
    assert targets_of(made[0][1].segments[0]) == "no answer"
    examples = [example for example, _ in made]
    figures = task.metrics(examples, ["no answer", "yes"])
    assert figures["exact_match"].value == 1.0 and figures["no_answer_accuracy"].value == 1.0


CHAT = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"},
                  {"role": "user", "content": "tea"}, {"role": "assistant", "content": "sure"}]},
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
]  # fmt: skip


def test_only_the_assistant_turns_are_in_the_loss():
    task, [(_, chat), (example, pair)] = encoded("chat", CHAT, target="messages", length=256)
    assert targets_of(chat.segments[0]).replace("\n", "") == "hellosure"
    assert targets_of(pair.segments[0]) == "3" and example.fields["messages"][0]["content"] == "Add.\n1 and 2"
    nll = np.ones(len(chat.segments[0]["tokens"]), np.float32)
    nats, tokens = task.decode(example, (nll,), chat, TOKENIZER)
    assert nats == tokens == chat.segments[0]["weights"].sum()
    predictions = [(2.0, 2.0), (1.0, 2.0)]
    assert task.metrics([example] * 2, predictions)["assistant_loss"].value == 0.75
    assert task.compare(predictions, [(3.0, 2.0), (1.0, 2.0)])["win_by_likelihood"].value == 0.75


@pytest.mark.parametrize("name", ["chat", "preference", "reward"])
def test_a_first_message_is_prompted_as_in_training_on_longer_chats(name):
    """With "plain", chats of one turn had no names of speakers and longer ones had them."""
    turns = CHAT[0]["messages"]
    row = {"messages": turns} if name == "chat" else {"text": turns[:-1], "chosen": "sure", "rejected": "no"}
    task, [(_, trained)] = encoded(name, [row], target="messages", length=256)
    first = render(turns[:1], task.template, TOKENIZER, prompt=True).tokens
    assert trained.segments[0]["tokens"][: len(first)].tolist() == first
    assert text_of(np.array(first)) == "User: hi\nAssistant: "


def test_a_run_that_recorded_the_plain_template_for_chats_keeps_it():
    task = task_from_record({"name": "chat", "template": "plain"})
    asked = [load_task("chat").parse_input({"messages": CHAT[0]["messages"][:end]}, settings("chat")) for end in (1, 3)]
    prompts = [text_of(np.array(task.prompt_tokens(example, TOKENIZER, 64))) for example in asked]
    assert prompts == ["hi\n", "User: hi\nAssistant: helloUser: tea\nAssistant: "]


PAIRS = [{"text": "q?", "chosen": "good one", "rejected": "bad"}, {"text": "r?", "chosen": "yes", "rejected": "no"}]


def test_answer_pairs_are_two_segments_with_one_prompt():
    for name in ("preference", "reward"):
        _, made = encoded(name, PAIRS)
        chosen, rejected = made[0][1].segments
        if name == "preference":
            assert (targets_of(chosen), targets_of(rejected)) == ("good one", "bad")
        else:
            assert chosen["weights"].sum() == chosen["weights"][-1] == 1.0
            assert chosen["tokens"][-1] == rejected["tokens"][-1] == TOKENIZER.eos_id
            assert "good one" in text_of(chosen["tokens"]) and "bad" in text_of(rejected["tokens"])


@pytest.mark.parametrize(("template", "least"), [("plain_chat", 78), ("chatml", 136)])
@pytest.mark.parametrize("extra", [0, 20, 62, 300])
def test_two_answers_follow_the_same_text_and_only_they_are_in_the_loss(template, least, extra):
    """At every length: earlier turns of the assistant are not in the loss, and the longer answer cuts both prompts."""
    turns = [*CHAT[0]["messages"], {"role": "user", "content": "one more time"}]
    row = {"text": turns, "chosen": "a long answer", "rejected": "short"}
    _, [(_, pair)] = encoded("preference", [row], length=least + extra, template=template)
    assert [targets_of(segment).strip() for segment in pair.segments] == ["a long answer", "short"]
    prompts = [segment["tokens"][: int(np.argmax(segment["weights"])) + 1].tolist() for segment in pair.segments]
    assert prompts[0] == prompts[1] and pair.cut == (extra < 300)


@pytest.mark.parametrize(
    ("name", "rows", "changes", "message"),
    [
        ("classification", [{"text": "a", "label": "x"}], {}, "one class only"),
        ("classification", [{"text": "a", "label": ["x"]}], {}, "config.task.multi_label"),
        ("classification", [{"body": "a", "label": "x"}], {}, "no 'text'; columns found: body, label"),
        ("regression", [{"text": "a", "label": "high"}], {}, "'label' is 'high'; expected a finite number"),
        ("regression", [{"text": "a", "label": 1}], {}, "one value only"),
        ("regression", [{"text": "a", "label": 0.1}] * 7, {}, "one value only (0.1"),
        ("tagging", [{"tokens": ["a", "b"], "label": ["O"]}], {}, "2 'tokens' and 1 'label'"),
        ("span", [SQUAD[0] | {"answers": "Rome"}], {"input": "{question}", "target": "answers"}, "expected a list of"),
        ("span", [SQUAD[0] | {"answers": [{"text": "Rom", "answer_start": 3}]}],
         {"input": "{question}", "target": "answers"}, "is not at character 3"),
        ("generation", [{"text": "a", "label": {"a": 3}}], {}, "expected a text"),
        ("generation", [{"text": "a", "label": "b"}], {"metrics": ("blue",)}, "expected some of rouge, bleu, squad"),
        ("chat", [{"text": "a"}], {"target": "messages"}, "no 'messages'; columns found: text"),
        ("chat", [{"messages": CHAT[0]["messages"][:1]}], {"target": "messages"}, "the row has no assistant turn"),
        ("preference", [{"text": "a", "chosen": "b"}], {}, "no 'rejected'"),
    ],
)  # fmt: skip
def test_invalid_rows_are_one_line_errors(name, rows, changes, message):
    with pytest.raises(UserError, match=message.replace("(", "\\(")) as caught:
        encoded(name, rows, **changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "rows", "new", "changes"),
    [
        ("classification", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], {"text": "c", "label": "q"}, {}),
        ("classification", [{"text": "a", "label": "x|y"}], {"text": "c", "label": "x|q"}, {"multi_label": True}),
        ("tagging", [{"tokens": "a b", "label": "O N"}], {"tokens": "c d", "label": "q N"}, {}),
    ],
)  # fmt: skip
def test_unseen_label_is_in_no_loss_and_never_predicted(name, rows, new, changes):
    task, _ = encoded(name, rows, **changes)
    example = task.parse(new, settings(name, **changes))
    segment = task.encode(example, TOKENIZER, LENGTH).segments[0]
    assert task.unseen(example) == ["q"] and task.unseen(task.parse(rows[0], settings(name, **changes))) == []
    logits = np.zeros((len(segment["tokens"]), len(task.classes)))
    predicted = task.decode(example, (logits,), Rendered((segment,)), TOKENIZER)
    assert "q" not in predicted
    if name == "tagging":
        assert segment["weights"].sum() == 1 and len(predicted) == 2
    found = task.metrics([example, example], [predicted, predicted])
    assert all(0 <= interval.value < 1 for interval in found.values())


def test_unknown_task_error_lists_the_known_ones():
    with pytest.raises(UserError, match="did you mean 'classification'"):
        load_task("clasification")


EXAMPLES = {
    "classification": ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], {}),
    "regression": ([{"text": "a", "label": 1}, {"text": "b", "label": 2}], {}),
    "tagging": ([{"tokens": ["a", "b"], "label": ["O", "N"]}], {}),
    "span": (SQUAD, {"input": "{question}", "target": "answers"}),
    "generation": ([{"text": "a", "label": "b"}], {}),
    "chat": (CHAT, {"target": "messages"}),
    "preference": (PAIRS, {}),
    "reward": (PAIRS, {}),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_task_is_restored_from_run_json(name):
    rows, changes = EXAMPLES[name]
    task, _ = encoded(name, rows, length=256, **changes)
    stored = json.loads(json.dumps(task_to_record(name, task)))
    assert stored["name"] == name and task_from_record(stored) == task


@pytest.mark.parametrize(
    "record",
    [
        {"name": "classification", "classes": ["a", "b"], "weights": [1.0, 1.0], "multi_label": False,
         "pooling": "mean", "prompt": "{input}"},
        {"name": "regression", "mean": 1.5, "std": 2.0, "pooling": "last"},
        {"name": "tagging", "classes": ["N", "O"]},
        {"name": "span", "prompt": "{input}"},
        {"name": "generation", "template": "plain", "metrics": ["rouge"], "prompt": "{input}"},
        {"name": "chat", "template": "chatml"},
        {"name": "preference", "template": "plain", "beta": 0.1},
        {"name": "reward", "template": "plain", "beta": 0.1},
    ],
    ids=lambda record: record["name"],
)  # fmt: skip
def test_run_json_of_the_first_version_is_still_read(record):
    task = task_from_record(record)
    stored = [tuple(value) if isinstance(value, list) else value for key, value in record.items() if key != "name"]
    found = list(dataclasses.asdict(task).values())
    # Fields that were added since have their defaults.
    added = [field.default for field in dataclasses.fields(task)][len(stored) :]
    assert found[: len(stored)] == stored and found[len(stored) :] == added


HEADER = "from train.tasks.classification import Classification\nfrom train.tasks.task import Task\n"
LENGTH_TASK = "class Length(Classification):\n    def question(self, example):\n        return 'length?', 'long'\n"


def task_file(folder, source):
    path = folder / "length.py"
    path.write_text(HEADER + source)
    return path


def test_task_from_a_file_is_restored_from_its_absolute_path(tmp_path, monkeypatch):
    task_file(tmp_path, LENGTH_TASK)
    monkeypatch.chdir(tmp_path)
    task, _ = encoded("length.py", EXAMPLES["classification"][0])
    assert isinstance(task, Classification) and task.question(None) == ("length?", "long")
    record = task_to_record("length.py", task)
    assert record["name"] == str(tmp_path / "length.py")
    monkeypatch.chdir("/")
    assert task_from_record(record) == task


def test_missing_task_file_of_a_run_is_a_one_line_error(tmp_path):
    path = task_file(tmp_path, LENGTH_TASK)
    task, _ = encoded(str(path), EXAMPLES["classification"][0])
    path.unlink()
    with pytest.raises(
        UserError, match=r"defined in .*length.py, which is missing; restore the file, or set task.name"
    ):
        task_from_record(task_to_record(str(path), task))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "length.py' is not a file"),
        ("", "does not define a subclass of Task"),
        (LENGTH_TASK + LENGTH_TASK.replace("Length", "Other"), r"defines several subclasses of Task \(Length, Other\)"),
        ("class Length(Task):\n    pass\n", "class Length does not define encode, expected, fit, format"),
        ("import nothing_of_that_name\n", "length.py, line 3: ModuleNotFoundError: No module named"),
        ("x = (\n", "length.py, line 3: SyntaxError"),
        ("def f():\n    raise ValueError('first\\nsecond')\n\n\nf()\n", "length.py, line 4: ValueError: first second"),
    ],
)  # fmt: skip
def test_invalid_task_file_is_a_one_line_error(source, message, tmp_path):
    path = tmp_path / "length.py"
    if source is not None:
        task_file(tmp_path, source)
    with pytest.raises(UserError, match=message) as caught:
        load_task(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [16, 33, 48, 64])
@pytest.mark.parametrize("words", [(40, 40), (40, 2), (2, 40), (9, 9)])
def test_two_answers_that_are_scored_fill_at_most_a_row(words, length):
    """A reward reads the token after the last target too, which a full half of a row has no place for."""
    row = {"text": "say it", "chosen": "yes " * words[0], "rejected": "no " * words[1]}
    _, made = encoded("reward", [row])
    task = load_task("reward")("plain", 0.1)
    rendered = task.encode(made[0][0], TOKENIZER, length)
    if rendered is not None:
        assert sum(len(segment["tokens"]) for segment in rendered.segments) <= length
        assert all(segment["weights"][-1] == 1 for segment in rendered.segments)


def test_a_label_that_a_row_repeats_counts_once():
    once, twice = (
        [{"text": f"a{i}", "label": label} for i in range(6)] + [{"text": f"b{i}", "label": "b"} for i in range(4)]
        for label in ("a", "a|a")
    )
    (first, _), (second, [(example, _), *_]) = (
        encoded("classification", rows, multi_label=True, class_weights="balanced") for rows in (once, twice)
    )
    assert first == second and example.fields["labels"] == ["a"] and second.question(example)[1] == "a"


def test_a_row_without_a_group_is_a_group_of_its_own():
    s = settings("classification", group="{user}", missing="empty")
    rows = [{"text": "one", "label": "a", "user": None}, {"text": "two", "label": "b", "user": "Ann"}]
    assert [load_task("classification").parse(row, s).group for row in rows] == ["one", "Ann"]


@pytest.mark.parametrize(
    ("name", "prompt", "expected"),
    [
        ("classification", "{text}\nLabel:", "{input}"),
        ("classification", "Label:", "{input}"),
        ("generation", "{input} {context}", "{input}"),
        ("span", "{input}\nLabel:", "{input} and {context}"),
    ],
)
def test_a_prompt_without_the_texts_of_a_row_is_refused(name, prompt, expected):
    with pytest.raises(UserError, match=f"config.task.prompt=.*; expected text with {expected} and no other names"):
        check_prompt(load_task(name), settings(name, prompt=prompt))
    check_prompt(load_task(name), settings(name, prompt=prompt, zero_shot_rows=0))


def test_a_prompt_is_filled_once_and_its_double_braces_are_braces():
    assert filled_prompt("{{a}} {input}: {context}", input="{context}", context="c") == "{a} {context}: c"
