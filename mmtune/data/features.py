"""Features of frozen encoders, kept on disk: each item is decoded and encoded once, not once an epoch.

The key is the digest of the encoded bytes, the clip range, the kind, and the encoder's fingerprint (its config and its
weights), so a changed picture, another number of frames or other weights never meet old features. Numbers are float16.
`fill` fills what is missing, before training; items that cannot be decoded are kept as such, and refused again without
a try.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmtune import media
from mmtune.config import dump
from mmtune.data import _serialize
from mmtune.data._feature_file import FeatureFile, Writer
from mmtune.data.loader import Stream
from mmtune.data.pool import mapped
from mmtune.data.sample_order import SampleKey
from mmtune.errors import DataError, MediaError, Reason, UsageError
from mmtune.items import BranchLike, device_of, encode_item, encode_items, prepare_item
from mmtune.types import Example, MediaRef

Progress = Callable[[int, int], None]
"""Called with samples done and samples in all."""


class FeatureCache:
    """Features by branch and item. Keeps only the branches it is given: those whose encoder does not train.

    Args:
        root: folder of the cache; each encoder has a folder in it, named by its fingerprint.
        branches: name to branch.
        limits: the most that an item may cost. What could not be decoded within others is tried again.
    """

    def __init__(
        self, root: str | Path, branches: Mapping[str, BranchLike], limits: media.Limits | None = None
    ) -> None:
        self.root = Path(root)
        self.limits = media.settled(limits)
        usual = self.limits == media.Limits()
        self._within = "" if usual else f" within {hashlib.sha256(dump(self.limits).encode()).hexdigest()[:12]}"
        self.branches = dict(branches.items())
        self.feature_files: dict[str, FeatureFile] = {}
        for name, branch in self.branches.items():
            feature_file = self._feature_file(branch.encoder)
            # branches with the same encoder have one between them
            known = (other for other in self.feature_files.values() if other.folder == feature_file.folder)
            self.feature_files[name] = next(known, feature_file)
        self.kinds = {kind: name for name, branch in self.branches.items() for kind in branch.kinds}

    def _feature_file(self, encoder: Any) -> FeatureFile:
        print_ = encoder.fingerprint()
        about = {"encoder": encoder.config.name, "fingerprint": print_}
        folder = self.root / f"{encoder.config.name.rpartition(':')[2]}-{print_[:16]}"
        return FeatureFile(folder, encoder.tokens_per_frame, encoder.width, about)

    def get(self, branch: str, ref: MediaRef) -> Tensor | None:
        """float16 [F,N,E] of an item, or none for a branch that is not kept. Nothing is decoded for what is kept.

        An item that is not kept is encoded here and now, which is slow; `fill` keeps it.

        Raises:
            MediaError: the item cannot be decoded.
            UsageError: it is not kept, and the encoder is on a device that a data worker must not touch.
        """
        if branch not in self.feature_files:
            return None
        feature_file, key = self.feature_files[branch], _key(ref)
        if key in feature_file.offsets:
            return torch.from_numpy(feature_file.read(key))
        if self._fault(key) in feature_file.faults:
            reason, detail = feature_file.faults[self._fault(key)]
            raise MediaError(Reason(reason), f"{ref.origin}: {detail}", "media that can be decoded")
        encoder = self.branches[branch].encoder
        if device_of(encoder).type != "cpu":
            raise UsageError(
                seen=f"{ref.origin} has no kept features for branch {branch}",
                expected="features kept before the first step",
                hint="--resume looks for what is missing; if that does not help, delete "
                f"{feature_file.folder} and it is made again",
            )
        return encode_item(encoder, prepare_item(encoder, ref, self.limits)).float().cpu().half()

    def reload(self) -> None:
        """Read the indexes again, after another process has filled the cache."""
        for feature_file in self.feature_files.values():
            feature_file.load()

    def fill(
        self,
        streams: Iterable[Stream],
        workers: int = 0,
        batch: int = 32,
        progress: Progress | None = None,
    ) -> dict[str, int]:
        """Encode what is missing of all items of some streams.

        Args:
            workers: processes that read and decode.
            batch: items encoded at a time.

        Returns:
            How many items were `encoded`, `kept` already, and `failed`; numbers of this call. A corpus that was
            walked whole before is not walked again.
        """
        streams = [stream for stream in streams if self._unmarked(stream)]
        total, done = sum(len(stream.corpus) for stream in streams), 0
        counts = {"encoded": 0, "kept": 0, "failed": 0}
        if not streams or not self.feature_files:
            return counts
        with ExitStack() as stack:
            # locks in one order, whatever the recipe: two runs that share folders do not wait for each other
            feature_files = sorted(set(self.feature_files.values()), key=lambda feature_file: feature_file.folder)
            opened = {feature_file: stack.enter_context(feature_file.writing()) for feature_file in feature_files}
            writers = {name: opened[feature_file] for name, feature_file in self.feature_files.items()}
            filling, unread = _Filling(self, writers, batch, counts), set()
            for number, head, example in _walk(self, streams, workers):
                filling.take(head, example)
                done += 1
                if head["unread"]:
                    unread.add(number)
                if progress:
                    progress(done, total)
                if done == sum(len(stream.corpus) for stream in streams[: number + 1]):
                    filling.flush()
                    for name, writer in writers.items():
                        if number not in unread:
                            writer.mark(self._mark(streams[number], name))
            filling.flush()
        return counts

    def _mark(self, stream: Stream, branch: str) -> str:
        """Name of a corpus as a format reads it for a branch."""
        spelled = {dump(format_.config) for format_ in stream.formats}
        kinds = ",".join(self.branches[branch].kinds)
        parts = [stream.corpus.fingerprint(), kinds, *sorted(spelled), *([self._within] if self._within else [])]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def _fault(self, key: str) -> str:
        """What an item that cannot be decoded is kept under: more may be decoded within other limits."""
        return key + self._within

    def _has(self, branch: str, key: str) -> bool:
        return key in self.feature_files[branch].offsets or self._fault(key) in self.feature_files[branch].faults

    def _unmarked(self, stream: Stream) -> bool:
        return any(
            self._mark(stream, name) not in feature_file.complete for name, feature_file in self.feature_files.items()
        )

    def gather(self, stream: Stream, key: SampleKey) -> tuple[dict[str, Any], Example]:
        """What a sample lacks: keys and prepared items by branch, and items that cannot be decoded."""
        head: dict[str, Any] = {"keys": {}, "faults": [], "kept": 0, "unread": False}
        items: dict[str, list[Tensor]] = {}
        empty = torch.empty(0, dtype=torch.int64)
        try:
            refs = stream.sample(key).media
        except (DataError, MediaError) as error:  # the ledger of the run names it
            refs = ()
            head["unread"] = error.reason == Reason.truncated_shard  # a disk that is away may come back
        for ref in refs:
            branch = self.kinds.get(ref.kind)
            if branch is None:
                continue
            name = _key(ref)
            if self._has(branch, name):
                head["kept"] += 1
                continue
            try:
                items.setdefault(branch, []).append(prepare_item(self.branches[branch].encoder, ref, self.limits))
                head["keys"].setdefault(branch, []).append(name)
            except MediaError as error:
                head["faults"].append([branch, name, str(error.reason), error.seen.removeprefix(f"{ref.origin}: ")])
        items = {branch: held for branch, held in items.items() if held}
        return head, Example(stream.corpus.id(key), empty, empty, (), items)


class _Filling:
    """Prepared items on their way to the disk."""

    def __init__(self, cache: FeatureCache, writers: Mapping[str, Writer], batch: int, counts: dict[str, int]) -> None:
        self._cache, self._writers, self._batch, self._counts = cache, writers, batch, counts
        self._waiting: dict[tuple[str, tuple[int, ...]], dict[str, Tensor]] = {}

    def take(self, head: Mapping[str, Any], example: Example) -> None:
        self._counts["kept"] += head["kept"]
        for branch, key, reason, detail in head["faults"]:
            if not self._cache._has(branch, key):
                self._writers[branch].fault(self._cache._fault(key), reason, detail)
                self._counts["failed"] += 1
        for branch, keys in head["keys"].items():
            for key, item in zip(keys, example.media[branch], strict=True):
                group = (branch, tuple(item.shape))
                waiting = self._waiting.setdefault(group, {})
                if self._cache._has(branch, key) or key in waiting:
                    self._counts["kept"] += 1
                    continue
                waiting[key] = item
                if len(waiting) >= self._batch:
                    self._encode(group)

    def flush(self) -> None:
        for group in list(self._waiting):
            self._encode(group)

    def _encode(self, group: tuple[str, tuple[int, ...]]) -> None:
        waiting = self._waiting.pop(group)
        branch = group[0]
        if waiting:
            features = encode_items(self._cache.branches[branch].encoder, torch.stack(list(waiting.values())))
            for key, array in zip(waiting, features.float().cpu().numpy(), strict=True):
                self._writers[branch].put(key, array)
            self._counts["encoded"] += len(waiting)


def _walk(cache: FeatureCache, streams: list[Stream], workers: int) -> Any:
    """Number of the stream, head and items of every sample, in order."""
    tasks = [(number, key) for number, stream in enumerate(streams) for key in stream.corpus.samples()]
    if not workers:
        for number, key in tasks:
            yield number, *cache.gather(streams[number], key)
        return

    def work(number: int, shard: int, index: int) -> bytes:
        head, example = cache.gather(streams[number], SampleKey(shard, index))
        shape, arrays = _serialize.pack(example)
        return _serialize.dump({"gathered": head, **shape}, arrays)

    found = mapped(work, ((number, *key) for number, key in tasks), workers, lambda task: _id(streams, task))
    for (number, _), message in zip(tasks, found, strict=True):
        head, data, start = _serialize.load(message)
        yield number, head["gathered"], _serialize.unpack(head, data, start)


def _id(streams: list[Stream], task: tuple[int, ...]) -> str:
    return streams[task[0]].corpus.id(SampleKey(*task[1:]))


def _key(ref: MediaRef) -> str:
    return f"{ref.kind}:{ref.digest}{ref.range}"
