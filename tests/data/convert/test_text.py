"""JSON, JSON lines and CSV: what is read, and the line at which a user finds what is not."""

import io
import json
import re

import pytest

from mmtune.data.convert import tables, text
from mmtune.errors import UsageError
from tests.data import sources


def rows(content, name="x.json"):
    raw = io.BytesIO(content if isinstance(content, bytes) else content.encode())
    start, what = text.start_of(raw, name)
    return what, [
        (one.number, one.line, one.row if one.fault is None else one.fault.seen) for one in text.read(raw, start)
    ]


def table(content, name="x.csv"):
    raw = io.BytesIO(content if isinstance(content, bytes) else content.encode())
    start = tables.start_of(raw, name)
    return [(one.number, one.line, one.row if one.fault is None else one.fault.seen) for one in tables.read(raw, start)]


A, B, C = {"a": '[{\\"\u00e9'}, {"b": [{"c": 1}, []]}, {"c": None}


@pytest.mark.parametrize(
    ("content", "name", "lines"),
    [
        (json.dumps([A, B, C]), "x.json", [1, 1, 1]),
        ("\ufeff" + json.dumps([A, B, C]), "x.json", [1, 1, 1]),
        (json.dumps([A, B, C], indent=2), "x.json", [2, 5, 13]),
        (json.dumps([A, B, C], indent=0), "x.json", [2, 5, 13]),
        (json.dumps([A, B, C]), "x.jsonl", [1, 1, 1]),
        ("\n".join(map(json.dumps, (A, B, C))), "x.json", [1, 2, 3]),
        ("\ufeff" + "\r\n\r\n".join(map(json.dumps, (A, B, C))), "x.jsonl", [1, 3, 5]),
        (json.dumps([A, B]) + "\n" + json.dumps([C]), "x.jsonl", [1, 1, 2]),
        ("\n".join(json.dumps(one, indent=1) for one in (A, B, C)), "x.jsonl", [1, 4, 12]),
        (json.dumps({"info": {"data": [1]}, "data": [A, B, C], "more": [1]}), "x.json", [1, 1, 1]),
        (json.dumps({"info": {}, "annotations": [A, B, C]}, indent=1), "x.json", [4, 7, 15]),
    ],
)
def test_every_way_to_write_a_list_of_records(content, name, lines):
    _, found = rows(content, name)
    assert found == [(number, line, row) for number, (line, row) in enumerate(zip(lines, (A, B, C), strict=True), 1)]


def test_small_chunks_give_the_same(monkeypatch):
    many = [{"n": number, "t": 'x{["\\' * number, "d": [[{}]] * (number % 3)} for number in range(60)]
    for content in (json.dumps(many), json.dumps(many, indent=1)):
        whole = rows(content)
        monkeypatch.setattr(text, "CHUNK", 64)
        raw = io.BytesIO(content.encode())
        start = text.Start(0)
        assert [(one.number, one.line, one.row) for one in text.read(raw, start)] == whole[1]
        spans = [span.start for span in text.spans(raw, start)]
        for number in (1, 17, 59):  # reading may begin at any record
            assert [one.row for one in text.read(raw, spans[number])] == many[number:]
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ('{"a": "no end}', "quote|Unterminated"),
        ('{"a": [1}', "bracket|Expecting"),
        ('{"a": 1]', "bracket|Expecting"),
        ('{"a": 1, "b" 2}', "Expecting"),
        ('{"a": "tab\there"}', "control"),
        ("17", "int|number"),
        ('{"a": 1, "a": 2}', "twice"),
        ("[" * 600 + "]" * 600, "nested|list"),
    ],
)
@pytest.mark.parametrize("form", ["list", "lines", "pretty"])
def test_one_broken_record_is_one_fault(broken, words, form):
    parts = [json.dumps(A), broken, json.dumps(C)]
    if form == "pretty":
        parts = [f"  {part}" for part in parts]
    content = "\n".join(parts) if form == "lines" else "[\n" + ",\n".join(parts) + "\n]"
    _, found = rows(content, "x.jsonl" if form == "lines" else "x.json")
    first = 1 if form == "lines" else 2
    assert found[0] == (1, first, A) and found[-1][1:] == (first + 2, C), found
    fault = found[1]
    if not (form == "lines" and broken.startswith("[")):
        assert len(found) == 3 and fault[:2] == (2, first + 1) and re.search(words, fault[2])


def test_a_file_that_was_cut_and_a_broken_list_in_one_line():
    _, found = rows(json.dumps([A, B])[:-5])
    assert found[0] == (1, 1, A) and "file ends inside" in found[1][2] and len(found) == 2
    _, found = rows('[{"a": 1}, {"b": "x}, {"c": 2}]')
    assert found[0][2] == {"a": 1} and len(found) == 2 and "nothing after it" in found[1][2]


def test_lines_of_a_table_are_those_of_an_editor():
    content = 'video,caption\na.mp4,"two\nlines"\nb.mp4,one\n\nc.mp4,a,comma\n"d.mp4,open\ne.mp4,caf\u00e9\n'
    found = table(content)
    assert found[0] == (1, 2, {"video": "a.mp4", "caption": "two\nlines"})
    assert found[1] == (2, 4, {"video": "b.mp4", "caption": "one"})
    assert found[2][:2] == (3, 6) and "3 cells" in found[2][2]
    assert found[3][:2] == (4, 7) and "never closes" in found[3][2]
    assert found[4] == (5, 8, {"video": "e.mp4", "caption": "caf\u00e9"})


def test_latin_1_is_one_line_each_and_utf_16_a_plain_word():
    found = table("video,caption\na,x\nb,caf\u00e9\n".encode("latin-1"))
    assert found[0][2] == {"video": "a", "caption": "x"} and found[1][1] == 3 and "Latin-1" in found[1][2]
    _, found = rows('{"a": "x"}\n{"a": "caf\u00e9"}'.encode("latin-1"), "x.jsonl")
    assert found[0][2] == {"a": "x"} and "Latin-1" in found[1][2]
    for codec in ("utf-16", "utf-16-le", "utf-32"):
        for content, read in ((json.dumps([A]), rows), ("video,caption\na,b\n", table)):
            with pytest.raises(UsageError, match="UTF-(16|32)") as caught:
                read(content.encode(codec))
            assert "iconv" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.json", "", "without a record"),
        ("a.json", "[]", "without a record"),
        ("a.csv", "", "is empty"),
        ("a.csv", "video,video\na,b\n", "comes twice"),
        ("a.json", "\x1f\x8bxxxx", "gzip"),
        ("a.xlsx", "PK\x03\x04xxxx", "zip"),
        ("a.parquet", "hello there", "without a record"),
        ("a.json", "hello", "line 1|not JSON|Expecting"),
    ],
)
def test_files_that_hold_no_records(tmp_path, name, content, words):
    file = tmp_path / name
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(UsageError, match=words):
        sources.made(file, tmp_path / "out")
    assert not list(tmp_path.glob("out/*.tar"))


def test_a_comma_behind_each_line(tmp_path):
    """A list that was cut into lines by hand."""
    said = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    text = ",\r\n\r\n".join(json.dumps({"id": number, "conversations": said}) for number in range(3)) + " ,\n"
    (tmp_path / "r.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    report, refused = sources.made(tmp_path / "r.jsonl", tmp_path / "out")
    assert (report.written, refused) == (3, [])


def test_letters_of_another_encoding_are_one_line(tmp_path):
    """Also in a list whose lines all begin with a bracket: objects inside of a record are no lines of their own."""
    talks = [{"conversations": [{"from": "human", "value": said}, {"from": "gpt", "value": "a"}]} for said in "aüb"]
    (tmp_path / "r.json").write_bytes(json.dumps(talks, ensure_ascii=False, indent=0).encode("latin-1"))
    report, refused = sources.made(tmp_path / "r.json", tmp_path / "out")
    assert report.written == 2 and [(line["record"], line["reason"]) for line in refused] == [(2, "bad_text")]
