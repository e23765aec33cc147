"""Imports a LoRA adapter of PEFT as a run that is fine-tuned from its base model's run."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import default
from configs.errors import UserError
from data.storage.new_directory import check_new, new_directory
from data.tokenizer import Tokenizer, chat_template_in
from model.heads import parameter_count
from model.huggingface.config_file import architecture_of
from model.huggingface.families import FAMILIES, table
from model.huggingface.weights import leaves
from model.transformer import Params
from train.checkpoint.manager import open_manager
from train.checkpoint.save import save
from train.console import say
from train.distributed.mesh import single_device_mesh
from train.huggingface.adapter_tensors import PREFIX, Adapter, factors_of, modules_of, read_adapter
from train.huggingface.peft_config import CONFIG, WEIGHTS, AdapterConfig, parse_config
from train.huggingface.safetensors_files import Weights, find_weights
from train.huggingface.sources import IMPORTED, local_directory, on_this_machine, read_config
from train.huggingface.summary import adapter_summary
from train.run.record import Run, RunRecord, open_run
from train.run.record import start as start_run
from train.step import TrainState
from train.tasks.generation import Generation
from train.tasks.loading import task_to_record
from train.trees import abstract_params

_FILES = (CONFIG, f"{WEIGHTS}*.safetensors", "tokenizer*", "chat_template*")


def import_adapter(source: str, base: Path, output: Path) -> None:
    """Writes a run with an adapter, whose base model is the run `base`, and prints what it found.

    Args:
        source: the directory of an adapter, or its name on the Hub.
        base: the run of the model that the adapter was trained on.
        output: the run directory.

    Raises:
        UserError: not a LoRA adapter of a language model, a kind of LoRA that is not supported, factors that do not
            match the base model, or `output` is not empty.
    """
    check_new(output)
    run = open_run(base)
    if not run.is_language_model:
        raise UserError(f"--base={base} is a {run.record.task['name']} model; expected a language model")
    with on_this_machine(source, _FILES) as local:
        _import_directory(local_directory(local, _FILES), run, source, output)


def _import_directory(directory: Path, run: Run, source: str, output: Path) -> None:
    """Writes the run of an adapter in a directory on this machine; `source` is what the user named."""
    config_path = directory / CONFIG
    if not config_path.is_file():
        raise UserError(
            f"{directory} is not an adapter of PEFT: {CONFIG} is missing; a model is imported without --base"
        )
    config = parse_config(read_config(config_path), str(config_path))
    weights = find_weights(directory, f"{WEIGHTS}.safetensors")
    rows = table(architecture_of(run.model, run.record.architecture), run.model)
    mesh = single_device_mesh()
    shapes = kernel_shapes(run, mesh)
    adapter = read_adapter(weights, config, rows, shapes, str(directory))
    tokenizer = run.tokenizer()
    tokenizer = dataclasses.replace(tokenizer, chat_template=chat_template_in(directory) or tokenizer.chat_template)
    record = _record(run, adapter, tokenizer, source)
    with new_directory(output, in_place=True) as partial, jax.set_mesh(mesh):
        head = _head(run, weights, config, str(directory), mesh)
        start_run(partial, record, tokenizer)
        params = _placed(open_run(partial), {"adapter": adapter.tree, "head": head}, mesh)
        with open_manager(partial, keep=1) as manager:
            save(manager, TrainState(jnp.asarray(0, jnp.int32), params, None, {}), mesh)
    for line in adapter_summary(output, run.directory, config.base, adapter, parameter_count(params["adapter"])):
        say(line)


def kernel_shapes(run: Run, mesh: jax.sharding.Mesh) -> dict[str, tuple[int, ...]]:
    """Returns {leaf: shape} of the kernels of a run's model, stacked over the layers."""
    rows = table(architecture_of(run.model, run.record.architecture), run.model)
    abstract = abstract_params(run.objective(adapted=False), mesh)
    stacked = [row for parts in modules_of(rows).values() for row in parts]
    return {row.leaf: leaf.shape for row, leaf in leaves(abstract, stacked)}


def _record(run: Run, adapter: Adapter, tokenizer: Tokenizer, source: str) -> RunRecord:
    """Returns the record of a run that was fine-tuned from `run`; without a chat template it continues texts."""
    config = default.get_config().to_dict()
    config["model"] = run.record.config["model"]
    config["sequence_length"] = min(run.model.context_length, config["sequence_length"])
    config["task"] |= {"name": "generation", "template": "tokenizer" if tokenizer.chat_template else ""}
    config["adapt"] |= {
        "method": "lora",
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "targets": adapter.targets,
    }
    task = Generation(config["task"]["template"], config["task"]["metrics"], config["task"]["prompt"])
    return RunRecord(
        "finetune",
        run.model,
        config,
        task_to_record("generation", task),
        f"{IMPORTED}{source}",
        run.lineage_entry(),
        generation=run.record.generation,
        architecture=run.record.architecture,
    )


def _head(run: Run, weights: Weights, config: AdapterConfig, where: str, mesh: jax.sharding.Mesh) -> Params:
    """Returns the head's parameters: those in the adapter, or else those of the base model.

    Raises:
        UserError: the adapter contains other tensors that differ from the base model's.
    """
    architecture = architecture_of(run.model, run.record.architecture)
    output = FAMILIES[architecture].output
    embedding = next(row.key for row in table(architecture, run.model) if row.leaf == "embedding/table")
    base = run.load_merged(mesh, ("backbone", "head"))
    tied = "table" not in base["head"]
    head = dict(base["head"])
    _, others = factors_of(weights, where)
    for name in others:
        key = name.removeprefix(PREFIX)
        if key == output and not tied:
            if weights.shapes[name] != head["table"].shape:
                raise UserError(
                    f"{where}: {name} has shape {list(weights.shapes[name])}, expected {list(head['table'].shape)}"
                )
            head["table"] = weights.read(name).astype(np.float32)
        elif key not in (output, embedding) or not np.array_equal(
            weights.read(name).astype(np.float32), base["backbone"]["embedding"]["table"]
        ):
            saved = f" (modules_to_save={list(config.saved)})" if config.saved else ""
            raise UserError(
                f"{where} contains {name}{saved}, which is not supported; expected factors of LoRA"
                + ("" if tied else f" and {output}")
            )
    return head


def _placed(run: Run, params: Params, mesh: jax.sharding.Mesh) -> Params:
    """Returns the parameters that a run trains as arrays on `mesh`."""
    abstract = abstract_params(run.objective(), mesh)
    return jax.tree.map(
        lambda leaf, array: jax.device_put(array, leaf.sharding), {group: abstract[group] for group in params}, params
    )
