"""Addresses of data that lies elsewhere, and what of them may be kept or shown.

A signed address (`https://HOST/a.tar?X-Amz-Signature=...`) or one with a password (`s3://KEY:SECRET@BUCKET/a.tar`) lets
whoever reads it fetch the data. Which part of a query is secret depends on the server, so all of it is left out:
recipes, cards, states, reports, logs and errors hold scheme, host and path and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote

_ADDRESS = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]{0,20}://)(?P<rest>[^\s\"'<>]*)")
_NEARLY = re.compile(
    r"(?P<scheme>\b(?:https?|ftps?|s3|gs|gcs|abfss?|az|hf):[/\\]{1,3}(?![/\\]))(?P<rest>[^\s\"'<>]*)", re.IGNORECASE
)
"""An address with a slash too few or too many, as somebody may type one."""
_COMMAND = re.compile(r"\bpipe:(?=\S)[^\n]*")
"""What WebDataset takes for a source: a command line, with keys in it as often as not."""


def is_address(text: str) -> bool:
    """Whether a pattern of shards is an address rather than a path."""
    return _ADDRESS.match(text) is not None


def host(address: str) -> str:
    """The host or bucket of an address, without user and port."""
    found = _ADDRESS.match(without_secrets(address))
    return _authority(found["rest"]).partition(":")[0] if found else ""


def without_secrets(tree: Any) -> Any:
    """Plain data or a text with every address in it cut to scheme, host and path.

    User and password, query and fragment go; text that holds no address comes back as it is.
    """
    if isinstance(tree, str):
        return _ADDRESS.sub(_bare, _COMMAND.sub("pipe:...", _NEARLY.sub(_bare, tree))) if ":" in tree else tree
    if isinstance(tree, Mapping):
        return {without_secrets(key): without_secrets(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_secrets(value) for value in tree]
    return tree


def redact(text: str, address: str) -> str:
    """What a library said of an address, without its secrets, also where it quotes them apart from the address."""
    rest = address.partition("://")[2]
    head, _, query = rest.partition("?")
    user = _user(head)
    secrets = {query, *(value for _, value in parse_qsl(query, keep_blank_values=True)), *user.split(":", 1)}
    secrets |= {pair.partition("=")[2] for pair in query.split("&")}
    for secret in sorted(secrets | {unquote(secret) for secret in secrets}, key=len, reverse=True):
        if len(secret) >= 4:
            text = text.replace(secret, "***")
    return without_secrets(text)


def _bare(found: re.Match[str]) -> str:
    kept = re.split(r"[?#;]", found["rest"], maxsplit=1)[0]
    user = _user(kept)
    return found["scheme"] + (kept[len(user) + 1 :] if user else kept)


def _user(rest: str) -> str:
    """`USER` or `USER:PASSWORD` in front of a host; empty where there is none.

    A password may hold a slash (the secret keys of S3 do), which a parser of addresses takes for the end of the host.
    """
    authority = _authority(rest)
    if "@" in authority:
        return authority.rpartition("@")[0]
    _, colon, port = authority.partition(":")
    return rest.rpartition("@")[0] if colon and not port.isdigit() and "@" in rest else ""


def _authority(rest: str) -> str:
    return re.split(r"[/?#]", rest, maxsplit=1)[0]
