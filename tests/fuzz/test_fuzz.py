"""Invalid input of many kinds: random bytes, mutated valid files, JSON of other shapes.

`FUZZ_EXAMPLES=2000 make fuzz` tries more. With atheris installed, `python -m tests.fuzz NAME` is guided by coverage.
"""

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from configs.errors import UserError
from tests.faults.tiny_run import settings_of, train
from tests.fuzz.targets import NAMES, Target, make_store, targets

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from(["../../etc/passwd", "/etc/passwd", "\x00", "\ud800", 10**400, -1, "", float("nan")]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def edited(draw, valid: bytes):
    """A valid file with some bytes flipped, deleted, duplicated, inserted or truncated."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 40))
        how = draw(st.sampled_from(["flip", "delete", "duplicate", "insert", "truncate"]))
        if how == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "delete":
            del data[at : at + length]
        elif how == "duplicate":
            data[at:at] = data[at : at + length]
        elif how == "insert":
            data[at:at] = draw(
                st.binary(max_size=12) | st.sampled_from([b"\x00", b"\n", b'"', b"{", b"\xff", b"[" * 3000])
            )
        else:
            del data[at:]
    return bytes(data)


def paths(value, prefix=()):
    """The path of every value inside a JSON value."""
    yield prefix
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*prefix, key))


@st.composite
def reshaped(draw, valid: bytes):
    """JSON in which one value is replaced or deleted."""
    value = json.loads(valid)
    place = draw(st.sampled_from(list(paths(value))))
    if not place:
        return json.dumps(draw(JUNK)).encode("utf-8", "surrogatepass")
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    if draw(st.booleans()):
        holder[place[-1]] = draw(JUNK)
    else:
        del holder[place[-1]]
    return json.dumps(value).encode("utf-8", "surrogatepass")


def is_json(data):
    try:
        return isinstance(json.loads(data), dict)
    except ValueError:
        return False


def inputs(target: Target):
    whole = st.binary(max_size=200) | edited(target.valid)
    return whole | reshaped(target.valid) if is_json(target.valid) else whole


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    train(folder / "run", settings_of(num_steps=1))
    return {target.name: target for target in targets(make_store(folder), folder / "run")}


@pytest.mark.parametrize("name", NAMES)
def test_reader_raises_only_one_line_user_errors(name, made):
    target = made[name]
    examples = EXAMPLES if name != "checkpoint manifest" else max(EXAMPLES // 5, 5)

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(inputs(target))
    def check(data):
        with tempfile.TemporaryDirectory() as directory:
            try:
                target.read(Path(directory), data)
            except UserError as error:
                assert "\n" not in str(error) and str(error)

    check()
