from __future__ import annotations

import pytest
import torch

from mmtune.errors import UsageError
from mmtune.eval import controls
from mmtune.types import MediaRef, Sample, Turn


def ref(name, kind="video"):
    return MediaRef(kind, name.encode(), name)


def test_orders():
    assert controls.order("plain", 4, "a").tolist() == [0, 1, 2, 3]
    assert controls.order("other_media", 4, "a").tolist() == [0, 1, 2, 3]
    assert controls.order("reversed", 4, "a").tolist() == [3, 2, 1, 0]
    assert controls.order("shuffled", 1, "a").tolist() == [0]
    for name in map(str, range(40)):
        for frames in (2, 3, 8):
            drawn = controls.order("shuffled", frames, name)
            assert sorted(drawn.tolist()) == list(range(frames))
            assert drawn.tolist() != list(range(frames)), "the true order is no shuffle"
            assert torch.equal(drawn, controls.order("shuffled", frames, name)), "a report repeats"
    assert len({tuple(controls.order("shuffled", 8, str(n)).tolist()) for n in range(40)}) > 30


def test_without_media():
    sample = Sample("s", (Turn("user", (ref("a"), "what?")),))
    assert controls.without_media(sample).turns[0].parts == ("what?",)


def test_every_item_becomes_another_of_its_kind():
    refs = [ref("a"), ref("b"), ref("x", "image"), ref("c"), ref("y", "image")]
    others = controls.next_of_kind(refs)
    assert [others[id(r)].origin for r in refs] == ["b", "c", "y", "a", "x"]
    sample = Sample("s", (Turn("user", (refs[0], "what?")),))
    assert controls.swap(sample, others).turns[0].parts == (refs[1], "what?")


def test_a_single_item_borrows_or_is_refused():
    alone, spare = ref("a"), ref("b")
    assert controls.next_of_kind([alone], [spare])[id(alone)] is spare
    picture = ref("x", "image")
    others = controls.next_of_kind([alone, picture, spare])
    assert others[id(picture)] is spare and others[id(alone)] is spare, "another kind only where it must be"
    with pytest.raises(UsageError, match="a is the only item"):
        controls.next_of_kind([alone])


def test_unknown_control():
    with pytest.raises(UsageError, match="sideways"):
        controls.check(["plain", "sideways"])
