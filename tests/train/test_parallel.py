"""Context and tensor parallelism: the same numbers, and no all-gather of what should stay sharded."""

import math
import re

import jax
import numpy as np
import pytest
from conftest import init, mesh_of, tiny_model

from configs import default
from configs.errors import UserError
from model.heads import language_model
from tests.often import often
from train.distributed.mesh import check_batch, check_host_memory
from train.distributed.placement import put_batch
from train.planner.compiled import without_cache
from train.settings import from_config
from train.step import make_program, summed_gradients

LENGTH, WIDTH, VOCABULARY = 512, 40, 320


def documents():
    """Rows whose document boundaries fall inside, at and across the boundaries between devices; and padding."""
    rng = np.random.default_rng(0)
    rows = [[128, 40, 200, 60], [300, 212], [5, 123, 384], [64, 64, 64, 64, 1]]
    return [[rng.integers(3, 64, size) for size in row] for row in rows]


def packed(rows):
    shape = (len(rows), LENGTH)
    batch = {name: np.zeros(shape, np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    batch["weights"] = np.zeros(shape, np.float32)
    for row, sizes in enumerate(rows):
        start = 0
        for segment, tokens in enumerate(sizes, 1):
            place = (row, slice(start, start + len(tokens)))
            batch["tokens"][place], batch["targets"][place] = tokens, np.roll(tokens, -1)
            batch["segment_ids"][place], batch["positions"][place] = segment, np.arange(len(tokens))
            batch["weights"][place] = 1
            start += len(tokens)
    return batch


def model_of(**changes):
    return tiny_model(**({"sliding_window": (150, 0), "context_length": LENGTH, "attention": "xla"} | changes))


@pytest.fixture(scope="module")
def params():
    return jax.device_get(init(language_model(model_of())))


@pytest.fixture(scope="module")
def one_device(params):
    batch = packed(documents())
    objective = language_model(model_of(), z_loss=1e-4, chunk=64)
    grads, sums = jax.jit(lambda p, b: summed_gradients(objective, p, b, 1))(params, batch)
    return jax.device_get((grads, sums, jax.jit(objective.predict)(params, batch)))


@pytest.mark.integration
@pytest.mark.parametrize(
    ("sizes", "attention", "how"),
    [
        ({"context": 2, "tensor": 2}, "xla", "all_gather"),
        *often(
            [
                ({"context": 2, "tensor": 2}, "splash", "ring"),
                ({"context": 2, "fsdp": 2}, "splash", "all_gather"),
                ({"context": 4, "fsdp": 2}, "xla", "ring"),
                ({"context": 8}, "xla", "ring"),
                ({"context": 8}, "xla", "all_gather"),
            ]
        ),
    ],
    ids=str,
)
def test_context_parallelism_changes_no_loss_and_no_gradient(sizes, attention, how, params, one_device):
    objective = language_model(model_of(attention=attention, context_attention=how), z_loss=1e-4, chunk=64)
    mesh = mesh_of(**sizes)
    program = make_program(objective, from_config(default.get_config().to_dict()), mesh)
    with jax.set_mesh(mesh):
        here = jax.device_put(params, jax.tree.map(lambda leaf: leaf.sharding, program.state.params))
        batch = put_batch(packed(documents()), mesh)
        got = jax.jit(lambda p, b: (*summed_gradients(objective, p, b, 1), objective.predict(p, b)))(here, batch)
    grads, sums, nll = jax.device_get(got)
    np.testing.assert_allclose(jax.tree.leaves(sums), jax.tree.leaves(one_device[1]), rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max()), grads, one_device[0]
    )
    real = packed(documents())["segment_ids"] > 0
    np.testing.assert_allclose(nll[real], one_device[2][real], atol=2e-5)


@pytest.mark.integration
def test_packed_documents_in_a_long_row_equal_single_documents(params, one_device):
    predict = jax.jit(language_model(model_of()).predict)
    for row, sizes in zip(one_device[2], documents(), strict=True):
        start = 0
        for tokens in sizes:
            alone = predict(params, packed([[tokens]]))[0, : len(tokens)]
            np.testing.assert_allclose(row[start : start + len(tokens)], alone, atol=5e-5)
            start += len(tokens)


def collectives(sizes, capfd, vocabulary=VOCABULARY, **changes):
    """(kind, shapes, JAX operation) of each collective of a compiled train step, on rows of 64 tokens."""
    config = default.get_config()
    config.batch_size, config.sequence_length = 8, 64
    model = tiny_model(context_length=64, vocab_size=vocabulary, embed_dim=WIDTH, head_dim=8, mlp_dim=56, **changes)
    mesh = mesh_of(**sizes)
    program = make_program(language_model(model, 1e-4, 8), from_config(config.to_dict()), mesh)
    with without_cache(), jax.set_mesh(mesh):
        text = program.step.lower(program.state, program.batch).compile().as_text()
    assert "rematerialization" not in capfd.readouterr().err
    kinds = "all-gather|all-reduce|all-to-all|reduce-scatter|collective-permute"
    found = []
    for line in text.splitlines():
        if match := re.search(rf" = (.*?) ({kinds})(?:-start)?\(", line):
            shapes = [tuple(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", match[1])]
            found.append((match[2], shapes, re.search(r'op_name="(.*?)"', line)[1]))
    return found, text


@pytest.mark.integration
@pytest.mark.parametrize("how", ["ring", "all_gather"])
def test_context_parallelism_moves_only_keys_values_and_halves(how, capfd):
    found, _ = collectives({"data": 2, "context": 4}, capfd, context_attention=how)
    moved = {(kind, shape) for kind, shapes, _ in found if kind != "all-reduce" for shape in shapes}
    # Four rows of 16 tokens per device: ids and the residual stream go into zigzag order and back by halves of 8.
    halves = {("collective-permute", (4, 8)), ("collective-permute", (4, 8, WIDTH))}
    # Keys, values and segments (B, S, K, H), (B, S) of one device, or of four. No queries, no (B, T, D).
    if how == "ring":
        own = {("collective-permute", (4, 16, 2, 8)), ("collective-permute", (4, 16))}
    else:
        own = {("all-gather", (4, 4, 16, 2, 8)), ("all-gather", (4, 4, 16)), ("reduce-scatter", (4, 16, 2, 8))}
    assert {(kind, tuple(size for size in shape if size > 1)) for kind, shape in moved} == halves | own
    # The loop over chunks of the loss communicates nothing: each device has its own part of every chunk.
    loss = [(shapes, op) for _, shapes, op in found if "cross_entropy" in op]
    assert not [op for _, op in loss if "while" in op]
    assert (VOCABULARY, WIDTH) in [shapes[0] for shapes, _ in loss]


@pytest.mark.integration
def test_sharded_vocabulary_is_not_gathered(capfd):
    found, text = collectives({"fsdp": 2, "tensor": 2, "context": 2}, capfd)
    half = VOCABULARY // 2
    # The table is gathered over fsdp, never over tensor; logits are not communicated, only the sums of their softmax.
    assert not re.search(rf"\[(\d+,)*{VOCABULARY}(,\d+)*\]", text)
    assert {shape for _, shapes, _ in found for shape in shapes if half in shape} == {(half, WIDTH)}
    loop = [(kind, s) for kind, shapes, op in found if re.search("cross_entropy.*while", op) for s in shapes]
    rows, positions = 8 // 2, 8
    assert {kind for kind, _ in loop} == {"all-reduce"}
    assert {shape for _, shape in loop} == {(1, rows * positions), (1, rows * positions, WIDTH)}


@pytest.mark.integration
def test_large_vocabulary_stays_sharded_over_fsdp_too(capfd):
    found, text = collectives({"fsdp": 4, "tensor": 2}, capfd, vocabulary=2048)
    part, tokens = 2048 // 8, 8 * 8
    # Fewer tokens than vocabulary entries: the tokens of a chunk are gathered over fsdp, not the table or the logits.
    loss = [(kind, shape) for kind, shapes, op in found if "cross_entropy" in op for shape in shapes if shape]
    assert max(math.prod(shape) for _, shape in loss) == tokens * WIDTH
    assert "all-gather" in {kind for kind, shape in loss if math.prod(shape) == tokens * WIDTH}
    assert re.search(rf"\[1,{tokens},{part}\]", text) and not re.search(rf"\[1,{tokens},{2048 // 2}\]", text)


def test_loss_chunk_must_divide_the_tokens_per_device():
    config = default.get_config()
    config.sequence_length, config.loss.chunk = 96, 32
    with pytest.raises(UserError, match=r"config.loss.chunk=32 must divide 48"):
        check_batch(from_config(config.to_dict()), mesh_of(context=2))
    config.loss.chunk = 24
    check_batch(from_config(config.to_dict()), mesh_of(context=2))


def test_rows_must_divide_into_front_and_back_halves():
    config = default.get_config()
    config.sequence_length, config.loss.chunk = 36, 0
    with pytest.raises(UserError, match=r"sequence_length=36 must be divisible by 2 x config.mesh.context = 8.* 32 or"):
        check_batch(from_config(config.to_dict()), mesh_of(context=4))


def test_offload_without_host_memory_is_a_one_line_error():
    config = default.get_config()
    config.model.remat = "offload"
    settings = from_config(config.to_dict())
    check_host_memory(settings, mesh_of())

    class Device:
        def addressable_memories(self):
            return [jax.devices()[0].default_memory()]

    class Mesh:
        local_devices = (Device(),)

    with pytest.raises(UserError, match=r"remat='offload'.*only \['device'\]; use 'full'"):
        check_host_memory(settings, Mesh())
