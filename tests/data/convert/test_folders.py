"""Folders of media with a text of the same name beside each, and the tables that Hugging Face puts among them."""

import json

import pytest

from mmtune.errors import UsageError
from tests.data import sources, tars
from tests.data.sources import TALK


def test_media_with_texts_beside_them(tmp_path):
    folder = sources.folder(tmp_path / "set")
    (folder / "a" / "1.txt").write_text("\ufeffA dot\n")
    (folder / "v_1.json").write_text(json.dumps({"caption": "A film", "more": 1}))
    (folder / "s.caption").write_text("A tone")
    (folder / "p.txt").write_text("caf\u00e9", encoding="latin-1")
    (folder / ".hidden.jpg").write_bytes(tars.PNG)
    _, refused = sources.made(folder, tmp_path / "out")
    found = sources.samples(tmp_path / "out", "caption")
    assert [(one.media[0].kind, one.turns[1].text) for one in found] == [
        ("image", "A dot"), ("audio", "A tone"), ("video", "A film"),
    ]  # fmt: skip
    assert {line["file"]: line["reason"] for line in refused} == {
        "b.jfif": "missing_key", "noend": "missing_key", "C.JPG": "missing_key", "p.npy": "bad_text",
        "secret.txt": "missing_key",
    }  # fmt: skip


def test_conversations_beside_media_and_links(tmp_path):
    folder = sources.folder(tmp_path / "set")
    (folder / "a" / "1.json").write_text(json.dumps({"conversations": TALK}))
    (tmp_path / "private.txt").write_text("private")
    (folder / "b.txt").symlink_to(tmp_path / "private.txt")
    report, _ = sources.made(folder, tmp_path / "out")
    assert report.format == "llava" and report.written == 1
    assert len(sources.samples(tmp_path / "out")[0].media) == 1
    assert b"private" not in b"".join(sources.shards(tmp_path / "out").values())


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_an_image_folder_with_metadata(tmp_path, form):
    folder = tmp_path / "set" / "train"
    sources.folder(folder)
    lines = {"jsonl": '{"file_name": "a/1.png", "text": "A dot"}\n', "csv": "file_name,text\na/1.png,A dot\n"}
    (folder / f"metadata.{form}").write_text(lines[form])
    report, _ = sources.made(tmp_path / "set", tmp_path / "out")
    assert report.written == 1 and sources.samples(tmp_path / "out", "caption")[0].turns[1].text == "A dot"


def test_a_folder_with_one_file_of_records(tmp_path):
    folder = sources.folder(tmp_path / "set")
    (folder / "talks.json").write_text(json.dumps([{"image": "a/1.png", "conversations": TALK}]))
    assert sources.made(folder, tmp_path / "out")[0].written == 1
    (folder / "more.json").write_text("[]")
    with pytest.raises(UsageError, match=r"more\.json, talks\.json") as caught:
        sources.made(folder, tmp_path / "out2")
    assert "mmtune data convert" in caught.value.hint


def test_folders_that_hold_no_records(tmp_path):
    with pytest.raises(UsageError, match=r"/none\b"):
        sources.made(tmp_path / "none", tmp_path / "out")
    with pytest.raises(UsageError, match="/set holds 8"):
        sources.made(sources.folder(tmp_path / "set"), tmp_path / "out")
    shard = tmp_path / "shards"
    tars.shards(shard, 1)
    with pytest.raises(UsageError, match=r"/shards\b"):
        sources.made(shard, tmp_path / "out")
    with pytest.raises(UsageError, match=r"00000\.tar"):
        sources.made(shard / "00000.tar", tmp_path / "out")


def test_texts_without_a_medium_are_lines_and_ends_in_capitals_are_read(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    (folder / "A.JPG").write_bytes(sources.picture(1, "JPEG"))
    (folder / "A.TXT").write_text("a cat")
    (folder / "b.heic").write_bytes(b"no format that is read")
    (folder / "b.txt").write_text("a dog")
    report, refused = sources.made(folder, tmp_path / "out")
    assert report.written == 1 and sources.samples(tmp_path / "out", "caption")[0].turns[1].text == "a cat"
    assert [(line["file"], line["reason"]) for line in refused] == [("b.txt", "missing_key")]


def test_media_of_the_folder_are_its_own_whatever_other_folder_is_named(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "1.png").write_bytes(tars.PNG)
    (tmp_path / "set" / "1.txt").write_text("red")
    report, refused = sources.made(tmp_path / "set", tmp_path / "out", media=[tmp_path])
    assert (report.written, refused) == (1, [])
