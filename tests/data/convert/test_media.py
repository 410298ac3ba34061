"""Media as records name them: found, judged by content, and nothing else copied."""

import base64
import json
import os

import pytest

from mmtune.errors import UsageError
from mmtune.media import Sampling, load
from tests.data import sources, tars
from tests.data.sources import TALK
from tests.media import make


@pytest.fixture
def media(tmp_path):
    return sources.folder(tmp_path / "media")


ANSWER = {"role": "assistant", "content": "grey"}


def talk(**fields):
    return {**fields, "conversations": TALK}


def parts(*media):
    content = [*media, {"type": "text", "text": "What?"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "Red."}]}


INLINE = "data:image/png;base64," + base64.b64encode(tars.PNG).decode()


@pytest.mark.parametrize(
    "row",
    [
        talk(image="a/1.png"),
        talk(image="b.jfif"),
        talk(image="noend"),
        talk(image="C.jpg"),
        talk(image="a\\1.png"),
        talk(images=[{"path": "a/1.png"}]),
        talk(image={"url": "a/1.png"}),
        talk(image={"bytes": base64.b64encode(tars.PNG).decode(), "path": "lost.png"}),
        talk(image={"bytes": None, "path": "a/1.png"}),
        talk(image=INLINE),
        talk(image=base64.b64encode(sources.picture(3, size=(64, 64))).decode()),
        talk(image_path="a/1.png"),
        talk(image="a/1.png", path="elsewhere/1.json", image_path="lost.png"),
        parts({"type": "image", "image": "a/1.png"}),
        parts({"type": "image_url", "image_url": {"url": INLINE}}),
        parts({"type": "image_url", "image_url": "a/1.png"}),
        parts({"type": "image", "source": {"type": "base64", "data": base64.b64encode(tars.PNG).decode()}}),
        {"image": "a/1.png", "conversations": json.dumps(TALK)},
        {"image": "a/1.png", "conversations": {key: [turn[key] for turn in TALK] for key in ("from", "value")}},
        {**parts({"type": "image"}), "images": ["a/1.png"]},
        {**parts({"type": "image", "image": "a/1.png"}), "images": ["a/1.png"]},
    ],
)
def test_a_picture_however_it_is_named(tmp_path, media, row):
    _, refused = sources.said([row], tmp_path, media=[media])
    assert not refused
    (sample,) = sources.samples(tmp_path / "out")
    (found,) = sample.media
    assert found.kind == "image" and load(found).data.shape[1] == 3


@pytest.mark.parametrize(
    "part",
    [
        {"type": "input_image", "image_url": "a/1.png"},
        {"type": "image", "image_path": "a/1.png"},
        {"type": "image", "name": "a/1.png"},
        {"type": "image", "data": base64.b64encode(tars.PNG).decode(), "mimeType": "image/png"},
        {"image": "a/1.png"},
    ],
)
def test_parts_of_turns_in_the_words_of_others(tmp_path, media, part):
    asked = {"role": "user", "content": [part, {"text": "What?"}]}
    answer = {"role": "assistant", "content": [{"type": "output_text", "text": "A dot."}]}
    sources.said([{"messages": [asked, answer]}], tmp_path, media=[media])
    (sample,) = sources.samples(tmp_path / "out")
    assert [one.read() for one in sample.media] == [tars.PNG]
    assert [turn.text for turn in sample.turns] == ["What?", "A dot."]


@pytest.mark.parametrize(
    ("row", "reason", "words"),
    [
        (talk(image="lost.png"), "missing_key", "lost.png is not there"),
        (talk(image="a"), "missing_key", "not a plain file"),
        (talk(image="secret.txt"), "wrong_media_type", "no medium of a known format"),
        (talk(image="v_1.mp4"), "wrong_media_type", "mp4, in a field for image"),
        (talk(image="https://example.org/a.jpg?token=geheim"), "download_failed", "on the web"),
        (talk(image="../records.json"), "unsafe_member", "lies outside"),
        (talk(image="/etc/passwd"), "unsafe_member", "lies outside"),
        (talk(image="file:///etc/passwd"), "unsafe_member", "lies outside"),
        (talk(image="data:image/png;base64,@@"), "bad_json", "data address"),
        (talk(image={"bytes": "@@"}), "bad_json", "bytes is"),
        (talk(image={"array": [1, 2], "sampling_rate": 3}), "bad_json", "decoded into numbers"),
        (talk(image=7), "bad_json", "a medium is"),
        (talk(image="a\0b"), "unsafe_member", "the name"),
        (talk(image="x" * 5000), "unsafe_member", "the name"),
        (talk(), "placeholder_mismatch", "0 media"),
        (parts({"type": "image", "image": "lost.png"}), "missing_key", "lost.png"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, media, row, reason, words):
    good = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]}
    report, refused = sources.said([row, good], tmp_path, media=[media])
    assert report.written == 1
    assert [(line["record"], line["line"], line["reason"]) for line in refused] == [(1, 1, reason)]
    assert words in refused[0]["message"] and "geheim" not in str(refused)


def test_names_as_addresses_and_spaces_around_them(tmp_path, media):
    for name in ("my dog.png", "50%20off.png"):
        (media / name).write_bytes(tars.PNG)
    good = ["my%20dog.png", "50%20off.png", "50%2520off.png", " a/1.png", "a/1.png\n"]
    rows = [{"image": name, "conversations": TALK} for name in [*good, "%2e%2e/out/convert.json", "%00.png"]]
    report, refused = sources.said(rows, tmp_path, media=[media])
    assert report.written == 5 and [line["record"] for line in refused] == [6, 7]


def test_a_media_folder_that_is_not_there_or_named_twice(tmp_path, media):
    row = {"image": f"{media.name}/a/1.png", "conversations": TALK}
    for folder in (tmp_path / "nothing", media / "a" / "1.png"):
        with pytest.raises(UsageError, match="--media"):
            sources.said([row], tmp_path, media=[folder])
    with pytest.raises(UsageError) as told:
        sources.said([row], tmp_path, media=[media])
    (line,) = sources.lines(tmp_path / "out")
    assert f"--media {media.parent}" in line["try"] and "none of 1" in str(told.value)
    assert sources.said([row], tmp_path, media=[media.parent])[0].written == 1


def test_a_blank_name_is_no_medium(tmp_path, media):
    plain = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    rows = [{"image": blank, "conversations": plain} for blank in ("", None, [], {"bytes": None, "path": None}, [""])]
    _, refused = sources.said(rows, tmp_path, media=[media])
    assert not refused
    assert [len(sample.media) for sample in sources.samples(tmp_path / "out")] == [0] * 5


def test_absolute_names(tmp_path, media):
    """The usual case: allowed below any folder that was named, and anywhere where none was."""
    row = talk(image=str(media / "a" / "1.png"))
    _, refused = sources.said([row], tmp_path, media=[media])
    assert not refused
    _, refused = sources.said([row, talk(image=f"file://{media}/a/1.png")], tmp_path, overwrite=True)
    assert not refused
    other = tmp_path / "other"
    other.mkdir()
    (other / "c.png").write_bytes(tars.PNG)
    with pytest.raises(UsageError, match=r"line 1: .*/media/a/1\.png"):
        sources.said([row], tmp_path, media=[other], overwrite=True)
    _, refused = sources.said([row, talk(image="c.png")], tmp_path, media=[other, media], overwrite=True)
    assert not refused
    with pytest.raises(UsageError, match="line 1: /etc/passwd"):
        sources.said([talk(image="/etc/passwd")], tmp_path, overwrite=True)


def test_links_do_not_lead_out_of_the_folder(tmp_path, media):
    private = tmp_path / "private"
    private.mkdir()
    (private / "me.png").write_bytes(tars.PNG)
    (media / "link.png").symlink_to(private / "me.png")
    (media / "inner.png").symlink_to("a/1.png")
    (media / "folder").symlink_to(private)
    rows = [talk(image="link.png"), talk(image="folder/me.png"), talk(image="inner.png")]
    report, refused = sources.said(rows, tmp_path, media=[media])
    assert [line["reason"] for line in refused] == ["unsafe_member"] * 2 and report.written == 1
    _, refused = sources.said(rows, tmp_path, media=[media, private], overwrite=True)
    assert not refused


@pytest.mark.parametrize("name", ["/dev/zero", "/proc/self/environ", "fifo", "/dev/stdin"])
def test_devices_and_pipes_are_not_opened(tmp_path, media, name):
    os.mkfifo(media / "fifo")
    where = [media] if name == "fifo" else []
    with pytest.raises(UsageError, match="file of the system|not a plain file"):
        sources.said([talk(image=name)], tmp_path, media=where)


def test_content_decides_what_a_member_is_called(tmp_path, media):
    (media / "wrong.png").write_bytes(sources.picture(5, "JPEG"))
    (media / "clip").write_bytes(make.video(count=4, rate=4, width=16, height=16))
    rows = [talk(image="wrong.png"), {"file": "clip", "caption": "a"}, {"file": "noend", "caption": "b"}]
    sources.said(rows[:1], tmp_path, media=[media])
    assert next(iter(sources.samples(tmp_path / "out")[0].media)).origin.endswith(".jpg")
    sources.said(rows[1:], tmp_path, media=[media], overwrite=True)
    found = sources.samples(tmp_path / "out", "caption")
    assert [one.media[0].kind for one in found] == ["video", "image"]


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_list_of_pictures_under_video_is_one_video(tmp_path, form):
    folder = tmp_path / "f"
    folder.mkdir()
    for number, shade in enumerate((0, 100, 200)):
        (folder / f"{number + 9}.{form.lower()}").write_bytes(sources.picture(shade, form, (32, 16)))
    names = [f"f/{number}.{form.lower()}" for number in (9, 10, 11)]
    said = [{"from": "human", "value": "<video>\nwhat"}, {"from": "gpt", "value": "grey"}]
    rows = [
        {"video": names, "fps": 2, "conversations": said},
        {"video": "f", "conversations": said},
        {"frames": names, "conversations": said},
        {"messages": [{"role": "user", "content": [{"type": "video", "video": names, "fps": 2.0}]}, ANSWER]},
        {"videos": [names], "conversations": said},
    ]
    _, refused = sources.said(rows, tmp_path, media=[tmp_path])
    assert not refused
    times = []
    for sample in sources.samples(tmp_path / "out"):
        (ref,) = sample.media
        film = load(ref, Sampling(frames=3))
        assert [round(float(frame.float().mean()) / 10) for frame in film.data] == [0, 10, 20]
        times.append(film.times.tolist())
    assert times == [[0, 0.5, 1.0], [0, 1, 2], [0, 1, 2], [0, 0.5, 1.0], [0, 1, 2]]


def test_frames_of_several_sizes_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(sources.picture(1))
    (tmp_path / "b.png").write_bytes(sources.picture(1, size=(9, 9)))
    with pytest.raises(UsageError, match="several sizes, 8x6, 9x9"):
        sources.said([{"video": ["a.png", "b.png"], "caption": "x"}], tmp_path)


def test_two_videos_stay_two(tmp_path, media):
    said = [{"from": "human", "value": "<video> or <video>"}, {"from": "gpt", "value": "both"}]
    sources.said([{"video": ["v_1.mp4", "v_1.mp4"], "conversations": said}], tmp_path, media=[media])
    assert len(sources.samples(tmp_path / "out")[0].media) == 2


def test_the_range_of_a_video_goes_with_it(tmp_path):
    """As fields of the record, of an object that names the video, and of a part of a turn."""
    sources.folder(tmp_path / "media")
    film = {"path": "v_1.mp4", "start": 0.25, "end": "0:00.75"}
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "Grey."}]
    part = [{"role": "user", "content": [{"type": "video", "video": "v_1.mp4", "clip": [0.25, 0.75]}]}]
    rows = [
        {"video": film, "conversations": turns},
        {"videos": [film], "conversations": turns},
        {"video": "v_1.mp4", "video_start": 0.25, "video_end": 0.75, "conversations": turns},
        {"messages": [*part, {"role": "assistant", "content": "Grey.", "weight": 0.5}]},
        {"video": {**film, "fps": 2}, "conversations": turns},
    ]
    _, refused = sources.said(rows, tmp_path, media=[tmp_path / "media"])
    found = sources.samples(tmp_path / "out")
    assert [(ref.start, ref.end) for sample in found for ref in sample.media] == [(0.25, 0.75)] * 4
    assert found[3].turns[-1].weight == 0.5
    assert len(refused) == 1 and "has fps" in json.dumps(refused[0])


def test_a_list_of_numbers_elsewhere_is_no_cloud(tmp_path):
    """The one format that any private table may look like is read below the media folder only."""
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "table.txt").write_text("1 2 3\n4 5 6\n")
    (tmp_path / "near").mkdir()
    row = {"points": str(tmp_path / "far" / "table.txt"), "caption": "x"}
    with pytest.raises(UsageError, match=r"line 1: .*/far/table\.txt"):
        sources.said([row], tmp_path / "near")
    report, _ = sources.said([row], tmp_path / "near", media=[tmp_path / "far"])
    assert report.written == 1


def test_ranges_of_a_table_and_the_home_folder(tmp_path, media, monkeypatch):
    monkeypatch.setenv("HOME", str(media))
    (tmp_path / "list.csv").write_text("video,caption,start,end\nv_1.mp4,A,0.25,00:00:00.75\n~/v_1.mp4,B,,\n")
    _, refused = sources.made(tmp_path / "list.csv", tmp_path / "out", media=[media])
    assert not refused
    found = [one.media[0] for one in sources.samples(tmp_path / "out", "caption")]
    assert [(one.start, one.end) for one in found] == [(0.25, 0.75), (None, None)]
