"""Which members of a shard make a sample: the key of each, and the suffix that is left.

The rule of webdataset is the name up to its first dot. Names have dots for other reasons, too ("clip.v2.mp4",
"cat.2.jpg", "clip 2.0 (clean).mp4"), and by that rule such samples would merge, or lose their suffix. So among the
names that are alike up to the first dot, each that is a whole sample without its last suffix (a text and a medium, or
a text and media with numbers after the same name) is a key, and so is the name up to the first dot itself, where it
has members of its own. What is left ("img.0.jpg" beside "img.json") goes to the longest of these keys that it begins
with. Where there are none of them, texts alone are a sample each, and everything else is one sample by webdataset's
rule.
"""

from __future__ import annotations

from collections.abc import Iterable

from mmtune.data._names import SUFFIXES, UNSAFE, split

TEXT = "text"


def keys(names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Key and suffix, lower case, of each name that has both, see `_names.split` for names without dots."""
    found: dict[str, tuple[str, str]] = {}
    dotted: dict[str, list[str]] = {}
    for name in names:
        if (split_name := split(name)) is not None:
            found[name] = split_name
            if "." in split_name[1]:
                dotted[split_name[0]] = []
    if dotted:
        for name, (short, _) in found.items():
            if short in dotted:
                dotted[short].append(name)
        for short, several in dotted.items():
            found.update(_settle(short, several))
    return found


def _settle(short: str, names: list[str]) -> dict[str, tuple[str, str]]:
    """Key and suffix of names that are alike up to the first dot."""
    stems: dict[str, set[str]] = {}
    for name in names:
        stem, end = _parts(name)
        kinds = stems.setdefault(stem, set())
        if end in SUFFIXES and not UNSAFE.intersection(stem[len(short) :].lower().split(".")):
            kinds.add(SUFFIXES[end] or TEXT)
    own = {stem for stem, kinds in stems.items() if stem == short or {TEXT} < kinds}
    numbered = {stem.rpartition(".")[0] for stem, kinds in stems.items() if kinds - {TEXT} and _ends_in_number(stem)}
    own |= {stem for stem in numbered if TEXT in stems.get(stem, ())}
    if not own and all(kinds == {TEXT} for kinds in stems.values()):
        own = set(stems)
    if stems.get(short) == {TEXT} and all(kinds <= {TEXT} for kinds in stems.values()):
        own = {stem for stem, kinds in stems.items() if kinds}
    lone = bool(own - {short}) and short not in own
    settled = {}
    for name in names:
        stem = key = _parts(name)[0]
        while key not in own and len(key) > len(short):
            key = key.rpartition(".")[0]
        if key not in own and lone and stems[stem]:
            key = stem  # one of several samples with dots in their names, that has lost its mate
        settled[name] = key, name.removeprefix("./")[len(key) + 1 :].lower()
    return settled


def _ends_in_number(stem: str) -> bool:
    end = stem.rpartition(".")[2]
    return end.isascii() and end.isdigit()


def _parts(name: str) -> tuple[str, str]:
    """The name without its last suffix, and that suffix in lower case."""
    stem, _, end = name.removeprefix("./").rpartition(".")
    return stem, end.lower()
