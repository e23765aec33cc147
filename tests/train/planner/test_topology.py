"""Cloud names of topologies, and the nearest names for those that do not exist."""

import pytest

from configs.errors import UserError
from train.hardware import CHIPS
from train.planner.topology import parse_topology


@pytest.mark.parametrize(
    ("name", "family", "torus", "chips", "devices"),
    [
        ("v5e-16", "v5e", (4, 4), 16, 16),
        ("v5litepod-256", "v5e", (16, 16), 256, 256),
        ("v5e:2x4", "v5e", (2, 4), 8, 8),
        ("v5p-8", "v5p", (2, 2, 1), 4, 4),  # names of v4, v5p and tpu7x count TensorCores
        ("v4-64", "v4", (2, 4, 4), 32, 32),
        ("v6e-1", "v6e", (1, 1), 1, 1),
        ("tpu7x-16", "tpu7x", (2, 2, 2), 8, 16),
        ("2xv5e-16", "v5e", (4, 4), 32, 32),
        ("v5p:4x4x12", "v5p", (4, 4, 12), 192, 192),
        ("h100-8", "h100", (), 8, 8),
        ("A100-64", "a100", (), 64, 64),
        ("v100", "v100", (), 1, 1),
    ],
)
def test_topology_names_follow_the_clouds(name, family, torus, chips, devices):
    found = parse_topology(name)
    assert (found.family, found.torus, found.chips, found.devices) == (family, torus, chips, devices)
    assert found.chip is CHIPS[family]


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("v5e-17", "v5e-8, v5e-16, v5e-32"),
        ("v5p-9", "v5p-8, v5p-16, v5p-32"),
        ("v5e:3x3", "v5e:2x4"),
        ("v5p:4x4", "v5p:2x2x4"),
        ("h10-8", "h100-8"),
        ("h100-0", "h100-1, h100-8, h100-64"),
        ("2xh100-8", "h100-8"),
        ("tpu", "tpu7x-32"),
        ("0xv5e-4", "v5e-4"),
        ("-", "v5e-16"),
    ],
)
def test_unknown_topology_lists_the_nearest_names(name, nearest):
    with pytest.raises(UserError, match=rf"--topology={name} does not exist; nearest: .*{nearest}"):
        parse_topology(name)


def test_every_chip_has_a_source_and_plausible_figures():
    for name, chip in CHIPS.items():
        assert chip.source and chip.flops > 1e14 and 1e10 < chip.hbm_bytes < 3e11, name
        # A chip computes faster than its memory feeds it, and its memory is faster than its links.
        assert chip.flops > 100 * chip.hbm_bandwidth > 100 * chip.link_bandwidth > 100 * chip.network_bandwidth, name
