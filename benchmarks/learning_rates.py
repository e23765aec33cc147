"""Finds learning rates for fine-tuning: trains classifiers at several rates and prints how well they do.

python -m benchmarks.learning_rates --init_from=runs/foundation --data=DATA --workdir=runs/rates \
    --methods full lora head --rates 3e-4 1e-3 3e-3 1e-2

Trains each method (`config.adapt.method`) at each rate on four sets of labeled rows for the same number of steps, with
their configs otherwise. Prints loss and accuracy of the validation rows, which are a tenth of the training rows; test
rows are not looked at. Then prints the mean over the sets of a rate's loss above the best loss of that set and method.
A point that was trained before is only read.
"""

import argparse
import importlib
import statistics
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from train.finetuning.run import finetune
from train.run.history import read_records

# {config: its rows in the folder of data}
SETS = {
    "intent": "banking77/train.jsonl",
    "email_spam": "sms_spam/all.jsonl",
    "sentiment": "sentence_polarity/all.jsonl",
    "contract_clause": "cuad_clauses/clauses.jsonl",
}


def main() -> None:
    """Prints a line per point and the mean over the sets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--init_from", type=Path, required=True, help="the run to fine-tune")
    parser.add_argument("--data", type=Path, required=True, help="folder of banking77/, sms_spam/ and so on")
    parser.add_argument("--workdir", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS))
    parser.add_argument("--methods", nargs="+", default=["full", "lora", "head"])
    parser.add_argument("--rates", nargs="+", type=float, default=[3e-4, 1e-3, 3e-3, 1e-2])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch_size", type=int, default=8)
    arguments = parser.parse_args()
    print(f"{'set':16} {'method':6} {'rate':>8} {'loss':>7} {'accuracy':>8}")
    above: dict[tuple[str, float], list[float]] = {}
    for method in arguments.methods:
        for name in arguments.sets:
            losses = {}
            for rate in arguments.rates:
                figures = point(arguments, name, method, rate)
                losses[rate] = figures["loss"]
                accuracy = figures["accuracy"]
                print(f"{name:16} {method:6} {rate:8.0e} {figures['loss']:7.3f} {accuracy:8.3f}", flush=True)
            for rate, loss in losses.items():
                above.setdefault((method, rate), []).append(loss - min(losses.values()))
    for (method, rate), differences in above.items():
        print(f"{method:6} {rate:8.0e}: {statistics.fmean(differences):.3f} above the best, mean over the sets")


def point(arguments: argparse.Namespace, name: str, method: str, rate: float) -> dict[str, Any]:
    """Returns the figures of the validation rows after the last step."""
    workdir = arguments.workdir / f"{name}-{method}-{rate:g}"
    if not (workdir / "results.json").exists():
        finetune(config_of(arguments, name, method, rate).to_dict(), arguments.init_from, workdir, quiet=True)
    return [record for record in read_records(workdir, "eval") if record["phase"] == "eval"][-1]


def config_of(arguments: argparse.Namespace, name: str, method: str, rate: float) -> ConfigDict:
    """Returns the config of a point: the set's, without baselines and without a linear model beside."""
    config = importlib.import_module(f"configs.finetune.{name}").get_config()
    config.data.path = str(arguments.data / SETS[name])
    config.batch_size, config.num_steps = arguments.batch_size, arguments.steps
    config.adapt.method, config.optimizer.learning_rate = method, rate
    config.optimizer.warmup_steps = arguments.steps // 10
    config.task.validation_fraction, config.task.test_rows = 0.1, 100
    config.task.baseline, config.task.alternatives = False, False
    config.task.zero_shot_rows = 0
    config.evaluation.every, config.evaluation.batches = arguments.steps, 0
    config.checkpoint.every = arguments.steps
    return config


if __name__ == "__main__":
    main()
