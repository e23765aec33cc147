"""Runs all stages on this machine's own Python documentation: no download, no account, one CPU.

Collects docstrings, trains a tokenizer, pre-trains a small language model, prints two samples, fine-tunes a classifier
that predicts the library of a docstring, and prints its comparison with baselines. Run it again to resume.

  rootstock demo --workdir=runs/demo
"""

import json
import time
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from configs.finetune import demo as finetune_config
from configs.pretrain import demo as pretrain_config
from data.demo_corpus import write_demo_corpus
from data.storage.paths import at
from train.console import results_console, say, step_progress
from train.files import check_output_directory

_PROMPTS = ("Return the ", "This function ")


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("workdir", "runs/demo", "Directory of the demo.", flag_values=values)
    flags.DEFINE_float("scale", 1.0, "Fraction of the training steps to run.", lower_bound=0.01, flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from model.sampling import Sampling
    from train.finetuning.run import finetune
    from train.generation.decode import continuations
    from train.generation.language_model import GenerationOptions
    from train.run.language_model import open_language_model

    started = time.perf_counter()
    workdir = at(values.workdir)
    check_output_directory(workdir, "workdir")
    corpus = workdir / "corpus"
    if not (corpus / "summary.json").exists():
        with step_progress() as progress:
            summary = write_demo_corpus(corpus, progress)
        (corpus / "summary.json").write_text(json.dumps(summary, indent=1))
    foundation = _pretrain(corpus, workdir / "foundation", values.scale)
    out = results_console()
    options = GenerationOptions(48, Sampling(temperature=0.7, top_k=50))
    texts = continuations(open_language_model(foundation), _PROMPTS, options)
    for prompt, text in zip(_PROMPTS, texts, strict=True):
        out.print(f"sample: {' '.join((prompt + text).split())}\n")
    config = finetune_config.get_config()
    config.data.path = str(corpus / "labeled_train.jsonl")
    config.task.test_path = str(corpus / "labeled_test.jsonl")
    _shorten(config, values.scale)
    finetune(config.to_dict(), foundation, workdir / "classifier")
    say(f"demo: {time.perf_counter() - started:.0f} s in all; results in {workdir}")


def _pretrain(corpus: Path, workdir: Path, scale: float) -> Path:
    from train.pretraining import pretrain

    config = pretrain_config.get_config()
    config.data.path = str(corpus / "unlabeled.jsonl")
    _shorten(config, scale)
    pretrain(config.to_dict(), workdir)
    return workdir


def _shorten(config: ConfigDict, scale: float) -> None:
    """Multiplies the length of a run and of its warm-up by `scale`."""
    config.num_steps = max(int(config.num_steps * scale), 2)
    config.optimizer.warmup_steps = min(round(config.optimizer.warmup_steps * scale), config.num_steps - 1)
