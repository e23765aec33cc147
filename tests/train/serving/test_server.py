"""The command: what it refuses, how it starts and ends, and its page in a real browser."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import httpx
import pytest

from configs.errors import UserError
from tests.runs import ROOT, error_lines, process_environment, rootstock
from tests.train.serving.conftest import served
from tests.train.serving.test_predictions import classifier  # noqa: F401 - a fixture
from train.serving.app import Access
from train.serving.server import Address, listen

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.parametrize(
    ("address", "is_loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.8.8.8", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.4", False), ("example.org", False), ("localhost.example.org", False)],
)  # fmt: skip
def test_only_loopback_needs_no_key(address, is_loopback, foundation):
    assert Address(address).is_loopback == is_loopback
    if not is_loopback:
        done = rootstock("serve", f"--run={foundation}", f"--host={address}", "--port=0", devices=1, check=False)
        assert done.returncode == 1
        assert f"--host={address} can be reached from other machines; set --api_key" in error_lines(done)[0]


def test_a_port_that_is_taken_is_one_clear_line(foundation):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = rootstock("serve", f"--run={foundation}", f"--port={port}", devices=1, check=False)
    assert done.returncode == 1
    assert error_lines(done) == [
        f"rootstock: error: --host=127.0.0.1 --port={port}: cannot listen there: Address already in use"
    ]


def test_an_unknown_host_is_one_clear_line():
    with pytest.raises(UserError, match=r"--host=no\.such\.host\.invalid --port=0: cannot listen there"):
        listen(Address("no.such.host.invalid", 0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--run=nowhere"], "nowhere"),
        (["--run={run}", "--api_key=a b"], "--api_key must be printable ASCII without spaces"),
        (["--run={run}", "--slots=0"], "slots"),
        (["--run={run}", "--timeout=0"], "timeout"),
        (["--run={run}", "--port=70000"], "port"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(arguments, message, foundation):
    done = rootstock("serve", *(each.format(run=foundation) for each in arguments), devices=1, check=False)
    assert done.returncode in (1, 2) and len(error_lines(done)) == 1 and message in error_lines(done)[0]


@pytest.mark.integration
def test_flags_of_language_models_are_refused_for_task_heads(classifier):  # noqa: F811
    for flag in ("--template=chatml", "--cache_dtype=int8"):
        done = rootstock("serve", f"--run={classifier}", flag, "--port=0", devices=1, check=False)
        assert done.returncode == 1 and f"{flag} has no effect" in error_lines(done)[0]


@pytest.mark.integration
def test_the_page_escapes_the_name_and_loads_nothing_from_outside(foundation, tmp_path):
    run = tmp_path / "a<b>&'\"c"
    shutil.copytree(foundation, run)
    with served(run) as (url, _):
        got = httpx.get(url)
    assert "<b>" not in got.text and "{{" not in got.text and "a&lt;b&gt;&amp;&#x27;&quot;c" in got.text
    policy = got.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert "http://" not in got.text and "https://" not in got.text and "src=" not in got.text


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("busy", [True, False], ids=["while it answers", "idle"])
def test_a_signal_ends_the_server_cleanly(foundation, number, busy):
    environment = process_environment() | {"ROOTSTOCK_API_KEY": "secret"}
    command = [sys.executable, "-m", "train", "serve", f"--run={foundation}", "--port=0", "--max_length=48"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    lines: list[str] = []
    while "is the page" not in (lines or [""])[-1]:
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    url = lines[-1].split()[1]
    headers = {"Authorization": "Bearer secret"}
    assert httpx.get(f"{url}v1/models").status_code == 401
    body = {"prompt": "the", "max_tokens": 40, "temperature": 0, "stream": True}
    answers = []

    def ask():
        answers.append(httpx.post(f"{url}v1/completions", json=body, headers=headers, timeout=60).text)

    thread = threading.Thread(target=ask)
    if busy:
        thread.start()
        while not httpx.get(f"{url}health").json()["running"] and not answers:
            pass
    os.kill(process.pid, number)
    _, rest = process.communicate(timeout=60)
    if busy:
        thread.join()
        assert answers[0].endswith("data: [DONE]\n\n")
    assert process.returncode == 0 and "Traceback" not in "".join(lines) + rest
    assert rest.splitlines()[-1] == "serve: stopped"


@pytest.fixture
def page():
    """A page of a real browser; errors of scripts and of the page's policy fail the test."""
    playwright = pytest.importorskip("playwright.sync_api")
    if not BROWSER:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as runner:
        browser = runner.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        found = browser.new_page()
        errors: list[str] = []
        found.on("pageerror", lambda error: errors.append(str(error)))
        found.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        yield found
        # The browser's own note about a request that the server refused.
        errors = [error for error in errors if "Failed to load resource" not in error]
        browser.close()
    assert not errors


def expect(page, selector, text):
    """Waits until an element contains a text; the page's policy forbids conditions in JavaScript."""
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(text, timeout=30_000)


@pytest.mark.slow
def test_a_text_grows_on_the_page(foundation, page):
    with served(foundation) as (url, _):
        page.goto(url)
        page.fill("textarea", "the <b>cat</b> ")
        page.fill("#temperature", "0")
        page.fill("#max_tokens", "24")
        page.click("#send")
        expect(page, "#status", "24 tokens in")
        expected = httpx.post(
            f"{url}/v1/completions", json={"prompt": "the <b>cat</b> ", "temperature": 0, "max_tokens": 24}
        ).json()["choices"][0]["text"]
        assert page.text_content("#log") == "the <b>cat</b> " + expected
        assert page.query_selector("#log b") is None
        page.fill("#max_tokens", "999")
        page.click("#send")
        expect(page, "#error", "max_tokens=999 must be at most 40 (--max_tokens)")


@pytest.mark.slow
def test_the_page_asks_for_the_key(foundation, page):
    with served(foundation, access=Access("secret")) as (url, _):
        page.goto(url)
        page.fill("textarea", "the cat")
        page.fill("#max_tokens", "5")
        page.fill("#key", "secret")
        page.click("#send")
        expect(page, "#status", "5 tokens in")


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_the_page_shows_the_classes_with_their_probabilities(classifier, page):  # noqa: F811
    with served(classifier) as (url, _):
        page.goto(url)
        page.fill("textarea", "the cat sat on a mat")
        page.click("#send")
        page.wait_for_selector(".class")
        shown = [line.split("\n") for line in page.locator(".class").all_inner_texts()]
        (answer,) = httpx.post(f"{url}/predict", json={"inputs": ["the cat sat on a mat"]}).json()["predictions"]
    assert [(line[0], line[-1]) for line in shown] == [
        (each["label"], f"{100 * each['probability']:.1f} %") for each in answer["classes"]
    ]
