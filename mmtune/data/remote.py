"""Shards that lie elsewhere: fetched whole when they are needed, and kept on a disk of this machine up to a size.

A shard comes with its index, `NAME.tar.index.json` beside it, which says how long it is and which sha256 it has; with
indexes alone a run knows its order before the first shard has arrived. What arrives is compared with that, and only
then gets its name, so a torn or changed shard is never read. When the cache is full, the shard that was used longest
ago goes. Several processes of a machine share one cache.

    MMTUNE_CACHE      folder; ~/.cache/mmtune/shards when not set
    MMTUNE_CACHE_GB   its limit, 100 when not set; it has to hold the shards that are mixed with each other at a time

https is read by the standard library, everything else through fsspec, with the credentials that its packages find.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib import error as web_errors
from urllib import request
from urllib.parse import urlsplit

from mmtune.data import index as indexes
from mmtune.data.index import ShardIndex
from mmtune.errors import MmtuneError, UsageError

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub", "memory": "fsspec"}
"""Schemes that go through fsspec, and the package that each needs."""
SCHEMES = (*PACKAGES, "https", "http")
WAITS = (0.0, 1.0, 4.0, 15.0)
"""Seconds before each try to fetch something."""
SILENCE = 60.0
"""Seconds without a byte after which a try over https is given up."""
CHUNK = 1 << 20
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):")


@dataclass(frozen=True, order=True)
class Remote:
    """A shard that lies elsewhere."""

    url: str

    @property
    def name(self) -> str:
        return self.parts[-1]

    @property
    def parts(self) -> tuple[str, ...]:
        """Host and folders, without what may be secret in an address."""
        split = urlsplit(self.url)
        return (split.hostname or "", *(part for part in split.path.split("/") if part))

    def __str__(self) -> str:
        return f"{self.url.partition(':')[0]}://{'/'.join(self.parts)}"


def find(pattern: str) -> list[Remote] | None:
    """The shards of a pattern without braces; none when it is a path on this machine.

    Raises:
        UsageError: an address of a kind that is not read, or a `*` where nothing lists files.
        MmtuneError: the source cannot be reached.
    """
    scheme = _SCHEME.match(pattern)
    if scheme is None or (len(scheme[1]) == 1 and os.name == "nt"):
        return None
    _check(pattern, scheme[1])
    if not pattern.endswith("/") and "*" not in pattern:
        return [Remote(pattern)]
    if scheme[1] in ("https", "http"):
        raise UsageError(
            seen=f"{Remote(pattern)}: an address that stands for several files",
            expected="the address of each shard, for nothing lists them",
            hint="number them: https://HOST/part-{0000..0041}.tar",
        )
    system, path = _system(pattern, scheme[1])
    path = f"{path.rstrip('/')}/*.tar" if pattern.endswith("/") else path
    found = _tried(str(Remote(pattern)), lambda: system.glob(path))
    if not found:
        raise UsageError(seen=f"{pattern}: nothing is there", expected="tar files", hint="check the address")
    return [Remote(f"{scheme[1]}://{one.lstrip('/')}") for one in sorted(found)]


class Cache:
    """Shards on this machine's disk.

    Args:
        folder: made when needed.
        limit: most bytes of all shards together.
        waits: seconds before each try.
    """

    def __init__(self, folder: Path, limit: int, waits: tuple[float, ...] = WAITS) -> None:
        self.folder, self.limit, self.waits = folder, limit, waits
        self.fetched = 0
        """Shards fetched by this process."""

    def beside(self, remote: Remote) -> Path:
        """Where the index of a shard lies on this machine."""
        return indexes.beside(self._place(remote))

    def index(self, remote: Remote, say: Callable[[str], None] | None = None) -> ShardIndex:
        """The index of a shard: kept here, fetched from beside it, or made from the shard itself.

        Raises DataError for an index that cannot be read, MmtuneError when the source cannot be reached.
        """
        here = self.beside(remote)
        if not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            address, mark, query = remote.url.partition("?")
            beside = f"{address}.index.json{mark}{query}"
            part = here.with_name(f".{here.name}.{os.getpid()}.part")
            try:
                try:
                    _tried(f"{remote}.index.json", lambda: _fetch(beside, part, self.limit), self.waits)
                    ShardIndex.parse(part.read_text(encoding="utf-8"), f"{remote}.index.json")
                    part.replace(here)
                except FileNotFoundError:
                    self._make(remote, here, say)
            finally:
                part.unlink(missing_ok=True)
        return ShardIndex.parse(here.read_text(encoding="utf-8"), str(here))

    def open(self, remote: Remote, index: ShardIndex) -> int:
        """A descriptor of the shard, fetched first where it is not here. It stays good when the shard is thrown out.

        Raises MmtuneError: it cannot be reached, is not what its index says, or is larger than the cache.
        """
        path = self._place(remote)
        while True:
            with suppress(FileNotFoundError):
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                os.utime(path)
                return file
            with self._lock(path.parent / ".lock"):  # one process fetches, others wait
                if not path.exists():
                    self._bring(remote, path, index.bytes, index.sha256)

    def _bring(self, remote: Remote, path: Path, size: int, digest: str) -> None:
        part = path.with_name(f"{path.name}.part")
        self._room(size, remote)
        try:
            for _ in range(2):
                # its length counts against the limit from now on
                with part.open("wb") as file:
                    file.truncate(size)
                found = _tried(str(remote), lambda: _fetch(remote.url, part, size), self.waits)
                if found == digest:
                    with part.open("rb") as file:
                        os.fsync(file.fileno())
                    part.replace(path)
                    self.fetched += 1
                    return
        finally:
            part.unlink(missing_ok=True)
        raise MmtuneError(
            seen=f"{remote} is not what its index says: sha256 {found[:12]} and not {digest[:12]}, twice",
            expected="the shard that was indexed",
            hint=f"make the index anew where the shard lies, and delete {path.parent}",
        )

    def _make(self, remote: Remote, here: Path, say: Callable[[str], None] | None) -> None:
        """Fetch a shard that has no index beside it, and index it."""
        if say:
            say(f"{remote} has no index beside it: fetching all of it, once")
        path = self._place(remote)
        with self._lock(path.parent / ".lock"):
            if here.exists():
                return
            part = path.with_name(f"{path.name}.part")
            try:
                _tried(str(remote), lambda: _fetch(remote.url, part, self.limit), self.waits)
                found = indexes.scan(part)
                found.name = remote.name
                self._room(found.bytes, remote, but=part)
                part.replace(path)
                indexes._write(here, found.dump())
            except FileNotFoundError as error:
                raise UsageError(seen=f"{remote} is not there", expected="a shard", hint="check the address") from error
            finally:
                part.unlink(missing_ok=True)

    def _room(self, size: int, remote: Remote, but: Path | None = None) -> None:
        """Throw out what was used longest ago, until there is room."""
        if size > self.limit:
            raise UsageError(
                seen=f"{remote} has {size:,} bytes, the cache may hold {self.limit:,}",
                expected="room for a shard at least, and better for all that are mixed at a time",
                hint="set MMTUNE_CACHE_GB, or make smaller shards",
            )
        with self._lock(self.folder / ".lock"):
            held = []
            for path in self.folder.glob("*/*.tar*"):
                with suppress(FileNotFoundError):
                    if path.suffix in (".tar", ".part") and path != but:
                        state = path.stat()
                        held.append((state.st_mtime, state.st_size, path))
            total = sum(length for _, length, _ in held)
            for _, length, path in sorted(held):
                if total + size <= self.limit:
                    break
                if path.suffix == ".part" and not _left_over(path):
                    continue
                path.unlink(missing_ok=True)
                total -= length

    def _place(self, remote: Remote) -> Path:
        name = f"{remote.name.removesuffix('.tar')}.tar"  # by which the limit finds it
        return self.folder / hashlib.sha256(remote.url.encode()).hexdigest()[:24] / name

    @contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@functools.cache
def cache() -> Cache:
    """The cache of this machine, as the environment says. Raises UsageError for a limit that is no number."""
    folder = Path(os.environ.get("MMTUNE_CACHE") or Path.home() / ".cache" / "mmtune" / "shards")
    written = os.environ.get("MMTUNE_CACHE_GB") or "100"
    try:
        limit = int(float(written) * 1e9)
    except ValueError as error:
        raise UsageError(seen=f"MMTUNE_CACHE_GB={written}", expected="a number of gigabytes") from error
    return Cache(folder.expanduser(), limit)


def _left_over(part: Path) -> bool:
    """Whether nobody is fetching into this file: its folder's lock is free."""
    with (part.parent / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True


def _check(url: str, scheme: str) -> None:
    if scheme not in SCHEMES or "::" in url or "://" not in url:
        raise UsageError(
            seen=f"{url.partition('?')[0]}: a remote source that is not read",
            expected=f"a path, or one of {', '.join(f'{name}://' for name in SCHEMES)}",
            hint="copy the shards to a disk of this machine, then give their path",
        )
    if scheme == "http" and urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1"):
        raise UsageError(
            seen=f"{Remote(url)}: an address without encryption",
            expected="https, or http on this machine",
            hint="https://...",
        )


def _system(url: str, scheme: str) -> tuple[Any, str]:
    """File system of fsspec, and the path in it."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        raise UsageError(
            seen=f"{scheme}:// without the package {PACKAGES[scheme]}: {error}",
            expected="the package that reads it",
            hint=f"pip install {PACKAGES[scheme]}",
        ) from error


def _fetch(url: str, to: Path, most: int) -> str:
    """Fetch a file of at most so many bytes; gives its sha256 in hex.

    Raises what the source raises, FileNotFoundError where nothing is, and MmtuneError when more comes.
    """
    total, left = hashlib.sha256(), most
    with _opened(url) as source, to.open("wb") as file:
        while chunk := source.read(CHUNK):
            left -= len(chunk)
            if left < 0:
                raise MmtuneError(
                    seen=f"{Remote(url)} sends more than {most:,} bytes",
                    expected="what its index says, and no more than the cache may hold",
                    hint="make the index anew where the shard lies; MMTUNE_CACHE_GB is the limit of the cache",
                )
            total.update(chunk)
            file.write(chunk)
    return total.hexdigest()


@contextmanager
def _opened(url: str) -> Iterator[IO[bytes]]:
    scheme = url.partition(":")[0]
    if scheme not in ("http", "https"):
        system, path = _system(url, scheme)
        with system.open(path, "rb") as file:
            yield file
        return
    try:
        with request.urlopen(request.Request(url, headers={"User-Agent": "mmtune"}), timeout=SILENCE) as answer:
            length = answer.headers.get("Content-Length")
            yield _Counted(answer, int(length) if length else None)
    except web_errors.HTTPError as error:
        if error.code in (404, 410):
            raise FileNotFoundError(url) from error
        if error.code in (401, 403):
            raise PermissionError(f"{error.code} {error.reason}") from error
        raise


class _Counted:
    """An answer that is as long as it said it would be: a connection that is cut looks like an end."""

    def __init__(self, answer: Any, length: int | None) -> None:
        self._answer, self._left = answer, length

    def read(self, size: int) -> bytes:
        data = self._answer.read(size)
        if self._left is not None:
            self._left -= len(data)
            if not data and self._left > 0:
                raise ConnectionError(f"cut off, {self._left} bytes before its end")
        return data


def _tried(name: str, work: Callable[[], Any], waits: tuple[float, ...] = WAITS) -> Any:
    """Do it, again after a while when it fails. Raises FileNotFoundError at once, and MmtuneError in the end."""
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
    why = "timed out" if isinstance(last, (TimeoutError, socket.timeout)) else f"{type(last).__name__}: {last}"
    tries = "not allowed" if isinstance(last, PermissionError) else f"{len(waits)} tries over {sum(waits):.0f} s"
    raise MmtuneError(
        seen=f"{name} cannot be fetched, {tries}: {why}",
        expected="a source that answers",
        hint="check network, address and credentials; a run goes on with --resume",
    ) from last
