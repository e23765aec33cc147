"""The context axis: equal work on every device, what is skipped, memory of the ring, and the order of the tokens."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import mesh_of, tiny_model

from model import ring, tiles
from model.context import make_context
from model.tiles import Block, Keys, Scores
from model.zigzag import from_zigzag, is_balanced, to_zigzag

CAUSAL = Scores(scale=0.3, softcap=0.0, window=0, causal=True)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_zigzag_gives_each_device_a_front_and_a_back_half(devices):
    length = 4 * devices
    row = np.arange(length, dtype=np.int32)[None].repeat(2, 0)
    with jax.set_mesh(mesh_of(context=devices)):
        x = jax.jit(to_zigzag)(row)
        back = jax.jit(from_zigzag)(x)
    halves = np.asarray(x)[0].reshape(devices, 2, 2)
    for device, (front, rear) in enumerate(halves):
        assert list(front) == [2 * device, 2 * device + 1]
        assert list(rear) == [length - 2 * device - 2, length - 2 * device - 1]
    assert (np.asarray(back) == row).all()


def test_only_rows_that_divide_into_halves_are_balanced():
    with jax.set_mesh(mesh_of(context=2, fsdp=2)):
        assert is_balanced(2, 8) and not is_balanced(2, 6) and not is_balanced(3, 8)
    with jax.set_mesh(mesh_of(fsdp=2)):
        assert not is_balanced(2, 8)
    assert not is_balanced(2, 8)


def test_positions_and_lengths_travel_with_the_tokens():
    lengths = [20, 7, 25]
    segments = jnp.asarray([[i for i, n in enumerate(lengths, 1) for _ in range(n)] + [0] * 12], jnp.int32)
    positions = jnp.asarray([[p for n in lengths for p in range(n)] + [0] * 12], jnp.int32)
    model = tiny_model(rope_scaling="dynamic", rope_scaling_factor=2.0, rope_original_context=16)
    with jax.set_mesh(mesh_of(context=4)):
        plain = make_context(model, positions, segments)
        order = jax.jit(lambda: jax.tree.map(to_zigzag, plain._replace(balanced=())))()
        found = jax.jit(lambda: make_context(model, positions, segments, balanced=True)._replace(balanced=()))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, order)


def computed(devices, how, segments, scores, chunk, monkeypatch):
    """The number of pairs of chunks that each device multiplies in a forward pass."""
    counts = collections.Counter()
    added = tiles._added

    def counting(*arguments):
        jax.debug.callback(lambda device: counts.update([int(device)]), jax.lax.axis_index("context"))
        return added(*arguments)

    monkeypatch.setattr(tiles, "_added", counting)
    monkeypatch.setattr(tiles, "chunk_of", lambda size: min(size, chunk))
    x = np.ones((*segments.shape, 1, 2), np.float32)
    with jax.set_mesh(mesh_of(context=devices)):

        def run(x, segments):
            x, segments = to_zigzag(x), to_zigzag(segments)
            return ring.attend_over_context(scores, x, x, x, segments, ring=how == "ring", splash=False)

        jax.block_until_ready(jax.jit(run)(x, segments))
        jax.effects_barrier()
    return [counts[device] for device in range(devices)]


@pytest.mark.parametrize("how", ["ring", "all_gather"])
@pytest.mark.parametrize("devices", [2, 4])
def test_every_device_does_the_same_work(devices, how, monkeypatch):
    length, chunk = 128, 4
    counts = computed(devices, how, np.ones((1, length), np.int32), CAUSAL, chunk, monkeypatch)
    assert max(counts) <= 1.05 * min(counts)
    # Every pair on or below the diagonal, and no other.
    chunks = length // chunk
    assert sum(counts) == chunks * (chunks + 1) // 2


@pytest.mark.integration
def test_masked_pairs_are_skipped(monkeypatch):
    """Windows and segments: only the pairs of chunks on the diagonal and beside it are multiplied."""
    ones = np.ones((1, 128), np.int32)
    windowed = Scores(0.3, 0.0, window=5, causal=True)
    assert sum(computed(2, "ring", ones, windowed, 4, monkeypatch)) == 32 + 31
    segments = np.repeat(np.arange(1, 17, dtype=np.int32), 8)[None]
    assert sum(computed(2, "ring", segments, CAUSAL, 4, monkeypatch)) == 16 * 3
    both = Scores(0.3, 0.0, window=0, causal=False)
    assert sum(computed(2, "ring", segments, both, 4, monkeypatch)) == 16 * 4


@pytest.mark.parametrize(("window", "causal"), [(0, True), (3, True), (0, False), (3, False)])
def test_is_visible_is_true_for_every_pair_that_the_mask_shows(window, causal):
    rng = np.random.default_rng(0)
    scores = Scores(1.0, 0.0, window, causal)
    hidden = 0
    for _ in range(60):
        ends = np.sort(rng.integers(0, 33, 3))
        row = np.searchsorted(ends, np.arange(32), side="right") + 1
        row = np.where(np.arange(32) < rng.integers(16, 33), row, 0).astype(np.int32)
        a, b = (int(x) for x in rng.integers(0, 8, 2) * 4)
        queries, keys = (Block(jnp.asarray(row[None, x : x + 4]), jnp.int32(x)) for x in (a, b))
        seen = bool(tiles.is_visible(scores, queries, keys))
        shown = bool(tiles._mask(scores, queries, keys).any())
        assert seen or not shown
        hidden += not seen
    assert hidden > 10


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_parts_over_different_keys_merge_into_one_softmax(softcap):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((1, 8, n, 4)) * 4, jnp.float32) for n in (4, 2, 2))
    scores = Scores(1.0, softcap, 0, causal=True)
    ids = jnp.ones((1, 8), jnp.int32)
    whole = tiles.forward(scores, q, Keys(k, v), Block(ids, jnp.int32(0)), Block(ids, jnp.int32(0)))
    state = jnp.zeros(q.shape), jnp.full(q.shape[:3], tiles.EMPTY)
    for start in (4, 0):
        keys = Keys(k[:, start : start + 4], v[:, start : start + 4])
        part = tiles.forward(scores, q, keys, Block(ids, jnp.int32(0)), Block(ids[:, :4], jnp.int32(start)))
        state = ring._merged(state, part)
    for a, b in zip(state, whole, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.integration
def test_keys_of_a_ring_do_not_grow_with_the_axis():
    """With the tokens per device fixed, the memory that XLA allocates for a ring is the same, and a gather's grows."""

    def temporaries(devices, how):
        length = 512 * devices
        heads = [jax.ShapeDtypeStruct((1, length, 4, 16), jnp.float32) for _ in range(3)]
        ids = jax.ShapeDtypeStruct((1, length), jnp.int32)

        def loss(q, k, v, ids):
            return ring.attend_over_context(CAUSAL, q, k, v, ids, ring=how == "ring", splash=False).sum()

        mesh = mesh_of(context=devices)
        split = jax.NamedSharding(mesh, jax.P(None, "context"))
        with jax.set_mesh(mesh):
            step = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), in_shardings=split, out_shardings=split)
            return step.lower(*heads, ids).compile().memory_analysis().temp_size_in_bytes

    two, eight = temporaries(2, "ring"), temporaries(8, "ring")
    assert eight <= 1.02 * two
    block = 2 * 512 * 4 * 16 * 4
    # Keys and values of six more devices, and their gradients.
    assert temporaries(8, "all_gather") - temporaries(2, "all_gather") >= 6 * block


@pytest.mark.parametrize(
    ("how", "length", "expected"), [("auto", 2**17, False), ("auto", 2**20, True), ("ring", 8, True)]
)
def test_auto_is_a_ring_where_a_gather_would_take_more_than_a_gibibyte(how, length, expected):
    model = tiny_model(num_kv_heads=2, num_heads=4, head_dim=128, compute_dtype="bfloat16", context_attention=how)
    # 1 KiB of keys and values per token, in two rows per device.
    with jax.set_mesh(mesh_of(context=2, fsdp=2)):
        assert ring.uses_ring(model, 4, length) is expected
        assert not ring.uses_ring(tiny_model(context_attention="all_gather"), 4, length)
