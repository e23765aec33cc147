"""The short form of every fault that has one."""

import pytest

from tests.faults.__main__ import all_faults
from tests.faults.contract import Fault


@pytest.mark.parametrize("fault", [fault for fault in all_faults() if fault.in_test], ids=lambda fault: fault.name)
def test_run_survives(fault: Fault, tmp_path):
    outcome = fault.inject(tmp_path, True)
    assert outcome.survived, f"{outcome.injected}: {outcome.seen}"
