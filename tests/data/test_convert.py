import json

import pytest

from mmtune import config, registry
from mmtune.data.convert import convert, main
from mmtune.data.shards import Corpus
from mmtune.errors import UsageError
from mmtune.recipe import Card
from tests.data import tars

MP4 = b"\x00\x00\x00\x18ftypmp42"


def samples(folder, name="llava"):
    entry = registry.find("data/formats", name)
    spelled = entry(entry.Config(name=name))
    return [spelled.sample(record) for record in Corpus(folder)]


@pytest.fixture
def media(tmp_path):
    folder = tmp_path / "media"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "1.png").write_bytes(tars.PNG)
    (folder / "v_1.mp4").write_bytes(MP4)
    (folder / "a" / "77.mp4").write_bytes(MP4)
    return folder


def test_llava_records_with_one_several_and_no_media(tmp_path, media):
    talk = [{"from": "human", "value": "<image>\nhi"}, {"from": "gpt", "value": "ho"}]
    two = [{"from": "human", "value": "<image> and <image>"}, {"from": "gpt", "value": "ho"}]
    rows = [
        {"image": "a/1.png", "conversations": talk},
        {"images": ["a/1.png", "a/1.png"], "conversations": two},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        {"image": "a/2.png", "conversations": talk},
    ]
    said = []
    paths = convert(rows, "llava", tmp_path / "out", media, per_shard=2, say=said.append)
    assert [path.name for path in paths] == ["00000.tar", "00001.tar"]
    assert [len(sample.media) for sample in samples(tmp_path / "out")] == [1, 2, 0]
    assert any("1 records left out" in line and "a/2.png" in line for line in said)


def test_other_spellings(tmp_path, media):
    alpaca = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Hi", "input": "", "output": "Ho"},
    ]
    convert(alpaca, "alpaca", tmp_path / "alpaca", say=str)
    assert [sample.turns[0].text for sample in samples(tmp_path / "alpaca")] == ["Add.\n1 and 2", "Hi"]
    convert([{"q": "What?", "a": "A cat.", "video_id": "v_1"}], "video_chatgpt", tmp_path / "v", media, say=str)
    assert samples(tmp_path / "v")[0].media[0].kind == "video"
    row = {"video": "v_1.mp4", "QA": [{"i": "Answer.", "q": "A?", "a": "B"}, {"q": "C?", "a": "D"}]}
    convert([row], "videochat2", tmp_path / "v2", media, say=str)
    assert [turn.text.strip() for turn in samples(tmp_path / "v2")[0].turns] == ["Answer.\nA?", "B", "C?", "D"]
    convert([{"videoid": "77", "page_dir": "a", "name": "A dog"}], "webvid", tmp_path / "w", media, say=str)
    assert samples(tmp_path / "w", "caption")[0].turns[1].text == "A dog"


@pytest.mark.parametrize("name", ["../media/v_1.mp4", "/etc/passwd", "a/../../x"])
def test_names_stay_in_their_folder(tmp_path, media, name):
    row = {"video": name, "conversations": []}
    with pytest.raises(UsageError, match="below"):
        convert([row], "llava", tmp_path / "out", media, say=str)


def test_command(tmp_path, media, capsys):
    (tmp_path / "list.csv").write_text("videoid,page_dir,name\n77,a,A dog\n78,a,Gone\n")
    arguments = ["webvid", str(tmp_path / "list.csv"), "--media", str(media), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0 and "1 records left out" in capsys.readouterr().out
    (tmp_path / "list.json").write_text(json.dumps([{"q": 1}]))
    assert main(["alpaca", str(tmp_path / "list.json"), "--out", str(tmp_path / "x")]) == 1
    assert "no alpaca record" in capsys.readouterr().err


def test_every_card_loads():
    cards = {name: config.load(Card, name, kind="cards") for name in registry.shipped("cards")}
    assert len(cards) >= 9 and "pocket" in cards
    for name, card in cards.items():
        assert card.licence and all(pattern.startswith(f"shards/{name}/") for pattern in card.shards), name
