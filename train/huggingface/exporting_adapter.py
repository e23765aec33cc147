"""Exports the LoRA adapter of a language model in PEFT's format."""

import json
from pathlib import Path

import jax
import numpy as np

from configs.errors import UserError
from data.storage.new_directory import check_new, new_directory
from model.huggingface.config_file import architecture_of
from model.huggingface.families import FAMILIES, table
from train.console import say, warn
from train.distributed.mesh import single_device_mesh
from train.huggingface.adapter_tensors import PREFIX, Adapter, modules_of, write_adapter
from train.huggingface.card_metadata import DEFAULT_OPTIONS, CardOptions
from train.huggingface.importing_adapter import kernel_shapes
from train.huggingface.model_card import write_card
from train.huggingface.peft_config import CONFIG, WEIGHTS, AdapterConfig, config_file
from train.huggingface.safetensors_files import write_weights
from train.huggingface.sources import IMPORTED
from train.run.record import Run, open_run


def export_adapter(directory: Path, output: Path, dtype: str = "float32", card: CardOptions = DEFAULT_OPTIONS) -> None:
    """Writes the adapter of a run, for `PeftModel.from_pretrained` with the exported base model.

    An output table that the run trained is written too, as a module that the adapter saves.

    Raises:
        UserError: the run has no LoRA adapter or is not a language model, no Hugging Face architecture matches it, or
            `output` is not empty.
    """
    check_new(output)
    run = open_run(directory)
    if run.record.stage == "pretrain" or run.adaptation().method != "lora":
        raise UserError(f"--run={directory} has no LoRA adapter; expected a run with config.adapt.method='lora'")
    if not run.is_language_model:
        raise UserError(
            f"--run={directory} is a {run.record.task['name']} model; expected a language model with --adapter; "
            "without it, the adapter is merged into its base model"
        )
    architecture = architecture_of(run.model, run.record.architecture)
    rows, mesh = table(architecture, run.model), single_device_mesh()
    with jax.set_mesh(mesh):
        params = jax.tree.map(np.asarray, run.load(mesh, ("adapter", "head")))
        # A tied model's head has no parameters.
        base_head = run.base().load_merged(mesh, ("head",))["head"] if params["head"] else {}
    adaptation = run.adaptation()
    adapter = Adapter(adaptation.rank, adaptation.alpha, adaptation.targets, params["adapter"])
    tensors, ranks = write_adapter(adapter, rows, kernel_shapes(run, mesh))
    head = FAMILIES[architecture].output
    trained_head = bool(params["head"]) and not np.array_equal(params["head"]["table"], base_head["table"])
    if trained_head:
        tensors[PREFIX + head] = params["head"]["table"]
    scale = adaptation.alpha / adaptation.rank
    config = AdapterConfig(
        adaptation.rank,
        adaptation.alpha,
        ranks=ranks,
        alphas={module: scale * rank for module, rank in ranks.items()},
        saved=(head.removesuffix(".weight"),) if trained_head else (),
        base=_base_name(run),
    )
    modules = {
        pattern: parts[0]
        for pattern, parts in modules_of(rows).items()
        if f"{PREFIX}{pattern.format(i=0)}.lora_A.weight" in tensors
    }
    targets = [".".join(pattern.split(".")[-2:]) for pattern in modules]
    transposed = all(row.transposed for row in modules.values())
    with new_directory(output) as partial:
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
        write_weights(partial, shapes, dtype, iter(tensors.values()), WEIGHTS)
        text = json.dumps(config_file(config, targets, fan_in_fan_out=not transposed), indent=2)
        (partial / CONFIG).write_text(text)
        write_card(run, partial, output.name, card)
    if adaptation.base_quantization != "none":
        warn(
            f"export-hf: the adapter was trained on a base in {adaptation.base_quantization}; on the original base its "
            "logits differ slightly. Without --adapter, the export has the base that it was trained on"
        )
    say(f"export-hf: the adapter of {directory} in {output}, for PeftModel.from_pretrained(base, {str(output)!r})")
    say(f"export-hf: its base model is the run {run.base().directory}, which export-hf writes too")


def _base_name(run: Run) -> str:
    """Returns the name of the base model: what it was imported from, or else its run directory."""
    base = run.base()
    source = base.record.data_fingerprint
    return source.removeprefix(IMPORTED) if source.startswith(IMPORTED) else str(base.directory)
