"""/predict: the answers of `rootstock predict`, together for all that wait, with calibrated probabilities."""

import concurrent.futures
import dataclasses
import json
import threading

import httpx
import pytest

from configs.finetune import email_spam
from tests.runs import WORDS, visible_devices
from tests.train.prediction.test_predict import run_of, unlabeled  # noqa: F401 - a fixture
from tests.train.serving.conftest import LIMITS, served, until
from train.finetuning.run import finetune
from train.prediction import load
from train.prediction.task_model import PredictOptions

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("one_device")]
TEXTS = [" ".join((WORDS * 4)[i : i + 2 + i % 4]) for i in range(24)]


@pytest.fixture(scope="module")
def classifier(foundation, rows, tmp_path_factory):
    """A small classifier of two classes."""
    config = email_spam.get_config()
    config.data.path, config.num_steps, config.batch_size = str(rows), 20, 8
    config.sequence_length, config.optimizer.warmup_steps = 64, 1
    config.task.baseline, config.task.zero_shot_rows = False, 0
    workdir = tmp_path_factory.mktemp("classifier") / "run"
    with visible_devices(1):
        finetune(config.to_dict(), foundation, workdir)
    return workdir


@pytest.fixture(scope="module")
def server(classifier):
    with served(classifier) as found:
        yield found


def predict(url, inputs, **fields):
    return httpx.post(f"{url}/predict", json={"inputs": inputs, **fields}, timeout=60)


def test_predictions_are_those_of_the_command_with_every_class(server, classifier):
    got = predict(server[0], TEXTS[:6]).json()
    expected = load(classifier, PredictOptions(top_k=2))(TEXTS[:6])
    assert got["model"] == "run" and len(got["predictions"]) == 6
    for answer, other in zip(got["predictions"], expected, strict=True):
        assert answer["prediction"] == other["prediction"] == answer["classes"][0]["label"]
        assert answer["probability"] == pytest.approx(other["probability"], abs=1e-4)
        assert {each["label"] for each in answer["classes"]} == {"odd", "even"}
        assert sum(each["probability"] for each in answer["classes"]) == pytest.approx(1, abs=1e-3)
        assert answer["error"] is None
    assert "calibrated" in got["calibration"] or "no temperature" in got["calibration"]


def test_requests_that_wait_are_answered_together(server, monkeypatch):
    url, endpoints = server
    gate, sizes = threading.Event(), []
    answer_rows = type(endpoints.model).answer_rows

    def gated(self, rows):
        sizes.append(len(rows))
        gate.wait(30)
        return answer_rows(self, rows)

    alone = [predict(url, [text]).json()["predictions"][0]["probability"] for text in TEXTS]
    monkeypatch.setattr(type(endpoints.model), "answer_rows", gated)
    with concurrent.futures.ThreadPoolExecutor(len(TEXTS)) as pool:
        futures = [pool.submit(predict, url, [text]) for text in TEXTS]
        until(lambda: sum(endpoints.batcher.counts()) == len(TEXTS))
        gate.set()
        together = [future.result().json()["predictions"][0]["probability"] for future in futures]
    assert together == pytest.approx(alone, abs=2e-6) and len(set(alone)) > 8
    assert sum(sizes) == len(TEXTS) and len(sizes) <= 3


def test_a_client_that_leaves_frees_its_place(server, monkeypatch):
    url, endpoints = server
    gate, seen = threading.Event(), []
    answer_rows = type(endpoints.model).answer_rows

    def gated(self, rows):
        seen.extend(row["text"] for row in rows)
        gate.wait(30)
        return answer_rows(self, rows)

    monkeypatch.setattr(type(endpoints.model), "answer_rows", gated)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        first = pool.submit(predict, url, ["first"])
        until(lambda: endpoints.batcher.counts() == (1, 0))
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/predict", json={"inputs": ["left"]}, timeout=0.3)
        gate.set()
        assert first.result().status_code == 200
    assert predict(url, ["third"]).status_code == 200
    assert "left" not in seen


REFUSED = {
    "no inputs": ({}, 400, "inputs is not a list"),
    "a text": ({"inputs": "hello"}, 400, "inputs is not a list"),
    "an empty list": ({"inputs": []}, 400, "inputs is not a list"),
    "a number": ({"inputs": ["a", 5]}, 400, "inputs[1] is neither a text nor an object"),
    "many rows": ({"inputs": ["a"] * 9}, 413, "inputs has 9 rows; expected at most 8 (--max_rows)"),
    "half a character": ({"inputs": ["\ud800"]}, 400, "inputs[0] contains half of a character"),
    "half a character in a row": ({"inputs": [{"text": "\ud800"}]}, 400, "inputs[0] contains half of a character"),
    "another field": ({"inputs": ["a"], "top_k": 3}, 400, "top_k is not supported"),
    "another model": ({"inputs": ["a"], "model": "x"}, 404, "model='x' does not exist"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_body_is_refused_by_name(server, case):
    body, status, message = REFUSED[case]
    got = httpx.post(
        f"{server[0]}/predict", content=json.dumps(body), headers={"Content-Type": "application/json"}, timeout=60
    )
    assert got.status_code == status and message in got.json()["error"]["message"]


def test_a_row_that_cannot_be_read_has_a_reason_and_the_others_an_answer(server):
    got = predict(server[0], [{"other": "x"}, {"text": "the cat sat"}]).json()["predictions"]
    assert got[0]["prediction"] is None and "text" in got[0]["error"]
    assert got[1]["prediction"] in ("odd", "even") and got[1]["error"] is None


def test_a_request_that_fails_does_not_take_the_others_along(server, monkeypatch):
    url, endpoints = server
    gate = threading.Event()
    answer_rows = type(endpoints.model).answer_rows

    def failing(self, rows):
        gate.wait(30)
        if any(row["text"] == "bad" for row in rows):
            raise MemoryError("full")
        return answer_rows(self, rows)

    monkeypatch.setattr(type(endpoints.model), "answer_rows", failing)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(predict, url, [text]) for text in ("a", "bad", "b", "c")]
        until(lambda: sum(endpoints.batcher.counts()) == 4)
        gate.set()
        assert [future.result().status_code for future in futures] == [200, 500, 200, 200]


def test_too_many_waiting_requests_are_refused(server, monkeypatch):
    url, endpoints = server
    gate = threading.Event()
    answer_rows = type(endpoints.model).answer_rows
    monkeypatch.setattr(type(endpoints.model), "answer_rows", lambda self, r: (gate.wait(30), answer_rows(self, r))[1])
    monkeypatch.setattr(endpoints.batcher, "_max_waiting", 1)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(predict, url, ["a"])]
        until(lambda: endpoints.batcher.counts() == (1, 0))
        futures.append(pool.submit(predict, url, ["b"]))
        until(lambda: endpoints.batcher.counts() == (1, 1))
        refused = predict(url, ["c"])
        gate.set()
        assert [future.result().status_code for future in futures] == [200, 200]
    assert refused.status_code == 503 and "Retry-After" in refused.headers


def test_a_request_ends_when_its_time_is_over(server, monkeypatch):
    url, endpoints = server
    gate = threading.Event()
    answer_rows = type(endpoints.model).answer_rows
    monkeypatch.setattr(type(endpoints.model), "answer_rows", lambda self, r: (gate.wait(30), answer_rows(self, r))[1])
    monkeypatch.setitem(endpoints.__dict__, "limits", dataclasses.replace(LIMITS, timeout=0.2))
    got = predict(url, ["a"])
    gate.set()
    assert got.status_code == 504 and "longer than 0.2 s (--timeout)" in got.json()["error"]["message"]
    assert predict(url, ["a"]).status_code == 200


def test_a_language_model_s_endpoints_are_not_there(server):
    assert httpx.post(f"{server[0]}/v1/completions", json={"prompt": "x"}).status_code == 404
    assert httpx.get(f"{server[0]}/health").json()["model"] == "run"


@pytest.mark.parametrize("kind", ["multi_label", "regression", "tagging", "span", "reward"])
def test_other_heads_answer_rows_of_their_columns(kind, run_of):  # noqa: F811
    with served(run_of(kind)) as (url, endpoints):
        row = unlabeled(kind, 1)
        assert set(endpoints.model.text_columns) <= set(row)
        (answer,) = predict(url, [row]).json()["predictions"]
        assert answer["error"] is None and "prediction" in answer
        assert ("classes" in answer) == (kind == "multi_label")
        if kind == "multi_label":
            assert {each["label"] for each in answer["classes"]} == {"a", "b"}


@pytest.mark.parametrize("kind", ["generation", "chat", "preference"])
def test_heads_that_write_are_served_as_language_models(kind, run_of):  # noqa: F811
    with served(run_of(kind)) as (url, endpoints):
        assert endpoints.chats
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "temperature": 0}
        got = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60).json()
        assert 1 <= got["usage"]["completion_tokens"] <= 5
        assert httpx.post(f"{url}/predict", json={"inputs": ["a"]}).status_code == 404
