"""Reading a file never runs code from it and never opens files outside its directory."""

import ast
import json
import os
import pickle
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from configs.errors import UserError
from data.jinja import render_jinja
from data.readers import read_documents, read_rows
from data.store import TokenStore, open_store
from tests.faults.tiny_run import settings_of, train
from tests.fuzz.targets import make_store
from train.commands.checkpoint import _verify
from train.huggingface.safetensors_files import find_weights

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("configs", "model", "data", "train")


class Code:
    """Creates a directory when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def names_called(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


@pytest.mark.parametrize("path", sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py")), ids=str)
def test_library_never_unpickles_or_evaluates(path):
    tree = ast.parse(path.read_text())
    imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    imported |= {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert not imported & {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
    called = list(names_called(tree))
    assert not {"eval", "exec", "compile", "os.system"} & set(called)
    loads = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) in ("np.load", "torch.load")]
    for call in loads:
        keywords = {k.arg: ast.unparse(k.value) for k in call.keywords}
        assert keywords.get("allow_pickle") == "False" or keywords.get("weights_only") == "True"


def test_pickle_in_a_store_is_not_loaded(tmp_path):
    store = make_store(tmp_path)
    path = store / "train" / "offsets-00000-of-00001.npy"
    np.save(path, np.array([Code(tmp_path / "ran")], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"has \d+ bytes"):
        open_store(store, "train")
    # Without the check of sizes, which a longer pickle could pass.
    with pytest.raises(UserError, match="is damaged"):
        _ = TokenStore(store, "train").offsets[1]
    assert not (tmp_path / "ran").exists()


def test_pickles_in_a_checkpoint_are_not_loaded(tmp_path):
    train(tmp_path / "run", settings_of(num_steps=1))
    code = pickle.dumps(Code(tmp_path / "ran"))
    for path in sorted((tmp_path / "run" / "checkpoints" / "1").rglob("*")):
        if path.is_file() and path.name not in ("commit_success.txt", "_CHECKPOINT_METADATA"):
            path.write_bytes(code)
    with pytest.raises(UserError, match="its manifest cannot be read"):
        _verify(tmp_path / "run")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "deep/../../outside.safetensors", "..", ""])
def test_safetensors_index_cannot_name_files_elsewhere(name, tmp_path):
    (tmp_path / "model").mkdir()
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "outside.safetensors")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(UserError, match="expected a file in the same directory"):
        find_weights(tmp_path / "model")


@pytest.mark.parametrize("change", [{"splits": {"../outside": {}}}, {"dtype": "O"}])
def test_store_manifest_cannot_name_files_elsewhere(change, tmp_path):
    store = make_store(tmp_path)
    manifest = json.loads((store / "manifest.json").read_text())
    (store / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        open_store(store, "train")


def test_file_names_in_data_are_not_opened(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    names = [str(tmp_path / "secret.txt"), f"file://{tmp_path}/secret.txt", "hf:owner/name", f"{tmp_path}/*.txt"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": name}) + "\n" for name in names))
    assert list(read_documents(str(tmp_path / "rows.jsonl"))) == names
    assert [row["text"] for row in read_rows(str(tmp_path / "rows.jsonl"))] == names


ESCAPES = {
    "attributes": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "a function's globals": "{{ raise_exception.__globals__['json'] }}",
    "format": "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "change": "{{ messages.append(messages) }}",
    "import": "{% import 'os' as os %}",
    "include": "{% include '/etc/passwd' %}",
    "a long product": "{{ 'a' * 10 ** 9 }}",
    "a large power": "{{ 10 ** (10 ** 9) }}",
    "a long range": "{% for i in range(10 ** 8) %}{% endfor %}",
}


@pytest.mark.parametrize("source", ESCAPES.values(), ids=ESCAPES)
def test_chat_template_cannot_leave_its_sandbox(source):
    text = ""
    with pytest.raises(UserError, match="chat_template"):
        text = render_jinja(source, [{"role": "user", "content": "u"}], {}, True)
    assert not text


@pytest.mark.parametrize("thread", ["main", "another"])
def test_chat_template_that_runs_too_long_is_stopped(monkeypatch, thread):
    monkeypatch.setattr("data.jinja._SECONDS", 0.3)
    rounds = "".join(f"{{% for {name} in range(9999) %}}" for name in "abc") + "{% endfor %}" * 3
    begin = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit if thread == "another" else _now
        with pytest.raises(UserError, match="it ran for more than"):
            run(render_jinja, rounds, [{"role": "user", "content": "u"}], {}, True).result()
    assert time.monotonic() - begin < 5


def _now(function, *arguments):
    """Returns the future of a call that is already done, in this thread."""
    future = Future()
    future.set_result(function(*arguments))
    return future
