"""Every class is in every split where it has enough groups, and large classes are split by the hash alone."""

import random
from collections import Counter

import pytest

from data.labeled import Example, SplitOptions, read_splits
from data.stratify import Shares, stratified
from tests.data.test_labeled import write

SHARES = Shares(0.76, 0.04, 0.2)
SPLITS = ("train", "validation", "test")


def made(sizes, seed=0):
    """Returns (places, classes) of groups of one class each; `sizes` are the groups of each class."""
    rng = random.Random(seed)
    groups = [(f"{name} {i}", name) for name, size in sizes.items() for i in range(size)]
    return {group: rng.random() for group, _ in groups}, {group: {name} for group, name in groups}


def counted(split_of, classes):
    """Returns {class: Counter of splits}."""
    counts = {}
    for group, names in classes.items():
        for name in names:
            counts.setdefault(name, Counter())[split_of[group]] += 1
    return counts


@pytest.mark.parametrize("size", [1, 2, 3, 4, 10, 40])
def test_a_rare_class_is_trained_on(size):
    for seed in range(30):
        places, classes = made({"common": 200, "rare": size}, seed)
        split_of, rare = stratified(places, classes, SHARES)
        counts = counted(split_of, classes)["rare"]
        expected = ["train", *(["test"] if size > 2 else []), *(["validation"] if size > 12 else [])]
        assert all(counts[split] >= 1 for split in expected)
        assert all(counts[split] >= int(size * getattr(SHARES, split) / 2) for split in SPLITS)
        assert rare == ({} if size > 2 else {"rare": size})


def test_large_classes_are_split_by_the_hash_alone():
    places, classes = made({"a": 500, "b": 400})
    split_of, rare = stratified(places, classes, SHARES)
    assert split_of == {group: SHARES.of(place) for group, place in places.items()} and not rare


def test_classes_that_share_groups_are_all_trained_on():
    rng = random.Random(0)
    for _ in range(30):
        places = {f"g{i}": rng.random() for i in range(60)}
        classes = {group: set(rng.sample("abcdefghijkl", rng.randint(0, 3))) for group in places}
        classes["g0"] |= {"once"}
        split_of, _ = stratified(places, classes, SHARES)
        assert all(counts["train"] for counts in counted(split_of, classes).values())


@pytest.mark.parametrize(
    ("shares", "sizes"),
    [
        (Shares(0.475, 0.025, 0.5), {"c": 1}),
        (Shares(0.36, 0.04, 0.6), {"c": 1, "d": 2}),
        (Shares(0.45, 0.3, 0.25), {"d": 2}),
        (Shares(0.5, 0.5, 0.0), {"c": 1}),
    ],
)
def test_a_class_is_trained_on_whatever_the_shares(shares, sizes):
    for seed in range(40):
        places, classes = made({"a": 40, "b": 40, **sizes}, seed)
        split_of, rare = stratified(places, classes, shares)
        counts = counted(split_of, classes)
        assert all(counts[name]["train"] for name in sizes)
        untested = {name for name in sizes if not counts[name]["test"]}
        assert untested <= set(rare) if shares.test else not rare


def test_without_a_test_split_a_class_is_trained_on_and_validated():
    places, classes = made({"a": 100, "b": 2, "c": 1})
    split_of, rare = stratified(places, classes, Shares(0.95, 0.05, 0.0))
    counts = counted(split_of, classes)
    assert counts["b"]["train"] and counts["c"] == {"train": 1} and counts["a"]["validation"] > 1 and not rare


def parse(row):
    return Example(row["text"], row["text"], {"label": row["label"]}, (row["label"],))


@pytest.mark.parametrize("count", [15, 16, 25, 40, 41])
def test_a_small_data_set_without_classes_has_no_empty_split(tmp_path, count):
    rows = [{"text": f"message {count} {i}"} for i in range(count)]
    found = read_splits(
        write(tmp_path / "rows.jsonl", rows), lambda row: Example(row["text"], row["text"], {}), SplitOptions(0.05, 0.2)
    )
    assert all(getattr(found, part) for part in SPLITS) and not found.rare


def test_a_new_row_of_a_large_class_moves_no_other(tmp_path):
    rows = [{"text": f"message number {i}", "label": "ab"[i % 2]} for i in range(160)]
    new = [{"text": f"a new one {i}", "label": "c"} for i in range(4)]
    before = read_splits(write(tmp_path / "a.jsonl", rows), parse, SplitOptions(0.2, 0.2))
    after = read_splits(write(tmp_path / "b.jsonl", new + rows), parse, SplitOptions(0.2, 0.2))
    for part in SPLITS:
        old, now = ({e.content for e in getattr(splits, part)} for splits in (before, after))
        assert old <= now and any(e.fields["label"] == "c" for e in getattr(after, part))


def test_runs_of_the_first_version_keep_their_splits(tmp_path):
    rows = [{"text": f"message number {i}", "label": f"class {i // 2}"} for i in range(60)]
    path = write(tmp_path / "rows.jsonl", rows)
    first, now = (read_splits(path, parse, SplitOptions(0.2, 0.2, first_version=old)) for old in (True, False))
    assert {e.fields["label"] for e in first.test} - {e.fields["label"] for e in first.train} and not first.rare
    assert {e.fields["label"] for e in now.train} == {row["label"] for row in rows} and len(now.rare) == 30
