"""Each attention backend against the definition, values and gradients: packed rows, windows, heads, meshes."""

import contextlib
import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import init, mesh_of, tiny_model

from configs.errors import UserError
from model import attend
from model.context import make_context
from model.heads import language_model
from model.zigzag import from_zigzag, is_balanced, to_zigzag
from tests.often import often

CASES = {
    "grouped heads": {},
    "one kv head": {"num_kv_heads": 1},
    "window": {"sliding_window": (150,)},
    "window of a block, all heads": {"sliding_window": (128,), "num_kv_heads": 4},
    "softcap and scale": {"attention_softcap": 2.0, "query_scale": 0.9},
    "all at once": {"sliding_window": (40,), "attention_softcap": 2.0, "query_scale": 0.9},
    "no softcap": {"sliding_window": (40,), "query_scale": 0.9},
    "both directions": {"causal": False},
    "both directions, window": {"causal": False, "sliding_window": (40,), "attention_softcap": 2.0},
    "both directions, window of a block": {"causal": False, "sliding_window": (128,)},
}
MESHES = {
    "one device": {},
    "context 4": {"context": 4},
    "context 2": {"context": 2},
    "context 8": {"context": 8},
    "fsdp 2 x context 4": {"fsdp": 2, "context": 4},
    "fsdp 2 x tensor 2 x context 2": {"fsdp": 2, "tensor": 2, "context": 2},
}


def packed(length):
    """Segment ids and positions of two rows: three documents with padding; two documents without."""
    rows = []
    for parts in ((0.35, 0.15, 0.3), (0.8, 0.2)):
        row = [(i, p) for i, part in enumerate(parts, 1) for p in range(round(length * part))]
        rows.append((row + [(0, 0)] * length)[:length])
    table = np.array(rows, np.int32)
    return table[..., 0], table[..., 1]


def inputs(model, length):
    rng = np.random.default_rng(0)
    heads = (model.num_heads, model.num_kv_heads, model.num_kv_heads, model.num_heads)
    return [rng.standard_normal((2, length, n, model.head_dim)).astype(np.float32) for n in heads]


def value_and_gradients(model, length, mesh):
    """o_BTNH, zero at padding, and the gradients of a random projection of it."""
    *qkv, direction = inputs(model, length)
    segments, positions = packed(length)
    real = (segments > 0)[..., None, None]

    def projected(q, k, v):
        balanced = is_balanced(2, length)
        order, back = (to_zigzag, from_zigzag) if balanced else (lambda x: x, lambda x: x)
        context = make_context(model, jnp.asarray(positions), jnp.asarray(segments), balanced)
        o = back(attend.attend(model, *map(order, (q, k, v)), context, model.windows[0]))
        return (jnp.where(real, o, 0) * direction).sum(), jnp.where(real, o, 0)

    with jax.set_mesh(mesh):
        (_, o), grads = jax.jit(jax.value_and_grad(projected, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return jax.device_get((o, *grads))


def by_definition(model, q, k, v, segments):
    """softmax(q k^T) v in float64, one query at a time, over a list of its visible keys."""
    out = np.zeros(q.shape)
    group = model.num_heads // model.num_kv_heads
    scale = model.query_scale or model.head_dim**-0.5
    window = model.windows[0] or q.shape[1]
    for b, t, n in np.ndindex(q.shape[:3]):
        end = t + 1 if model.causal else min(t + window, q.shape[1])
        keys = [s for s in range(max(0, t - window + 1), end) if segments[b, s] == segments[b, t]]
        z = k[b, keys, n // group].astype(np.float64) @ q[b, t, n] * scale
        if model.attention_softcap:
            z = model.attention_softcap * np.tanh(z / model.attention_softcap)
        p = np.exp(z - z.max())
        out[b, t, n] = p / p.sum() @ v[b, keys, n // group]
    return out


@functools.cache
def reference(name, length):
    return value_and_gradients(tiny_model(**CASES[name], attention="xla"), length, mesh_of())


def assert_close(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5)


@pytest.mark.integration
@pytest.mark.parametrize("name", CASES)
def test_xla_equals_the_definition(name):
    model = tiny_model(**CASES[name], attention="xla")
    q, k, v, _ = inputs(model, 384)
    segments, _ = packed(384)
    expected = np.where((segments > 0)[..., None, None], by_definition(model, q, k, v, segments), 0)
    np.testing.assert_allclose(reference(name, 384)[0], expected, atol=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize(
    "name",
    [
        *("one kv head", "all at once", "window of a block, all heads"),
        *("both directions", "both directions, window", "both directions, window of a block"),
    ],
)
def test_splash_equals_xla(name):
    """Interpreted; three blocks of 128 per side, so that the mask skips some, covers some and cuts through some."""
    assert_close(
        value_and_gradients(tiny_model(**CASES[name], attention="splash"), 384, mesh_of()), reference(name, 384)
    )


@pytest.mark.integration
@pytest.mark.parametrize(
    ("mesh", "name"),
    [
        ("fsdp 2 x tensor 2 x context 2", "grouped heads"),
        *often(
            ("context 2", name) for name in ("all at once", "both directions", "both directions, window of a block")
        ),
    ],
)
@pytest.mark.parametrize("how", ["ring", "all_gather"])
def test_splash_equals_xla_on_meshes(mesh, name, how):
    model = tiny_model(**CASES[name], attention="splash", context_attention=how)
    assert_close(value_and_gradients(model, 512, mesh_of(**MESHES[mesh])), reference(name, 512))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("mesh", "name"),
    [
        ("context 2", "grouped heads"),
        ("context 4", "all at once"),
        ("context 8", "one kv head"),
        ("fsdp 2 x context 4", "softcap and scale"),
        ("fsdp 2 x tensor 2 x context 2", "window"),
        ("context 4", "both directions"),
        ("fsdp 2 x tensor 2 x context 2", "both directions, window"),
    ],
)
@pytest.mark.parametrize("how", ["ring", "all_gather"])
def test_context_axis_equals_one_device(mesh, name, how):
    model = tiny_model(**CASES[name], attention="xla", context_attention=how)
    assert_close(value_and_gradients(model, 384, mesh_of(**MESHES[mesh])), reference(name, 384))


@pytest.mark.integration
@pytest.mark.parametrize("scan_layers", often([True, False], False), ids=["scanned", "unrolled"])
def test_each_layer_uses_its_own_window(scan_layers):
    """Each window needs its own Splash kernel; a layer with the wrong one has a wrong gradient."""
    changes = {
        "num_layers": 3, "sliding_window": (30, 0, 7), "rope_layers": ("local", "none", "rope"), "rope_theta": 300.0,
        "context_length": 128, "scan_layers": scan_layers,
    }  # fmt: skip
    rng = np.random.default_rng(1)
    segments, positions = packed(128)
    tokens, targets = (rng.integers(3, 64, segments.shape) for _ in range(2))
    batch = {
        "tokens": tokens, "targets": targets, "segment_ids": segments, "positions": positions,
        "weights": (segments > 0).astype(np.float32),
    }  # fmt: skip

    def gradient(attention):
        objective = language_model(tiny_model(**changes, attention=attention))
        params = init(objective)
        return jax.jit(jax.value_and_grad(lambda p: objective.loss(p, batch).objective))(params)

    got, expected = gradient("splash"), gradient("xla")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-3), got, expected)


@pytest.fixture
def hopper(monkeypatch):
    """Makes this machine look like one with an NVIDIA H100."""
    monkeypatch.setattr(attend, "platform", lambda: "gpu")
    monkeypatch.setattr(attend, "cuda_capability", lambda: "9.0")


@pytest.mark.integration
@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("name", ["grouped heads", "no softcap", "both directions"])
def test_cudnn_call_equals_xla(sizes, name, hopper, monkeypatch):
    """Replaces cuDNN by JAX's XLA implementation of the same function, called with the same arguments."""
    original, implementations = jax.nn.dot_product_attention, []

    def answer(*args, implementation, **kwargs):
        implementations.append(implementation)
        return original(*args, implementation="xla", **kwargs)

    monkeypatch.setattr(jax.nn, "dot_product_attention", answer)
    model = tiny_model(**CASES[name], attention="cudnn", compute_dtype="bfloat16")
    assert_close(value_and_gradients(model, 64, mesh_of(**sizes)), reference(name, 64))
    assert set(implementations) == {"cudnn"}


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both directions"])
@pytest.mark.parametrize("sizes", MESHES.values(), ids=MESHES)
def test_cudnn_lowers_to_its_fused_kernels_on_each_device(sizes, causal, hopper, monkeypatch):
    from jax._src.cudnn import fused_attention_stablehlo

    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91002)
    model = tiny_model(attention="auto", compute_dtype="bfloat16", sliding_window=(5,), causal=causal)
    q, kv = (jax.ShapeDtypeStruct((2, 64, heads, 8), jnp.bfloat16) for heads in (4, 2))
    ids = jax.ShapeDtypeStruct((2, 64), jnp.int32)

    def total(q, k, v, positions, segments):
        context = make_context(model, positions, segments)
        return attend.attend(model, q, k, v, context, 5).astype(jnp.float32).sum()

    with jax.set_mesh(mesh_of(**sizes)):
        traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, kv, kv, ids, ids)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r'custom_call @(__cudnn\S+?)\(.*?backend_config = "(.*?)", ', text)
    assert [name for name, _ in calls] == ["__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward"]
    size = dict.fromkeys(("fsdp", "tensor", "context"), 1) | sizes
    for _, config in calls:
        backend_config = json.loads(config.replace(r"\22", '"'))["cudnn_fmha_backend_config"]
        local = [2 // size["fsdp"], 4 // size["tensor"], 64 // size["context"], 64]
        assert [int(n) for n in backend_config["intermediate_tensor_shape"]["dimensions"]] == local
        # With a context axis, a device's first query is not the first of the row, so the mask alone is causal.
        assert backend_config["mask_type"] == ("CAUSAL" if causal and size["context"] == 1 else "NO_MASK")


UNSUPPORTED = {
    "gpu, splash": ("gpu", "8.0", "splash", {}, 128, "a TPU"),
    "odd length, splash": ("tpu", None, "splash", {}, 192, r"a multiple of 128 tokens, got 192"),
    "cpu, cudnn": ("cpu", None, "cudnn", {}, 128, "an NVIDIA GPU in this machine"),
    "AMD, cudnn": ("gpu", None, "cudnn", {}, 128, "an NVIDIA GPU in this machine"),
    "softcap, cudnn": ("gpu", "9.0", "cudnn", {"attention_softcap": 50.0}, 128, "attention_softcap=0, got 50.0"),
    "float32, cudnn": ("gpu", "9.0", "cudnn", {"compute_dtype": "float32"}, 128, "'bfloat16', got float32"),
    "head of 12, cudnn": ("gpu", "9.0", "cudnn", {"head_dim": 12}, 128, "multiple of 8 and at most 256 .* got 12"),
    "head of 256, cudnn": ("gpu", "8.0", "cudnn", {"head_dim": 256}, 128, "at most 128 on this GPU, got 256"),
    "odd rows, cudnn": ("gpu", "9.0", "cudnn", {}, 33, "even number of tokens .* got 33"),
}


@pytest.mark.parametrize("case", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_unsupported_backend_is_a_one_line_error_and_auto_uses_xla(case, monkeypatch):
    platform, capability, attention, changes, length, message = case
    monkeypatch.setattr(attend, "platform", lambda: platform)
    monkeypatch.setattr(attend, "cuda_capability", lambda: capability)
    changes = {"compute_dtype": "bfloat16"} | changes
    with pytest.raises(
        UserError, match=rf"config.model.attention='{attention}' needs .*{message}.*; use 'xla' or 'auto'"
    ):
        attend.attention_backend(tiny_model(**changes, attention=attention), length)
    if platform == {"cudnn": "gpu", "splash": "tpu"}[attention]:
        assert attend.attention_backend(tiny_model(**changes, attention="auto"), length) == "xla"


@pytest.mark.parametrize(("length", "refused"), [(1024, False), (512, True), (1152, True)])
def test_splash_over_a_context_axis_needs_halves_of_whole_blocks(length, refused, monkeypatch):
    monkeypatch.setattr(attend, "platform", lambda: "tpu")
    with jax.set_mesh(mesh_of(context=4)):
        assert attend.attention_backend(tiny_model(), length) == ("xla" if refused else "splash")
        assert attend.attention_backend(tiny_model(), length, balanced=False) == "xla"
        error = pytest.raises(UserError, match=r"256 x config\.mesh\.context = 1024 tokens")
        with error if refused else contextlib.nullcontext():
            attend.attention_backend(tiny_model(attention="splash"), length)


def test_cudnn_refuses_a_ring(hopper):
    model = tiny_model(attention="cudnn", compute_dtype="bfloat16", context_attention="ring")
    with pytest.raises(UserError, match=r"'cudnn' cannot compute a ring .* use .*context_attention='all_gather'"):
        value_and_gradients(model, 64, mesh_of(context=2))


@pytest.mark.parametrize(("platform", "fastest"), [("cpu", "xla"), ("gpu", "cudnn"), ("tpu", "splash")])
def test_auto_selects_the_fastest_backend_of_the_platform(platform, fastest, monkeypatch):
    monkeypatch.setattr(attend, "platform", lambda: platform)
    monkeypatch.setattr(attend, "cuda_capability", lambda: "9.0")
    model = tiny_model(attention="auto", compute_dtype="bfloat16", head_dim=256)
    assert attend.attention_backend(model, 256) == fastest
