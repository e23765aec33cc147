"""Writes tests/golden/harness/scores.json: scores of the stored models by the harness's Hugging Face backend.

Needs torch, transformers, accelerate, peft and lm_eval. Run it from the root of the repository:

    PYTHONPATH=. python tests/golden/make_harness.py llama3 gpt2
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from data.tokenizer_training import train_tokenizer

GOLDEN = Path(__file__).resolve().parent
TASKS = ["golden_choice", "golden_text", "golden_written"]
# (context, continuation): empty context, trailing space, truncated context, truncated continuation.
PAIRS = [("", "the cat"), ("a dog ", "ran"), ("far away " * 9, "home"), ("a", " sat on the mat " * 3), ("so", "\n")]
CONTEXTS = ["the cat", "a dog ran far away and", "far away " * 9, "über"]


def request(kind: str, arguments: tuple) -> Instance:
    """Returns one request in the harness's format."""
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def scores(name: str) -> dict:
    """Returns one model's answers to all requests, and its metrics in each task with 0 and 1 shots."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / name
        shutil.copytree(GOLDEN / "huggingface" / name, directory)
        train_tokenizer("bytes", []).with_post_processor(eos=False).save(directory)
        model = HFLM(pretrained=str(directory), device="cpu", batch_size=1, dtype="float32")
        until = {"until": ["t"], "max_gen_toks": 16}
        found = {
            "pairs": model.loglikelihood([request("loglikelihood", pair) for pair in PAIRS]),
            "texts": model.loglikelihood_rolling([request("loglikelihood_rolling", (p + c,)) for p, c in PAIRS]),
            "written": model.generate_until([request("generate_until", (text, until)) for text in CONTEXTS]),
        }
        manager = TaskManager(include_path=str(GOLDEN / "harness"), include_defaults=False)
        for shots in (0, 1):
            results = simple_evaluate(model=model, tasks=TASKS, num_fewshot=shots, task_manager=manager)["results"]
            found[f"tasks, {shots} shots"] = {
                task: {key.split(",")[0]: value for key, value in figures.items() if isinstance(value, float)}
                for task, figures in results.items()
            }
    return found


if __name__ == "__main__":
    answers = {name: scores(name) for name in sys.argv[1:]}
    (GOLDEN / "harness" / "scores.json").write_text(json.dumps(answers, indent=1, ensure_ascii=False) + "\n")
