"""Examples packed into rows: every segment appears once and uncut, pairs are adjacent, arrays have any width."""

import numpy as np

from data.examples import labeled_segment, pack, text_segment


def examples(count, pair=False):
    rng = np.random.default_rng(0)
    made = []
    for i in range(count):
        segments = []
        for _ in range(2 if pair else 1):
            tokens = rng.integers(3, 60, rng.integers(2, 9)).tolist()
            segments.append(labeled_segment(tokens, {len(tokens) - 1: i}, {len(tokens) - 1: 1.0}, np.int32))
        made.append(tuple(segments))
    return made


def test_every_segment_appears_once_with_its_arrays():
    for pair in (False, True):
        made = examples(50, pair)
        rows = pack(made, 20, pad_id=0, seed=0)
        batch = rows.rows(np.arange(len(rows)))
        seen = []
        for row in range(len(rows)):
            for example, places in rows.segment_slices(row):
                seen.append(example)
                ids = [batch["segment_ids"][row, place] for place in places]
                # The segments of a pair have consecutive ids, the first one odd.
                assert [len(set(i.tolist())) for i in ids] == [1] * len(places)
                if pair:
                    assert ids[0][0] % 2 == 1 and ids[1][0] == ids[0][0] + 1
                for place, segment in zip(places, made[example], strict=True):
                    for name, array in segment.items():
                        assert (batch[name][row, place] == array).all()
                    assert (batch["positions"][row, place] == np.arange(len(array))).all()
        assert sorted(seen) == list(range(50))
        assert (batch["weights"].sum() == (100 if pair else 50)) and (
            batch["tokens"][batch["segment_ids"] == 0] == 0
        ).all()
        assert (batch["weights"][batch["segment_ids"] == 0] == 0).all()
        assert rows.target_share == (batch["weights"] > 0).mean()


def test_targets_may_have_an_extra_axis():
    segment = labeled_segment([5, 6, 7], {}, {2: 1.0}, np.float32)
    segment["targets"] = np.array([[0, 0], [0, 0], [1, 1]], np.float32)
    batch = pack([(segment,), (segment,)], 8, pad_id=9, seed=0).rows(np.array([0]))
    assert batch["targets"].shape == (1, 8, 2) and batch["targets"].sum() == 4
    assert batch["tokens"].tolist() == [[5, 6, 7, 5, 6, 7, 9, 9]]


def test_text_targets_are_shifted_by_one():
    segment = text_segment([1, 10, 11, 12, 2], [False, False, True, False, True])
    assert segment["tokens"].tolist() == [1, 10, 11, 12] and segment["targets"].tolist() == [10, 11, 12, 2]
    assert segment["weights"].tolist() == [0, 1, 0, 1]
