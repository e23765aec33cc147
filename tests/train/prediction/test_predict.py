"""`rootstock predict` and `load`: every head, every format, broken rows, interruptions, parts, and what is refused."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest

from configs import default, reference
from configs.errors import UserError
from data.readers import read_rows
from data.row_writers import RowWriter
from data.storage.paths import at
from tests.often import often
from tests.runs import ROOT, error_lines, rootstock
from train.distributed.mesh import single_device_mesh
from train.finetuning.predictor import Predictor
from train.finetuning.rows import encode_rows, with_reference
from train.finetuning.run import finetune
from train.finetuning.score_rows import load_reference
from train.prediction import load
from train.prediction.files import FileOptions, predict_file
from train.prediction.task_model import PredictOptions
from train.run.record import open_run
from train.settings import from_config
from train.tasks.loading import load_task, task_from_record
from train.tasks.task import fields_without_effect

GOLDEN = ROOT / "tests" / "golden" / "runs"
COUNT = 24
pytestmark = pytest.mark.usefixtures("one_device")


def labeled(kind, i):
    """Returns a row with its target; the texts have many lengths, so that several shapes are needed."""
    text = f"the {'cat sat' if i % 2 else 'dog ran'} {i} " + "on a mat " * (i % 5)
    if kind in ("classification", "multi_label", "regression"):
        targets = {"classification": "ab"[i % 2], "multi_label": ["a", "b"][: i % 3], "regression": i / 2}
        return {"id": i, "text": text, "label": targets[kind]}
    if kind == "tagging":
        return {"id": i, "tokens": text.split(), "label": ["N" if w in ("cat", "dog") else "O" for w in text.split()]}
    if kind == "span":
        answers = [{"text": "the", "answer_start": 0}] if i % 3 else []
        return {"id": i, "question": f"who {i}", "context": text, "label": answers}
    if kind == "generation":
        return {"id": i, "text": text, "label": f"it {i % 4}"}
    if kind == "chat":
        turns = [{"role": "user", "content": text}, {"role": "assistant", "content": f"it {i % 4}"}]
        return {"id": i, "label": turns}
    return {"id": i, "text": text, "chosen": f"yes {i}", "rejected": "no"}


def unlabeled(kind, i):
    row = labeled(kind, i)
    if kind == "chat":
        return {"id": i, "label": row["label"][:1]}
    return {name: value for name, value in row.items() if name != "label"}


KINDS = ("classification", "multi_label", "regression", "tagging", "span", "generation", "chat", "preference", "reward")
COLUMNS = {
    "classification": {"prediction", "probability"},
    "multi_label": {"prediction", "probabilities"},
    "tagging": {"prediction", "probabilities"},
    "span": {"prediction", "start", "end"},
    "preference": {"prediction", "probability", "score", "rejected_score"},
    "reward": {"prediction", "probability", "score", "rejected_score"},
}


def config_of(kind, path, **changes):
    config = default.get_config()
    config.task.name = "classification" if kind == "multi_label" else kind
    config.task.multi_label = kind == "multi_label"
    config.task.input = "{question}" if kind == "span" else "{text}"
    config.batch_size, config.sequence_length, config.num_steps = 4, 64, 3
    config.optimizer.warmup_steps, config.task.baseline, config.task.zero_shot_rows = 1, False, 0
    config.optimizer.learning_rate, config.task.max_new_tokens = 0.03, 3
    config.task.validation_fraction, config.task.test_fraction = 0.3, 0.3
    config.data.path = str(path)
    config.update_from_flattened_dict(changes)
    unused = fields_without_effect(load_task(config.task.name))
    config.update_from_flattened_dict({f.name: f.default for f in reference.fields() if f.name in unused})
    return config.to_dict()


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """Returns kind -> the directory of a run, fine-tuned for a few steps when it is first asked for."""
    folder = tmp_path_factory.mktemp("runs")

    def make(kind):
        workdir = folder / kind
        if not workdir.exists():
            path = folder / f"{kind}.jsonl"
            path.write_text("".join(json.dumps(labeled(kind, i)) + "\n" for i in range(40)))
            finetune(config_of(kind, path), GOLDEN / "foundation", workdir)
        return workdir

    return make


@pytest.fixture
def rows(tmp_path):
    def write(kind="classification", count=COUNT):
        path = tmp_path / f"{kind}-rows.jsonl"
        path.write_text("".join(json.dumps(unlabeled(kind, i)) + "\n" for i in range(count)))
        return path

    return write


def scored(directory, kind, count=COUNT):
    """Returns the predictions of the path that scores labeled rows."""
    run = open_run(directory)
    settings = dataclasses.replace(from_config(run.record.config), batch_size=4)
    task, tokenizer = task_from_record(run.record.task), run.tokenizer()
    examples = [task.parse(labeled(kind, i), settings.task) for i in range(count)]
    mesh = single_device_mesh()
    with jax.set_mesh(mesh):
        part = encode_rows(task, examples, tokenizer, settings.sequence_length, 0)
        if task.needs_reference:
            part = with_reference(part, load_reference(run, tokenizer, mesh), 4)
        predictor = Predictor(task, run.objective(), run.model, tokenizer, settings, mesh)
        return task, part, predictor(run.load(mesh), part)


@pytest.mark.integration
@pytest.mark.parametrize("kind", often(KINDS, "classification", "span", "generation"))
def test_every_head_predicts_what_is_scored(kind, run_of, rows, tmp_path):
    output = tmp_path / "out.jsonl"
    rootstock("predict", f"--run={run_of(kind)}", f"--data={rows(kind)}", f"--output={output}", devices=1)
    written = list(read_rows(str(output)))
    added = COLUMNS.get(kind, {"prediction"}) | {"error"}
    for i, row in enumerate(written):
        assert {name: row[name] for name in unlabeled(kind, i)} == unlabeled(kind, i)
        assert set(row) - set(unlabeled(kind, i)) == added and row["error"] is None
    assert len(written) == COUNT
    if kind == "chat":
        assert all(isinstance(row["prediction"], str) for row in written)
        return
    task, part, predictions = scored(run_of(kind), kind)
    for row, example, prediction in zip(written, part.examples, predictions, strict=True):
        if kind == "classification":
            assert row["prediction"] == prediction[0] and 0.5 <= row["probability"] <= 1
        elif kind == "multi_label":
            assert row["prediction"] == prediction and all(p > 0.5 for p in row["probabilities"])
        elif kind == "regression":
            assert row["prediction"] == pytest.approx(prediction, abs=1e-4)
        elif kind == "tagging":
            assert row["prediction"] == prediction and len(row["probabilities"]) == len(row["tokens"])
        elif kind == "span":
            assert row["prediction"] == prediction
            assert not prediction or row["context"][row["start"] : row["end"]] == prediction
        elif kind == "generation":
            assert row["prediction"] == prediction
        else:
            margin = prediction if kind == "reward" else task.beta * (prediction[0] - prediction[1])
            assert row["score"] - row["rejected_score"] == pytest.approx(margin, abs=1e-4)
            assert row["probability"] == pytest.approx(1 / (1 + np.exp(-margin)), abs=1e-4)
            assert row["prediction"] == ("chosen" if row["probability"] > 0.5 else "rejected")
        assert example.content


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["preference", "reward"])
def test_a_single_answer_gets_its_score(kind, run_of):
    """Of a text that fits: a pair that is too long is cut by a token more than a single answer."""
    model = load(run_of(kind))
    pair, alone = model([labeled(kind, 5), {"text": labeled(kind, 5)["text"], "answer": "yes 5"}])
    assert alone["score"] == pytest.approx(pair["score"], abs=1e-4)
    assert alone["prediction"] is None and alone["rejected_score"] is None


@pytest.mark.integration
def test_a_labeled_conversation_is_answered_without_its_answer(run_of):
    model = load(run_of("chat"))
    row = labeled("chat", 5)
    asked = row["label"][0]["content"]
    answers = model([row, {"label": row["label"][:1]}, {"prompt": asked}, asked])
    assert len({answer["prediction"] for answer in answers}) == 1


def table(path):
    """Returns the rows of an output with every value as text, so that formats can be compared."""
    if path.suffix == ".parquet":
        found = parquet.read_table(path).to_pylist()
    elif path.suffix == ".csv":
        found = list(csv.DictReader(path.open()))
    else:
        found = [json.loads(line) for line in path.read_text().splitlines()]
    return [
        {k: "" if v is None else v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in found
    ]


def write_input(path, suffix):
    """Writes rows with commas, quotes and line feeds where the format allows them."""
    rows = [{"id": str(i), "text": unlabeled("classification", i)["text"] + (', "x"\n.' * (i == 3))} for i in range(9)]
    file = path / f"in{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    elif suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif suffix == ".tsv":
        file.write_text("id\ttext\n" + "".join(f"{r['id']}\t{' '.join(r['text'].split())}\n" for r in rows))
    else:
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, ["id", "text"])
            writer.writeheader()
            writer.writerows(rows)
    return file


@pytest.mark.integration
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_predictions(suffix, run_of, tmp_path):
    model = load(run_of("classification"), PredictOptions(top_k=2))
    data = write_input(tmp_path, suffix)
    found = []
    for name in ("out.csv", "out.jsonl", "out.parquet"):
        predict_file(model, str(data), tmp_path / name, FileOptions())
        found.append(table(tmp_path / name))
    assert found[0] == found[1] == found[2]
    names = ["id", "text", "prediction", "probability", "prediction_2", "probability_2", "error"]
    assert [row["id"] for row in found[0]] == [str(i) for i in range(9)] and list(found[0][0]) == names
    assert ('"x"\n' in found[0][3]["text"]) == (suffix != ".tsv")


def in_parts_of(model, count):
    return dataclasses.replace(model, backend=dataclasses.replace(model.backend, rows_at_once=count))


def interrupted(model, data, output):
    """Predicts until two parts are written."""
    write, calls = RowWriter.write, []

    def stop(self, part):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(len(part))
        write(self, part)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RowWriter, "write", stop)
        predict_file(model, str(data), output, FileOptions())


@pytest.mark.integration
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_interrupted_output_is_continued(suffix, run_of, rows, tmp_path):
    model = in_parts_of(load(run_of("classification")), 5)
    data, output, whole = rows(), tmp_path / f"out{suffix}", tmp_path / f"whole{suffix}"
    predict_file(model, str(data), whole, FileOptions())
    interrupted(model, data, output)
    if suffix != ".parquet":
        # Rows are there as they come; what a kill left of the next part is removed.
        assert len(table(output)) == 10
        with output.open("a") as file:
            file.write("half a")
    with pytest.raises(UserError, match="was begun with another run"):
        predict_file(model, str(data), output, FileOptions(prefix="x_"))
    done = predict_file(model, str(data), output, FileOptions())
    assert (done.rows, done.resumed_at) == (COUNT, 10)
    assert table(output) == table(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([data.name, output.name, whole.name])


@pytest.mark.integration
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_interrupted_output_that_was_deleted_is_begun_again(suffix, run_of, rows, tmp_path):
    model, data, output = in_parts_of(load(run_of("classification")), 5), rows(), tmp_path / f"out{suffix}"
    interrupted(model, data, output)
    if suffix == ".csv":
        output.unlink()
    else:
        shutil.rmtree(tmp_path / f"{output.name}.parts")
    done = predict_file(model, str(data), output, FileOptions())
    assert (done.rows, done.resumed_at) == (COUNT, 0)
    assert [row["id"] for row in table(output)] == list(map(str, range(COUNT)))


@pytest.mark.integration
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_an_interrupted_output_that_lacks_rows_is_not_continued(suffix, run_of, rows, tmp_path):
    model, data, output = in_parts_of(load(run_of("classification")), 5), rows(), tmp_path / f"out{suffix}"
    interrupted(model, data, output)
    if suffix == ".csv":
        output.write_text(output.read_text()[:-4])
    else:
        min((tmp_path / f"{output.name}.parts").iterdir()).unlink()
    with pytest.raises(UserError, match=r"lacks rows that an interrupted process wrote.*--overwrite to begin anew"):
        predict_file(model, str(data), output, FileOptions())
    assert predict_file(model, str(data), output, FileOptions(overwrite=True)).rows == len(table(output)) == COUNT


@pytest.mark.integration
def test_an_output_is_not_continued_with_longer_texts_or_another_model(run_of, rows, tmp_path):
    run, data, output = run_of("generation"), rows("generation"), tmp_path / "out.jsonl"
    model = in_parts_of(load(run, PredictOptions(max_new_tokens=2)), 5)
    interrupted(model, data, output)
    with pytest.raises(UserError, match="was begun with another run, other rows or other options"):
        predict_file(load(run, PredictOptions(max_new_tokens=3)), str(data), output, FileOptions())
    record = run / "run.json"
    stored = record.read_text()
    record.write_text(stored + "\n")
    with pytest.raises(UserError, match="was begun with another run"):
        predict_file(model, str(data), output, FileOptions())
    record.write_text(stored)
    assert predict_file(model, str(data), output, FileOptions()).resumed_at == 10


@pytest.mark.integration
def test_parts_together_are_the_whole(run_of, rows, tmp_path):
    model, data = load(run_of("classification")), str(rows())
    predict_file(model, data, tmp_path / "whole.jsonl", FileOptions())
    parts = []
    for number in range(1, 6):
        path = tmp_path / f"{number}.jsonl"
        predict_file(model, data, path, FileOptions(part=f"{number}/5"))
        parts += table(path)
    whole = table(tmp_path / "whole.jsonl")
    assert [row | {"probability": ""} for row in parts] == [row | {"probability": ""} for row in whole]
    for a, b in zip(parts, whole, strict=True):
        assert float(a["probability"]) == pytest.approx(float(b["probability"]), abs=1e-5)


BROKEN = {
    "a.csv": 'id,text\n1,a cat\n2\n3,\n4,"a ""dog"""\n',
    "a.jsonl": '{"id": 1, "text": "a cat"}\n{"id": 2, "te\n{"id": 3, "text": null}\n{"id": 4, "text": "a dog"}\n',
    "a.tsv": "id\ttext\n1\ta cat\n2\ta\tb\n3\t \n4\ta dog\n",
    "a.json": '[{"id": 1, "text": "a cat"}, 2, {"id": 3, "text": {"x": 1}}, {"id": 4, "text": "a dog"}]',
}


@pytest.mark.integration
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_written_with_its_reason(name, run_of, tmp_path):
    data, output = tmp_path / name, tmp_path / "out.jsonl"
    data.write_text(BROKEN[name])
    arguments = ["predict", f"--run={run_of('classification')}", f"--data={data}", f"--output={output}"]
    done = rootstock(*arguments, devices=1)
    good, unreadable, empty, last = (json.loads(line) for line in output.read_text().splitlines())
    assert good["prediction"] in ("a", "b") and last["prediction"] in ("a", "b") and good["error"] is None
    assert unreadable["prediction"] is None and name in unreadable["error"] and "id" not in unreadable
    assert empty["prediction"] is None and "'text'" in empty["error"] and str(empty["id"]) == "3"
    assert "2 rows have no prediction" in done.stderr


@pytest.mark.integration
def test_rows_of_which_none_can_be_predicted_are_an_error(run_of, tmp_path):
    data, output = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    data.write_text('{"text": null}\n{"text": ""}\n')
    arguments = ["predict", f"--run={run_of('classification')}", f"--data={data}", f"--output={output}"]
    done = rootstock(*arguments, devices=1, check=False)
    assert done.returncode == 1 and "none of the 2 rows" in error_lines(done)[0]
    assert len(output.read_text().splitlines()) == 2


@pytest.mark.integration
@pytest.mark.parametrize(("name", "content"), [("a.csv", "text\n"), ("a.jsonl", "\n"), ("a.json", "[]")])
def test_a_file_without_rows_is_an_error(name, content, run_of, tmp_path):
    (tmp_path / name).write_text(content)
    refused(load(run_of("classification")), tmp_path / name, tmp_path / "out.csv", "has no rows; expected at least one")


def refused(model, data, output, match, **options):
    with pytest.raises(UserError, match=match):
        predict_file(model, str(data), output, FileOptions(**options))
    assert not output.exists()


@pytest.mark.integration
def test_what_cannot_be_predicted_is_refused_before_the_work(run_of, rows, tmp_path):
    model, output = load(run_of("classification")), tmp_path / "out.csv"
    other = tmp_path / "other.jsonl"
    other.write_text('{"body": "x"}\n')
    refused(model, other, output, "has no 'text', which .*classification was trained to read; columns found: body")
    other.write_text('{"text": "x", "prediction": "a"}\n')
    refused(model, other, output, "has a column 'prediction'.*--prefix")
    predict_file(model, str(other), tmp_path / "prefixed.csv", FileOptions(prefix="my_"))
    assert list(table(tmp_path / "prefixed.csv")[0])[2:] == ["my_prediction", "my_probability", "my_error"]
    for part in ("5/4", "0/4", "x", "1/0"):
        refused(model, rows(), output, f"--part={part} must be I/N", part=part)
    for name in ("out.xlsx", "out.tsv", "out.csv.gz", "out"):
        refused(model, rows(), tmp_path / name, "expected a name that ends with .csv, .jsonl or .parquet")
    output.write_text("mine")
    with pytest.raises(UserError, match="exists; expected a new name, or --overwrite"):
        predict_file(model, str(rows()), output, FileOptions())
    assert output.read_text() == "mine"
    predict_file(model, str(rows()), output, FileOptions(overwrite=True))
    assert len(table(output)) == COUNT


@pytest.mark.integration
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_column_that_only_later_rows_have_is_written(suffix, run_of, tmp_path):
    model = in_parts_of(load(run_of("classification")), 1)
    data, output = tmp_path / "a.jsonl", tmp_path / f"out{suffix}"
    data.write_text('{"text": "x"}\n{"text": "x", "b": 1}\n{"a": 2, "text": "x"}\n')
    predict_file(model, str(data), output, FileOptions())
    found = table(output)
    assert [(row.get("a", ""), row.get("b", "")) for row in found] == [("", ""), ("", "1"), ("2", "")]
    if suffix == ".jsonl":
        assert list(found[0]) == ["text", "prediction", "probability", "error"] and "a" not in found[1]
    else:
        assert list(found[0]) == ["text", "b", "a", "prediction", "probability", "error"]
    data.write_text('{"text": "x"}\n{"text": "x", "probability": 1}\n')
    refused(model, data, tmp_path / f"other{suffix}", "has a column 'probability'.*--prefix")


@pytest.mark.integration
def test_rows_are_not_replaced_by_their_predictions(run_of, rows, tmp_path, monkeypatch):
    model, data = load(run_of("classification")), rows()
    stored = data.read_text()
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    for output in (data, Path(data.name), tmp_path / "link" / data.name):
        for given in (data, tmp_path, tmp_path / "*.jsonl"):
            with pytest.raises(UserError, match="is one of the files of --data"):
                predict_file(model, str(given), output, FileOptions(overwrite=True))
    assert data.read_text() == stored


@pytest.mark.integration
def test_lists_of_names_with_the_separator_are_not_written_as_csv(run_of, rows, tmp_path):
    for kind, name, options in (
        ("classification", "a|b", PredictOptions(coverage=0.9)),
        ("multi_label", "a|b", PredictOptions()),
        ("tagging", "the place", PredictOptions()),
    ):
        model, data = load(run_of(kind), options), rows(kind)
        named = dataclasses.replace(model.task, classes=(name, *model.task.classes[1:]))
        model = dataclasses.replace(model, task=named)
        refused(
            model, data, tmp_path / "out.csv", "separates the items of a list in a .csv file; use --output=NAME.json"
        )
        predict_file(model, str(data), tmp_path / f"{kind}.jsonl", FileOptions())
    model = load(run_of("classification"))
    model = dataclasses.replace(model, task=dataclasses.replace(model.task, classes=("a|b", "c")))
    predict_file(model, str(rows()), tmp_path / "one.csv", FileOptions())


@pytest.mark.integration
def test_an_option_without_effect_is_refused(run_of):
    for kind, options in (
        ("regression", PredictOptions(top_k=2)),
        ("multi_label", PredictOptions(abstain_below=0.5)),
        ("tagging", PredictOptions(coverage=0.9)),
        ("span", PredictOptions(top_k=2)),
        ("classification", PredictOptions(max_new_tokens=5)),
    ):
        with pytest.raises(UserError, match="has no effect with the task of"):
            load(run_of(kind), options)
    with pytest.raises(UserError, match="--max_new_tokens=64 must be less than"):
        load(run_of("generation"), PredictOptions(max_new_tokens=64))
    with pytest.raises(UserError, match="pre-trained model without a task"):
        load(GOLDEN / "foundation")
    with pytest.raises(UserError, match="is not a run directory"):
        load(GOLDEN)


@pytest.mark.integration
def test_abstaining_and_sets(run_of):
    texts = [unlabeled("classification", i)["text"] for i in range(COUNT)]
    run = run_of("classification")
    plain = load(run)(texts)
    cut = sorted(answer["probability"] for answer in plain)[COUNT // 2]
    careful = load(run, PredictOptions(abstain_below=cut, coverage=0.9))
    for before, answer in zip(plain, careful(texts), strict=True):
        assert answer["abstained"] == (before["probability"] < cut)
        assert answer["prediction"] == (None if answer["abstained"] else before["prediction"])
        assert before["prediction"] in answer["set"]
    (run / "calibration.json").rename(run / "moved")
    try:
        with pytest.raises(
            UserError, match=r"--coverage=0.9 needs .*calibration.json.*run the same `rootstock finetune`"
        ):
            load(run, PredictOptions(coverage=0.9))
        assert load(run).calibration is None
    finally:
        (run / "moved").rename(run / "calibration.json")
    found = json.loads((run / "calibration.json").read_text())
    # A calibration of another checkpoint says nothing about this one.
    other = run.parent / "other"
    shutil.copytree(run, other)
    (other / "calibration.json").write_text(json.dumps(found | {"step": 1}))
    assert load(other).calibration is None


@pytest.mark.integration
def test_the_predictor_takes_texts_and_rows_and_names_a_bad_one(run_of):
    predictor = load(run_of("classification"))
    a, b = predictor(["a cat", {"text": "a cat", "more": 1}])
    assert a["prediction"] == b["prediction"] and predictor([]) == []
    with pytest.raises(UserError, match="input 2: no 'text'"):
        predictor(["x", {"body": "y"}])
    with pytest.raises(UserError, match="expected a list of texts or rows"):
        predictor("a cat")
    with pytest.raises(UserError, match="reads the columns question, context"):
        load(run_of("span"))(["x"])
    assert load(run_of("tagging"))(["the cat sat"])[0]["prediction"]


@pytest.mark.integration
def test_a_golden_run_predicts(tmp_path):
    """A run of version 1 without a calibration is read, and says that it is not calibrated."""
    shutil.copytree(GOLDEN, tmp_path / "runs")
    record = tmp_path / "runs" / "adapter" / "run.json"
    record.write_text(record.read_text().replace("GOLDEN_RUNS", str(tmp_path / "runs")))
    data = tmp_path / "a.csv"
    data.write_text("text\ncat sat\nfar home\n")
    output = tmp_path / "out.csv"
    arguments = [f"--run={record.parent}", f"--data={data}", f"--output={output}"]
    done = rootstock("predict", *arguments, devices=1)
    assert "the probabilities are not calibrated" in done.stderr
    assert {row["prediction"] for row in table(output)} <= {"even", "odd"} and len(table(output)) == 2


@pytest.mark.integration
def test_rows_in_a_bucket_go_to_a_bucket(run_of, folder, tmp_path):
    data = at(folder) / "rows.csv"
    data.write_text("text\n" + "".join(f"the cat {i}\n" for i in range(7)))
    model = load(run_of("classification"))
    for suffix in (".csv", ".jsonl", ".parquet"):
        output = at(folder) / f"out{suffix}"
        predict_file(model, str(data), output, FileOptions())
        local = tmp_path / output.name
        local.write_bytes(output.read_bytes())
        assert [row["text"] for row in table(local)] == [f"the cat {i}" for i in range(7)]
    assert sorted(path.name for path in at(folder).iterdir()) == ["out.csv", "out.jsonl", "out.parquet", "rows.csv"]


@pytest.mark.integration
def test_texts_of_which_only_the_beginning_is_read_are_counted_and_marked(run_of, tmp_path):
    model = load(run_of("classification"))
    length = model.settings.sequence_length
    short, long = model(["a cat", "a cat " * length])
    assert "truncated" not in short and long["truncated"] is True
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("a cat", "a cat " * length)))
    done = predict_file(model, str(data), tmp_path / "out.jsonl", FileOptions())
    assert (done.rows, done.truncated, done.broken) == (2, 1, 0)
    assert all("truncated" not in row for row in map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines()))


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["generation", "chat"])
def test_prompts_that_are_cut_are_counted_and_marked(kind, run_of, tmp_path):
    model = load(run_of(kind))
    long = "a cat " * model.settings.sequence_length
    asked = [{"role": role, "content": "a cat"} for role in ("user", "assistant", "user")]
    if kind == "generation":
        rows = [{"text": "a cat"}, {"text": long}]
    else:
        rows = [{"label": asked[:1]}, {"label": [{"role": "user", "content": long}, *asked[1:]]}]
    short, cut = model(rows)
    assert "truncated" not in short and cut["truncated"] is True and "error" not in cut
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [f"--run={run_of(kind)}", f"--data={data}", f"--output={tmp_path / 'out.jsonl'}"]
    done = rootstock("predict", *flags)
    assert "of 1 rows only a part was read" in done.stderr and "with their answer of up to 3" in done.stderr
