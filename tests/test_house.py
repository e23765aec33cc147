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
COMMANDS = {
    "prepare", "pretrain", "finetune", "merge", "import_hf", "export_hf", "evaluate", "generate", "chat", "show_batch",
    "checkpoint_files", "certify", "explain_sharding", "plan", "scaling", "demo", "replay",
}  # fmt: skip


def floor(module: str) -> int:
    room, _, name = module.partition(".")
    if room != "train":
        return {"configs": 0, "model": 1, "data": 1}[room]
    return 4 if name == "cli" or name in COMMANDS else 3 if name in ("loop", "graft") else 2


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
        if name.split(".")[0] in ROOMS:
            same_room = name.split(".")[0] == module.split(".")[0]
            assert floor(name) < floor(module) or (same_room and floor(name) == floor(module)), f"{module} -> {name}"
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
        "import sys, train.pretrain, train.finetune, train.generate, train.evaluate, train.scaling\n"
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
