"""What each task makes of a row: targets where they belong, labels never among visible tokens, faults in one line."""

import dataclasses

import numpy as np
import pytest

from configs import default
from configs.errors import UserError
from configs.schema import build
from data.tokenizer_training import train_tokenizer
from train.settings import TaskSettings
from train.tasks.task import load

TOKENIZER = train_tokenizer("bytes", [])
LENGTH = 64


def settings(name, **changes):
    return dataclasses.replace(build(TaskSettings, default.task(), "config.task"), name=name, **changes)


def rendered(name, rows, length=LENGTH, **changes):
    """The task, its facts, and every row's example with its segments."""
    task, s = load(name), settings(name, **changes)
    examples = [task.parse(row, s) for row in rows]
    facts = {"name": name, **task.facts(examples, s)}
    return task, facts, [(example, task.render(example, facts, TOKENIZER, length)) for example in examples]


def text_of(tokens):
    return TOKENIZER.decode(tokens.tolist())


def test_a_class_is_the_target_of_the_last_token_and_stands_nowhere_else():
    rows = [{"text": "some words", "label": "spam"}, {"text": "x" * 100, "label": "ham"}]
    task, facts, [(_, first), (_, second)] = rendered("classification", rows)
    segment = first.segments[0]
    assert text_of(segment["tokens"]) == "some words" and not first.cut
    assert segment["weights"].tolist() == [0.0] * (len(segment["tokens"]) - 1) + [1.0]
    assert segment["targets"][-1] == facts["classes"].index("spam") and not segment["targets"][:-1].any()
    assert second.cut and len(second.segments[0]["tokens"]) == LENGTH
    assert second.segments[0]["tokens"][-1] == TOKENIZER.eos_id
    assert task.read(None, facts, (np.array([[9.0, 0], [0, 2.0]]),), first, TOKENIZER) == ["spam", "ham"]


def test_balanced_weights_make_every_class_count_the_same():
    rows = [{"text": f"t{i}", "label": "rare" if i == 0 else "common"} for i in range(8)]
    _, facts, made = rendered("classification", rows, class_weights="balanced")
    total = dict.fromkeys(facts["classes"], 0.0)
    for example, r in made:
        total[example.fields["labels"][0]] += float(r.segments[0]["weights"].sum())
    assert total["rare"] == pytest.approx(total["common"]) == pytest.approx(4.0)


def test_several_labels_are_ones_at_the_last_token():
    rows = [{"text": "a", "label": ["x", "z"]}, {"text": "b", "label": "y|z"}, {"text": "c", "label": []}]
    task, facts, made = rendered("classification", rows, multi_label=True)
    assert [r.segments[0]["targets"][-1].tolist() for _, r in made] == [[1, 0, 1], [0, 1, 1], [0, 0, 0]]
    assert not made[0][1].segments[0]["targets"][:-1].any()
    assert task.read(None, facts, (np.array([[-1.0, 2.0, 3.0]]),), made[0][1], TOKENIZER) == ["y", "z"]


def test_a_tag_is_the_target_of_each_words_last_token():
    rows = [{"tokens": ["Ann", "saw", "Rome"], "label": ["PER", "O", "LOC"]}, {"tokens": "a b", "label": "O O"}]
    task, facts, [(example, r), _] = rendered("tagging", rows)
    segment = r.segments[0]
    places = np.flatnonzero(segment["weights"])
    assert [text_of(segment["tokens"][: p + 1]) for p in places] == ["Ann", "Ann saw", "Ann saw Rome"]
    assert [facts["classes"][t] for t in segment["targets"][places]] == ["PER", "O", "LOC"]
    logits = np.zeros((len(segment["tokens"]), 3))
    logits[places, segment["targets"][places]] = 1
    assert task.read(example, facts, (logits,), r, TOKENIZER) == ["PER", "O", "LOC"]
    short = load("tagging").render(example, facts, TOKENIZER, 9)
    assert short.cut and task.read(example, facts, (logits[:9],), short, TOKENIZER)[2] == "O"


def test_a_value_is_standardised_and_read_back():
    task, facts, made = rendered("regression", [{"text": "a", "label": 3}, {"text": "b", "label": "7.0"}])
    targets = [r.segments[0]["targets"][-1] for _, r in made]
    assert targets == [-1.0, 1.0]
    assert task.read(None, facts, (np.array([0.0, 1.0]),), made[0][1], TOKENIZER) == pytest.approx(7.0)


SQUAD = [
    {"context": "Ann lives in Rome now.", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 13}]},
    {"context": "Ann lives in Rome now.", "question": "Why?", "answers": []},
    {"context": "Ann. " * 20, "question": "Who?", "answers": {"text": ["Ann"], "answer_start": [90]}},
]


def test_a_span_is_marked_where_it_stands_and_read_back():
    task, facts, made = rendered("span", SQUAD, input="{question}", target="answers")
    for example, r in made:
        flags, segment = r.segments[0]["targets"], r.segments[0]
        start, end = np.flatnonzero(flags & 2), np.flatnonzero(flags & 4)
        assert len(start) == len(end) == 1 and segment["weights"].sum() == 1.0
        assert text_of(segment["tokens"][flags > 0]) == example.fields["context"][: (flags > 0).sum() - 1]
        outputs = np.zeros((len(flags), 2), np.float32)
        outputs[start, 0] = outputs[end, 1] = 5.0
        told = task.read(example, facts, (outputs,), r, TOKENIZER)
        unanswered = not example.fields["answers"] or r.cut
        assert told == ("" if unanswered else example.fields["answers"][0]["text"])
        if unanswered:
            assert start[0] == end[0] == len(flags) - 1


def test_the_best_span_is_in_order_short_enough_and_beats_no_answer():
    best_span = __import__("train.tasks.span", fromlist=["best_span"]).best_span
    start, end = np.array([0.0, 5, 0, 0, 1]), np.array([6.0, 0, 0, 4, 1])
    assert best_span(start, end, 30) == (1, 3)  # not (1, 0), which would be higher but ends before it starts
    assert best_span(start, end, 2) == (0, 0)  # (1, 3) is too long
    assert best_span(start, np.array([0.0, 0, 0, 0, 9]), 30) is None
    assert best_span(np.array([1.0]), np.array([1.0]), 30) is None


def targets_of(segment):
    return TOKENIZER.decode(segment["targets"][segment["weights"] > 0].tolist())


def test_only_the_answer_is_learnt_and_it_is_kept_when_the_input_is_cut():
    rows = [{"text": "a question", "out": "an answer"}, {"text": "long " * 40, "out": ["first", "second"]}]
    task, facts, [(_, first), (example, second)] = rendered("generation", rows, target="out")
    assert targets_of(first.segments[0]) == "an answer" and not first.cut
    assert (
        targets_of(second.segments[0]) == "first" and second.cut and example.fields["references"] == ["first", "second"]
    )
    assert second.segments[0]["targets"][-1] == TOKENIZER.eos_id and len(second.segments[0]["tokens"]) <= LENGTH
    asked = task.ask(example, facts, TOKENIZER, 20)
    assert len(asked) <= 20 and "first" not in TOKENIZER.decode(asked)


def test_an_answer_that_is_none_is_trained_as_words_and_scored_as_none():
    rows = [{"text": "q", "out": []}, {"text": "p", "out": [{"text": "yes", "answer_start": 1}]}]
    task, facts, made = rendered("generation", rows, target="out", metrics=("squad",))
    assert targets_of(made[0][1].segments[0]) == "no answer"
    examples = [example for example, _ in made]
    figures = task.metrics(examples, ["no answer", "yes"], None, facts)
    assert figures["exact_match"].value == 1.0 and figures["no_answer_accuracy"].value == 1.0


CHAT = [
    {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"},
                  {"role": "user", "content": "tea"}, {"role": "assistant", "content": "sure"}]},
    {"instruction": "Add.", "input": "1 and 2", "output": "3"},
]  # fmt: skip


def test_only_the_assistants_turns_are_learnt():
    task, facts, [(_, chat), (example, pair)] = rendered("chat", CHAT, target="messages", length=256)
    assert targets_of(chat.segments[0]).replace("\n", "") == "hellosure"
    assert targets_of(pair.segments[0]) == "3" and example.fields["messages"][0]["content"] == "Add.\n1 and 2"
    nll = np.ones(len(chat.segments[0]["tokens"]), np.float32)
    nats, tokens = task.read(example, facts, (nll,), chat, TOKENIZER)
    assert nats == tokens == chat.segments[0]["weights"].sum()
    figures = task.metrics([example] * 2, [(2.0, 2.0), (1.0, 2.0)], [(3.0, 2.0), (1.0, 2.0)], facts)
    assert figures["assistant_loss"].value == 0.75 and figures["win_by_likelihood"].value == 0.75


PAIRS = [{"text": "q?", "chosen": "good one", "rejected": "bad"}, {"text": "r?", "chosen": "yes", "rejected": "no"}]


def test_pairs_are_two_segments_of_one_prompt():
    for name in ("preference", "reward"):
        _, _, made = rendered(name, PAIRS)
        chosen, rejected = made[0][1].segments
        if name == "preference":
            assert (targets_of(chosen), targets_of(rejected)) == ("good one", "bad")
        else:
            assert chosen["weights"].sum() == chosen["weights"][-1] == 1.0
            assert chosen["tokens"][-1] == rejected["tokens"][-1] == TOKENIZER.eos_id
            assert "good one" in text_of(chosen["tokens"]) and "bad" in text_of(rejected["tokens"])


@pytest.mark.parametrize(
    ("name", "rows", "changes", "message"),
    [
        ("classification", [{"text": "a", "label": "x"}], {}, "one class only"),
        ("classification", [{"text": "a", "label": ["x"]}], {}, "config.task.multi_label"),
        ("classification", [{"body": "a", "label": "x"}], {}, "no 'text'; columns found: body, label"),
        ("regression", [{"text": "a", "label": "high"}], {}, "'label' is 'high'; legal: a finite number"),
        ("regression", [{"text": "a", "label": 1}], {}, "one value only"),
        ("tagging", [{"tokens": ["a", "b"], "label": ["O"]}], {}, "2 'tokens' and 1 'label'"),
        ("span", [SQUAD[0] | {"answers": "Rome"}], {"input": "{question}", "target": "answers"}, "legal: a list of"),
        ("span", [SQUAD[0] | {"answers": [{"text": "Rom", "answer_start": 3}]}],
         {"input": "{question}", "target": "answers"}, "does not stand at character 3"),
        ("generation", [{"text": "a", "label": 3}], {}, "legal: a text"),
        ("generation", [{"text": "a", "label": "b"}], {"metrics": ("blue",)}, "legal: some of rouge, bleu, squad"),
        ("chat", [{"text": "a"}], {"target": "messages"}, "no 'messages'; columns found: text"),
        ("chat", [{"messages": CHAT[0]["messages"][:1]}], {"target": "messages"}, "no turn is the assistant's"),
        ("preference", [{"text": "a", "chosen": "b"}], {}, "no 'rejected'"),
    ],
)  # fmt: skip
def test_faults_are_one_line(name, rows, changes, message):
    with pytest.raises(UserError, match=message.replace("(", "\\(")) as caught:
        rendered(name, rows, **changes)
    assert "\n" not in str(caught.value)


def test_an_unknown_label_or_task_names_what_is_known():
    task, facts, _ = rendered("classification", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    other = task.parse({"text": "c", "label": "q"}, settings("classification"))
    with pytest.raises(UserError, match="label 'q' is unknown to the model; its classes: x, y"):
        task.render(other, facts, TOKENIZER, LENGTH)
    with pytest.raises(UserError, match="did you mean 'classification'"):
        load("clasification")
