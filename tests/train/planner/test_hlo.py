"""Collectives, trip counts and memory traffic, read from the text of compiled modules."""

import jax
import jax.numpy as jnp
import pytest
from conftest import mesh_of
from jax.sharding import NamedSharding, PartitionSpec

from train.planner.hlo import TESTED_JAX_VERSIONS, Module

LAYERS, WIDTH = 5, 64

# The body increments its counter by 2, as XLA's unrolled collective matmuls do: 4 iterations with 2 sends each.
WHILE = """HloModule example, num_partitions=2

%cond (p: (u32[], f32[8,16])) -> pred[] {
  %p = (u32[]{:T(128)}, f32[8,16]{1,0}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=0
  %limit = u32[]{:T(128)} constant(8)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%body (q: (u32[], f32[8,16])) -> (u32[], f32[8,16]) {
  %q = (u32[]{:T(128)}, f32[8,16]{1,0}) parameter(0)
  %j = u32[]{:T(128)} get-tuple-element(%q), index=0
  %x = f32[8,16]{1,0} get-tuple-element(%q), index=1
  %two = u32[] constant(2)
  %next = u32[] add(%j, %two)
  %s1 = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %d1 = f32[8,16]{1,0} collective-permute-done(%s1)
  %s2 = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[], u32[]) collective-permute-start(%d1), source_target_pairs={{0,1},{1,0}}
  %d2 = f32[8,16]{1,0} collective-permute-done(%s2)
  ROOT %t = (u32[], f32[8,16]{1,0}) tuple(%next, %d2)
}

ENTRY %main (a: f32[8,16]) -> f32[8,16] {
  %a = f32[8,16]{1,0} parameter(0)
  %zero = u32[] constant(0)
  %init = (u32[], f32[8,16]{1,0}) tuple(%zero, %a)
  %w = (u32[], f32[8,16]{1,0}) while(%init), condition=%cond, body=%body
  %r = f32[8,16]{1,0} get-tuple-element(%w), index=1
  ROOT %sum = f32[8,16]{1,0} all-reduce(%r), GROUPS, to_apply=%add
}
"""

SLICED = """HloModule example

%fused (stack: f32[4,1000], out: f32[4,1000], i: s32[]) -> f32[4,1000] {
  %stack = f32[4,1000]{1,0} parameter(0)
  %out = f32[4,1000]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %row = f32[1,1000]{1,0} dynamic-slice(%stack, %i, %zero), dynamic_slice_sizes={1,1000}
  %twice = f32[1,1000]{1,0} add(%row, %row)
  ROOT %put = f32[4,1000]{1,0} dynamic-update-slice(%out, %twice, %i, %zero)
}

ENTRY %main (a: f32[4,1000], b: f32[4,1000], i: s32[]) -> f32[4,1000] {
  %a = f32[4,1000]{1,0} parameter(0)
  %b = f32[4,1000]{1,0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = f32[4,1000]{1,0} fusion(%a, %b, %i), kind=kLoop, calls=%fused
}
"""


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[2,4]<=[8]", (0, 1, 2, 3)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'fsdp'}", (0, 1, 2, 3)),
        ("replica_groups=mesh['data'=2,'fsdp'=4] {'data'}", (0, 4)),
        ("replica_groups={}", (0, 1)),
    ],
)
def test_loop_trip_counts_and_replica_groups_in_every_notation(groups, first):
    found = {c.kind: c for c in Module(WHILE.replace("GROUPS", groups)).collectives()}
    size = 8 * 16 * 4
    assert found["collective-permute"].count == 8 and found["collective-permute"].bytes == 8 * size
    assert found["all-reduce"].group == first
    assert found["all-reduce"].bytes == pytest.approx(2 * size * (len(first) - 1) / len(first))


def test_fused_slices_count_as_slices_not_as_whole_arrays():
    row = 1000 * 4
    assert Module(SLICED).memory_traffic() == pytest.approx(2 * row, rel=0.01)


def test_on_chip_buffers_are_not_memory_traffic():
    text = SLICED.replace("%a = f32[4,1000]{1,0}", "%a = f32[4,1000]{1,0:T(8,128)S(1)}")
    assert Module(text).memory_traffic() == pytest.approx(1000 * 4, rel=0.01)


@pytest.mark.parametrize("unroll", [False, True], ids=["loop", "unrolled"])
def test_compiled_fsdp_scan_gathers_each_layer_once(unroll):
    mesh = mesh_of(fsdp=8)
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    batch = NamedSharding(mesh, PartitionSpec("fsdp"))

    def forward(weights_LDD, x_BD):
        def layer(x_BD, w_DD):
            # Without the constraints XLA would send the smaller activations instead of the weights.
            w_DD = jax.lax.with_sharding_constraint(w_DD, NamedSharding(mesh, PartitionSpec()))
            return jax.lax.with_sharding_constraint(jnp.tanh(x_BD @ w_DD), batch), None

        return jax.lax.scan(layer, x_BD, weights_LDD, unroll=LAYERS if unroll else 1)[0]

    shapes = (jnp.zeros((LAYERS, WIDTH, WIDTH)), jnp.zeros((16, WIDTH)))
    compiled = jax.jit(forward, in_shardings=(split, batch)).lower(*shapes).compile()
    gathers = [c for c in Module(compiled.as_text()).collectives() if c.kind == "all-gather"]
    assert sum(c.bytes for c in gathers) == pytest.approx(LAYERS * WIDTH * WIDTH * 4 * 7 / 8)
    assert all(len(c.group) == 8 for c in gathers)


def test_transfers_between_slices_are_counted_separately():
    """The text is libtpu's for a topology of two slices."""
    text = """HloModule example

ENTRY %main (a: bf16[33,8,128]) -> bf16[33,8,128] {
  %a = bf16[33,8,128]{2,1,0} parameter(0)
  %t = token[] after-all()
  %s = (bf16[33,8,128]{2,1,0}, u32[], token[]) send(%a, %t), channel_id=6, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.115_0"}
  ROOT %c = bf16[33,8,128]{2,1,0} copy(%a)
}
"""  # noqa: E501
    (found,) = Module(text).collectives()
    assert (found.kind, found.count, found.bytes, found.host) == ("all-reduce", 1, 33 * 8 * 128 * 2, True)


def test_hlo_parser_was_tested_with_this_jax_version():
    """XLA's text format has no stability promise, so every minor version needs one look at these tests."""
    version = ".".join(jax.__version__.split(".")[:2])
    assert version in TESTED_JAX_VERSIONS, (
        f"train/planner/hlo.py was tested with JAX {', '.join(TESTED_JAX_VERSIONS)}, this is {version}; "
        "if all other tests of tests/train/planner pass, add it to TESTED_JAX_VERSIONS"
    )
