"""A thousand mutated sources and records: no traceback, and no record that is gone without a line."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmtune import registry
from mmtune.data.convert import run, sources
from mmtune.data.convert.base import Options, Refusal
from mmtune.data.convert.write import build
from mmtune.data.formats.base import Record
from mmtune.errors import ConfigError, DataError, UsageError
from tests.data import sources as made
from tests.data import tars
from tests.data.sources import TALK

PARTS = {"role": "user", "content": [{"type": "image", "image": "a/1.png"}, {"type": "text", "text": "What?"}]}
ROWS = [
    {"id": 1, "image": "a/1.png", "conversations": TALK},
    {
        "image": {"path": "a/1.png", "bytes": None},
        "conversations": [{"from": "system", "value": "s"}, *TALK],
        "score": 0.5,
    },
    {"messages": [PARTS, {"role": "assistant", "content": "Red."}]},
    {
        "conversations": [
            {"from": "human", "value": "hi"},
            {"from": "function_call", "value": '{"name": "f"}'},
            {"from": "observation", "value": "1"},
            {"from": "gpt", "value": "ho"},
        ],
        "tools": '[{"name": "f"}]',
    },
    {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}]},
        ]
    },
    {"video": ["a/1.png", "a/1.png"], "fps": 2, "conversations": [{"from": "human", "value": "<video>"}, TALK[1]]},
    {"images": ["a/1.png", "noend"], "conversations": [{"from": "human", "value": "<image><image>"}, TALK[1]]},
    {"instruction": "Add.", "input": "1", "output": "3", "history": [["a", "b"]]},
    {"video": "v_1.mp4", "QA": [{"i": "i", "q": "q", "a": "a"}]},
    {"q": "q", "a": "a", "video_id": "v_1"},
    {"image": "a/1.png", "caption": ["A dot", "One dot"]},
    {"file": "s.wav", "text": "A tone"},
    {"image": "a/1.png", "question": "q", "answers": ["a", "a"]},
]
TABLE = 'image,caption,start\na/1.png,A dot,0.5\nnoend,"two\nlines",\nlost.png,"a ""quoted"" one",1\n'
ODD = [
    None,
    True,
    -1,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    "",
    " ",
    "\ud83d",
    "\0",
    "<image>",
    "<video>",
    "../x",
    "/",
    "a",
    "a/1.png",
    "data:image/png;base64,",
    "https://x/y.jpg",
    "file:///etc/passwd",
    "A" * 300,
    [],
    [[]],
    [None],
    {},
    {"bytes": "AAAA"},
    {"path": ["a"]},
    {"url": {}},
    {"type": "image"},
    [{"from": "gpt"}],
    {"a": {"b": [{}]}},
]
TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b",",
    b"\n",
    b"\\",
    b"\r",
    b"\t",
    b";",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\0",
    b"null",
    b"NaN",
    b"1e999",
    b"\\ud83d",
    b'""',
    b"[" * 80,
    b"0" * 700,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return made.folder(tmp_path_factory.mktemp("mutations") / "media")


def lines(rows):
    return "\n".join(map(json.dumps, rows)).encode()


def columns(rows, ipc):
    arrow = pytest.importorskip("pyarrow")
    data = arrow.Table.from_pylist(
        [{"image": {"bytes": tars.PNG, "path": "x"}, "caption": str(row)} for row in range(rows)]
    )
    out = io.BytesIO()
    if ipc:
        from pyarrow import ipc as writer

        with writer.new_stream(out, data.schema) as stream:
            stream.write_table(data, 2)
    else:
        from pyarrow import parquet

        parquet.write_table(data, out, row_group_size=2)
    return out.getvalue()


FILES = {
    "list.json": json.dumps(ROWS[:6]).encode(),
    "pretty.json": json.dumps(ROWS[4:9], indent=1).encode(),
    "wrapped.json": json.dumps({"info": 1, "data": ROWS[9:]}).encode(),
    "lines.jsonl": lines(ROWS),
    "table.csv": TABLE.encode(),
    "table.tsv": TABLE.replace(",", "\t").encode(),
    "columns.parquet": columns(5, False),
    "columns.arrow": columns(5, True),
}
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "end", "put", "twice"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 40),
        st.sampled_from(TOKENS),
    ),
    min_size=1,
    max_size=4,
)


def edited(data, edits):
    for what, where, size, token in edits:
        at = int(where * len(data))
        if what == "flip":
            data = data[:at] + bytes([data[at] ^ (1 << size % 8)]) + data[at + 1 :] if data else data
        elif what == "cut":
            data = data[:at] + data[at + size :]
        elif what == "end":
            data = data[:at] if size > 30 else data
        elif what == "put":
            data = data[:at] + token + data[at:]
        else:
            data = data[:at] + data[at : at + size] * 2 + data[at + size :]
    return data


def judged(file: Path, folder: Path, per_shard: int = 4) -> tuple[list, list[Refusal]]:
    """All records of a file as members or refusals. Raises UsageError for a file that holds none."""
    options = Options(media=(str(folder),), per_shard=per_shard)
    job = run._settled(sources.find(str(file), options), folder, options, False)
    builder, written, refused, number = job.builder(), [], [], 0
    for piece in sources.pieces(job.source, per_shard, None):
        assert piece.first == number + 1
        for raw in sources.read(job.source, piece):
            number += 1
            assert raw.number == number and (raw.line is None or raw.line > 0), "no record is passed over"
            one = build(builder, raw)
            (refused if isinstance(one, Refusal) else written).append(
                one if isinstance(one, Refusal) else (number, one)
            )
        assert number == piece.first + piece.count - 1
    assert not [one for one in refused if "unforeseen" in one.seen], refused
    return written, refused


@settings(max_examples=500, deadline=None, derandomize=True, database=None)
@given(name=st.sampled_from(sorted(FILES)), edits=EDITS)
def test_files_with_damaged_bytes(folder, name, edits):
    file = folder.parent / name
    file.write_bytes(edited(FILES[name], edits))
    try:
        written, refused = judged(file, folder)
    except UsageError as error:
        assert error.seen and error.expected
        return
    assert written or refused
    assert all(one.seen and one.reason for one in refused)


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(place=st.integers(0, 7), edits=EDITS, form=st.sampled_from(["lines", "list"]))
def test_a_damaged_record_takes_no_other_along(folder, place, edits, form):
    """Every other record that was usable before is usable now."""
    texts = [json.dumps({**row, "id": number}).encode() for number, row in enumerate(ROWS[:4] * 2)]
    texts[place] = edited(texts[place], edits).replace(b"\n", b"").replace(b"\0", b"")
    head, glue, tail = (b"", b"\n", b"") if form == "lines" else (b"[\n", b",\n", b"\n]")
    file = folder.parent / ("some.jsonl" if form == "lines" else "some.json")
    file.write_bytes(head + glue.join(texts) + tail)
    written, _ = judged(file, folder)
    found = [json.loads(members["json"]).get("id") for _, members in written]
    assert set(range(8)) - {place} <= set(found), texts[place]


def trees(value, at, odd):
    """A record with one value, somewhere inside, replaced."""
    places = []

    def walk(one, path):
        places.append(path)
        for key, inner in one.items() if isinstance(one, dict) else enumerate(one) if isinstance(one, list) else ():
            walk(inner, (*path, key))

    walk(value, ())
    copy = json.loads(json.dumps(value))
    path = places[1 + int(at * (len(places) - 1))]
    inside = copy
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = odd
    return copy


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    row=st.sampled_from(ROWS),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(ODD)), min_size=1, max_size=3),
)
def test_records_with_odd_values(folder, row, changes):
    for at, odd in changes:
        row = trees(row, at, odd)
    file = folder.parent / "odd.jsonl"
    file.write_bytes(lines([row, *ROWS[:1]]))
    try:
        written, refused = judged(file, folder)
    except UsageError as error:
        assert error.seen and error.expected
        return
    assert len(written) + len(refused) == 2


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    name=st.sampled_from(registry.names("data/formats")),
    row=st.sampled_from(ROWS),
    edits=EDITS,
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from(ODD)), min_size=0, max_size=2),
    damaged=st.booleans(),
)
def test_records_of_shards_in_every_format(name, row, edits, changes, damaged):
    for at, odd in changes:
        row = trees(row, at, odd)
    data = json.dumps(row).encode()
    entry = registry.find("data/formats", name)
    files = {"json": edited(data, edits) if damaged else data, "png": tars.PNG, "txt": edited(b"A dot", edits)}
    try:
        sample = entry(entry.Config(name=name)).sample(Record("s/k", files, "k", int(np.int64(7))))
        assert sample.turns
    except (DataError, ConfigError) as error:
        assert str(error)
