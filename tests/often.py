"""Which members of a repeated test run on every change."""

from collections.abc import Iterable

import pytest


def often(cases: Iterable, *chosen: object) -> list:
    """Returns the values for `parametrize`: the chosen cases as they are, the others for `make slow` alone.

    Args:
        cases: values, a tuple of them for each case of a test with several parameters, or a dictionary by name, whose
            names are the values.
        chosen: the cases that run on every change.
    """
    cases = list(cases)
    assert all(case in cases for case in chosen), f"{chosen} are not all among {cases}"
    return [case if case in chosen else _slow(case) for case in cases]


def _slow(case: object) -> object:
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
