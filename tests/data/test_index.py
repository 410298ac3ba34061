import json
import random
import shutil
import subprocess
import tarfile

import numpy as np
import pytest

from mmtune.data import index as indexes
from mmtune.data.index import ShardIndex, index_shards, scan
from mmtune.errors import DataError, Reason
from tests.data import tars


def usable(index):
    return [group.key for group in index.groups if group.reason is None]


def whole(index):
    """Samples that would be trained: not refused and with both members."""
    return {g.key for g in index.groups if g.reason is None and set(g.members) == {"json", "png"}}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_offsets_lead_to_the_bytes(tmp_path, form):
    long = "folder/" * 20 + "a" * 90
    members = [*tars.talk("000001"), (f"{long}.txt", b"long"), (f"{long}.png", tars.PNG)]
    path = tars.write(tmp_path / "a.tar", members, form)
    index = scan(path)
    assert [group.key for group in index.groups] == ["000001", long]
    data = path.read_bytes()
    for (name, content), where in zip(
        members, [where for group in index.groups for where in group.members.values()], strict=True
    ):
        assert data[where[0] : where[0] + where[1]] == content, name
    assert not index.damage and not index.passed


def test_survives_json(tmp_path):
    path = tars.write(tmp_path / "a.tar", [*tars.talk("1"), ("2.pkl", b"x"), ("2.json", b"{}"), ("odd", b"")])
    index = scan(path)
    assert ShardIndex.parse(index.dump(), "x") == index
    with pytest.raises(DataError, match="version"):
        ShardIndex.parse(index.dump().replace('"version":2', '"version":9'), "x")


def test_every_cut_is_noticed_or_loses_nothing(tmp_path):
    data = tars.shards(tmp_path, 1, 8)[0].read_bytes()
    everything = whole(scan(tmp_path / "00000.tar"))
    assert len(everything) == 8
    cuts = [*range(0, len(data), 512), *random.Random(0).sample(range(len(data)), 200)]
    silent, halves = [], []
    for cut in cuts:
        path = tmp_path / "cut.tar"
        path.write_bytes(data[:cut])
        index = scan(path)
        lost = everything - whole(index)
        if lost and not index.damage:
            silent.append(cut)
        halves += [g.key for g in index.groups if g.reason is None and len(g.members) != 2]
    assert (silent, halves) == ([], [])


def test_flipped_headers_and_holes_are_noticed(tmp_path):
    path = tars.shards(tmp_path, 1, 12)[0]
    data = path.read_bytes()
    headers = [w[0] - 512 for g in scan(path).groups for w in g.members.values()]
    everything, fired = whole(scan(path)), 0
    rng = random.Random(0)
    for header in headers:
        for hole in (False, True):
            damaged = bytearray(data)
            if hole:
                damaged[header : header + 1024] = bytes(1024)
            else:
                damaged[header + rng.randrange(100)] ^= 1 << rng.randrange(8)
            path.write_bytes(damaged)
            index = scan(path)
            lost = everything - whole(index)
            fired += bool(lost)
            assert len(lost) <= 1, "damage to one header costs one sample"
            # a hole over the last sample's last member looks like the end; then its half is refused by the format
            assert index.damage or header == headers[-1]
            assert all(g.reason or len(g.members) == 2 or header == headers[-1] for g in index.groups)
    assert fired == 2 * len(headers)


ORDERS = {
    "interleaved": ["a.png", "b.png", "a.json", "b.json"],
    "reversed": ["a.png", "b.png", "b.json", "a.json"],
    "all of one kind first": ["a.json", "b.json", "c.json", "a.png", "b.png", "c.png"],
    "one apart": ["a.json", "b.json", "b.png", "a.png"],
    "at both ends": ["a.png", "b.json", "b.png", "c.json", "c.png", "a.json"],
}


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS.keys())
def test_members_that_lie_apart_make_no_sample(tmp_path, order):
    index = scan(tars.write(tmp_path / "a.tar", [(name, b"{}") for name in order]))
    refused = {group.key for group in index.groups if group.reason == Reason.incomplete_group}
    assert refused and all(len(group.members) == 2 for group in index.groups if group.reason is None)
    assert len({g.key for g in index.groups}) == len(index.groups) == len({name[0] for name in order})


def test_duplicates_are_told_apart(tmp_path):
    twice = tars.write(tmp_path / "a.tar", [*tars.talk("1"), ("1.png", b"x")])
    assert scan(twice).groups[0].reason == Reason.duplicate_key
    again = scan(tars.write(tmp_path / "b.tar", [*tars.talk("1"), *tars.talk("2"), *tars.talk("1")]))
    assert [(g.key, g.ordinal, g.reason) for g in again.groups] == [("1", 0, None), ("2", 0, None), ("1", 1, None)]
    assert again.counts()["duplicate_keys"] == 1
    tars.write(tmp_path / "c.tar", tars.talk("2"))
    assert "2 keys in several shards" in index_shards([tmp_path / "*.tar"])[-1]


def link(name, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


HOSTILE = {
    "symbolic link": link("x.png", tarfile.SYMTYPE),
    "hard link": link("x.png", tarfile.LNKTYPE),
    "device": link("x.png", tarfile.CHRTYPE),
    "pipe": link("x.png", tarfile.FIFOTYPE),
    "parent": tarfile.TarInfo("../x.png"),
    "parent inside": tarfile.TarInfo("a/../../x.png"),
    "absolute": tarfile.TarInfo("/tmp/x.png"),
    "link without suffix": link("x", tarfile.SYMTYPE),
    "drive": tarfile.TarInfo("C:/x.png"),
    "backslash": tarfile.TarInfo("..\\x.png"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_members_are_refused_and_named(tmp_path, name):
    path = tars.write(tmp_path / "a.tar", [*tars.talk("1"), ("", HOSTILE[name]), *tars.talk("2")])
    before = sorted(tmp_path.rglob("*"))
    index = scan(path)
    refused = [group for group in index.groups if group.reason]
    assert [group.reason for group in refused] == [Reason.unsafe_member]
    assert HOSTILE[name].name.replace("\\", "\\") in refused[0].detail
    assert usable(index) == ["1", "2"]
    assert sorted(tmp_path.rglob("*")) == before


def object_array():
    import io

    out = io.BytesIO()
    np.save(out, np.array([{}], dtype=object), allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize("suffix", ["pyd", "pkl", "pickle", "pth", "pt", "PKL", "json.pkl", "pkl.png", "npz", "Pth"])
def test_members_that_could_run_are_refused(tmp_path, suffix):
    index = scan(tars.write(tmp_path / "a.tar", [*tars.talk("1"), (f"1.{suffix}", b"canary")]))
    assert index.groups[0].reason == Reason.unsafe_suffix


def test_arrays_are_looked_at(tmp_path):
    import io

    plain = io.BytesIO()
    np.save(plain, np.zeros((2, 3), dtype=np.float32))
    unsafe = Reason.unsafe_suffix
    for content, reason in ((object_array(), unsafe), (plain.getvalue(), None), (b"", unsafe)):
        index = scan(tars.write(tmp_path / "a.tar", [("1.json", b"{}"), ("1.npy", content)]))
        assert index.groups[0].reason == reason


def test_other_members_are_passed_over_and_counted(tmp_path):
    members = [*tars.talk("1"), ("README", b""), (".DS_Store", b""), ("1.parquet", b""), ("sub/._x.png", b"")]
    index = scan(tars.write(tmp_path / "a.tar", members))
    assert usable(index) == ["1"]
    assert index.passed_count == 4
    assert set(index.passed) == {"README", ".DS_Store", "1.parquet", "sub/._x.png"}


def test_folders_and_dots_belong_to_the_key(tmp_path):
    folder = tarfile.TarInfo("./sub/")
    folder.type = tarfile.DIRTYPE
    index = scan(tars.write(tmp_path / "a.tar", [("", folder), ("./sub/1.0.png", b"x"), ("./sub/1.json", b"{}")]))
    assert [(g.key, set(g.members)) for g in index.groups] == [("sub/1", {"0.png", "json"})]
    assert not index.passed_count


def test_index_is_written_once_and_anew_when_the_shard_changed(tmp_path):
    tars.shards(tmp_path, 2, 3)
    said = []
    first = index_shards([tmp_path / "*.tar"], said.append)
    assert len(said) == 2 and "6 samples" in first[-1]
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [shard["samples"] for shard in manifest["shards"].values()] == [3, 3]
    assert all("unchanged" in line for line in index_shards([tmp_path / "*.tar"])[:2])
    tars.shards(tmp_path, 1, 5)
    again = index_shards([tmp_path / "*.tar"])
    assert any("before had 3" in line for line in again)
    assert json.loads((tmp_path / "manifest.json").read_text())["shards"]["00000.tar"]["samples"] == 5
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_no_tar_is_said(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"\x1f\x8b\x08\x00rest")
    with pytest.raises(DataError, match="compressed"):
        scan(tmp_path / "a.tar")
    (tmp_path / "b.tar").write_bytes(b"hello" * 1000)
    index = scan(tmp_path / "b.tar")
    assert not index.groups and index.damage


def test_patterns(tmp_path):
    from mmtune.data.patterns import braces, expand

    assert list(braces("a{08..11}b")) == ["a08b", "a09b", "a10b", "a11b"]
    assert list(braces("{a,b}{1..2}")) == ["a1", "a2", "b1", "b2"]
    paths = tars.shards(tmp_path, 3, 1)
    for pattern in ("{00000..00002}.tar", "", "*.tar", "000{00,01,02,01}.tar"):
        assert expand(str(tmp_path / pattern)) == paths
    with pytest.raises(DataError, match=r"2 of 5 files are missing"):
        expand(str(tmp_path / "{00000..00004}.tar"))
    with pytest.raises(DataError, match=r"x\*\.tar"):
        expand(str(tmp_path / "x*.tar"))
    with pytest.raises(Exception, match="pipe:"):
        expand("pipe:curl -s http://x/{0..9}.tar")


def test_two_stars_are_folders_of_any_depth(tmp_path):
    from mmtune.data.patterns import expand

    deep = [tmp_path / part for part in ("0.tar", "a/1.tar", "a/b/2.tar", "a/b/c/3.tar")]
    for path in deep:
        path.parent.mkdir(parents=True, exist_ok=True)
        tars.write(path, tars.talk("1"))
        path.with_name(path.name + ".index.json").write_text("{}")
    (tmp_path / "a" / "notes.md").write_text("x")
    for pattern in ("**/*.tar", "**", "**/?.tar", "**.tar"):
        assert expand(str(tmp_path / pattern)) == deep, pattern
    assert expand(str(tmp_path / "a/**/*.tar")) == deep[1:]
    assert expand(str(tmp_path / "**/b/*.tar")) == deep[2:3]
    assert expand(str(tmp_path / "*")) == deep[:2], "a folder that is matched stands for the tar files in it"
    assert expand(str(tmp_path)) == deep[:1]
    (tmp_path / "a" / "again").symlink_to(tmp_path / "a" / "b")
    assert len(expand(str(tmp_path / "**/*.tar"))) == 4, "each shard once, whatever links lead there"


@pytest.mark.parametrize("name", ["set [v2]", "[ab]", "a [1-3] {x,y}", "what?", "{0..3}"])
def test_a_folder_that_exists_is_meant_as_it_is_written(tmp_path, name):
    from mmtune.data.patterns import expand

    folder = tmp_path / name
    paths = tars.shards(folder, 3, 1)
    deeper = tars.shards(folder / "more [x]", 1, 1)
    assert expand(str(folder)) == paths
    assert expand(str(folder / "*.tar")) == paths
    assert expand(str(folder / "{00000..00002}.tar")) == paths
    assert expand(str(folder / "more [x]" / "0*.tar")) == deeper
    assert expand(str(folder / "**" / "*.tar")) == [*paths, *deeper]
    assert expand(str(paths[1])) == [paths[1]]


def test_links_that_lead_in_circles_end(tmp_path):
    from mmtune.data.patterns import expand

    paths = tars.shards(tmp_path / "b", 1, 1) + tars.shards(tmp_path / "c" / "d", 1, 1, first=5)
    for name in ("a", "b/x", "b/y", "c/z"):  # each of them doubles the ways to every shard, 40 times
        (tmp_path / name).symlink_to(tmp_path)
    assert expand(str(tmp_path / "**" / "*.tar")) == paths, "by their shortest names"
    assert expand(str(tmp_path / "**" / "**" / "*.tar")) == paths


def test_a_folder_and_the_end_of_a_name_in_capitals(tmp_path):
    from mmtune.data.patterns import expand

    (shard,) = tars.shards(tmp_path, 1, 1)
    shard.rename(tmp_path / "A.TAR")
    assert expand(str(tmp_path)) == expand(str(tmp_path / "*")) == [tmp_path / "A.TAR"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"/empty\b"):
        expand(str(tmp_path / "empty"))


def test_the_folder_that_tar_packs_is_no_sample(tmp_path):
    if shutil.which("tar") is None:
        pytest.skip("no tar here")
    for name, content in tars.talk("1"):
        (tmp_path / name).write_bytes(content)
    shard = tmp_path.parent / f"{tmp_path.name}.tar"
    subprocess.run(["tar", "--sort=name", "-cf", str(shard), "-C", str(tmp_path), "."], check=True)
    assert [(group.key, group.reason) for group in scan(shard).groups] == [("1", None)]


def test_brackets_that_are_no_folder_are_a_choice(tmp_path):
    from mmtune.data.patterns import expand

    paths = [tars.shards(tmp_path / f"set{number}", 1, 1)[0] for number in (1, 2, 3)]
    assert expand(str(tmp_path / "set[12]" / "*.tar")) == paths[:2]
    assert expand(str(tmp_path / "set[12]")) == paths[:2]


def test_beside_is_beside(tmp_path):
    assert indexes.beside(tmp_path / "a.tar") == tmp_path / "a.tar.index.json"
