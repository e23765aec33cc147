"""Opens a run as a `LanguageModel` that is ready to generate."""

import dataclasses
from pathlib import Path

import jax

from configs.errors import UserError
from data.templates import end_of_turn
from data.tokenizer import load_tokenizer
from model.heads import language_model
from model.sampling import for_inference
from train.distributed.mesh import decoding_mesh, spread_mesh
from train.generation.language_model import LanguageModel
from train.run.parameters import load_merged_params
from train.run.record import read_record
from train.tasks.task import load_task
from train.trees import boxed_params


def open_language_model(
    directory: Path, template: str = "", spread: bool = False, cache_dtype: str = ""
) -> LanguageModel:
    """Returns the language model of a run, on all devices that can share its parameters.

    Args:
        directory: of the run.
        template: instead of the one that the run was fine-tuned with; "": that one, or none of a foundation model.
        cache_dtype: of the keys and values that are kept; "": the run's own `config.model.cache_dtype`.
        spread: share rows and parameters out as scoring wants it, not writing.

    Raises:
        UserError: its head does not write, or see `runs.load_params`.
    """
    record = read_record(directory)
    tuned = record.stage == "finetune"
    if tuned and not load_task(record.task["name"]).trains_lm_head:
        raise UserError(
            f"--checkpoint={directory} is a {record.task['name']} model; "
            "legal: a pre-training run, or one of generation, chat or preference"
        )
    tokenizer = load_tokenizer(directory / "tokenizer")
    template = template or (record.task["template"] if tuned else "")
    eos_id = end_of_turn(template, tokenizer) if template else tokenizer.eos_id
    model = record.model
    if cache_dtype:
        model = dataclasses.replace(model, cache_dtype=cache_dtype)  # type: ignore[arg-type]
    mesh = (spread_mesh if spread else decoding_mesh)(boxed_params(language_model(model)))
    with jax.set_mesh(mesh):
        params = for_inference(model, load_merged_params(directory, model, mesh, ("backbone", "head")))
    return LanguageModel(model, params, tokenizer, template, eos_id, mesh)
