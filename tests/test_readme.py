"""The README's commands are run, as they stand, in a copy of the project; only the installation is this one's."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_readmes_commands_run(tmp_path):
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    commands = [block for block in blocks if not block.startswith("make ")]
    assert [block.strip() for block in blocks if block not in commands] == ["make demo", "make test"]
    assert len(commands) >= 5
    for name in ("configs", "model", "data", "train"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    environment.pop("XLA_FLAGS", None)
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name, arguments in (("python", ""), ("rootstock", "-m train ")):
        (binaries / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        (binaries / name).chmod(0o755)
    for block in commands:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs" / "lines" / "results.json").is_file()


def test_the_makefile_has_the_targets_that_the_readme_names():
    for target in ("demo", "test"):
        plan = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        assert {"demo": "rootstock demo", "test": "-m pytest"}[target] in plan
