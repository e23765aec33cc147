"""Every injected failure that takes seconds in its short form: a run must survive it. `make faults` injects all."""

import pytest

from tests.faults.__main__ import all_faults
from tests.faults.contract import Fault


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fault for fault in all_faults() if fault.in_test], ids=lambda fault: fault.name)
def test_run_survives(fault: Fault, tmp_path):
    outcome = fault.inject(tmp_path, True)
    assert outcome.survived, f"{outcome.injected}: {outcome.seen}"
