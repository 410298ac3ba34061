"""Addresses of data that is elsewhere, and what of them may be kept or shown.

A signed address (`https://HOST/a.tar?X-Amz-Signature=...`) or one with a password (`s3://KEY:SECRET@BUCKET/a.tar`) lets
anyone who reads it fetch the data. Which part of a query is secret depends on the server, so all of it is left out:
recipes, cards, states, reports, logs and errors hold scheme, host and path and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

_REST = r"(?:[^\s\"'<>]++|[\"'<>](?=[\w=&%+/@-]))*+"
"""Up to a blank or a closing quote; one in the middle of a word closes nothing."""
_USER = r"(?:[^\n/:@]{0,64}+:(?!//|\d+(?:[^\w@]|$))(?=\S)[^\n@]{1,1024}@)?"
"""User and password, which may hold whatever somebody typed: blanks, quotes, slashes. Digits alone are a port."""
_ADDRESS = re.compile(rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{{0,20}}://){_USER}(?P<rest>{_REST})")
_NEARLY = re.compile(
    rf"(?P<scheme>(?:\b(?:https?|ftps?|s3|gs|gcs|abfss?|az|hf):[/\\]{{1,3}}|(?<![\w:/\\])(?://|\\\\)(?=[^\s/\\]*@))"
    rf"(?![/\\])){_USER}(?P<rest>{_REST})",
    re.IGNORECASE,
)
"""An address with a slash too few or too many, or without a scheme, as somebody may type one."""
_ENCODED = re.compile(rf"\b[A-Za-z][A-Za-z0-9+.-]{{0,20}}%(?:25)*3A(?:%(?:25)*2F){{2}}{_REST}", re.IGNORECASE)
"""An address within an address."""
_INNER = re.compile(r"://[^/@]*+@")
"""The user of an address that stands in the path of another."""
_LOOSE = re.compile(rf"(?<![\w.+-])[\w.+-]++:[^\s@/:\"'<>]++@(?=\w)|(?<=\S)[?;][\w.~-]++={_REST}")
"""A user with a password, or a query, without anything that makes an address of it."""
_COMMAND = re.compile(r"(?:^\s*pipe:\s*|\bpipe:)(?=\S)[^\n]*(?:\n\s*-[^\n]*)*", re.IGNORECASE)
"""What WebDataset takes for a source: a command line, with keys in it as often as not."""
_WHOLE = re.compile(
    r"(?P<scheme>\s*(?:[\w+.-]+::)*[A-Za-z][A-Za-z0-9+.-]{0,20}://)"
    r"(?P<user>[^/:@]*+:(?!\d+(?:[^\w@]|$))[^@]+@)?"
)
"""The beginning of a text that is one address."""
_BEHIND = re.compile(r"[?#;]|%(?:25)*(?:3F|23|3B)(?=[^/]*(?:=|%3D))", re.IGNORECASE)
"""Where a path ends and what may be secret begins."""


def is_address(text: str) -> bool:
    """Whether a pattern of shards is an address rather than a path."""
    return _ADDRESS.match(text) is not None


def host(address: str) -> str:
    """The host or bucket of an address, without user and port."""
    found = _ADDRESS.match(bare(address))
    return _authority(found["rest"]).partition(":")[0] if found else ""


def without_secrets(tree: Any) -> Any:
    """Plain data or a text with every address in it cut to scheme, host and path.

    User and password, query and fragment go; text that holds no address comes back as it is. In plain data, a text
    that begins with an address is one (see `bare`).
    """
    if isinstance(tree, str):
        return _cut(tree) if ":" in tree or "=" in tree or "@" in tree or "%" in tree else tree
    if isinstance(tree, Mapping):
        return {_kept(key): _kept(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_kept(value) for value in tree]
    return tree


def bare(address: str) -> str:
    """A text that is one address as a whole, cut to scheme, host and path: blanks in a query are part of it."""
    text = _ENCODED.sub(lambda found: _unquoted(found[0]), address)
    if found := _WHOLE.match(text):
        behind = _BEHIND.search(text, found.end())
        text = found["scheme"] + text[found.end() : behind.start() if behind else None]
    return _cut(text)


def redact(text: str, address: str) -> str:
    """What a library said of an address, without its secrets, also where it quotes them apart from the address."""
    found = _WHOLE.match(address)
    head, _, query = address[found.end() if found else 0 :].partition("?")
    user = ((found and found["user"]) or _user(head)).rstrip("@")
    secrets = {query, *(value for _, value in parse_qsl(query, keep_blank_values=True)), *user.split(":", 1)}
    secrets |= {pair.partition("=")[2] for pair in query.split("&")}
    secrets |= {unquote(secret) for secret in secrets} | {json.dumps(secret)[1:-1] for secret in secrets}
    secrets |= (
        {repr(secret)[1:-1] for secret in secrets}
        | {secret.replace("'", "\\'") for secret in secrets}
        | {quote(secret, safe="/") for secret in secrets}
    )
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= 4:
            text = text.replace(secret, "***")
    return without_secrets(text)


def _kept(value: Any) -> Any:
    return bare(value) if isinstance(value, str) else without_secrets(value)


def _cut(text: str) -> str:
    text = _ENCODED.sub(lambda found: bare(_unquoted(found[0])), _COMMAND.sub("pipe:...", text))
    return _LOOSE.sub("", _ADDRESS.sub(_bare, _NEARLY.sub(_bare, text)))


def _bare(found: re.Match[str]) -> str:
    kept = _BEHIND.split(found["rest"], maxsplit=1)[0]
    user = _user(kept)
    return found["scheme"] + _INNER.sub("://", kept[len(user) + 1 :] if user else kept)


def _unquoted(text: str) -> str:
    while (plain := unquote(text)) != text and not is_address(text):
        text = plain
    return text


def _user(rest: str) -> str:
    """`USER` or `USER:PASSWORD` before a host; empty where there is none.

    A password may hold a slash (the secret keys of S3 do), which a parser of addresses takes for the end of the host.
    """
    authority = _authority(rest)
    if "@" in authority:
        return authority.rpartition("@")[0]
    _, colon, port = authority.partition(":")
    return rest.rpartition("@")[0] if colon and not port.isdigit() and "@" in rest else ""


def _authority(rest: str) -> str:
    return re.split(r"[/?#]", rest, maxsplit=1)[0]
