"""Opens a run as a `LanguageModel` that is ready to generate."""

import dataclasses
from pathlib import Path

import jax

from configs.errors import UserError
from data.templates import end_of_turn
from model.heads import language_model
from model.sampling import for_inference
from train.distributed.mesh import decoding_mesh, spread_mesh
from train.generation.language_model import LanguageModel
from train.run.record import Run, open_run
from train.trees import boxed_params


def trained_template_of(run: Run) -> str:
    """Returns the chat template that a language model was fine-tuned with; "" for other runs."""
    # A task from a user's file may have no template.
    return run.record.task.get("template", "") if run.record.stage == "finetune" and run.is_language_model else ""


def chat_template_of(run: Run) -> str:
    """Returns the template to chat in: the one that the model was fine-tuned with, or its tokenizer's; "": none."""
    return trained_template_of(run) or ("tokenizer" if run.tokenizer().chat_template else "")


def open_language_model(
    directory: Path, template: str = "", spread: bool = False, cache_dtype: str = ""
) -> LanguageModel:
    """Returns the language model of a run, on all devices that its parameters can be sharded over.

    Args:
        directory: the run directory.
        template: the chat template; "": the one the run was fine-tuned with, or none for a pre-trained run.
        cache_dtype: dtype of the KV cache; "": the run's own `config.model.cache_dtype`.
        spread: use the mesh for scoring (rows and parameters sharded) instead of the one for generation.

    Raises:
        UserError: the run has no language-model head; or see `Run.load`.
    """
    run = open_run(directory)
    if not run.is_language_model:
        raise UserError(
            f"--run={directory} is a {run.record.task['name']} model; "
            "expected a pre-trained run, or one fine-tuned for generation, chat or preference"
        )
    tokenizer = run.tokenizer()
    template = template or trained_template_of(run)
    eos_id = end_of_turn(template, tokenizer) if template else tokenizer.eos_id
    model = run.model
    if cache_dtype:
        model = dataclasses.replace(model, cache_dtype=cache_dtype)  # type: ignore[arg-type]
    mesh = (spread_mesh if spread else decoding_mesh)(boxed_params(language_model(model)))
    with jax.set_mesh(mesh):
        params = for_inference(model, run.with_model(model).load_merged(mesh, ("backbone", "head")))
    return LanguageModel(model, params, tokenizer, template, eos_id, mesh, run.cleans_text)
