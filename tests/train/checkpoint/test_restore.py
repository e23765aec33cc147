"""A checkpoint is restored bit for bit on any mesh, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import init, mesh_of, tiny_model

from configs import default
from configs.errors import UserError
from model.heads import language_model
from tests.damage import flip_a_bit
from train.checkpoint import orbax_handlers
from train.checkpoint import save as saving
from train.checkpoint.checksums import checksums
from train.checkpoint.manager import open_manager
from train.checkpoint.restore import restore_newest, restore_params
from train.distributed.placement import replicated
from train.optimizer import make_optimizer
from train.settings import from_config
from train.step import TrainState, state_shardings

OBJECTIVE = language_model(tiny_model())
OPTIMIZER = make_optimizer(
    from_config(default.get_config().to_dict()).optimizer, 10, jax.eval_shape(OBJECTIVE.init, jax.random.key(0))
)


def state_on(mesh, step=3):
    """A sharded state without zero leaves."""
    params = init(OBJECTIVE)
    filled = jax.tree.map(lambda x: x + jnp.asarray(step, x.dtype), OPTIMIZER.init(params))
    state = TrainState(jnp.asarray(step, jnp.int32), params, filled, {})
    return jax.device_put(state, state_shardings(OBJECTIVE, OPTIMIZER, mesh))


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save(directory, *states, mesh):
    with open_manager(directory, 10) as manager:
        for state in states:
            saving.save(manager, state, mesh)


def restore(directory, like, mesh):
    with open_manager(directory, 10) as manager:
        return restore_newest(manager, abstract(like), mesh)


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found), jax.device_get(expected))


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_old_checkpoints_are_listed_again_only_if_one_was_set_aside(tmp_path, monkeypatch, damaged):
    """Orbax reads the metadata of every checkpoint to list them: with a thousand, that is most of a resume."""
    mesh = mesh_of()
    save(tmp_path, *(state_on(mesh, step) for step in (1, 2, 3, 4)), mesh=mesh)
    for step in range(5 - damaged, 5):
        flip_a_bit(tmp_path / "checkpoints" / str(step))
    reloads = []
    monkeypatch.setattr(ocp.CheckpointManager, "reload", lambda self: reloads.append(1))
    assert int(restore(tmp_path, state_on(mesh), mesh).step) == 4 - damaged
    assert len(reloads) == (1 if damaged else 0)


@pytest.mark.integration
def test_restored_state_equals_the_saved_one(tmp_path):
    mesh = mesh_of()
    assert restore(tmp_path, state_on(mesh), mesh) is None
    state = state_on(mesh, 7)
    save(tmp_path, state_on(mesh), state, mesh=mesh)
    found = restore(tmp_path, state_on(mesh), mesh)
    assert int(found.step) == 7
    assert_same(found, state)


def test_leaf_above_the_concurrent_read_limit_is_restored(tmp_path, monkeypatch):
    monkeypatch.setattr(orbax_handlers, "MIN_CONCURRENT_BYTES", 0.0)
    mesh = mesh_of()
    state = TrainState(jnp.asarray(1, jnp.int32), {"backbone": {"w": jnp.arange(4096.0)}, "head": {}}, None, {})
    state = jax.device_put(state, replicated(mesh))
    save(tmp_path, state, mesh=mesh)
    found = restore_params(tmp_path, abstract(state).params, mesh, ("backbone",))
    assert_same(found["backbone"], state.params["backbone"])


@pytest.mark.integration
@pytest.mark.parametrize(("before", "after"), [({"fsdp": 8}, {"fsdp": 2, "tensor": 2}), ({}, {"fsdp": 4})], ids=str)
def test_restore_on_another_mesh(before, after, tmp_path):
    old, new = mesh_of(**before), mesh_of(**after)
    saved, wanted = state_on(old), state_on(new)
    save(tmp_path, saved, mesh=old)
    found = restore(tmp_path, wanted, new)
    assert_same(found, saved)
    jax.tree.map(
        lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim) or pytest.fail(str(a.sharding)), found, wanted
    )


def test_flipped_bit_is_detected(tmp_path, capsys):
    mesh = mesh_of()
    first = state_on(mesh)
    save(tmp_path, first, state_on(mesh, 5), mesh=mesh)
    flip_a_bit(tmp_path / "checkpoints" / "5" / "params")
    assert_same(restore(tmp_path, first, mesh), first)
    assert "checkpoint 5 is damaged (checksum differs: params/" in capsys.readouterr().err.replace("\n", " ")
    assert [path.name.split("-")[0] for path in (tmp_path / "damaged").iterdir()] == ["5"]


def test_checksum_changes_with_any_value_or_order():
    mesh = mesh_of()

    def checksum(*values):
        return checksums({"x": jnp.asarray(values, jnp.float32)}, mesh)["x"]

    assert checksum(1, 2, 3, 4) == checksum(1, 2, 3, 4)
    others = {checksum(1, 2, 4, 3), checksum(1, 2, 3, 5), checksum(2, 1, 3, 4), checksum(1, 3, 2, 4)}
    assert len(others | {checksum(1, 2, 3, 4)}) == 5
    split = jax.device_put(jnp.arange(8.0), jax.sharding.NamedSharding(mesh_of(fsdp=8), jax.P("fsdp")))
    assert checksums({"x": split}, mesh_of(fsdp=8))["x"] == checksum(*range(8))


def test_restore_into_another_model_names_the_leaf(tmp_path):
    mesh = mesh_of()
    state = state_on(mesh)
    save(tmp_path, state, mesh=mesh)
    table = state.params["backbone"]["embedding"]["table"]
    wider = {"table": jnp.zeros((table.shape[0], table.shape[1] + 1), table.dtype)}
    other = state._replace(params=state.params | {"backbone": state.params["backbone"] | {"embedding": wider}})
    with pytest.raises(
        UserError, match=r"params/backbone/embedding/table is float32\[64, 32\], the model has float32\[64, 33\]"
    ):
        restore(tmp_path, other, mesh)
    assert int(restore(tmp_path, state, mesh).step) == 3


@pytest.mark.parametrize("failing", [0, 1, 2], ids=["params", "opt_state", "manifest"])
def test_a_failed_save_ends_with_its_last_write(failing, tmp_path, monkeypatch):
    started, ended = [], []

    def watched(handler):
        async def async_save(self, *args, **kwargs):
            item = len(started)
            started.append(item)
            return [Write(item, future) for future in await handler(self, *args, **kwargs)]

        return async_save

    class Write:
        def __init__(self, item, future):
            self.item, self.future = item, future

        def result(self, timeout=None):
            if self.item == failing:
                raise OSError("no space left")
            self.future.result(timeout)
            ended.append(self.item)

    for handler in (ocp.PyTreeCheckpointHandler, ocp.JsonCheckpointHandler):
        monkeypatch.setattr(handler, "async_save", watched(handler.async_save))
    with pytest.raises(UserError, match=r"cannot be written \(no space left\)"):
        save(tmp_path, state_on(mesh_of()), mesh=mesh_of())
    assert {*ended, failing} == {0, 1, 2}
