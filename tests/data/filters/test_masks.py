import time

import pytest

from configs.errors import UserError
from data.filters.masks import MASKS, mask

PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA7\nabc+/=\n-----END RSA PRIVATE KEY-----"
# Put together here, so that no scanner of repositories takes them for keys.
KEYS = {
    "AWS": "AKIA" + "IOSFODNN7EXAMPLE",
    "AWS, temporary": "ASIA" + "IOSFODNN7EXAMPLE",
    "GitHub": "ghp_" + "a1B2" * 9,
    "GitHub, fine-grained": "github_pat_" + "11ABCDE0Y0" + "_" + "z" * 40,
    "Google": "AIza" + "Sy-D_x9" * 5,
    "OpenAI": "sk-" + "A1b2" * 12,
    "OpenAI, project": "sk-" + "proj-" + "A1b2_-" * 8,
    "Slack": "xoxb-" + "123456789012-abcdefGHIJ",
    "Stripe": "sk_" + "live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "npm": "npm_" + "a1B2" * 9,
    "Hugging Face": "hf_" + "abcdefGHIJ" * 3 + "klmn",
    "JWT": "eyJ" + "hbGciOiJIUzI1NiJ9" + ".eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0" + ".dozjgNryP4J3jVmNHl0w5N",
    "PEM": PEM,
    "PEM, cut": PEM.split("-----END")[0].rstrip(),
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_a_key_is_masked(key):
    assert mask(f"key = {key}", MASKS) == ("key = <KEY>", {"keys": 1})
    assert mask(f'"{key}", and more', MASKS)[0].startswith('"<KEY>')


@pytest.mark.parametrize("name", ["AWS", "GitHub", "Stripe", "npm"])
def test_a_key_in_emphasis_is_masked(name):
    assert mask(f"the key _{KEYS[name]}_ is mine", MASKS) == ("the key _<KEY>_ is mine", {"keys": 1})
    assert mask(f"x{KEYS[name]}", MASKS)[1] == {}


@pytest.mark.parametrize(
    "text",
    [
        "sk-learn and task-oriented work; sk-learn-contrib-experimental-modules-for-science",
        "xoxo, my dear", "AKIA is short", "an hf_token variable", "the -----BEGIN CERTIFICATE----- of a page",
        "PRIVATE KEY handling", "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY----- begins a key and its lines", "ghp_short", "AIzawa-san",
    ],
)  # fmt: skip
def test_what_only_looks_like_a_key_stays(text):
    assert mask(text, MASKS) == (text, {})


@pytest.mark.parametrize(
    "address",
    [
        "ann@example.com", "ann.lee+news@mail.example.co.uk", "a_b-c@x-y.org", "jürgen@example.de", "ANN@EXAMPLE.COM",
        "ju\u0308rgen@example.de", "иван@example.com", "ann@example.xn--p1ai",
    ],
)  # fmt: skip
def test_an_email_address_is_masked(address):
    assert mask(f"Write to {address}, please.", MASKS) == ("Write to <EMAIL>, please.", {"emails": 1})
    assert mask(f"<{address}>", ["emails"])[0] == "<<EMAIL>>"
    assert mask(address, ["ips", "keys"]) == (address, {})


@pytest.mark.parametrize("text", ["_{}_", "{}--he said", "see {}- and", "{}_", "*{}*"])
def test_an_email_address_ends_before_punctuation_of_markup(text):
    assert mask(text.format("ann@example.com"), ["emails"])[1] == {"emails": 1}
    assert "example" not in mask(text.format("ann@example.com"), ["emails"])[0]


SECRETS = {"emails": ("ann@example.com", "<EMAIL>"), "ips": ("8.8.8.8", "<IP>"), "keys": (KEYS["AWS"], "<KEY>")}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize(
    "text", ["请发到{}联系我们", "邮箱{}。", "メールは{}まで", "이것은{}입니다", "...{}", "-{}", "「{}」"]
)
def test_a_secret_without_spaces_around_it_is_masked_alone(kind, text):
    secret, replacement = SECRETS[kind]
    assert mask(text.format(secret), MASKS) == (text.format(replacement), {kind: 1})


@pytest.mark.parametrize(
    "text",
    [
        "@ann said", "ann@localhost", "user@", "3 @ 4.50", "@property", "git@host:x.git",
        # Nothing tells where this name begins; domains are ASCII.
        "张三@example.com", "ann@例え.jp",
    ],
)  # fmt: skip
def test_what_is_no_email_address_stays(text):
    assert mask(text, MASKS) == (text, {})


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "1.1.1.1", "2001:4860:4860::8888", "2606:4700::1111"])
def test_a_public_ip_address_is_masked(address):
    assert mask(f"from {address}.", MASKS) == ("from <IP>.", {"ips": 1})
    assert mask(f"({address}) at http://{address}/x", MASKS)[1] == {"ips": 2}


@pytest.mark.parametrize("before", ["dev ", "recv: ", "srv=", "Nov ", "prev ", "addr:", "node:"])
def test_an_ip_address_after_a_word_that_is_not_version_is_masked(before):
    for address in ("8.8.8.8", "2606:4700:4700::1111"):
        assert mask(f"{before}{address}", MASKS) == (f"{before}<IP>", {"ips": 1})


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1", "192.168.1.20", "172.16.3.4", "127.0.0.1", "0.0.0.0", "169.254.1.1", "255.255.255.255", "::1",
        "192.0.2.7", "fe80::1", "version 1.2.3.4", "v1.2.3.4", "Chrome/96.0.46.64", "1.2.3.4.5", "300.1.2.3",
        "release 8.8.4.4", "a::b of C++ std::vector::size", "12:30:45", "Firmware: 9.9.9.9", "section 1.2.3",
        "x8.8.8.8", "0.8.8.8.8-beta", "v 8.8.8.8", "V. 8.8.8.8", "app_version=8.8.8.8", "fe80:2001:4860::8888",
    ],
)  # fmt: skip
def test_a_private_address_or_version_number_stays(text):
    assert mask(text, MASKS) == (text, {})


@pytest.mark.parametrize(
    "part", ["eyJaaaaaaaaaa-", "-----BEGIN PRIVATE KEY-----", "a.-", ".", "a@", "a@a-", "8.8.8.", "2606:", "sk-proj-a"]
)
def test_long_text_takes_time_in_proportion_to_its_length(part):
    start = time.process_time()
    mask(part * (300_000 // len(part)), MASKS)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("after", [" The next paragraph\nis about something else", ", which was shown", ""])
def test_of_a_key_that_is_cut_only_its_lines_are_masked(after):
    key = "-----BEGIN PRIVATE KEY-----\n" + "\n".join(["MIIEowIBAAKCAQEA7" * 4] * 3)
    assert mask(f"{key}{after}", MASKS) == (f"<KEY>{after}", {"keys": 1})


def test_only_the_named_kinds_are_masked():
    text = f"{KEYS['AWS']} ann@example.com 8.8.8.8"
    assert mask(text, ["emails"]) == (f"{KEYS['AWS']} <EMAIL> 8.8.8.8", {"emails": 1})
    assert mask(text, ["ips", "keys"]) == ("<KEY> ann@example.com <IP>", {"keys": 1, "ips": 1})
    assert mask(text, []) == (text, {})


def test_an_unknown_kind_is_named():
    with pytest.raises(UserError, match="mask='phones' is unknown; expected some of keys, emails, ips"):
        mask("x", ["phones"])


def test_masking_again_changes_nothing():
    text = " ".join([*KEYS.values(), "ann@example.com", "8.8.8.8"])
    once, counts = mask(text, MASKS)
    assert counts["keys"] >= len(KEYS) - 1
    assert mask(once, MASKS) == (once, {})
