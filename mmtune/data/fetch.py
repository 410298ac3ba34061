"""One file from an address onto this machine's disk, at a bounded cost.

Bytes and time are limited while they come: a source that sends more than it may is cut off, and one that sends less
than `PACE` in `SILENCE` seconds is given up, however often it sends a byte. A redirect obeys the rules of the address
that it comes from: no other scheme, and none from a public host into a private network.

https is read by the standard library, everything else through fsspec, with the credentials that its packages find.
"""

from __future__ import annotations

import hashlib
import ipaddress
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib import error as web_errors
from urllib import request
from urllib.parse import urlsplit

from mmtune import disk
from mmtune.addresses import bare, redact
from mmtune.errors import MmtuneError, UsageError

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub", "memory": "fsspec"}
"""Schemes that go through fsspec, and the package that each needs."""
SCHEMES = (*PACKAGES, "https", "http")
WAITS = (0.0, 1.0, 4.0, 15.0)
"""Seconds before each try to fetch something."""
SILENCE = 60.0
"""Seconds in which at least `PACE` bytes have to come, or the end of the file."""
PACE = 1 << 18
"""Bytes; 256 KiB in a minute is a slow telephone line, and a shard of 1 GB would take days."""
HOPS = 5
"""Most redirects followed for one file."""
CHUNK = 1 << 20
LOCAL = ("localhost", "127.0.0.1", "::1")
_NUMBER = re.compile(r"^https?://\[[0-9A-Fa-f:.]+\]")
"""The one place in an address where `::` does not chain file systems."""


def check(url: str) -> None:
    """Refuse an address that is not read. Raises UsageError."""
    scheme = url.partition(":")[0]
    if scheme not in SCHEMES or "::" in _NUMBER.sub("", url) or "://" not in url:
        raise UsageError(
            seen=f"{bare(url)}: a remote source that is not read",
            expected=f"a path, or one of {', '.join(f'{name}://' for name in SCHEMES)}",
            hint="copy the shards to a disk of this machine, then give their path",
        )
    if scheme == "http" and urlsplit(url).hostname not in LOCAL:
        raise UsageError(
            seen=f"{bare(url)}: an address without encryption",
            expected="https, or http on this machine",
            hint="https://...",
        )


def system(url: str) -> tuple[Any, str]:
    """File system of fsspec, and the path in it. Raises UsageError where the package for it is not installed."""
    from fsspec.core import url_to_fs

    scheme = url.partition(":")[0]
    try:
        return url_to_fs(url)
    except ImportError as error:
        raise UsageError(
            seen=f"{scheme}:// without the package {PACKAGES[scheme]}: {error}",
            expected="the package that reads it",
            hint=f"pip install {PACKAGES[scheme]}",
        ) from error


def fetch(url: str, to: Path, most: int) -> str:
    """Fetch a file of at most `most` bytes; gives its sha256 in hex.

    A thread reads while this one watches the clock: no time-out of a library ends a source that sends a byte a minute.

    Raises what the source raises, FileNotFoundError where nothing is, TimeoutError for a source that is too slow, and
    MmtuneError when more comes.
    """
    pieces: queue.Queue[bytes | Exception | None] = queue.Queue(maxsize=4)
    given_up = threading.Event()
    threading.Thread(target=_read, args=(url, pieces, given_up), name="mmtune-fetch", daemon=True).start()
    total, left = hashlib.sha256(), most
    try:
        with disk.create(to) as file:
            for piece in _at_pace(pieces):
                left -= len(piece)
                if left < 0:
                    raise MmtuneError(
                        seen=f"{bare(url)} sends more than {most:,} bytes",
                        expected="what its index says, and no more than the cache may hold",
                        hint="make the index again where the shard lies; MMTUNE_CACHE_GB is the limit of the cache",
                    )
                total.update(piece)
                file.write(piece)
    finally:
        given_up.set()
    return total.hexdigest()


def _at_pace(pieces: queue.Queue[bytes | Exception | None]) -> Iterator[bytes]:
    """What arrives, as long as it arrives quickly enough."""
    begun, came = time.monotonic(), 0
    while True:
        try:
            piece = pieces.get(timeout=max(0.01, begun + SILENCE - time.monotonic()))
        except queue.Empty:
            piece = b""
        if piece is None:
            return
        if isinstance(piece, Exception):
            raise piece
        yield piece
        came += len(piece)
        if time.monotonic() - begun >= SILENCE:
            if came < PACE and pieces.empty():  # or it is our own disk that is slow
                raise TimeoutError(f"{came} bytes in {SILENCE:.0f} s, and at least {PACE} are waited for")
            begun, came = time.monotonic(), 0


def _read(url: str, pieces: queue.Queue[bytes | Exception | None], given_up: threading.Event) -> None:
    """Thread: hand over what a source sends, then None, or what went wrong."""

    def put(item: bytes | Exception | None) -> None:
        while not given_up.is_set():
            with suppress(queue.Full):
                pieces.put(item, timeout=0.2)
                return

    try:
        with _opened(url) as source:
            while not given_up.is_set() and (piece := source.read(CHUNK)):
                put(piece)
        put(None)
    except Exception as error:  # the thread that waits raises it
        put(error)


@contextmanager
def _opened(url: str) -> Iterator[Any]:
    if url.partition(":")[0] not in ("http", "https"):
        files, path = system(url)
        # a block is asked for at once; one of the usual 5 MiB would look like silence on a slow line
        with files.open(path, "rb", block_size=CHUNK) as file:
            yield file
        return
    opener = request.build_opener(_Redirects(url))
    try:
        with opener.open(request.Request(url, headers={"User-Agent": "mmtune"}), timeout=SILENCE) as answer:
            length = answer.headers.get("Content-Length")
            yield _Counted(answer, int(length) if length else None)
    except web_errors.HTTPError as error:
        if error.code in (404, 410):
            raise FileNotFoundError(bare(url)) from error
        if error.code in (401, 403):
            raise PermissionError(f"{error.code} {error.reason}") from error
        raise


class _Counted:
    """An answer that is as long as it said it would be: a connection that is cut looks like an end."""

    def __init__(self, answer: Any, length: int | None) -> None:
        self._answer, self._left = answer, length

    def read(self, size: int) -> bytes:
        data = self._answer.read1(size)  # what is there; `read` would wait until `size` bytes have come
        if self._left is not None:
            self._left -= len(data)
            if not data and self._left > 0:
                raise ConnectionError(f"cut off, {self._left} bytes before its end")
        return data


class _Redirects(request.HTTPRedirectHandler):
    """Follows what the address that was asked for could have named itself."""

    max_redirections = HOPS

    def __init__(self, url: str) -> None:
        self._scheme = urlsplit(url).scheme
        self._public = _is_public(url)

    def redirect_request(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> request.Request | None:
        split = urlsplit(newurl)
        why = ""
        if split.scheme != self._scheme or (split.scheme == "http" and split.hostname not in LOCAL):
            why = f"{self._scheme} leads to {split.scheme or 'nothing'}"
        elif self._public and not _is_public(newurl):
            why = "a public host leads into a private network"
        if why:
            raise UsageError(
                seen=f"{bare(req.full_url)} is redirected to {bare(newurl)}: {why}",
                expected=f"a redirect within {self._scheme}, and none from a public host into a private network",
                hint="give the address that it leads to, where you trust it",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_public(url: str) -> bool:
    """Whether every machine that a host name stands for can be reached from anywhere; one without any is not."""
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname or "", None, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError, ValueError):
        return False
    numbers = [ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found]
    return bool(numbers) and all(_is_open(number) for number in numbers)


def _is_open(number: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Global, and no other spelling of a number that is not: IPv4 inside IPv6, 6to4, NAT64."""
    if isinstance(number, ipaddress.IPv6Address):
        inner = number.ipv4_mapped or number.sixtofour
        if inner is None and number in ipaddress.ip_network("64:ff9b::/96"):
            inner = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
        if inner is not None:
            return _is_open(inner)
    return number.is_global and not number.is_multicast


def tried(url: str, work: Callable[[], Any], waits: tuple[float, ...] = WAITS) -> Any:
    """Do something with an address, again after a while when it fails.

    Raises FileNotFoundError at once, and MmtuneError in the end.
    """
    for wait in waits:
        time.sleep(wait)
        try:
            return work()
        except (FileNotFoundError, MmtuneError):
            raise
        except PermissionError as error:
            last: Exception = error
            break
        except Exception as error:  # each source has classes of its own; a full disk here is among them
            if isinstance(error, OSError) and error.errno in (28, 122):  # ENOSPC, EDQUOT
                raise
            last = error
    why = f"timed out: {last}" if isinstance(last, TimeoutError) else f"{type(last).__name__}: {last}"
    tries = "not allowed" if isinstance(last, PermissionError) else f"{len(waits)} tries over {sum(waits):.0f} s"
    signed = "; a signature that was given with the address is not kept, so give the address again"
    raise MmtuneError(
        seen=f"{bare(url)} cannot be fetched, {tries}: {redact(why, url)}",
        expected="a source that answers",
        hint="check network, address and credentials; a run goes on with --resume"
        + (signed if isinstance(last, PermissionError) else ""),
    ) from None  # what the library raised may quote the whole address
