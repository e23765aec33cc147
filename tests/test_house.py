"""The house stays a house: imports go down, files and functions fit, every public name is explained."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from configs import default

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("configs", "model", "data", "train")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
# The rooms of the house, from the ground up: a file imports only from rooms before its own, or from its own.
# docs/architecture.md shows the same order.
FLOORS = (
    "configs", "model", "data", "train.settings", "train.console", "train.files", "train.trees", "train.hardware",
    "train.distributed", "train.optimizer", "train.step", "train.generation", "train.checkpoint", "train.job",
    "train.evaluation", "train.tasks", "train.planner", "train.run", "train.huggingface", "train.reporter",
    "train.early_stopping", "train.loop", "train.pretraining", "train.finetuning", "train.scaling", "train.replay",
    "train.commands", "train.cli", "train.__main__",
)  # fmt: skip


def room_of(module: str) -> str:
    top, _, rest = module.partition(".")
    return f"train.{rest.split('.')[0]}" if top == "train" else top


def imports(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # `from train import run` names a module by its last part.
            yield from (f"{node.module}.{a.name}" if node.module in ROOMS else node.module for a in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_file_fits_and_knows_only_what_lies_below(path):
    source = path.read_text()
    tree = ast.parse(source)
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    assert len(source.splitlines()) <= 400
    assert ast.get_docstring(tree), "a module says what it is for"
    for name in imports(tree):
        if name.split(".")[0] in ROOMS and name != "train":
            above, below = room_of(module), room_of(name)
            assert FLOORS.index(below) <= FLOORS.index(above), f"{module} imports {name}, which is above it"
            assert {above, below} != {"model", "data"}, f"{module} imports {name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            body = node.end_lineno - node.lineno - len((ast.get_docstring(node) or "").splitlines())
            assert body <= 60, f"{node.name} has {body} lines"


def test_every_config_field_is_explained_and_read():
    """A knob without a comment or a reader is a trap."""
    lines = (ROOT / "configs" / "default.py").read_text().splitlines()
    fields = [
        line for line in lines if re.match(r"    (config|m|d|t|o)\.[a-z_.0-9]+ = (?!ConfigDict|[a-z_]+\(\))", line)
    ]
    assert len(fields) > 60
    sources = "".join(path.read_text() for path in FILES if path.parent.name != "configs")
    for line in fields:
        name = re.match(r"    [a-z]+\.([a-z_.0-9]+) =", line)[1].split(".")[-1]
        assert re.search(rf"[.\"']{name}\b", sources), f"{name} has no reader"


def test_shipped_configs_build_and_name_their_command():
    for path in sorted((ROOT / "configs").glob("*/*.py")):
        if path.stem == "__init__":
            continue
        header = ast.get_docstring(ast.parse(path.read_text()))
        assert "Command:" in header and "Mesh:" in header, path
        module = __import__(".".join(path.relative_to(ROOT).with_suffix("").parts), fromlist=["get_config"])
        from train.settings import from_config

        from_config(module.get_config().to_dict())
    assert default.get_config().to_dict()


def test_training_imports_no_other_framework():
    code = (
        "import sys, train.commands.pretrain, train.commands.finetune, train.commands.generate\n"
        "import train.commands.evaluate, train.commands.scaling\n"
        "bad = {'tensorflow', 'torch', 'transformers', 'sklearn', 'pyarrow', 'datasets', 'matplotlib'}\n"
        "bad |= {'sacrebleu', 'rouge_score', 'jinja2'}\n"
        "assert not bad & set(sys.modules), bad & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_path_that_the_documents_name_exists():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for path in re.findall(
            r"`((?:configs|model|data|train|tests|docs|benchmarks)/[\w/.]+\.(?:py|md))", document.read_text()
        ):
            assert (ROOT / path).exists(), f"{document.name} names {path}"
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"
