"""The six commands of docs/tasks.md, from a CSV with labels to a CSV with predictions, and its web handler."""

import csv
import json
import random
import re
import shlex
import threading
import urllib.error
import urllib.request

import pytest

from tests.runs import ROOT, rootstock

pytestmark = pytest.mark.usefixtures("one_device")
PAGE = (ROOT / "docs" / "tasks.md").read_text()
SMALL = [
    "--config.num_steps=2", "--config.optimizer.warmup_steps=1", "--config.batch_size=4", "--config.evaluation.every=2",
    "--config.checkpoint.every=2",
]  # fmt: skip
# What makes each command take seconds.
SHORTER = {
    "pretrain": [*SMALL, "--config.tokenizer=bytes", "--config.model.embed_dim=16", "--config.model.num_layers=1",
                 "--config.model.num_heads=2", "--config.model.num_kv_heads=2", "--config.model.mlp_dim=16"],
    "finetune": [*SMALL, "--config.task.baseline=False", "--config.task.zero_shot_rows=0"],
}  # fmt: skip
WORDS = {"cards": "card pin chip lost", "money": "transfer cash balance fee"}


def write_csv(path, columns, count):
    rng = random.Random(count)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for i in range(count):
            label = list(WORDS)[i % 2]
            text = f"my {' '.join(rng.choices(WORDS[label].split(), k=3))}, {i}"
            writer.writerow([text, label][: len(columns)])


@pytest.mark.integration
def test_six_commands_lead_from_labels_to_predictions(tmp_path, monkeypatch):
    ((block),) = re.findall(r"```bash title=whole-way\n(.*?)```", PAGE, re.DOTALL)
    commands = [shlex.split(line)[1:] for line in block.replace("\\\n", " ").strip().splitlines()]
    assert len(commands) == 6
    monkeypatch.chdir(tmp_path)
    write_csv(tmp_path / "labeled.csv", ["text", "label"], 120)
    write_csv(tmp_path / "unlabeled.csv", ["text"], 30)
    for name, *arguments in commands:
        done = rootstock(name, *arguments, *SHORTER.get(name, []), devices=1)
        assert done.returncode == 0
    texts = [row["text"] for row in csv.DictReader((tmp_path / "unlabeled.csv").open())]
    found, careful = (list(csv.DictReader((tmp_path / f).open())) for f in ("predictions.csv", "careful.csv"))
    assert [row["text"] for row in found] == [row["text"] for row in careful] == texts
    assert {row["prediction"] for row in found} <= set(WORDS) and not any(row["error"] for row in found)
    for row, sure in zip(found, careful, strict=True):
        assert float(row["probability"]) + float(row["probability_2"]) == pytest.approx(1, abs=1e-5)
        assert sure["prediction"] == ("" if float(row["probability"]) < 0.8 else row["prediction"])
        assert row["prediction"] in sure["set"].split("|")
    ask_the_web_handler()


def ask_the_web_handler():
    """Runs the handler of the page with the run that the commands made, and asks it."""
    (source,) = (text for text in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "HTTPServer" in text)
    names = {}
    made = source.replace("\nThreadingHTTPServer(", "\nserver = ThreadingHTTPServer(")
    exec(made.replace("8000", "0").replace(".serve_forever()", ""), names)
    server = names["server"]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"

    def ask(body):
        return json.load(urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=60))

    answers = ask(["my card", {"text": "my fee"}])
    assert [set(answer) for answer in answers] == [{"prediction", "probability"}] * 2
    for bad in ([{"body": "x"}], "text"):
        with pytest.raises(urllib.error.HTTPError, match="400"):
            ask(bad)
    server.shutdown()
