"""Follows the tutorial of docs/tasks.md: writes its file outside the repository and runs its command."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_tutorial_task_in_a_file_outside_the_repository(tmp_path):
    text = (ROOT / "docs" / "tasks.md").read_text()
    ((name, source),) = re.findall(r"```python title=(\S+)\n(.*?)```", text, re.DOTALL)
    (tmp_path / name).write_text(source)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    rng = random.Random(0)
    words = {1: "dreadful awful", 2: "poor weak", 3: "so so", 4: "good nice", 5: "great superb"}
    rows = [(" ".join(rng.choices(words[i % 5 + 1].split(), k=4)) + f" {i}", i % 5 + 1) for i in range(300)]
    lines = [json.dumps({"text": text, "stars": stars}) + "\n" for text, stars in rows]
    (tmp_path / "reviews.jsonl").write_text("".join(lines))
    (tmp_path / "text.txt").write_text("".join(text + "\n" for text, _ in rows))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)

    def rootstock(command):
        arguments = [sys.executable, "-m", "train", *command.replace("\\\n", " ").split()[1:]]
        done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    rootstock(
        "rootstock pretrain --config=configs/pretrain/tiny.py --workdir=runs/tiny --config.data.path=text.txt "
        "--config.data.validation_split=tail --config.num_steps=2 --config.optimizer.warmup_steps=1 "
        "--config.model.num_layers=1"
    )
    for command in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        rootstock(command)
    rootstock("rootstock evaluate --run=runs/stars --data=reviews.jsonl")
    results = json.loads((tmp_path / "runs" / "stars" / "results.json").read_text())
    assert results["task"] == "stars" and set(results["models"]["fine-tuned"]) == {"rows", "distance", "right"}
    assert results["models"]["fine-tuned"]["distance"]["value"] < 1.2
    record = json.loads((tmp_path / "runs" / "stars" / "run.json").read_text())
    assert record["task"]["name"] == str(tmp_path / "stars.py")
