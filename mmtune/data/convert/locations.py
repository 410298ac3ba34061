"""Paths and addresses that a conversion reads from and writes to: this machine's files, or what fsspec knows."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from mmtune.addresses import bare
from mmtune.data import fetch
from mmtune.data.fetch import PACKAGES
from mmtune.data.remote import Remote
from mmtune.errors import MmtuneError, UsageError

Location = Path | Remote
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://")


def parse(text: str) -> Location:
    """A path, also of `file://`, or an address that fsspec reads. Raises UsageError for any other."""
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Path(text).expanduser()
    if scheme[1] == "file":
        return Path(unquote(urlsplit(text).path))
    if scheme[1] not in PACKAGES or "::" in text:
        raise UsageError(
            seen=f"{bare(text)}: a source that is not read",
            expected=f"a path, file://, or one of {', '.join(f'{name}://' for name in PACKAGES)}",
            hint="download it, then give its path",
        )
    return Remote(text)


def shown(location: Location) -> str:
    """For messages and files; without what may be secret in an address."""
    return str(location)


def below(location: Location, name: str) -> Location:
    return location / name if isinstance(location, Path) else Remote(f"{location.url.rstrip('/')}/{name}")


def system(location: Remote) -> tuple[Any, str]:
    """File system of fsspec and the path in it. Raises UsageError where a package is missing."""
    return fetch.system(location.url)


def open_binary(location: Location) -> IO[bytes]:
    """A file to read from any place in it. Raises OSError, and MmtuneError for an address that does not answer."""
    if isinstance(location, Path):
        return os.fdopen(open_regular(location, os.O_RDONLY), "rb")
    try:
        files, path = system(location)
        return files.open(path, "rb")
    except (OSError, MmtuneError):
        raise
    except Exception as error:  # each source has classes of its own
        raise MmtuneError(f"{location}: {type(error).__name__}: {error}", "an address that answers") from error


def open_regular(path: Path, flags: int) -> int:
    """A descriptor of a plain file: no device, pipe or folder is opened, and none is waited for. Raises OSError."""
    file = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(0, "not a plain file", str(path))
    return file


def is_folder(location: Location) -> bool:
    if isinstance(location, Path):
        return location.is_dir()
    files, path = system(location)
    return bool(files.isdir(path))


def listing(location: Location) -> list[str]:
    """Names of all files below a folder, sorted; links to folders are not followed."""
    if isinstance(location, Path):
        found = []
        for folder, _, names in os.walk(location):
            inside = Path(folder).relative_to(location)
            found += [(inside / name).as_posix() for name in names]
        return sorted(found)
    files, path = system(location)
    head = path.rstrip("/") + "/"
    return sorted(name.removeprefix("/").removeprefix(head.removeprefix("/")) for name in files.find(path))


def stamp(location: Location) -> list[Any]:
    """What changes when a file changes: its size, and its time where there is one."""
    if isinstance(location, Path):
        state = location.stat()
        return [state.st_size, state.st_mtime_ns]
    files, path = system(location)
    about = files.info(path)
    return [about.get("size"), str(about.get("ETag") or about.get("etag") or about.get("created") or "")]
