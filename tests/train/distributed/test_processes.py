"""What process 0 sends the others, with a key-value store in memory in place of JAX's service."""

import itertools

import pytest

from train.distributed import processes


class Service(dict):
    def key_value_set(self, key, value):
        self[key] = value

    def blocking_key_value_get(self, key, _):
        return self[key]


@pytest.fixture
def as_process(monkeypatch):
    """Returns a function that makes this process the one of a number, at its first call of `run_on_process_zero`."""
    service = Service()
    monkeypatch.setattr(processes, "_client", lambda: service)

    def become(number):
        monkeypatch.setattr(processes, "is_process_zero", lambda: number == 0)
        monkeypatch.setattr(processes, "_results", itertools.count())

    return become


def steps():
    return [3, 2]


def skipped():
    return []


def test_every_process_gets_the_results_of_process_zero(as_process):
    as_process(0)
    assert [processes.run_on_process_zero(action) for action in (steps, skipped)] == [[3, 2], []]
    as_process(1)
    assert [processes.run_on_process_zero(action) for action in (steps, skipped)] == [[3, 2], []]


@pytest.mark.parametrize("extra", [skipped, lambda: None, "text".isupper], ids=["function", "lambda", "method"])
def test_a_process_that_took_another_branch_does_not_get_a_result_of_another_action(as_process, extra):
    as_process(0)
    processes.run_on_process_zero(steps)
    as_process(1)
    with pytest.raises(RuntimeError, match=r"result 0 from process 0 is of steps; this process expected \S+"):
        processes.run_on_process_zero(extra)
