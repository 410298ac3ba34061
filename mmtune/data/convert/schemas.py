"""Spellings of records that are about, and each as a conversation or a caption.

A spelling knows its records by their fields, and makes of a record what a format of `mmtune.data.formats` reads. Media
stay as they are named here; `records` finds them. Fields that no spelling asks for are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmtune.data.convert import pairs, turns
from mmtune.data.convert.base import Row, bad_json
from mmtune.data.formats.llava import FIELDS
from mmtune.errors import DataError, Reason, UsageError
from mmtune.types import Kind

MEDIA: dict[str, Kind | None] = {
    **FIELDS,
    **dict.fromkeys(
        (
            "img",
            "picture",
            "photo",
            "image_path",
            "image_file",
            "image_name",
            "image_paths",
            "img_path",
            "img_file",
            "image_filepath",
            "jpg",
            "jpeg",
            "png",
            "webp",
        ),
        "image",
    ),
    **dict.fromkeys(
        (
            "clip",
            "video_path",
            "video_file",
            "video_name",
            "video_paths",
            "video_filepath",
            "frames",
            "video_frames",
            "mp4",
        ),
        "video",
    ),
    **dict.fromkeys(
        (
            "sound",
            "speech",
            "audio_path",
            "audio_file",
            "audio_name",
            "audio_paths",
            "audio_filepath",
            "wav",
            "wav_path",
            "flac",
            "mp3",
        ),
        "audio",
    ),
    **dict.fromkeys(("points_path", "points_file", "pointcloud", "point_cloud_path"), "points"),
    **dict.fromkeys(("file", "file_name", "filename", "file_path", "filepath", "path", "media", "media_path"), None),
}  # type: ignore[dict-item]
"""Field to the kind of media that it names; None where the content of the file decides."""
CAPTIONS = (
    "caption",
    "captions",
    "text",
    "title",
    "description",
    "transcription",
    "transcript",
    "sentence",
    "txt",
    "name",
)
"""Fields of a caption, the one that means most first."""
QUESTIONS, ANSWERS = ("question", "query", "prompt"), ("answer", "response", "answers", "completion")
CHOICES = ("options", "choices")
"""Fields with the answers to choose from, beside a question."""
TURNS = ("conversations", "messages", "conversation")


@dataclass(frozen=True)
class Schema:
    """How some records are written."""

    name: str
    about: str
    knows: Callable[[Row], bool]
    """Whether a record has the fields of this spelling."""
    read: Callable[[Row], Row]
    """The record as its format reads it, media as they were named. Raises DataError."""
    format: str = "llava"
    """The format that reads it."""
    any_field: bool = False
    """Whether fields like `file` and `path` name media; in a conversation they may mean anything."""


def media_of(row: Row, any_field: bool = True) -> dict[str, Kind | None]:
    """Fields of a record that name media, and their kinds. Of two names for one kind, the usual one counts.

    Args:
        any_field: count those that may name other things, too, as `path`, where no other names any.
    """
    named = {
        key: MEDIA[key.lower()]
        for key, value in row.items()
        if isinstance(key, str) and key.lower() in MEDIA and names_any(value)
    }
    if not any_field:
        named = {key: kind for key, kind in named.items() if kind is not None}
    usual = {kind for key, kind in named.items() if key in FIELDS}
    kept = {key: kind for key, kind in named.items() if key in FIELDS or (kind is not None and kind not in usual)}
    return kept or named


def names_any(value: Any) -> bool:
    """Whether a field names anything: no null, blank or empty list."""
    if isinstance(value, str):
        return bool(value.strip())
    if isinstance(value, dict):
        return any(one is not None for one in value.values())
    if isinstance(value, list):
        return any(names_any(one) for one in value)
    return value is not None and not isinstance(value, float)


def _field(row: Row, names: Iterable[str]) -> str | None:
    """The first of some fields that a record has, whatever its letters' case."""
    lower = {key.lower(): key for key in row if isinstance(key, str)}
    return next((lower[name] for name in names if name in lower and row[lower[name]] is not None), None)


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        raise DataError(Reason.missing_key, f"no field {key}", f"text in the field {key}")
    if not isinstance(value, str):
        raise bad_json(f"{key} is {str(value)[:80]!r}", "text")
    return value


def _said(asked: str, answer: str) -> list[Row]:
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]


def _alpaca(row: Row) -> Row:
    """Instruction and input in one turn of the user; and as they are, for the format `alpaca`."""
    given = row.get("input") or ""
    instruction, output = _text(row, "instruction"), _text(row, "output")
    asked = "\n".join(text for text in (instruction, _text({"input": given}, "input")) if text)
    past = _history(row)
    kept = {"instruction": instruction, "input": given, "output": output}
    return {**row, **kept, "conversations": [*past, *_said(asked, output)]}


def _history(row: Row) -> list[Row]:
    """What was said before, as turns."""
    past: list[Row] = []
    history = row.get("history") or []
    if not isinstance(history, list):
        raise bad_json(f"history is {str(history)[:80]!r}", "a list of questions and answers")
    for pair in history:
        if not isinstance(pair, Sequence) or len(pair) != 2 or not all(isinstance(one, str) for one in pair):
            raise bad_json(f"history holds {str(pair)[:80]!r}", "pairs of question and answer")
        past += _said(*pair)
    return past


def _video_chatgpt(row: Row) -> Row:
    talk = _said(f"<video>\n{_text(row, 'q')}", _text(row, "a"))
    return {**_without(row, "q", "a", "video_id"), "video": row["video_id"], "conversations": talk}


def _videochat2(row: Row) -> Row:
    """The instruction `i` stands before the first question."""
    kind = "video" if "video" in row else "image"
    listed, talk = row["QA"], []
    if not isinstance(listed, list) or not all(isinstance(turn, dict) for turn in listed):
        raise bad_json(f"QA is {str(listed)[:80]!r}", "a list of questions and answers")
    for number, turn in enumerate(listed):
        parts = [turn.get("i") or "", _text(turn, "q")] if not number else [_text(turn, "q")]
        asked = "\n".join(str(part) for part in parts if part)
        talk += _said(f"<{kind}>\n{asked}" if not number else asked, _text(turn, "a"))
    return {**_without(row, "QA"), "conversations": talk}


def _texts(row: Row) -> Row:
    """Turns in pairs, as The Cauldron has them; media of the record come first."""
    talk = []
    for pair in row["texts"]:
        if not isinstance(pair, dict):
            raise bad_json(f"texts holds {str(pair)[:80]!r}", "objects with user and assistant")
        talk += _said(_text(pair, "user"), _text(pair, "assistant"))
    return {**_without(row, "texts"), "conversations": talk}


def _are_pairs(value: Any) -> bool:
    listed = value if isinstance(value, list) else []
    return any(isinstance(one, dict) and {"user", "assistant"} <= one.keys() for one in listed)


def _webvid(row: Row) -> Row:
    """A clip is at PAGE_DIR/VIDEOID.mp4."""
    kept = _without(row, "page_dir", "videoid", "name")
    return {**kept, "video": f"{row['page_dir']}/{row['videoid']}.mp4", "caption": _text(row, "name")}


def _caption(row: Row) -> Row:
    key = _field(row, CAPTIONS)
    value = row[key] if key else None
    if key == "captions" and isinstance(value, dict):  # a column of lists, as tables have them
        value = next(iter(value.values()), None)
    if not value or (isinstance(value, str) and not value.strip()):
        raise DataError(Reason.empty_target, "a caption that is blank", "text in one of " + ", ".join(CAPTIONS))
    if not media_of(row):
        raise DataError(Reason.missing_key, "a caption, and no medium", "a name in one of " + ", ".join(MEDIA))
    return {**row, "caption": value}


def _question(row: Row) -> Row:
    asked, answer = _field(row, QUESTIONS), _field(row, ANSWERS)
    value = row[answer] if answer else None
    if isinstance(value, list) and value and all(one == value[0] for one in value):
        value = value[0]
    if asked is None or answer is None:
        raise DataError(Reason.missing_key, "no question, or no answer", "both")
    if listed := next((key for key in CHOICES if isinstance(row.get(key), (list, dict)) and row[key]), None):
        seen = f"{listed} are no part of the question"
        hint = f"write them into the text of {asked}, or --ignore {listed} where they are there"
        raise bad_json(seen, "a question that names what may be answered", hint)
    if isinstance(value, int) and not isinstance(value, bool):  # "How many?"
        value = str(value)
    if not isinstance(value, str):
        raise bad_json(f"{answer} is {str(value)[:80]!r}", "one answer", f"choose: --rename COLUMN={answer}")
    talk = [*_history(row), *_said(_text(row, asked), value)]
    return {**_without(row, asked, answer, "history"), "conversations": talk}


def _without(row: Row, *keys: str) -> Row:
    return {key: value for key, value in row.items() if key not in keys}


def _has(*keys: str) -> Callable[[Row], bool]:
    return lambda row: all(key in row for key in keys)


SCHEMAS = {
    schema.name: schema
    for schema in (
        Schema(
            "preference", "a question and two answers, of which one is preferred: chosen, rejected and the like",
            pairs.knows, pairs.pair, "preference",
        ),
        Schema(
            "llava", "conversations of LLaVA and ShareGPT, chat messages, also with calls of functions",
            lambda row: any(turns.are_turns(row.get(key)) for key in TURNS), turns.conversation,
        ),
        Schema("alpaca", "instruction, input, output; also history, media", _has("instruction", "output"), _alpaca),
        Schema("video_chatgpt", "q, a, video_id", _has("q", "a", "video_id"), _video_chatgpt),
        Schema("videochat2", "video or image, and QA: a list of i, q, a", _has("QA"), _videochat2),
        Schema(
            "cauldron", "images, and texts: a list of user, assistant",
            lambda row: _are_pairs(row.get("texts")), _texts,
        ),
        Schema("webvid", "videoid, page_dir, name", _has("videoid", "page_dir", "name"), _webvid, "caption"),
        Schema(
            "question", "question and answer, about a medium or none",
            lambda row: _field(row, QUESTIONS) is not None and _field(row, ANSWERS) is not None, _question,
            any_field=True,
        ),
        Schema(
            "caption", "a medium, and a text that says what it shows",
            lambda row: bool(media_of(row)) and _field(row, CAPTIONS) is not None, _caption, "caption",
            any_field=True,
        ),
    )
}  # fmt: skip
"""By name; where several know a record, the first does it."""


def renamed(row: Row, names: Mapping[str, str]) -> Row:
    """A record with some fields under other names; a field that had one of these goes. Raises DataError."""
    lost = [old for old in names if old not in row]
    if lost:
        seen = f"no field {', '.join(lost)}; there are {', '.join(map(str, row))[:200]}"
        raise DataError(Reason.missing_key, seen, "the fields that --rename names")
    rest = {key: value for key, value in row.items() if key not in names and key not in names.values()}
    return {**rest, **{new: row[old] for old, new in names.items()}}


def choose(rows: Iterable[Row], name: str) -> Schema:
    """The spelling asked for, or that of the first record that any spelling knows.

    Raises UsageError: no such spelling, or no record that any knows.
    """
    if name != "auto":
        if name not in SCHEMAS:
            raise UsageError(f"--format {name}", f"auto, {', '.join(SCHEMAS)}")
        return SCHEMAS[name]
    first: Row | None = None
    for row in rows:
        first = row if first is None else first
        for schema in SCHEMAS.values():
            if schema.knows(row):
                return schema
    has = f"records with the fields {', '.join(map(str, first))[:300]}" if first else "no record that can be read"
    hint = _advice(first) if first else ""
    listed = "; ".join(f"{schema.name}: {schema.about}" for schema in SCHEMAS.values())
    raise UsageError(has, listed, hint)


def _advice(row: Row) -> str:
    """What can be done about records that no spelling knows, by the first of them."""
    if all(isinstance(value, dict) for value in row.values()):
        return "where each field is a record, make a list of them: jq '[.[]]' FILE > list.json"
    lists = [key for key, value in row.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if lists:
        return f"where the records are the list {lists[0]}: jq '.[\"{lists[0]}\"]' FILE > list.json"
    if _field(row, CAPTIONS) and any(str(key).lower() in ("url", "image_url", "video_url") for key in row):
        return "addresses are not fetched here: img2dataset and video2dataset make shards of them"
    return "say which field is which, as --rename clip_path=video --rename words=caption"
