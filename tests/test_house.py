"""The structure of the code: order of imports, sizes of files and functions, config fields, language, links."""

import ast
import dataclasses
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from configs import reference
from train import cli
from train.settings import SECTIONS, from_config

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("configs", "model", "data", "train")
FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
# The packages and top-level modules in order: a file imports only from its own or from an earlier one.
# docs/architecture.md shows the same order.
FLOORS = (
    "configs", "model", "data", "train.settings", "train.schedule", "train.console", "train.compilation_cache",
    "train.files", "train.trees", "train.hardware", "train.distributed", "train.corpus", "train.moments",
    "train.optimizer", "train.step", "train.generation", "train.checkpoint", "train.job", "train.evaluation",
    "train.tasks", "train.planner", "train.run", "train.huggingface", "train.reporter", "train.early_stopping",
    "train.profiling", "train.loop", "train.pretraining", "train.finetuning", "train.learning_curve",
    "train.prediction", "train.serving", "train.scaling", "train.replay", "train.show_batch", "train.commands",
    "train.cli", "train.__main__",
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
def test_a_file_is_short_and_imports_only_from_lower_floors(path):
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


def section_of(hint):
    """Returns the config section that a type hint names, e.g. "mesh" for `MeshSettings` and "" for `Settings`."""
    names = {node.id for node in ast.walk(hint) if isinstance(node, ast.Name)} if hint else set()
    classes = {"Settings": ""} | {kind.__name__: section for section, kind in SECTIONS.items()}
    return next((section for name, section in classes.items() if name in names), None)


def section_names(tree):
    """Returns {name: the config sections it stands for somewhere in the file}, from annotations and assignments."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            target = node.arg if isinstance(node, ast.arg) else name_of(node.target)
            section = section_of(node.annotation)
        elif isinstance(node, ast.Assign):
            target, section = name_of(node.targets[0]), name_of(node.value) or None
        else:
            continue
        if section in ("", *SECTIONS):
            names.setdefault(target, set()).add(section)
    return names


def name_of(node):
    """Returns the last name of an expression: "c" for `c` and for `a.b.c`."""
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def fields_read(tree):
    """Yields "section.field" for each config field that a file reads.

    A read is an attribute of a section: of an expression that ends in its name (`settings.faults.every`), of a name
    assigned from one or annotated with its class, or of `self` in its class; or a key (`settings.model["remat"]`).
    """
    for scope in getattr(tree, "body", []):
        yield from fields_read_in(scope)
        if isinstance(scope, ast.ClassDef):
            section = section_of(ast.Name(scope.name))
            yield from (f"{section}.{node.attr}" for node in ast.walk(scope) if is_self_attribute(node))


def fields_read_in(scope):
    """Yields "section.field" for each config field that a function or class reads."""
    names = section_names(scope)

    def is_settings(node):
        return "settings" in name_of(node) or "" in names.get(name_of(node), ())

    def sections(owner):
        found = set(names.get(name_of(owner), ()))
        if isinstance(owner, ast.Attribute) and is_settings(owner.value):
            found.add(owner.attr)
        return found & set(SECTIONS)

    for node in ast.walk(scope):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            yield from (f"{section}.{node.attr}" for section in sections(node.value))
            if is_settings(node.value):
                yield node.attr
        elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
            yield from (f"{section}.{node.slice.value}" for section in sections(node.value))
        elif isinstance(node, ast.Call) and name_of(node.func) in ("asdict", "astuple"):
            for section in sections(node.args[0]):
                yield from (f"{section}.{field.name}" for field in dataclasses.fields(SECTIONS[section]))


def is_self_attribute(node):
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def all_fields_read():
    files = [path for path in FILES if path.parts[-2:] != ("train", "settings.py") and "configs" not in path.parts]
    return {name for path in files for name in fields_read(ast.parse(path.read_text()))}


def test_every_config_field_is_read():
    """A field that nothing reads is a trap."""
    read = all_fields_read()
    assert len(reference.fields()) > 100
    assert [field.name for field in reference.fields() if field.name not in read] == []


def test_a_planted_field_counts_as_unread():
    read = all_fields_read()
    planted = [
        f"{section}.{name}"
        for section in SECTIONS
        for name in ("size", "rows", "loss", "step", "text", "kind", "title", "seconds")
    ]
    assert [name for name in planted if name in read] == []


def test_help_lists_every_config_field(capsys):
    shown = ""
    for name in ("pretrain", "finetune"):
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        shown += capsys.readouterr().out
    for field in reference.fields():
        assert f"  --config.{field.name}={field.default!r}  {field.meaning}" in shown, field.name


def test_every_declared_config_field_exists():
    known = {name for field in reference.fields() for name in (field.section, field.name)}
    for name in cli.COMMANDS:
        command = importlib.import_module(f"train.commands.{name.replace('-', '_')}")
        assert set(getattr(command, "CONFIG_FIELDS", ())) <= known, name
        has_config = "config" in (*getattr(command, "REQUIRED", ()), *getattr(command, "OPTIONAL", ()))
        assert has_config == hasattr(command, "CONFIG_FIELDS"), name


def test_the_former_name_of_a_flag_is_an_error_that_names_the_new_one(monkeypatch):
    def end(message, code):
        raise SystemExit(f"{code}: {message}")

    monkeypatch.setattr(cli, "end", end)
    for command, old, new in (("evaluate", "checkpoint", "run"), ("import-hf", "output", "workdir")):
        with pytest.raises(SystemExit, match=f"2: --{old} was renamed to --{new}"):
            cli.main([command, f"--{old}=runs/x"])


def test_only_the_command_line_imports_commands():
    for path in FILES:
        if path.parent.name != "commands":
            named = [name for name in imports(ast.parse(path.read_text())) if name.startswith("train.commands")]
            assert not named, f"{path} imports {named}"


def test_the_architecture_page_shows_the_order_of_the_rooms():
    page = (ROOT / "docs" / "architecture.md").read_text()
    table = page.partition("<!-- floors -->")[2].partition("<!-- /floors -->")[0]
    rooms = re.findall(r"^\| \d+ \| `([\w/]+)` \|", table, re.M)
    assert [room.replace("/", ".") for room in rooms] == list(FLOORS)


BANNED = {
    "legal:": "write 'expected' or 'must be'",
    "graft": "write 'fine-tune'",
    "learnt": "write 'learned' or 'in the loss'",
    "the dog": "write 'the watchdog'",
    "pip install 'rootstock": "write pip install -e '.[EXTRA]'",
}
PER_TOKEN = re.compile(
    r"\b(nats|bits?|bytes|FLOPs|operations|products|milliseconds|seconds|ms|loss|likelihood|log-likelihood|entropy)"
    r" a t"
    r"oken\b"
)


def test_the_language_of_the_repository():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    suffixes = (".py", ".md", ".yaml", ".toml", ".sh", "Makefile")
    found = []
    for name in listed:
        if not name.endswith(suffixes) or not (ROOT / name).is_file() or name == "tests/test_house.py":
            continue
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
            found += [
                f"{name}:{number}: {banned!r}: {hint}" for banned, hint in BANNED.items() if banned in line.lower()
            ]
            found += [f"{name}:{number}: {match[0]!r}: write 'per'" for match in PER_TOKEN.finditer(line)]
    assert not found, "\n".join(found)


@pytest.mark.integration
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_one_package_knows_what_a_path_is(path):
    """Elsewhere no client of buckets is imported, and no path is made of what a user wrote but by `at`."""
    tree = ast.parse(path.read_text())
    if path.parent.name != "storage":
        clients = {
            name for name in imports(tree) if name.split(".")[0] in ("fsspec", "gcsfs", "s3fs", "etils", "google")
        }
        assert not clients, f"{path} imports {clients}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and name_of(node.func) == "Path" and node.args:
            of_a_flag = isinstance(node.args[0], ast.Attribute) and name_of(node.args[0].value) == "values"
            assert not of_a_flag, f"{path}:{node.lineno}: use data.storage.paths.at, which knows URLs"


def test_shipped_configs_build_and_name_their_command():
    for path in sorted((ROOT / "configs").glob("*/*.py")):
        if path.stem == "__init__":
            continue
        header = ast.get_docstring(ast.parse(path.read_text()))
        assert "Command:" in header and "Mesh:" in header, path
        module = __import__(".".join(path.relative_to(ROOT).with_suffix("").parts), fromlist=["get_config"])
        from_config(module.get_config().to_dict())


@pytest.mark.integration
def test_training_imports_no_other_framework():
    code = (
        "import sys, train.pretraining, train.finetuning.run, train.finetuning.score_rows, train.generation.decode\n"
        "import train.evaluation.perplexity, train.scaling.sweep\n"
        "bad = {'tensorflow', 'torch', 'transformers', 'sklearn', 'pyarrow', 'datasets', 'matplotlib'}\n"
        "bad |= {'sacrebleu', 'rouge_score', 'jinja2'}\n"
        "assert not bad & set(sys.modules), bad & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_help_imports_no_jax():
    """A command imports what it runs inside its functions, so that `--help` answers at once."""
    code = (
        "import sys\nfrom train import cli\n"
        "for name in cli.COMMANDS:\n"
        "    try: cli.main([name, '--help'])\n"
        "    except SystemExit: pass\n"
        "heavy = {'jax', 'flax', 'optax', 'orbax', 'grain', 'scipy', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def test_the_wheel_contains_every_file_of_the_packages():
    """Python files belong to a package, and other files to the data of one; `.ci/wheel` installs the wheel itself."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    listed = subprocess.run(["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        path = Path(name)
        if path.suffix == ".py":
            assert (ROOT / path.parent / "__init__.py").exists(), name
        else:
            package = next(folder for folder in path.parents if (ROOT / folder / "__init__.py").exists())
            patterns = data.get(".".join(package.parts), [])
            assert any(path.relative_to(package).match(pattern) for pattern in patterns), name


def test_every_path_that_the_documents_name_exists():
    for document in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for path in re.findall(
            r"`((?:configs|model|data|train|tests|docs|benchmarks)/[\w/.]+\.(?:py|md))", document.read_text()
        ):
            assert (ROOT / path).exists(), f"{document.name} names {path}"
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"
