"""Stores and runs that meet in one command: a trained filter, questions that were trained on, a mixture in a bucket."""

import json

import pytest

from configs.finetune import sentiment
from configs.pretrain import tiny
from data.prepare import StoreOptions, prepare
from data.storage import files
from data.storage.paths import at
from tests.buckets import new_folder
from tests.often import often
from tests.runs import ROOT, WORDS, records, rootstock, write_text
from train.finetuning.run import finetune
from train.pretraining import pretrain

pytestmark = [pytest.mark.usefixtures("one_device"), pytest.mark.integration]
FOUNDATION = ROOT / "tests" / "golden" / "runs" / "foundation"
QUESTION = "does the old gray cat of the house by the river like the young dog of the man next door"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier of texts about cats ("good") and about dogs ("bad"), trained for a few steps."""
    folder = tmp_path_factory.mktemp("classifier")
    rows = [{"text": f"the {'cat sat' if i % 2 else 'dog ran'} {i}", "label": "good" if i % 2 else "bad"}
            for i in range(60)]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = sentiment.get_config()
    config.data.path = str(folder / "rows.jsonl")
    config.batch_size, config.sequence_length, config.num_steps = 4, 32, 4
    config.optimizer.warmup_steps = 1
    config.task.update({"baseline": False, "alternatives": False, "zero_shot_rows": 0})
    finetune(config.to_dict(), FOUNDATION, folder / "run")
    return folder / "run"


def test_a_trained_classifier_filters_documents_as_it_predicts_them(classifier, tmp_path):
    texts = [f"{'cat sat' if i % 2 else 'dog ran'} on a mat, number {i:02}" for i in range(20)]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    predicted = tmp_path / "p.jsonl"
    rootstock(
        "predict", f"--run={classifier}", f"--data={tmp_path / 'pages.jsonl'}", f"--output={predicted}", "--top_k=2"
    )
    answers = [json.loads(line) for line in predicted.read_text().splitlines()]
    good = [row["probability" if row["prediction"] == "good" else "probability_2"] for row in answers]
    limit = sorted(good)[8]  # so that some documents are below, and some at it or above
    rootstock(
        "prepare", f"--input={tmp_path / 'pages.jsonl'}", f"--output={tmp_path / 'store'}", "--tokenizer=bytes",
        "--validation_fraction=0", "--processes=1", f"--score_with={classifier}", "--score_class=good",
        f"--min_score={limit - 1e-9!r}",
    )  # fmt: skip
    card = json.loads((tmp_path / "store" / "card.json").read_text())
    kept = [text for text, p in zip(texts, good, strict=True) if p >= limit - 1e-9]
    shown = rootstock("store", "show", str(tmp_path / "store"), f"--count={len(kept)}").stdout
    assert 0 < len(kept) < len(texts) and all(text in shown for text in kept)
    assert not [text for text in texts if text not in kept and text in shown]
    assert card["removed"] == {"score: low": len(texts) - len(kept)}
    assert {text for _, text in card["samples"]["score: low"]} == set(texts) - set(kept)


def test_evaluate_says_which_questions_were_trained_on(tmp_path):
    pages = [f"a page. {QUESTION}? and more {i}" for i in range(8)] + [f"the cat sat on a mat {i}" for i in range(200)]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"text": page}) + "\n" for page in pages))
    config = small()
    config.data.path = str(tmp_path / "pages.jsonl")
    pretrain(config.to_dict(), tmp_path / "run")
    other = QUESTION.replace("cat", "owl").replace("dog", "fox").replace("river", "sea").replace("old", "new")
    rows = [{"text": question, "label": label} for question in (QUESTION, other) for label in ("even", "odd")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"task": "parity", "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "{{text}} is"}
    task |= {"doc_to_choice": ["even", "odd"], "doc_to_target": "label", "metadata": {"columns": ["text", "label"]}}
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "parity.yaml").write_text(json.dumps(task))
    asked = ["evaluate", f"--run={tmp_path / 'run'}", "--tasks=parity", f"--task_files={tmp_path / 'evals'}",
             f"--data={tmp_path / 'rows.jsonl'}", "--json"]  # fmt: skip
    plain = json.loads(rootstock(*asked).stdout)
    found = json.loads(rootstock(*asked, "--contamination=auto").stdout)
    assert "share_in_training" not in json.dumps(plain)
    figures = found["parity"] if "parity" in found else found
    assert '"share_in_training": 0.5' in json.dumps(figures) and "_rest" in json.dumps(figures)


@pytest.mark.parametrize("scheme", often(("gs", "s3"), "gs"))
def test_a_mixture_of_stores_in_a_bucket_trains_like_one_on_the_disk(scheme, storage_environment, tmp_path):
    write_text(tmp_path / "cats.txt", 300, WORDS[:7])
    write_text(tmp_path / "dogs.txt", 200, WORDS[7:])
    options = StoreOptions("bytes", validation_fraction=0.1, validation_split="tail")
    for name in ("cats", "dogs"):
        prepare(str(tmp_path / f"{name}.txt"), tmp_path / "stores" / name, options)
    bucket = new_folder(scheme)
    files.copy_tree(tmp_path / "stores", at(bucket))
    for place, workdir in ((str(tmp_path / "stores"), "disk"), (bucket, "bucket"), (bucket, "cached")):
        config = small()
        config.data.mixture = (("cats", f"{place}/cats", 3.0), ("dogs", f"{place}/dogs", 1.0))
        config.data.mixture_schedule = ((3, {"cats": 1.0, "dogs": 1.0}),)
        config.data.cache = str(tmp_path / "cache") if workdir == "cached" else ""
        pretrain(config.to_dict(), tmp_path / workdir)
    expected, *others = [figures_of(tmp_path / name) for name in ("disk", "bucket", "cached")]
    assert others == [expected, expected] and len(expected) == 6 and "loss/dogs" in expected[-1]


def small():
    config = tiny.get_config()
    config.tokenizer, config.data.validation_split = "bytes", "tail"
    config.batch_size, config.sequence_length, config.num_steps = 8, 16, 5
    config.model.update({"embed_dim": 16, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2, "mlp_dim": 16})
    config.optimizer.warmup_steps, config.logging.every, config.checkpoint.every = 2, 1, 5
    config.evaluation.every, config.evaluation.batches = 5, 2
    return config


def figures_of(workdir):
    """Returns the figures of each record that do not depend on the machine."""
    return [{name: value for name, value in record.items() if "loss" in name or "bits" in name}
            for record in records(workdir) if record["phase"] in ("train", "eval")]  # fmt: skip
