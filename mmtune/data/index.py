"""One pass over a shard: what is in it, where each member lies, its digest, and what is refused and why.

The result is `SHARD.index.json` beside the tar, and one line per shard in `manifest.json` of the folder. From then on
members are read by offset, a cut or altered shard is noticed, and the samples it lost are known by name.

A sample is a run of neighbouring members with one key, the name up to the first dot after the last slash; the rest is
the suffix ("000012.jpg" and "000012.json", as img2dataset and video2dataset write them). Where names have further dots,
`_keys` tells samples apart. Every key becomes a sample of the index, refused ones included, so that a run can account
for each of them:

- `incomplete_group`: members of one key lie apart, each run of them holding a part; or the sample touches damage;
- `duplicate_key`: one member name twice in a sample;
- `unsafe_member`: links, devices, absolute names, `..`, names that are not text;
- `unsafe_suffix`: suffixes that some readers execute (pickles and their kin), and arrays of Python objects.

A key that comes again with the same suffixes is a sample of its own; its id ends in `#1`, `#2`, ... and it is counted.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

from mmtune import disk
from mmtune.data._index_file import LISTED, MOST, VERSION, Group, ShardIndex, read
from mmtune.data._keys import keys
from mmtune.data._names import SUFFIXES, UNSAFE, holds_objects, printable, safe, split
from mmtune.data._tar import Damage, Member, walk
from mmtune.errors import DataError, Reason, UsageError

MANIFEST = 1
"""Version of the manifest."""
DAMAGES = 1000
"""Most damaged stretches listed."""
_OTHER = {
    "1": "a hard link (tar --hard-dereference writes the file)",
    "2": "a symbolic link (tar --dereference writes the file)",
    "3": "a device", "4": "a device", "6": "a pipe",
    "S": "a sparse file, whose bytes do not lie as they are (tar without --sparse)",
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- building


def scan(path: Path) -> ShardIndex:
    """Read a shard once and index it. Raises DataError when it cannot be opened or is no plain tar."""
    try:
        with path.open("rb") as file:
            return _scan(path, file.fileno())
    except OSError as error:
        raise DataError(Reason.truncated_shard, f"{path}: {error.strerror}", "a tar file that can be read") from error


def check_plain(path: Path, file: int) -> None:
    """Raises DataError: a tar that is packed."""
    head = os.pread(file, 6, 0)
    if head[:2] == b"\x1f\x8b" or head[:4] in (b"\x28\xb5\x2f\xfd", b"BZh9") or head == b"\xfd7zXZ\0":
        raise DataError(
            Reason.truncated_shard,
            f"{path} is compressed",
            "a plain tar, in which members can be read by their offset",
            f"unpack it: gunzip or zstd -d {path.name}",
        )


def _scan(path: Path, file: int) -> ShardIndex:
    state = os.fstat(file)
    check_plain(path, file)
    index = ShardIndex(path.name, state.st_size, state.st_mtime_ns, "", [])
    runs: list[Group] = []
    edges: list[Group] = []  # samples next to damage
    # Samples whose names are alike up to the first dot stand among each other when sorted: a.jpg a.b.jpg a.b.txt a.txt
    beside: dict[str, Group] = {}
    alike, key, broken = "", "", False
    whole = hashlib.sha256()
    items = list(walk(file))
    split_names = keys(item.name for item in items if isinstance(item, Member))
    for item in items:
        if isinstance(item, Damage):
            if len(index.damage) < DAMAGES:
                index.damage.append(f"bytes {item.offset} to {item.end}: {item.what}")
            elif len(index.damage) == DAMAGES:
                index.damage.append(f"more from byte {item.offset} on, which is not listed")
            edges += [group for group in beside.values() if f"{key}.".startswith(f"{group.key}.")]
            beside, broken = {}, True
            continue
        if item.type == "5" and (safe(item.name) or item.name in (".", "./")):
            continue
        split_name = split_names.get(item.name)
        if split_name is None and (item.type != "0" or not safe(item.name)):
            split_name = item.name, ""
        if split_name is None:
            index.passed_count += 1
            index.passed = [*index.passed, printable(item.name)][:LISTED]
            continue
        key, suffix = split_name
        short = (split(item.name) or split_name)[0]
        if short != alike:
            beside, alike = {}, short
        if key not in beside:
            beside[key] = Group(key)
            runs.append(beside[key])
        if broken:
            edges.append(beside[key])
            broken = False
        _add(index, beside[key], suffix, item, file)
    _judge_edges(runs, edges)
    index.groups = _judge_runs(runs)
    _digest(file, whole)
    index.sha256 = whole.hexdigest()
    return index


def _add(index: ShardIndex, group: Group, suffix: str, item: Member, file: int) -> None:
    """Take a member into its sample, or refuse the sample."""
    shown = printable(item.name)
    parts = suffix.split(".")
    if item.type != "0":
        group.refuse(Reason.unsafe_member, f"{shown} is {_OTHER.get(item.type, f'of type {item.type!r}')}")
    elif not safe(item.name):
        group.refuse(Reason.unsafe_member, f"{shown} is not a plain relative name")
    elif bad := UNSAFE.intersection(parts):
        group.refuse(Reason.unsafe_suffix, f"{shown}: members called .{min(bad)} are never read")
    elif suffix in group.members:
        group.refuse(Reason.duplicate_key, f"{shown} comes twice")
    elif parts[-1] not in SUFFIXES:
        index.passed_count += 1
        index.passed = [*index.passed, shown][:LISTED]
    elif parts[-1] == "npy" and holds_objects(os.pread(file, 4096, item.offset)):
        group.refuse(Reason.unsafe_suffix, f"{shown} holds Python objects")
    else:
        group.members[suffix] = (item.offset, item.size, _sum(file, item.offset, item.size))


def _judge_edges(runs: list[Group], edges: list[Group]) -> None:
    """Refuse samples that touch damage, but for those made like most others of the shard."""
    touched = {id(group) for group in edges}
    usual = Counter(frozenset(g.members) for g in runs if id(g) not in touched and g.reason is None)
    common = usual.most_common(1)[0][0] if usual else None
    for group in edges:
        if frozenset(group.members) != common:
            group.refuse(Reason.incomplete_group, "it lies next to a damaged stretch of the shard")


def _judge_runs(runs: list[Group]) -> list[Group]:
    """One group for each key, or several for a key that comes again whole."""
    same: dict[str, list[Group]] = {}
    for run in runs:
        same.setdefault(run.key, []).append(run)
    apart = {key for key, mates in same.items() if len(mates) > 1 and _apart(mates)}
    groups = []
    times: Counter[str] = Counter()
    for run in runs:
        mates = same[run.key]
        run.ordinal = times[run.key]
        times[run.key] += 1
        if run.key in apart:
            if run.ordinal:
                continue  # the sample stands where its first member is
            run.refuse(
                Reason.incomplete_group,
                f"members of {printable(run.key)} lie in {len(mates)} places; write shards sorted by name",
            )
            run.members = {s: where for mate in reversed(mates) for s, where in mate.members.items()}
        groups.append(run)
    for group in groups:
        group.key = printable(group.key)
    return groups


def _apart(runs: list[Group]) -> bool:
    """Whether runs of one key are pieces of a sample: two of them share no suffix."""
    sets = [set(run.members) for run in runs]
    return any(not a & b for i, a in enumerate(sets) for b in sets[i + 1 :])


def _sum(file: int, offset: int, size: int) -> str:
    digest = hashlib.sha256()
    while size > 0 and (chunk := os.pread(file, min(size, 1 << 22), offset)):
        digest.update(chunk)
        offset, size = offset + len(chunk), size - len(chunk)
    return digest.hexdigest()


def _digest(file: int, whole: Any) -> None:
    offset = 0
    while chunk := os.pread(file, 1 << 22, offset):
        whole.update(chunk)
        offset += len(chunk)


# -------------------------------------------------------------------------------------------------- files on the disk


def beside(path: Path) -> Path:
    """Where the index of a shard lies."""
    return path.with_name(path.name + ".index.json")


def store(path: Path, index: ShardIndex) -> None:
    """Write the index beside its shard and the shard's line into the manifest. Raises OSError."""
    disk.write_file(beside(path), index.dump())
    record({path: index})


def record(indexes: dict[Path, ShardIndex]) -> None:
    """Write lines of manifests, one manifest in each folder. Raises OSError."""
    for folder, items in groupby(sorted(indexes), key=lambda path: path.parent):
        manifest = read_manifest(folder)
        manifest["shards"].update({path.name: indexes[path].counts() for path in items})
        manifest["shards"] = dict(sorted(manifest["shards"].items()))
        disk.write_file(folder / "manifest.json", json.dumps(manifest, indent=1))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder, empty when there is none. Raises DataError for one that cannot be read."""
    path = folder / "manifest.json"
    if not path.exists():
        return {"version": MANIFEST, "shards": {}}
    try:
        tree = json.loads(disk.read_text(path, MOST))
        if tree["version"] != MANIFEST or not isinstance(tree["shards"], dict):
            raise ValueError(f"version {tree['version']}")
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        hint = "delete it and run `mmtune data index`"
        raise DataError(Reason.bad_json, f"{path}: {error}", f"a manifest of version {MANIFEST}", hint) from error
    return tree


def fetch(
    path: Path, say: Callable[[str], None] | None = None, rebuild: bool = False, write: bool = True
) -> tuple[ShardIndex, bool]:
    """The index of a shard as it is beside it, made now when there is none; and whether it was made now.

    An index is kept although its shard has changed since: it names what was there. `shards.Corpus` judges that.
    Where the folder cannot be written, the index serves this process only, which is said.

    Args:
        rebuild: make it again unless it is of this version, and size, time and digest of the shard are as when it was.
        write: lay one that is made now beside its shard; otherwise it serves this process only, which is not said.
    """
    where = beside(path)
    if where.exists():
        index = read(where)
        kept = index.version == VERSION and unchanged(path, index)
        if not rebuild or (kept and sum_file(path) == index.sha256):
            return index, False
    if say:
        say(f"indexing {path} ({path.stat().st_size / 1e6:.0f} MB), once")
    index = scan(path)
    if not write:
        return index, True
    try:
        store(path, index)
    except OSError as error:
        if say:
            say(f"note: the index of {path} is for this run only: {error}")
    return index, True


def unchanged(path: Path, index: ShardIndex) -> bool:
    """Whether size and time of a shard are those in its index."""
    state = path.stat()
    return (state.st_size, state.st_mtime_ns) == (index.bytes, index.mtime_ns)


def sum_file(path: Path) -> str:
    """sha256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def index_shards(patterns: Iterable[str | Path], say: Callable[[str], None] | None = None) -> list[str]:
    """Index all shards of some patterns, again where they changed; returns a report, one line per finding.

    Raises DataError when a pattern matches nothing or a shard cannot be read.
    """
    from mmtune.data.patterns import expand

    lines: list[str] = []
    total: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    indexes: dict[Path, ShardIndex] = {}
    for path in expand(patterns):
        if not isinstance(path, Path):
            raise UsageError(
                seen=f"{path}: a remote shard",
                expected="shards on a disk of this machine: an index lies beside its shard",
                hint="index them where they lie, and copy NAME.tar.index.json beside them",
            )
        old = read(beside(path)) if beside(path).exists() else None
        index, new = fetch(path, say, rebuild=True)
        indexes[path] = index
        counts = index.counts()
        refused = sum(counts["refused"].values())
        state = "indexed" if new else "unchanged"
        lines.append(f"{path}: {state}, {counts['samples']} samples, {refused} of them refused")
        if new and old is not None and len(old.groups) != len(index.groups):
            lines.append(f"  the index before had {len(old.groups)} samples")
        lines += [f"  refused as {reason}: {count}" for reason, count in counts["refused"].items()]
        lines += [f"  damaged: {text}" for text in index.damage]
        if index.passed_count:
            lines.append(f"  {index.passed_count} members are not read, as {', '.join(index.passed[:3])}")
        total.update(samples=counts["samples"], refused=refused, damage=len(index.damage))
        total.update(duplicates=counts["duplicate_keys"])
        keys.update({group.key for group in index.groups})
    try:
        record(indexes)
    except OSError as error:
        lines.append(f"note: no manifest was written: {error}")
    again = sum(count > 1 for count in keys.values())
    lines.append(
        f"{len(indexes)} shards, {total['samples']} samples, {total['refused']} refused, {total['damage']} damaged "
        f"stretches, {total['duplicates']} keys again within a shard, {again} keys in several shards (kept apart by id)"
    )
    return lines
