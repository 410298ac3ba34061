"""A sealed folder is whole or is not used, whatever happened to it."""

from __future__ import annotations

import json
import os

import pytest

from mmtune.checkpoint import seal

FILES = {"a.txt": "alpha", "b.txt": "beta"}


def fill(folder):
    for name, text in FILES.items():
        (folder / name).write_text(text)


def test_whole(tmp_path):
    seal.write(tmp_path / "box", fill)
    assert seal.faults(tmp_path / "box") == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["box"], "no draft may stay"


def test_replaced_as_one(tmp_path):
    seal.write(tmp_path / "box", fill)
    seal.write(tmp_path / "box", lambda folder: (folder / "c.txt").write_text("new"))
    assert sorted(p.name for p in (tmp_path / "box").iterdir()) == ["c.txt", seal.MANIFEST]
    assert seal.faults(tmp_path / "box") == []


@pytest.mark.parametrize("name", [*FILES, seal.MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove", "empty"])
def test_damage_is_found(tmp_path, name, damage):
    box = tmp_path / "box"
    seal.write(box, fill)
    path = box / name
    data = path.read_bytes()
    if damage == "flip":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    assert seal.faults(box)


def test_a_stranger_is_found(tmp_path):
    seal.write(tmp_path / "box", fill)
    (tmp_path / "box" / "c.txt").write_text("x")
    assert seal.faults(tmp_path / "box") == ["c.txt: not in the manifest"]


def test_a_failed_write_leaves_the_old_one(tmp_path):
    box = tmp_path / "box"
    seal.write(box, fill)

    def full(folder):
        fill(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        seal.write(box, full)
    assert seal.faults(box) == []
    assert [p.name for p in tmp_path.iterdir()] == ["box"], "the draft has to go"


@pytest.mark.parametrize("call", range(1, 12))
def test_killed_at_every_call(tmp_path, call, monkeypatch):
    """Whatever system call is the last one, `find` gives a whole folder: the old or the new."""
    box = tmp_path / "box"
    seal.write(box, fill)
    count = 0

    class Killed(BaseException):
        pass

    def dying(real):
        def wrapped(*args, **kwargs):
            nonlocal count
            count += 1
            if count == call:
                raise Killed
            return real(*args, **kwargs)

        return wrapped

    # a killed process cleans nothing up
    monkeypatch.setattr(seal, "remove", lambda path: None)
    monkeypatch.setattr(seal.os, "fsync", dying(os.fsync))
    real_rename = os.rename
    dead = False

    def rename(*args):
        nonlocal count, dead
        if dead:
            return
        count += 1
        if count == call:
            dead = True
            raise Killed
        real_rename(*args)

    monkeypatch.setattr(seal.os, "rename", rename)
    try:
        seal.write(box, lambda folder: (folder / "c.txt").write_text("new"))
        fired = False
    except Killed:
        fired = True
    here = seal.find(box)
    assert seal.faults(here) == []
    assert fired == (call <= 6), "c.txt, manifest, draft, two renames, parent: six calls"


def test_manifest_lists_sizes(tmp_path):
    seal.write(tmp_path / "box", fill)
    listed = json.loads((tmp_path / "box" / seal.MANIFEST).read_text())["files"]
    assert {name: entry["bytes"] for name, entry in listed.items()} == {"a.txt": 5, "b.txt": 4}
