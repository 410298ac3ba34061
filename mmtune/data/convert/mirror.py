"""A conversion whose shards go to an address: each is made in a folder of this machine and sent when it is whole."""

from __future__ import annotations

import os
from pathlib import Path

from mmtune.data.convert import locations
from mmtune.data.convert.state import ABOUT, REPORT
from mmtune.data.convert.write import NOTES
from mmtune.data.remote import Remote


class Mirror:
    """The folder at an address, and the one here that stands for it.

    A file that exists there is an empty file of the same size here, so that a conversion that was stopped is
    continued as on a disk.

    Args:
        remote: folder at an address.
        here: an empty folder of this machine.
    """

    def __init__(self, remote: Remote, here: Path) -> None:
        self.remote, self.here = remote, here
        self._files, self._path = locations.system(remote)
        self._path = self._path.rstrip("/")
        self._there: set[str] = set()
        for name in locations.listing(remote) if self._files.exists(self._path) else []:
            small = name == ABOUT or name.startswith(f"{NOTES}/") or name.endswith(".index.json")
            if not small and ("/" in name or not name.endswith(".tar")):
                continue
            self._there.add(name)
            to = here / name
            to.parent.mkdir(parents=True, exist_ok=True)
            if small:
                to.write_bytes(self._files.cat_file(f"{self._path}/{name}"))
            else:
                with to.open("wb") as file:
                    file.truncate(self._files.info(f"{self._path}/{name}")["size"])

    def settle(self) -> None:
        """Remove there what was removed here, and send the record of what is being made."""
        for name in sorted(self._there):
            if not (self.here / name).exists():
                self._files.rm_file(f"{self._path}/{name}")
        self._send(ABOUT)

    def sent(self, shard: Path, note: Path) -> None:
        """Send a shard, its index, and last its note. Only its length stays here."""
        if shard.exists():
            self._send(shard.name)
            self._send(f"{shard.name}.index.json")
            size = shard.stat().st_size
            os.truncate(shard, 0)
            os.truncate(shard, size)
        self._send(f"{NOTES}/{note.name}")

    def finish(self) -> None:
        """Send the report and the rest, and take the notes away."""
        for name in (REPORT, "manifest.json", ABOUT):
            if (self.here / name).exists():
                self._send(name)
            elif name in self._there:
                self._files.rm_file(f"{self._path}/{name}")
        if self._files.exists(f"{self._path}/{NOTES}"):
            self._files.rm(f"{self._path}/{NOTES}", recursive=True)

    def _send(self, name: str) -> None:
        self._files.makedirs(f"{self._path}/{name}".rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(self.here / name), f"{self._path}/{name}")
        self._there.add(name)
