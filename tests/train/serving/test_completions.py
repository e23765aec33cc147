"""OpenAI's endpoints: answers as `rootstock generate` writes them, alone and under load, and what is refused."""

import asyncio
import contextlib
import dataclasses
import json
import threading

import httpx
import pytest

from tests.runs import WORDS, visible_devices
from tests.train.serving.conftest import LIMITS, served, until
from train.generation.decode import continuations
from train.generation.language_model import GenerationOptions
from train.serving.app import Access

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.usefixtures("one_device")
PROMPTS = [" ".join([*WORDS, *WORDS][n % 13 : n % 13 + 1 + n % 5])[: 4 + n % 17] for n in range(64)]


@pytest.fixture
def client(language_server):
    with openai.OpenAI(base_url=f"{language_server[0]}/v1", api_key="unused", max_retries=0) as found:
        yield found


def post(server, path, body, **headers):
    return httpx.post(f"{server[0]}{path}", json=body, headers=headers, timeout=60)


def test_a_greedy_completion_is_what_generate_writes(client, language_server):
    language_model = language_server[1].engine.language_model
    expected = continuations(language_model, ["the cat ", "sat on"], GenerationOptions(20), raw=True)
    for prompt, text in zip(["the cat ", "sat on"], expected, strict=True):
        got = client.completions.create(model="run", prompt=prompt, max_tokens=20, temperature=0)
        assert got.choices[0].text == text
        assert got.choices[0].finish_reason == "length"
        assert got.usage.prompt_tokens == len(language_model.text_tokens(prompt))
        assert (got.usage.completion_tokens, got.usage.total_tokens) == (20, 20 + got.usage.prompt_tokens)


def test_a_chat_is_answered_in_the_template_with_all_its_messages(client, language_server):
    language_model = language_server[1].engine.language_model
    messages = [
        {"role": "system", "content": "a b"},
        {"role": "user", "content": [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}]},
    ]
    plain = [messages[0], {"role": "user", "content": "the cat"}]
    got = client.chat.completions.create(model="run", messages=messages, max_tokens=9, temperature=0)
    assert (got.choices[0].message.role, got.object) == ("assistant", "chat.completion")
    assert got.usage.prompt_tokens == len(language_model.chat_tokens(plain))
    other = client.chat.completions.create(model="run", messages=plain, max_tokens=9, temperature=0)
    assert got.choices[0].message.content == other.choices[0].message.content


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("stop", [None, ["t s", "o"]])
def test_a_stream_is_the_answer_in_parts(client, temperature, stop):
    asked = {"model": "run", "messages": [{"role": "user", "content": "dog"}], "temperature": temperature, "seed": 5}
    asked |= {"max_tokens": 24, "stop": stop}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    assert deltas[0].role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage and chunks[-1].choices == []
    assert len(chunks) > 4 or stop
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_streamed_completion_grows(client):
    asked = {"model": "run", "prompt": "dog", "temperature": 0, "max_tokens": 24}
    parts = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)]
    assert "".join(parts) == client.completions.create(**asked).choices[0].text
    assert sum(map(bool, parts)) >= 4


def test_an_answer_ends_before_the_first_stop_string(client):
    asked = {"model": "run", "prompt": "the cat sat", "temperature": 0, "max_tokens": 30}
    text = client.completions.create(**asked).choices[0].text
    # Four tokens, which are bytes here, are decoded at a time: half of the stop string is there before the rest.
    start = next(i for i in range(2, 26) if i % 4 and text.index(text[i : i + 4]) == i)
    stop = text[start : start + 4]
    got = client.completions.create(**asked, stop=["never there", stop])
    assert (got.choices[0].text, got.choices[0].finish_reason) == (text[: text.index(stop)], "stop")
    parts = client.completions.create(**asked, stop=stop, stream=True)
    assert "".join(part.choices[0].text for part in parts) == got.choices[0].text
    assert got.usage.completion_tokens == text.index(stop) + len(stop)


def test_the_same_seed_gives_the_same_answer_and_others_differ(client):
    def answers(**options):
        asked = {"model": "run", "prompt": "the", "max_tokens": 24, "temperature": 1.5} | options
        return client.completions.create(**asked).choices[0].text

    assert answers(seed=1) == answers(seed=1) == answers(seed=1, top_p=1.0)
    assert len({answers(seed=seed) for seed in (1, 2, -3)}) == 3
    assert answers() != answers()
    assert answers(top_p=1e-9) == answers(top_p=0) == answers(temperature=0)
    assert answers(extra_body={"top_k": 1}) == answers(temperature=0)


@pytest.mark.parametrize(
    "sampled", [pytest.param(False, id="greedy"), pytest.param(True, id="sampled", marks=pytest.mark.integration)]
)
def test_64_clients_at_once_get_the_answers_that_they_get_alone(language_server, sampled):
    url = language_server[0]

    async def ask(client, number):
        asked = {"model": "run", "prompt": PROMPTS[number], "max_tokens": 5 + number % 19, "seed": number}
        got = await client.completions.create(**asked, temperature=1.0 if sampled and number % 2 else 0)
        return got.choices[0].text, got.usage.total_tokens

    async def compare():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0) as client:
            together = await asyncio.gather(*(ask(client, number) for number in range(64)))
            alone = [await ask(client, number) for number in range(64)]
        return alone, together

    alone, together = asyncio.run(compare())
    assert together == alone
    assert len(set(alone)) > 20


REFUSED = {
    "n": ({"n": 2}, "n=2 is not supported; expected 1"),
    "logprobs": ({"logprobs": True}, "logprobs=true is not supported"),
    "logprobs of completions": ({"logprobs": 1}, "logprobs=1 is not supported"),
    "tools": ({"tools": [{"type": "function"}]}, "tools="),
    "a penalty": ({"frequency_penalty": 0.5}, "frequency_penalty=0.5"),
    "json mode": ({"response_format": {"type": "json_object"}}, "response_format="),
    "a misspelled field": ({"max_token": 5}, "max_token is not supported; did you mean 'max_tokens'?"),
    "another model": ({"model": "gpt-4"}, "model='gpt-4' does not exist; this server has 'run'"),
    "a text as temperature": ({"temperature": "hot"}, 'temperature is "hot"; expected a number from 0 to 2'),
    "true as seed": ({"seed": True}, "seed is true; expected an integer"),
    "a hot temperature": ({"temperature": 2.5}, "temperature is 2.5; expected a number from 0 to 2"),
    "no tokens": ({"max_tokens": 0}, "max_tokens is 0; expected an integer from 1"),
    "many tokens": ({"max_tokens": 41}, "max_tokens=41 must be at most 40 (--max_tokens)"),
    "more than the context": ({"messages": [{"role": "user", "content": "x" * 30}], "max_tokens": 30}, "at most 48"),
    "an empty stop": ({"stop": ""}, 'stop is ""; expected'),
    "five stops": ({"stop": list("abcde")}, "stop is"),
    "a text as stream": ({"stream": "yes"}, "stream is"),
    "no messages": ({"messages": []}, "messages is []; expected a list of at least one message"),
    "missing messages": ({"messages": None}, "messages is missing"),
    "a role": ({"messages": [{"role": "tool", "content": "x"}]}, 'messages[0].role is "tool"; expected'),
    "a call": ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages[0].tool_calls is not"),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content is"),
    "half a character in a name": ({"\ud800": 1}, "is not supported; supported: model"),
    "a long name": ({"x" * 9_000: 1}, "xxx"),
    "half a character": ({"messages": [{"role": "user", "content": "\ud800"}]}, "contains half of a character"),
    "an answer last": ({"messages": [{"role": "assistant", "content": "x"}]}, "last message of a prompt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_supported_is_refused_by_name(language_server, case):
    change, message = REFUSED[case]
    body = {"model": "run", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 3} | change
    content = json.dumps(body)
    got = httpx.post(
        f"{language_server[0]}/v1/chat/completions", content=content, headers={"Content-Type": "application/json"}
    )
    assert got.status_code == (404 if case == "another model" else 400)
    error = got.json()["error"]
    assert message in error["message"] and "\n" not in error["message"], error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    if case != "an answer last":
        field = next(iter(change)).encode("utf-8", "backslashreplace").decode()[:500]
        assert error["param"].partition("[")[0] == field or case == "more than the context"


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], None, {"text": "x"}, 5])
def test_a_prompt_that_is_not_one_text_is_refused(language_server, prompt):
    got = post(language_server, "/v1/completions", {"model": "run", "prompt": prompt})
    assert got.status_code == 400 and got.json()["error"]["param"] == "prompt"


def test_null_and_neutral_values_are_as_if_left_out(language_server):
    asked = {"model": "run", "prompt": ["hi"], "temperature": 0}
    neutral = {"n": 1, "logprobs": None, "stop": None, "user": "me", "presence_penalty": 0, "echo": False, "tools": []}
    first, second = (post(language_server, "/v1/completions", body).json() for body in (asked, asked | neutral))
    assert first["choices"] == second["choices"]
    assert first["usage"]["completion_tokens"] == 16


@pytest.mark.parametrize("most", [8, 40])
def test_an_answer_without_max_tokens_has_as_many_as_there_may_be(language_server, monkeypatch, most):
    monkeypatch.setattr(language_server[1].engine, "limits", dataclasses.replace(LIMITS, max_tokens=most))
    for length in (1, 37):
        asked = {"prompt": "x" * length, "temperature": 0}
        got = post(language_server, "/v1/completions", asked).json()
        prompt = got["usage"]["prompt_tokens"]
        assert got["usage"]["completion_tokens"] == min(16, most, LIMITS.max_length - prompt)
    too_long = post(language_server, "/v1/completions", {"prompt": "x" * 60}).json()["error"]
    assert (too_long["param"], too_long["code"]) == ("prompt", "context_length_exceeded")


BAD_BODIES = {
    "no JSON": (b"{", 400, "not valid JSON"),
    "a list": (b"[1]", 400, "the body is a list"),
    "not UTF-8": (b'{"prompt": "\xff"}', 400, "not valid JSON"),
    "deeply nested": (b"[" * 19_000, 400, "not valid JSON"),
    "nothing": (b"", 400, "not valid JSON"),
    "too long": (b" " * 20_001, 413, "more than 20,000 bytes (--max_body)"),
}


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("case", BAD_BODIES)
def test_a_bad_body_is_one_clear_line(language_server, case, path):
    content, status, message = BAD_BODIES[case]
    got = httpx.post(f"{language_server[0]}{path}", content=content, headers={"Content-Type": "application/json"})
    assert got.status_code == status and message in got.json()["error"]["message"]
    assert "\n" not in got.json()["error"]["message"]


def test_a_body_of_unknown_length_is_cut_off(language_server):
    def endless():
        while True:
            yield b" " * 4096

    got = httpx.post(
        f"{language_server[0]}/v1/completions", content=endless(), headers={"Content-Type": "application/json"}
    )
    assert got.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("GET", "/v1/completions", 405), ("POST", "/predict", 404)]
)
def test_other_paths_and_methods_are_errors_of_the_same_form(language_server, method, path, status):
    got = httpx.request(method, f"{language_server[0]}{path}")
    assert got.status_code == status and path in got.json()["error"]["message"]


def test_the_model_is_listed_and_the_server_is_healthy(client, language_server):
    assert [model.id for model in client.models.list()] == ["run"]
    assert client.models.retrieve("run").id == "run"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert httpx.get(f"{language_server[0]}/health").json() == {
        "status": "ok", "model": "run", "running": 0, "waiting": 0,
    }  # fmt: skip


def streamed(url, **options):
    body = {"model": "run", "prompt": "the", "max_tokens": 40, "temperature": 0, "stream": True} | options
    return httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_slot(gated, stream):
    url, endpoints, gate = gated
    if stream:
        with streamed(url):
            until(lambda: endpoints.engine.counts() == (1, 0))
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json={"prompt": "the", "max_tokens": 40}, timeout=3)
        assert endpoints.engine.counts() == (1, 0)
    (answer,) = endpoints.engine._answers.values()
    until(lambda: answer.generation.left)
    gate.set()
    until(lambda: endpoints.engine.counts() == (0, 0))
    # It was stopped, not finished.
    assert answer._tokens < 40


def test_a_waiting_client_that_leaves_frees_its_place(gated):
    url, endpoints, _ = gated
    with streamed(url):
        until(lambda: endpoints.engine.counts() == (1, 0))
        with streamed(url):
            # The engine is decoding the first one.
            until(lambda: endpoints.engine.counts() == (1, 1))
        until(lambda: endpoints.engine.counts() == (1, 0))


def test_too_many_waiting_requests_are_refused_until_there_is_room(gated, monkeypatch):
    url, endpoints, gate = gated
    monkeypatch.setattr(endpoints.engine, "limits", dataclasses.replace(LIMITS, max_waiting=2))
    with contextlib.ExitStack() as stack:
        streams = []
        for number in range(LIMITS.slots + 2):
            streams.append(stack.enter_context(streamed(url, max_tokens=3)))
            until(lambda number=number: sum(endpoints.engine.counts()) == number + 1)
        refused = httpx.post(f"{url}/v1/completions", json={"prompt": "the"})
        assert refused.status_code == 503 and int(refused.headers["Retry-After"]) > 0
        assert "2 requests are waiting already (--max_waiting)" in refused.json()["error"]["message"]
        gate.set()
        assert all(stream.read().endswith(b"data: [DONE]\n\n") for stream in streams)
    assert httpx.post(f"{url}/v1/completions", json={"prompt": "the"}).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_ends_when_its_time_is_over(gated, stream, monkeypatch):
    url, endpoints, gate = gated
    monkeypatch.setattr(endpoints.engine, "limits", dataclasses.replace(LIMITS, timeout=0.2))
    threading.Timer(0.5, gate.set).start()
    with streamed(url, stream=stream) as got:
        text = got.read().decode()
    assert got.status_code == (200 if stream else 504)
    assert "the request took longer than 0.2 s (--timeout)" in text and "[DONE]" not in text


def test_an_error_of_the_engine_ends_its_answers_and_nothing_else(language_server, monkeypatch):
    url, endpoints = language_server
    decode = endpoints.engine._decode
    expected = httpx.post(f"{url}/v1/completions", json={"prompt": "the", "temperature": 0}).json()["choices"]

    def fail():
        endpoints.engine._decode = decode
        raise MemoryError("full")

    monkeypatch.setattr(endpoints.engine, "_decode", fail)
    got = httpx.post(f"{url}/v1/completions", json={"prompt": "the"})
    assert got.status_code == 500 and "the answer failed" in got.json()["error"]["message"]
    assert httpx.post(f"{url}/v1/completions", json={"prompt": "the", "temperature": 0}).json()["choices"] == expected


def test_requests_without_the_key_are_refused(foundation):
    with served(foundation, access=Access("secret", ("127.0.0.1",))) as (url, _):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            got = httpx.post(f"{url}/v1/completions", json={"prompt": "the"}, headers=headers)
            assert got.status_code == 401 and got.json()["error"]["code"] == "invalid_api_key"
            assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 401
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
        assert openai.OpenAI(base_url=f"{url}/v1", api_key="secret").models.list().data[0].id == "run"
        assert httpx.get(f"{url}/health").status_code == httpx.get(url).status_code == 200
        assert httpx.get(f"{url}/health", headers={"Host": "evil.example"}).status_code == 400
        refused = httpx.post(f"{url}/v1/completions", json={}, headers={"Sec-Fetch-Site": "cross-site"})
        assert refused.status_code == 403


@pytest.mark.integration
def test_eight_devices_write_what_one_writes(foundation, language_server):
    body = {"prompt": "the cat", "max_tokens": 20, "temperature": 0}
    expected = post(language_server, "/v1/completions", body).json()["choices"]
    with visible_devices(8), served(foundation, devices=8) as (url, endpoints):
        assert endpoints.engine.language_model.mesh.size == 8
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"] == expected
