"""The peak rate of the attached devices, which MFU is measured against."""

from types import SimpleNamespace

import jax
import pytest

from tests.faults.tiny_run import settings_of, train
from train.hardware import CHIPS, peak_flops
from train.run.history import read_records


def test_a_cpu_has_no_peak_rate():
    assert peak_flops() is None


@pytest.mark.parametrize(
    ("kind", "chip", "devices_per_chip"),
    [("TPU v5 lite", "v5e", 1), ("TPU v5p", "v5p", 1), ("TPU7x", "tpu7x", 2), ("NVIDIA H100 80GB HBM3", "h100", 1)],
)
def test_peak_rate_is_that_of_all_devices(kind, chip, devices_per_chip, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [SimpleNamespace(device_kind=kind)])
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert peak_flops() == 4 * CHIPS[chip].flops / devices_per_chip


@pytest.mark.integration
def test_mfu_is_not_reported_on_a_cpu(tmp_path, capsys):
    train(tmp_path, settings_of())
    assert {r["mfu"] for r in read_records(tmp_path) if r["phase"] == "train"} == {None}
    assert "MFU" not in capsys.readouterr().err
