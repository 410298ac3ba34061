"""Samples of shards by their number in the index; which comes when, `mmtune.data.sample_order` says.

What an order knows of a sample is a hash of its id, so a sample that is taken away changes the number of no other, and
numbers of its own (`columns`).
"""

from __future__ import annotations

import hashlib
import os
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from mmtune import disk
from mmtune.data import index as indexes
from mmtune.data import remote
from mmtune.data._hash import hash_text
from mmtune.data.formats.base import Record
from mmtune.data.index import Group, ShardIndex
from mmtune.data.orders.base import Order, Samples
from mmtune.data.orders.shuffle import Shuffle
from mmtune.data.patterns import expand
from mmtune.data.remote import Remote
from mmtune.data.sample_order import SampleKey, SampleOrder
from mmtune.errors import ConfigError, DataError, Reason

WINDOW = 8
"""Shards whose samples are put in order together."""
OPEN = 64
"""Most shards held open."""
TRIES = (0.0, 0.2, 1.0, 3.0)
"""Seconds to wait before each try to open a shard."""
REST = 60.0
"""Seconds after which a shard that could not be opened is tried again; its samples are refused at once until then."""


class Corpus:
    """All samples of some shards.

    Args:
        patterns: see `patterns.expand`.
        say: told what takes time or is odd (an index being made, a shard that is cut).
        window: shards whose samples are put in order together.
        without: ids of samples to leave out, as if they were in no shard.
        strict: refuse damaged shards instead of using what is whole.
        verify: compare each member that is read with its digest.
        write: lay an index that is made now beside its shard, for the next time.
        held_out: part of the samples that are left out, by a hash of the shard's file name and the sample's name, so
            the same ones in whatever folder and company; or, with `only_held_out`, the part that is here alone.
        order: which sample comes when; at random when not given.
        row: most tokens of a row that samples are packed into, for the order.

    Raises:
        DataError: no shards, a shard that is not the one that was indexed, or damage where `strict`.
    """

    def __init__(
        self,
        patterns: Iterable[str | Path] | str | Path,
        say: Callable[[str], None] | None = None,
        window: int = WINDOW,
        without: Collection[str] = (),
        strict: bool = False,
        verify: bool = True,
        write: bool = True,
        held_out: float = 0.0,
        only_held_out: bool = False,
        order: Order | None = None,
        row: int | None = None,
    ) -> None:
        self.paths = expand(patterns)
        self.window = window
        self.verify, self._write = verify, write
        self._say = say or (lambda text: None)
        self._without = frozenset(without)
        self._held_out, self._only_held_out = held_out, only_held_out
        self._labels = _labels(self.paths)
        self._sums: list[str] = []
        self._indexes: OrderedDict[int, tuple[ShardIndex, np.ndarray, np.ndarray]] = OrderedDict()
        self._files: OrderedDict[int, int] = OrderedDict()
        weakref.finalize(self, _close, self._files)
        self._gone: dict[int, tuple[float, DataError]] = {}
        self._cut: dict[int, int] = {}
        self._faults: list[tuple[str, str]] = []
        self._dotted: list[str] = []
        """Shards whose samples have dots in their keys."""
        self._on_disk = True
        self._sizes = np.zeros(len(self.paths), dtype=np.int64)
        self.refused: dict[str, int] = {}
        """Samples that the index refuses, by reason; they have a place in the order and raise when read."""
        for number, path in enumerate(self.paths):
            index = self._open(number, path, strict)
            self._sums.append(index.sha256)
            self._sizes[number] = len(self._load(number)[1])
            for group in index.groups:
                if group.reason:
                    self.refused[str(group.reason)] = self.refused.get(str(group.reason), 0) + 1
        order = order or Shuffle(Shuffle.Config(name="shuffle"))
        self._row = row
        self.sample_order = SampleOrder(order, self._labels, self._sizes, window, self._samples)
        self.columns: dict[str, list[np.ndarray]] = {}
        """Numbers that the order knows of samples: name to float64 [groups] of each shard, see `data/columns.py`."""

    def __len__(self) -> int:
        return int(self._sizes.sum())

    def __iter__(self) -> Iterator[Record]:
        """All records in the order of their shards. Records that cannot be used raise DataError: see `samples`."""
        return (self.record(key) for key in self.samples())

    def samples(self) -> Iterator[SampleKey]:
        """All samples in the order of their shards."""
        for shard in range(len(self.paths)):
            for ordinal in self._load(shard)[1]:
                yield SampleKey(shard, int(ordinal))

    def fingerprint(self) -> str:
        """sha256 over names and digests of the shards, over what is left out, damage and columns, in hex."""
        digest = hashlib.sha256()
        for label, text in self._faults:
            digest.update(f"fault {label} {text}\n".encode())
        for label in self._dotted:  # were other samples once
            digest.update(f"keys {label}\n".encode())
        for label, total in zip(self._labels, self._sums, strict=True):
            digest.update(f"{label} {total}\n".encode())
        for name in sorted(self._without):
            digest.update(f"without {name}\n".encode())
        if self._held_out:
            digest.update(f"held out {self._held_out} {self._only_held_out}\n".encode())
        for name in sorted(self.columns):
            digest.update(f"column {name}\n".encode())
            for shard in range(len(self.paths)):
                digest.update(self.column(name, shard).tobytes())
        return digest.hexdigest()

    # ------------------------------------------------------------------------------------------------------- order

    def order(self, seed: int, epoch: int, position: int) -> SampleKey:
        """The sample at `position` (0 to len - 1) of an epoch. Every epoch holds every sample once."""
        return self.sample_order.at(seed, epoch, position)

    def _samples(self, number: int) -> tuple[np.ndarray, Samples]:
        """The samples of a shard: their indexes in it [n], and what an order may know of them."""
        _, chosen, hashes = self._load(number)
        return chosen, Samples(hashes, {name: self.column(name, number) for name in self.columns}, self._row)

    def column(self, name: str, shard: int) -> np.ndarray:
        """What the order knows of the samples of a shard by this name, float64 [n]."""
        return self.columns[name][shard][self._load(shard)[1]]

    def index(self, shard: int) -> ShardIndex:
        """The index of a shard."""
        return self._load(shard)[0]

    def table(self, shard: int) -> Path:
        """Where the columns of a shard lie: beside its index."""
        where = _beside(self.paths[shard])
        return where.with_name(where.name.removesuffix(".index.json") + ".columns.json")

    # ----------------------------------------------------------------------------------------------------- reading

    def id(self, key: SampleKey) -> str:
        """`SHARD/KEY`, with `#1`, `#2`, ... where a key comes again in its shard."""
        group = self._load(key.shard)[0].groups[key.index]
        return _id(self._labels[key.shard], group)

    def record(self, key: SampleKey, seed: int = 0, epoch: int = 0) -> Record:
        """A sample's files, read when asked for.

        Raises DataError, here or when a file is read: the sample is refused by the index, is beyond the end of a
        shard that was cut, is not what was indexed, or its shard cannot be read.
        """
        group = self._load(key.shard)[0].groups[key.index]
        name = _id(self._labels[key.shard], group)
        if group.reason is not None:
            raise DataError(group.reason, f"{name}: {group.detail}", "a sample that the index accepts")
        end = self._cut.get(key.shard)
        if end is not None and any(offset + size > end for offset, size, _ in group.members.values()):
            seen = f"{name} lies beyond byte {end}, where its shard now ends"
            raise DataError(Reason.truncated_shard, seen, "the shard as indexed")
        draw = hash_text(f"{seed} {epoch} {name}")
        return Record(name, _Files(self, key.shard, name, group.members), group.key, draw)

    def label(self, key: SampleKey) -> str:
        """Name of a sample's shard."""
        return self._labels[key.shard]

    def read(self, shard: int, name: str, where: tuple[int, int, str]) -> bytes:
        """The bytes of a member. Raises DataError."""
        offset, size, digest = where
        file, data = self._file(shard), b""
        try:
            while len(data) < size and (more := os.pread(file, size - len(data), offset + len(data))):
                data += more
        except OSError as error:
            raise DataError(Reason.truncated_shard, f"{name}: {error.strerror}", "a disk that can be read") from error
        if len(data) < size:
            raise DataError(Reason.truncated_shard, f"{name}: {len(data)} bytes of {size}", "the shard as indexed")
        if self.verify and hashlib.sha256(data).hexdigest() != digest:
            raise DataError(
                Reason.digest_mismatch,
                f"{name} is not what was indexed: sha256 differs",
                "the shard as indexed",
                "copy the shard again; if it was made again, run `mmtune data index`",
            )
        return data

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            path = self.paths[shard]
            if isinstance(path, Remote):
                self._files[shard] = remote.cache().open(path, self._load(shard)[0])
            else:
                self._files[shard] = self._open_here(shard, path)
            while len(self._files) > OPEN:
                os.close(self._files.popitem(last=False)[1])
        self._files.move_to_end(shard)
        return self._files[shard]

    def _open_here(self, shard: int, path: Path) -> int:
        """A descriptor. A shard that could not be opened in all tries is refused at once for a while after that."""
        if shard in self._gone and time.monotonic() < self._gone[shard][0]:
            raise self._gone[shard][1].with_traceback(None)  # or it would grow with each sample
        try:
            return _open(path)
        except DataError as error:
            self._gone[shard] = time.monotonic() + REST, error
            raise

    def close(self) -> None:
        """Close the shards."""
        _close(self._files)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_files": OrderedDict(), "_say": print}

    # ------------------------------------------------------------------------------------------------------- index

    def _open(self, number: int, path: Path | Remote, strict: bool) -> ShardIndex:
        if isinstance(path, Remote):
            index = remote.cache().index(path, self._say)  # the shard is compared with it when it comes
            faults = list(index.damage)
        else:
            index, new = indexes.fetch(path, self._say, write=self._write)
            faults = list(index.damage)
            if not new and not indexes.unchanged(path, index):
                faults += self._changed(number, path, index)
        # An index that could not be written is kept, as it would have to be made again each time.
        self._on_disk = self._on_disk and _beside(path).exists()
        if any("." in group.key.rpartition("/")[2] for group in index.groups):
            self._dotted.append(self._labels[number])
        for text in faults:
            self._faults.append((self._labels[number], text))
            if strict:
                raise DataError(Reason.truncated_shard, f"{path}: {text}", "a whole shard", "copy it again")
            self._say(f"warning: {path}: {text}")
        self._keep(number, index)
        return index

    def _changed(self, number: int, path: Path, index: ShardIndex) -> list[str]:
        """What happened to a shard since it was indexed."""
        size = path.stat().st_size
        if size == index.bytes:
            self._say(f"{path} was touched since it was indexed: comparing its content")
            if indexes.sum_file(path) == index.sha256:
                index.mtime_ns = path.stat().st_mtime_ns
                if self._write:
                    with suppress(OSError):  # a folder that is only read is compared each time
                        disk.write_file(indexes.beside(path), index.dump())
                return []
            return ["its content is not what was indexed; each sample is judged by its digest"]
        if size < index.bytes and self._begins_as(number, index, size):
            self._cut[number] = size
            lost = sum(any(o + n > size for o, n, _ in group.members.values()) for group in index.groups)
            return [f"it is cut at byte {size} of {index.bytes}; {lost} of {len(index.groups)} samples are lost"]
        raise DataError(
            Reason.digest_mismatch,
            f"{path} has {size} bytes, and {index.bytes} when it was indexed",
            "the shard that was indexed",
            "if it was made again on purpose, run `mmtune data index`",
        )

    def _begins_as(self, number: int, index: ShardIndex, size: int) -> bool:
        """Whether the first member is still there, or nothing can tell."""
        for group in index.groups:
            for suffix, where in group.members.items():
                if where[0] + where[1] > size:
                    return True
                try:
                    self.read(number, f"{index.name}/{group.key}.{suffix}", where)
                except DataError:
                    return False
                return True
        return True

    def _load(self, number: int) -> tuple[ShardIndex, np.ndarray, np.ndarray]:
        """Index of a shard, places of its samples [n], and their hashes [n]."""
        if number not in self._indexes:
            where = _beside(self.paths[number])
            index = indexes.read(where)
            if index.sha256 != self._sums[number]:
                seen = f"{where} was changed while in use"
                raise DataError(Reason.digest_mismatch, seen, "one index for a whole run")
            self._keep(number, index)
        self._indexes.move_to_end(number)
        return self._indexes[number]

    def _keep(self, number: int, index: ShardIndex) -> None:
        names = [_id(self._labels[number], group) for group in index.groups]
        both = zip(names, index.groups, strict=True)
        here = (name not in self._without and self._wanted(index, group) for name, group in both)
        chosen_indexes = np.array([ordinal for ordinal, chosen in enumerate(here) if chosen], dtype=np.int64)
        hashes = np.array([hash_text(names[ordinal]) for ordinal in chosen_indexes], dtype=np.uint64)
        self._indexes[number] = index, chosen_indexes, hashes
        if self._on_disk:
            while len(self._indexes) > 3 * self.window:
                self._indexes.popitem(last=False)


    def _wanted(self, index: ShardIndex, group: Group) -> bool:
        """Whether a sample is on this side of the split."""
        if not self._held_out:
            return True
        return (drawn(_id(index.name, group)) < self._held_out) == self._only_held_out


class _Files(Mapping[str, bytes]):
    """Members of a sample by suffix; content is read when asked for."""

    def __init__(self, corpus: Corpus, shard: int, name: str, members: Mapping[str, tuple[int, int, str]]) -> None:
        self._corpus, self._shard, self._name, self._members = corpus, shard, name, members

    def __getitem__(self, suffix: str) -> bytes:
        return self._corpus.read(self._shard, f"{self._name}.{suffix}", self._members[suffix])

    def __contains__(self, suffix: object) -> bool:
        return suffix in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def _id(label: str, group: Group) -> str:
    return f"{label}/{group.key}" + (f"#{group.ordinal}" if group.ordinal else "")


def drawn(sample: str) -> float:
    """A number in 0..1 by the name of a sample, as shard/sample; those below `held_out` are held out."""
    return hash_text(f"held out {sample}") / 2**64


def _beside(path: Path | Remote) -> Path:
    return remote.cache().beside(path) if isinstance(path, Remote) else indexes.beside(path)


def _labels(paths: Sequence[Path | Remote]) -> list[str]:
    """Names of shards: the file's, with as many folders as it takes to tell them apart."""
    parts = [path.parts if isinstance(path, Remote) else path.absolute().parts for path in paths]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        if depth > max(map(len, parts)):  # addresses may differ in what is no part of a path
            alike = [str(path) for part, path in zip(parts, paths, strict=True) if parts.count(part) > 1]
            raise ConfigError(
                f"shards whose names do not tell them apart: {', '.join(alike[:4])}",
                "another file or folder name for each",
            )
        depth += 1
    return ["/".join(part[-depth:]).removesuffix(".tar") for part in parts]


def _close(files: OrderedDict[int, int]) -> None:
    while files:
        os.close(files.popitem()[1])


def _open(path: Path) -> int:
    for wait in TRIES:
        time.sleep(wait)
        try:
            return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            last = error
    raise DataError(Reason.truncated_shard, f"{path}: {last.strerror}", "a shard that can be read") from last
