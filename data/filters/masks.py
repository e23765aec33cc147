"""Masks of what names a person or opens a door: e-mail addresses, public IP addresses, keys and tokens."""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterable

from configs.errors import UserError

# Letters of local parts: Latin, Greek and Cyrillic. Chinese, Japanese and Korean text stands next to an address without
# a space, so its letters end one.
_LOCAL = r"A-Za-z0-9_\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0300-\u036f\u0386\u0388-\u03ff\u0400-\u052f\u1e00-\u1fff"
# Marks before the address are matched too, so that a long run of them is searched only once.
_EMAIL = re.compile(
    rf"(?<![{_LOCAL}.+-])([.+-]*)[{_LOCAL}][{_LOCAL}.+-]*"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+(?:xn--[A-Za-z0-9-]*[A-Za-z0-9]|[A-Za-z]{2,})(?![A-Za-z0-9])"
)
# A pattern that starts with a character is searched for much faster than one that starts with a look-behind, so what
# stands before a match is checked afterwards.
_IPV4 = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?![A-Za-z0-9_]|\.[0-9])")
_IPV6 = re.compile(r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{1,33}(?:[0-9A-Fa-f]|::)(?!:?[A-Za-z0-9_])")
# Outside of it, "a::b" of a program would be an address.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
# "version 1.2.3.4" and "Chrome/1.2.3.4" are versions, even though the numbers are those of an address.
_VERSION_BEFORE = re.compile(
    r"(?:version|release|build|firmware|(?<![A-Za-z0-9])v\.?|[A-Za-z]/)\s*[:=]?\s*$", re.IGNORECASE
)
_PART_BEFORE = re.compile(r"[A-Za-z0-9_]\.?$")
_GROUP_BEFORE = re.compile(r"(?:(?<![A-Za-z0-9])[0-9A-Fa-f]{1,4}|:):$")
_BEFORE = 16
# A mark of emphasis such as the underscore may stand beside a key, but no letter or digit.
_KEY = re.compile(
    r"""
    -----BEGIN\ (?P<kind>[A-Z0-9 ]*PRIVATE\ KEY(?:\ BLOCK)?)-----
        (?: (?: [^-] | -(?!----) ){0,20000}+ -----END\ (?P=kind)-----   # PEM, complete or cut
        | \s* [A-Za-z0-9+/=]{16,} (?: \s+ [A-Za-z0-9+/=]{16,} )* (?: \s+ [A-Za-z0-9+/=]+ \Z )? )
    | (?<! [^\W_] ) (?:
        (?: AKIA | ASIA ) [0-9A-Z]{16} (?! [^\W_] )                 # AWS
        | gh[pousr]_ [A-Za-z0-9]{36,251} (?! [^\W_] )               # GitHub
        | github_pat_ [A-Za-z0-9_]{22,255} (?! [^\W_] )
        | glpat- [A-Za-z0-9_-]{20,} (?! [\w-] )                     # GitLab
        | AIza [0-9A-Za-z_-]{35} (?! [\w-] )                        # Google
        | ya29\. [0-9A-Za-z_-]{20,}
        | sk- (?: (?: proj | ant | svcacct | admin | or ) - [A-Za-z0-9_-]{20,} | [A-Za-z0-9]{32,} ) (?! [\w-] ) # OpenAI
        | [sr]k_ (?: live | test ) _ [0-9A-Za-z]{20,} (?! [^\W_] )  # Stripe
        | xox [abeprs] - [A-Za-z0-9-]{10,} (?! \w )                 # Slack
        | \b hf_ [A-Za-z]{30,} \b                                   # Hugging Face
        | npm_ [A-Za-z0-9]{36} (?! [^\W_] )
        | eyJ [A-Za-z0-9_-]{10,4000}+ \. eyJ [A-Za-z0-9_-]{10,} \. [A-Za-z0-9_-]{10,}  # JSON web token
      )
    """,
    re.VERBOSE | re.ASCII,
)
# What every key contains: a text without any of these is not searched.
_KEY_PARTS = (
    "PRIVATE KEY", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "AIza", "ya29.",
    "sk-", "k_live_", "k_test_", "xox", "hf_", "npm_", "eyJ",
)  # fmt: skip


def _mask_emails(text: str) -> tuple[str, int]:
    return _EMAIL.subn(r"\1<EMAIL>", text) if "@" in text else (text, 0)


def _mask_keys(text: str) -> tuple[str, int]:
    return _KEY.subn("<KEY>", text) if any(part in text for part in _KEY_PARTS) else (text, 0)


def _mask_addresses(text: str) -> tuple[str, int]:
    count = 0

    def replaced(match: re.Match[str]) -> str:
        nonlocal count
        before = text[max(0, match.start() - _BEFORE) : match.start()]
        is_part = _PART_BEFORE.search(before) or (":" in match[0] and _GROUP_BEFORE.search(before))
        if is_part or _VERSION_BEFORE.search(before) or not _is_public(match[0]):
            return match[0]
        count += 1
        return "<IP>"

    for pattern in (_IPV4, _IPV6):
        text = pattern.sub(replaced, text)
    return text, count


def _is_public(address: str) -> bool:
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return False
    return found.is_global and (found.version == 4 or found in _GLOBAL_UNICAST)


# In this order: an e-mail address may end in an IP address, and a key may contain what looks like an address.
MASKS: dict[str, Callable[[str], tuple[str, int]]] = {
    "keys": _mask_keys,
    "emails": _mask_emails,
    "ips": _mask_addresses,
}


def mask(text: str, kinds: Iterable[str]) -> tuple[str, Counter[str]]:
    """Returns (text with <KEY>, <EMAIL> and <IP> in place of what was found, number of replacements by kind).

    Private, loopback and documentation addresses and version numbers stay.

    Args:
        text: a document.
        kinds: of `MASKS`.

    Raises:
        UserError: a kind is unknown.
    """
    kinds, counts = set(kinds), Counter[str]()
    if unknown := sorted(kinds - set(MASKS)):
        raise UserError(f"mask={unknown[0]!r} is unknown; expected some of {', '.join(MASKS)}")
    for kind, replace in MASKS.items():
        if kind in kinds:
            text, counts[kind] = replace(text)
    return text, +counts
