"""Shards that are elsewhere: fetched whole when they are needed, and kept on a disk of this machine up to a size.

A shard comes with its index, `NAME.tar.index.json` beside it, which says how long it is and which sha256 it has; with
indexes alone a run knows its order before the first shard has arrived. What arrives is compared with that, and only
then gets its name, so a torn or changed shard is never read. When the cache is full, the shard that was used longest
ago goes. Several processes of a machine share one cache.

    MMTUNE_CACHE      folder; ~/.cache/mmtune/shards when not set
    MMTUNE_CACHE_GB   its limit, 100 when not set; it has to hold the shards that are mixed with each other at a time
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit

from mmtune import disk
from mmtune.addresses import bare
from mmtune.data import index as indexes
from mmtune.data.fetch import WAITS, check, fetch, system, tried
from mmtune.data.index import ShardIndex
from mmtune.errors import MmtuneError, UsageError

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):")
_SIGNATURE = re.compile(
    r"x-(amz|goog|oss|cos)-.*|sig|signature|token|.*[-_]token|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid"
    r"|ossaccesskeyid|se|sp|sv|sr|st|spr|sks|skt|ske|skv|skoid|sktid|api[-_]?key|password|secret",
    re.IGNORECASE,
)
"""Parameters that the usual stores sign an address with; the next signature of the same file differs in them."""


@dataclass(frozen=True, order=True)
class Remote:
    """A shard that is elsewhere."""

    url: str

    @property
    def name(self) -> str:
        return self.parts[-1]

    @property
    def parts(self) -> tuple[str, ...]:
        """Host and folders, without what may be secret in an address."""
        split = urlsplit(bare(self.url))
        return (split.hostname or "", *(part for part in split.path.split("/") if part))

    @property
    def identity(self) -> str:
        """What stays the same when an address is signed again: all but user, fragment and the parts of a signature."""
        query = parse_qsl(urlsplit(self.url).query, keep_blank_values=True)
        kept = [(name, value) for name, value in query if not _SIGNATURE.fullmatch(name)]
        return bare(self.url) + (f"?{urlencode(kept)}" if kept else "")

    def __str__(self) -> str:
        return bare(self.url)


def has_scheme(pattern: str) -> bool:
    """Whether a pattern is no path on this machine."""
    scheme = _SCHEME.match(pattern)
    return scheme is not None and not (len(scheme[1]) == 1 and os.name == "nt")


def find(pattern: str) -> list[Remote] | None:
    """The shards of a pattern without braces; None when it is a path on this machine.

    Raises:
        UsageError: an address of a kind that is not read, or a `*` where nothing lists files.
        MmtuneError: the source cannot be reached.
    """
    if not has_scheme(pattern):
        return None
    check(pattern)
    scheme = pattern.partition(":")[0]
    web = scheme in ("https", "http")
    shown = bare(pattern) if web else pattern  # a signature may hold anything
    if not shown.endswith("/") and "*" not in shown:
        return [Remote(pattern)]
    if web:
        raise UsageError(
            seen=f"{Remote(pattern)}: an address that stands for several files",
            expected="the address of each shard, for nothing lists them",
            hint="number them: https://HOST/part-{0000..0041}.tar",
        )
    files, path = system(pattern)
    path = f"{path.rstrip('/')}/*.tar" if pattern.endswith("/") else path
    found = tried(pattern, lambda: files.glob(path))
    if not found:
        raise UsageError(seen=f"{Remote(pattern)}: nothing is there", expected="tar files", hint="check the address")
    return [Remote(f"{scheme}://{one.lstrip('/')}") for one in sorted(found)]


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
        """Where the index of a shard is on this machine."""
        return indexes.beside(self._place(remote))

    def index(self, remote: Remote, say: Callable[[str], None] | None = None) -> ShardIndex:
        """The index of a shard: kept here, fetched from beside it, or made from the shard itself.

        Raises DataError for an index that cannot be read, MmtuneError when the source cannot be reached.
        """
        here = self.beside(remote)
        if not here.exists():
            self._own(here.parent)
            address, mark, query = remote.url.partition("?")
            beside = f"{address}.index.json{mark}{query}"
            part = here.with_name(f".{here.name}.{os.getpid()}.part")
            try:
                try:
                    tried(beside, lambda: fetch(beside, part, indexes.MOST), self.waits)
                    indexes.read(part, f"{remote}.index.json")
                    part.replace(here)
                except FileNotFoundError:
                    self._make(remote, here, say)
            finally:
                part.unlink(missing_ok=True)
        return indexes.read(here)

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
            with self._lock(self._own(path.parent)):  # one process fetches, others wait
                if not path.exists():
                    self._bring(remote, path, index.bytes, index.sha256)

    def _bring(self, remote: Remote, path: Path, size: int, digest: str) -> None:
        part = path.with_name(f"{path.name}.part")
        self._room(size, remote)
        try:
            for _ in range(2):
                # its length counts against the limit from now on
                with disk.create(part) as file:
                    file.truncate(size)
                found = tried(remote.url, lambda: fetch(remote.url, part, size), self.waits)
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
            hint=f"make the index again where the shard lies, and delete {path.parent}",
        )

    def _make(self, remote: Remote, here: Path, say: Callable[[str], None] | None) -> None:
        """Fetch a shard that has no index beside it, and index it."""
        if say:
            say(f"{remote} has no index beside it: fetching all of it, once")
        path = self._place(remote)
        with self._lock(self._own(path.parent)):
            if here.exists():
                return
            part = path.with_name(f"{path.name}.part")
            try:
                tried(remote.url, lambda: fetch(remote.url, part, self.limit), self.waits)
                found = indexes.scan(part)
                found.name = remote.name
                self._room(found.bytes, remote, but=part)
                part.replace(path)
                disk.write_file(here, found.dump())
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
        with self._lock(self.folder):
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
        return self.folder / hashlib.sha256(remote.identity.encode()).hexdigest()[:24] / name

    def _own(self, folder: Path) -> Path:
        """A folder of a shard, made when needed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return disk.folder(folder)

    @contextmanager
    def _lock(self, folder: Path) -> Iterator[None]:
        file = disk.open_plain(folder / ".lock", os.O_WRONLY)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)


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
    """Whether no process is fetching into this file: the lock of its folder is free."""
    try:
        file = disk.open_plain(part.parent / ".lock", os.O_WRONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(file)
    return True
