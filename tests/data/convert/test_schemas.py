"""Every spelling of records that is about becomes a conversation or a caption."""

import json
import subprocess

import pytest

from mmtune import config, registry
from mmtune.data.convert import text
from mmtune.data.shards import Corpus
from mmtune.errors import UsageError
from mmtune.recipe import Card
from tests.data import sources
from tests.data.sources import TALK


@pytest.fixture
def media(tmp_path):
    return sources.folder(tmp_path / "media")


def test_llava_records_with_one_several_and_no_media(tmp_path, media):
    two = [{"from": "human", "value": "<image> and <image>"}, {"from": "gpt", "value": "ho"}]
    rows = [
        {"image": "a/1.png", "conversations": TALK},
        {"images": ["a/1.png", "a/1.png"], "conversations": two},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        {"image": "a/2.png", "conversations": TALK},
    ]
    report, refused = sources.said(rows, tmp_path, media=[media], per_shard=2)
    assert sorted(sources.shards(tmp_path / "out")) == ["00000.tar", "00001.tar"]
    assert [len(sample.media) for sample in sources.samples(tmp_path / "out")] == [1, 2, 0]
    assert (report.written, report.refused) == (3, 1)
    assert [(line["record"], line["reason"]) for line in refused] == [(4, "missing_key")]
    assert "a/2.png" in refused[0]["message"]


def test_other_published_spellings(tmp_path, media):
    alpaca = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Hi", "input": "", "output": "Ho", "history": [["a", "b"]], "system": "Be short."},
    ]
    sources.said(alpaca, tmp_path)
    first, second = sources.samples(tmp_path / "out")
    assert first.turns[0].text == "Add.\n1 and 2"
    assert [turn.text for turn in second.turns] == ["Be short.", "a", "b", "Hi", "Ho"]
    assert sources.samples(tmp_path / "out", "alpaca")[0].turns[-1].text == "3"

    for name, row, said in (
        ("v", {"q": "What?", "a": "A cat.", "video_id": "v_1"}, ["What?", "A cat."]),
        ("v2", {"video": "v_1.mp4", "QA": [{"i": "Answer.", "q": "A?", "a": "B"}, {"q": "C?", "a": "D"}]},
         ["Answer.\nA?", "B", "C?", "D"]),
        ("c", {"video": "v_1.mp4", "texts": [{"user": "A?", "assistant": "B"}, {"user": "C?", "assistant": "D"}]},
         ["A?", "B", "C?", "D"]),
        ("qa", {"video": "v_1.mp4", "question": "What?", "answer": "A cat."}, ["What?", "A cat."]),
    ):  # fmt: skip
        (tmp_path / name).mkdir()
        sources.said([row], tmp_path / name, media=[media])
        sample = sources.samples(tmp_path / name / "out")[0]
        assert [turn.text.strip() for turn in sample.turns] == said and sample.media[0].kind == "video"


@pytest.mark.parametrize(
    ("table", "kind"),
    [
        ("video,caption\nv_1.mp4,A cat\n", "video"),
        ("File Name,Title\nv_1.mp4,A cat\n".replace("File Name", "filename"), "video"),
        ("path\ttext\na/1.png\tA cat\n", "image"),
        ("image_path;caption\nC.jpg;A cat\n", "image"),
        ("audio,transcription\ns.wav,A cat\n", "audio"),
        ("points,description\np.npy,A cat\n", "points"),
        ("videoid,page_dir,name\nv_1,.,A cat\n", "video"),
        ("clip_file,words\nv_1.mp4,A cat\n", "video"),
    ],
)
def test_a_plain_table_of_media_and_captions(tmp_path, media, table, kind):
    file = tmp_path / "list.csv"
    file.write_text("\ufeff" + table, encoding="utf-8")
    names = {"clip_file": "video", "words": "caption"} if "words" in table else {}
    report, _ = sources.made(file, tmp_path / "out", media=[media], rename=names)
    assert report.format == "caption" and report.written == 1
    sample = sources.samples(tmp_path / "out", "caption")[0]
    assert [one.kind for one in sample.media] == [kind] and sample.turns[1].text == "A cat"


@pytest.mark.parametrize("order", [("info", "images", "licenses", "annotations"), ("annotations", "images")])
def test_captions_of_coco(tmp_path, media, order, monkeypatch):
    monkeypatch.setattr(text, "CHUNK", 300)  # the lists of the real ones are longer than what is read at once
    said = [(7, "one \"]}"), (9, "two"), (7, "three"), (99, "of no picture"), (9, None)]
    whole = {
        "info": {"images": [{"x": 1}]},
        "licenses": [{"id": 1}],
        "images": [{"id": n, "file_name": name} for n, name in ((7, "a/1.png"), (9, "C.JPG"), (8, "b.jfif"))],
        "annotations": [{"image_id": number, "id": place, "caption": one} for place, (number, one) in enumerate(said)],
    }
    report, refused = sources.said({key: whole[key] for key in order}, tmp_path, media=[media], per_shard=1)
    rows = [json.loads(record.files["json"]) for record in Corpus(tmp_path / "out")]
    assert [row["captions"] for row in rows] == [["one \"]}", "three"], ["two"]]
    assert [sample.media[0].read() for sample in sources.samples(tmp_path / "out", "caption")] == [
        (media / name).read_bytes() for name in ("a/1.png", "C.JPG")
    ]
    assert [(line["record"], line["reason"]) for line in refused] == [
        (3, "empty_target"), (4, "missing_key"), (5, "bad_json"),
    ]  # fmt: skip
    assert "annotations, entry 5" in refused[2]["message"] and report.format == "caption"


def table(tmp_path, text, name="list.csv"):
    (tmp_path / name).write_bytes(text.encode())
    return tmp_path / name


@pytest.mark.parametrize(
    "text",
    [
        "image, caption\na/1.png, \"A cat, a dog\"\n",
        "sep=;\r\nimage;caption\r\na/1.png;A cat, a dog\r\n",
        "image|caption\na/1.png|A cat, a dog\n",
        "image,caption,,\na/1.png,\"A cat, a dog\",,\n",
        "image,caption\na/1.png,\"A cat, a dog\",,,\n",
        ",image,caption\n0,a/1.png,\"A cat, a dog\"\n",
        "image;caption;weight\na/1.png;A cat, a dog;0,5\n",
    ],
)
def test_tables_as_programs_write_them(tmp_path, media, text):
    sources.made(table(tmp_path, text), tmp_path / "out", media=[media])
    (sample,) = sources.samples(tmp_path / "out", "caption")
    assert sample.turns[1].text == "A cat, a dog" and sample.media[0].read() == (media / "a" / "1.png").read_bytes()
    assert sample.turns[1].weight == (0.5 if "0,5" in text else 1)


def test_quotes_of_a_table_with_tabs_take_no_other_row_along(tmp_path, media):
    said = ['"A', 'B "b"', 'C"', '"D" d', '"E ""e"""', '"F\nf"', '"G']
    text = "image\tcaption\n" + "".join(f"a/1.png\t{one}\n" for one in said)
    report, refused = sources.made(table(tmp_path, text), tmp_path / "out", media=[media], per_shard=2)
    assert (report.written, refused) == (7, [])
    shown = [sample.turns[1].text for sample in sources.samples(tmp_path / "out", "caption")]
    assert shown == ['"A', 'B "b"', 'C"', '"D" d', 'E "e"', "F\nf", '"G']


def test_a_table_without_names_of_columns_is_told_what_to_type(tmp_path, media):
    with pytest.raises(UsageError, match=r"v_1\.mp4, A cat") as told:
        sources.made(table(tmp_path, "v_1.mp4;A cat\nv_1.mp4;A dog\n", "my list.csv"), tmp_path / "out", media=[media])
    subprocess.run(told.value.hint, shell=True, check=True, cwd=tmp_path)
    report, _ = sources.made(tmp_path / "new.csv", tmp_path / "out", media=[media])
    assert report.written == 2
    with pytest.raises(UsageError, match="CR alone") as told:
        sources.made(table(tmp_path, "image,caption\ra/1.png,A cat\r", "old.csv"), tmp_path / "out", media=[media])
    subprocess.run(told.value.hint, shell=True, check=True, cwd=tmp_path)
    assert sources.made(tmp_path / "new.csv", tmp_path / "out2", media=[media])[0].written == 1


def test_function_calls_get_turns_that_a_template_knows(tmp_path):
    call = '{"name": "weather", "arguments": {"city": "Oslo"}}'
    asked = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    rows = [
        {
            "conversations": [
                {"from": "human", "value": "Is it cold?"},
                {"from": "function_call", "value": call},
                {"from": "observation", "value": '{"degrees": -3}'},
                {"from": "gpt", "value": "Yes."},
            ],
            "tools": '[{"name": "weather"}]',
            "system": "Be short.",
        },
        {
            "messages": [
                {"role": "user", "content": "Is it cold?"},
                {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": asked}]},
                {"role": "tool", "tool_call_id": "1", "content": '{"degrees": -3}'},
                {"role": "assistant", "content": "Yes."},
            ],
        },
    ]  # fmt: skip
    sources.said(rows, tmp_path)
    for sample in sources.samples(tmp_path / "out"):
        turns = [turn for turn in sample.turns if turn.role != "system"]
        assert [turn.role for turn in turns] == ["user", "assistant", "user", "assistant"]
        assert turns[1].text == f"<tool_call>\n{call}\n</tool_call>"
        assert turns[2].text == '<tool_response>\n{"degrees": -3}\n</tool_response>'
    assert sources.samples(tmp_path / "out")[0].turns[0].text == 'Be short.\n\n<tools>\n{"name": "weather"}\n</tools>'


def test_the_format_is_told_or_asked_for(tmp_path):
    with pytest.raises(UsageError, match="fields id, score") as caught:
        sources.said([{"id": 1, "score": 2}], tmp_path)
    assert "caption" in caught.value.expected and "--rename" in caught.value.hint
    with pytest.raises(UsageError, match="img2dataset"):
        sources.said([{"url": "https://example.org/a.jpg", "caption": "x"}], tmp_path)
    with pytest.raises(UsageError, match="--format lava"):
        sources.said([{"conversations": TALK}], tmp_path, format="lava")
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    report, refused = sources.said([{"q": 1}, {"conversations": talk}], tmp_path, format="llava")
    assert report.written == 1 and "fields q" in refused[0]["message"]


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        ({"a": {"image": "a/1.png", "caption": "x"}, "b": {"image": "a/1.png", "caption": "y"}}, r"jq '\[\.\[\]\]'"),
        ({"version": 1, "set": [{"image": "a/1.png", "caption": "x"}]}, r"jq '\.\[\"set\"\]'"),
    ],
)
def test_records_inside_an_object_are_told_how_to_get_out(tmp_path, media, whole, words):
    with pytest.raises(UsageError, match=words):
        sources.said(whole, tmp_path, media=[media])


def test_a_field_that_has_another_name(tmp_path, media):
    _, refused = sources.said(
        [{"pic": "a/1.png", "image": "thumb", "conversations": TALK}, {"conversations": TALK}],
        tmp_path, media=[media], rename={"pic": "image"},
    )  # fmt: skip
    assert [line["record"] for line in refused] == [2] and "no field pic" in refused[0]["message"]
    with pytest.raises(UsageError, match="no field pci; there are pic, conversations"):
        sources.made(sources.listed([{"pic": "a/1.png", "conversations": TALK}], tmp_path), tmp_path / "b",
                     rename={"pci": "image"})  # fmt: skip


def test_every_card_loads_and_names_a_command_that_there_is():
    cards = {name: config.load(Card, name, builtin="cards") for name in registry.shipped("cards")}
    assert len(cards) >= 9 and "pocket" in cards
    for name, card in cards.items():
        assert card.licence and all(pattern.startswith(f"shards/{name}/") for pattern in card.shards), name
        assert "python -m" not in card.about
    assert sum("mmtune data convert" in card.about for card in cards.values()) >= 9


def test_side_fields_are_not_checked(tmp_path):
    file = tmp_path / "a.json"
    said = json.dumps([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}])
    file.write_text(f'[{{"conversations": {said}, "score": NaN, "note": "\\ud83d", "big": {"9" * 5000}}}]')
    report, refused = sources.made(file, tmp_path / "out")
    assert report.written == 1 and not refused and len(sources.samples(tmp_path / "out")) == 1


def test_a_weight_or_a_range_that_is_no_number_is_refused_and_not_lost(tmp_path, media):
    said = json.dumps(TALK)
    (tmp_path / "a.json").write_text(
        f'[{{"image": "a/1.png", "conversations": {said}, "weight": NaN}},'
        f' {{"video": "v_1.mp4", "conversations": {said}, "end": Infinity}},'
        f' {{"video": "v_1.mp4", "conversations": {said}, "end": 0.5, "score": Infinity}}]'
    )
    _, refused = sources.made(tmp_path / "a.json", tmp_path / "out", media=[media])
    assert [line["reason"] for line in refused] == ["bad_weight", "bad_range"]
    (record,) = Corpus(tmp_path / "out")
    assert b"Infinity" not in record.files["json"] and sources.samples(tmp_path / "out")[0].media[0].end == 0.5


def test_media_that_a_text_names(tmp_path, media):
    """As Qwen-VL and Qwen-Audio write them: the medium stands in the place of its name."""
    named = (("img", "a/1.png"), ("audio", "s.wav"), ("video", "v_1.mp4"), ("img", "no.png"), ("img", "tag"))
    rows = [
        {"conversations": [{"from": "user", "value": f"Picture 1: <{tag}>{name}</{tag}>\nWhat?"},
                           {"from": "assistant", "value": "A."}]}
        for tag, name in named
    ]  # fmt: skip
    _, refused = sources.said(rows, tmp_path, media=[media])
    found = [one.turns[0].parts for one in sources.samples(tmp_path / "out")]
    assert [[getattr(part, "kind", part) for part in parts] for parts in found] == [
        ["Picture 1: ", "image", "\nWhat?"], ["Picture 1: ", "audio", "\nWhat?"], ["Picture 1: ", "video", "\nWhat?"],
        ["Picture 1: <img>tag</img>\nWhat?"],
    ]  # fmt: skip
    assert [(line["record"], line["reason"]) for line in refused] == [(4, "missing_key")]


def test_a_picture_that_a_tool_gives(tmp_path, media):
    """It became the text of a JSON list with the name in it."""
    turns = [
        {"role": "user", "content": "Draw."},
        {"role": "assistant", "tool_calls": [{"function": {"name": "draw", "arguments": "{}"}}]},
        {"role": "tool", "content": [{"type": "text", "text": "Done."}, {"type": "image_url", "image_url": "a/1.png"}]},
        {"role": "assistant", "content": "There."},
    ]
    sources.said([{"messages": turns}], tmp_path, media=[media])
    (one,) = sources.samples(tmp_path / "out")
    said = [getattr(part, "kind", part) for part in one.turns[2].parts]
    assert said == ["<tool_response>\n", "Done.", "image", "\n</tool_response>"]


def test_answers_to_choose_from_are_not_left_out(tmp_path, media):
    asked = {"image": "a/1.png", "question": "Which?", "answer": "A", "choices": ["red", "blue"]}
    rows = [asked, {"question": "q", "answer": "a"}]
    _, refused = sources.said(rows, tmp_path, media=[media])
    assert [(line["record"], "choices are no part" in line["message"]) for line in refused] == [(1, True)]
    report, _ = sources.said(rows, tmp_path / "media", media=[media], ignore=("choices",))
    assert report.written == 2


def test_columns_called_as_their_files_and_manifests_of_sounds(tmp_path, media):
    heard = {"audio_filepath": "s.wav", "offset": 0.02, "duration": 0.05, "text": "hm"}
    rows = [{"__key__": "1", "png": "a/1.png", "txt": "red"}, heard]
    sources.said(rows, tmp_path, media=[media])
    one, two = sources.samples(tmp_path / "out", "caption")
    assert one.media[0].kind == "image" and (two.media[0].start, round(two.media[0].end, 3)) == (0.02, 0.07)


def test_what_was_said_before_a_question_and_answers_in_numbers(tmp_path, media):
    """As ms-swift writes them: earlier exchanges in `history`."""
    rows = [
        {"query": "<image>q2", "response": "a2", "history": [["q1", "a1"]], "images": ["a/1.png"], "system": "s"},
        {"question": "How many?", "answer": 5, "image": "a/1.png"},
        {"query": "q", "response": "a", "history": "x"},
    ]
    _, refused = sources.said(rows, tmp_path, media=[media])
    one, two = sources.samples(tmp_path / "out")
    assert [turn.text for turn in one.turns] == ["s", "q1", "a1", "q2", "a2"]
    assert two.turns[1].text == "5" and [line["record"] for line in refused] == [3]


def test_two_fields_that_name_different_media(tmp_path, media):
    """Where no places tell which is meant, they are refused; two fields that name the same medium are one."""
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    rows = [{"image": "a/1.png", "images": ["C.JPG"], "conversations": turns},
            {"image": "a/1.png", "images": ["a/1.png"], "conversations": turns}]  # fmt: skip
    _, refused = sources.said(rows, tmp_path, media=[media])
    assert [(line["record"], line["reason"]) for line in refused] == [(1, "placeholder_mismatch")]
    assert [len(one.media) for one in sources.samples(tmp_path / "out")] == [1]
