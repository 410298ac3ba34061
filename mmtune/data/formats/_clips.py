"""Clip ranges: which seconds of a video or a sound a record means.

Read are a start and an end (`start`/`end`, also as `begin`, with `clip_`, `segment_`, `trim_`, `time_` in front and
`_time`, `_timestamp`, `_sec`, `_ms` behind, in any letters: `startTime`), `offset` and `duration`, or both at once
(`clip`, `clip_range`, `time_range`, `trim`, ...: a list of two, an object with start and end, or "00:10-00:20"); of a
record also with `video_` or `audio_` in front, and as lists, one value for each item of that kind. Times are seconds,
or "1:05.5", "00:01:05.5", "65.5s". Without a word in front they belong to the one kind of the record that has a length;
a record without any such medium may have them for what it likes. `timestamp`, `segment` and their like may be what is
shown, or the answer to a question: where they hold a range the record is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmtune.errors import DataError, Reason
from mmtune.types import Kind, MediaRef

Range = tuple[float | None, float | None]

TIMED: tuple[Kind, ...] = ("video", "audio")
_UNIT = r"(?:_?(?:time_?stamp|time|secs?|seconds)|_s|(_?ms|_?milliseconds))?"
_END = re.compile(r"(?:(video|audio)s?_?)?(?:(?:clip|segment|trim|time)_?|t_)?(start|begin|end)" + _UNIT, re.IGNORECASE)
_BOTH = re.compile(
    r"(?:(video|audio)s?_?)?(clip|trim|(?:clip|time|video|audio|trim)_?(?:range|span|times))" + _UNIT, re.IGNORECASE
)
_EITHER = re.compile(r"(?:(?:video|audio)s?_?)?(?:segments?|time_?stamps?|spans?|intervals?|windows?)", re.IGNORECASE)
"""Fields that may hold what is shown, or what is asked for."""
MOST = 1e7
"""Longest time, seconds: a third of a year."""
_CLOCK = re.compile(r"(?:(?:(\d{1,4}):)?(\d{1,4}):)?(\d{1,9}(?:[.,]\d{1,9})?)\s*s?")
_FROM_TO = re.compile(r"\s*([\d:.,]+\s*s?)\s*(?:-+>?|to|,|–)\s*([\d:.,]+\s*s?)\s*")
EXPECTED = 'seconds of 0 or more, or "00:01:05.5", and an end behind the start'


def is_word(name: str) -> bool:
    """Whether a field of a part of a turn, or of an entry of a list of media, may name a range."""
    return any(word.fullmatch(name) for word in (_END, _BOTH, _EITHER)) or name in ("offset", "duration")


def of_record(
    facts: Mapping[str, Any], found: Mapping[Kind, Sequence[MediaRef]], where: str
) -> dict[Kind, list[MediaRef]]:
    """The media of a record by kind, with the ranges that its fields name.

    Raises DataError bad_range: no times, or not clear of which items they are.
    """
    timed = [kind for kind in TIMED if found.get(kind)]
    ranged = {kind: list(refs) for kind, refs in found.items()}
    for prefix in ("", *TIMED):
        values = _values(facts, (prefix,), where) if prefix or timed else None
        if values is None:
            continue
        kinds = [prefix] if prefix else timed
        if len(kinds) > 1 or not found.get(kinds[0]):
            seen = f"{where} has a range of time and {' and '.join(timed) or 'no medium with a length'}"
            expected = "a name that says whose it is, as video_start, of media that are there"
            raise DataError(Reason.bad_range, seen, expected)
        ranged[kinds[0]] = _applied(ranged[kinds[0]], values, f"{where}: {kinds[0]}")
    return ranged


def of_turn(facts: Mapping[str, Any], kinds: Iterable[str], where: str) -> None:
    """Refuse a turn that names a range beside places of these kinds. Raises DataError bad_range."""
    if any(kind in TIMED for kind in kinds) and _values(facts, ("", *TIMED), where) is not None:
        raise DataError(
            Reason.bad_range, f"{where} has a range of time", "ranges of the record, or of a part of a turn"
        )


def of_part(facts: Mapping[str, Any], where: str) -> Range:
    """The range that a part of a turn, or an entry of a list of media, names for itself. Raises DataError bad_range."""
    values = _values(facts, ("", *TIMED), where)
    return (None, None) if values is None else _single(values, where)


def with_range(ref: MediaRef, range_: Range, where: str) -> MediaRef:
    """The reference with a range. Raises DataError bad_range: it has one already, or its kind has no length."""
    if range_ == (None, None):
        return ref
    if ref.kind not in TIMED:
        raise DataError(Reason.bad_range, f"{where}: {ref.kind} with a range of time", "a video or a sound")
    if (ref.start, ref.end) not in ((None, None), range_):
        raise DataError(Reason.bad_range, f"{where} has two ranges of time", "one for each item")
    return replace(ref, start=range_[0], end=range_[1])


def _applied(refs: list[MediaRef], values: tuple[Any, Any], where: str) -> list[MediaRef]:
    """References with values, which are of the one item, or lists of as many."""
    columns = []
    for value in values:
        column = value if isinstance(value, list) else [value] * (len(refs) if value is None else 1)
        if len(column) != len(refs):
            seen = f"{where}: {len(column)} ranges of time for {len(refs)} items"
            raise DataError(Reason.bad_range, seen, "a list with one value for each item")
        columns.append(column)
    return [
        with_range(ref, _single(pair, where), where) for ref, pair in zip(refs, zip(*columns, strict=True), strict=True)
    ]


def _values(facts: Mapping[str, Any], prefixes: Sequence[str], where: str) -> tuple[Any, Any] | None:
    """Start and end as they stand, times or lists of times; None where no field names any.

    Args:
        prefixes: words before the fields that are read; empty for none.
    """
    ends: dict[str, dict[str, Any]] = {"start": {}, "end": {}}
    both: dict[str, tuple[Any, Any]] = {}
    for name, value in facts.items():
        if value is None:
            continue
        if (word := _END.fullmatch(name)) and (word[1] or "").lower() in prefixes:
            side = "end" if word[2].lower() == "end" else "start"
            ends[side][name] = _thousandths(value, f"{where}: {name}") if word[3] else value
        elif (word := _BOTH.fullmatch(name)) and (word[1] or "").lower() in prefixes:
            if (pair := _pair(value, f"{where}: {name}")) is not None:
                both[name] = tuple(_thousandths(one, f"{where}: {name}") for one in pair) if word[3] else pair
        elif "" in prefixes and _EITHER.fullmatch(name) and _is_range(value):
            seen = f"{where}: {name} is {str(value)[:80]!r}, which may be what is shown, or an answer"
            hint = f"call it clip_range if it is what is shown, else ignore: [{name}] in the format"
            raise DataError(Reason.bad_range, seen, "a name that says it", hint)
    offset, duration = _number(facts.get("offset")), _number(facts.get("duration"))
    if "" in prefixes and offset is not None and duration is not None:
        both["offset, duration"] = offset, offset + duration
    named = ends["start"] | ends["end"]
    for side in ends.values():
        if len({str(value) for value in side.values()}) > 1:
            raise DataError(Reason.bad_range, f"{where} has {' and '.join(side)}", "one of them")
    start, end = (next(iter(side.values()), None) for side in ends.values())
    lasts = next((name for name in ("duration", "video_duration", "audio_duration") if facts.get(name)), None)
    if start is not None and end is None and lasts:
        seen = f"{where} has {' and '.join(named)} and {lasts}, which may be that of the clip or of the whole"
        raise DataError(Reason.bad_range, seen, "an end", f"write it out, or ignore: [{lasts}] in the format")
    if named:
        both[", ".join(named)] = start, end
    if len({str(pair) for pair in both.values()}) > 1:
        raise DataError(Reason.bad_range, f"{where} has {' and '.join(both)}", "one of them")
    return next(iter(both.values()), None)


def _thousandths(value: Any, where: str) -> Any:
    """Seconds of a number, or of each of a list. Raises DataError bad_range: another text, as a clock has it."""
    if isinstance(value, list):
        return [_thousandths(one, where) for one in value]
    number = _number(value)
    return _refuse(value, where) if value is not None and number is None else number and number * 0.001


def _number(value: Any) -> float | None:
    """A finite number, also as text; none for everything else."""
    if isinstance(value, str) and re.fullmatch(r"\s*\d{1,12}(?:[.,]\d{1,9})?\s*", value):
        return float(value.replace(",", "."))
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return value if number else None


def _is_range(value: Any) -> bool:
    """Whether a value has the form of a range, or of several."""
    if isinstance(value, list) and value and all(isinstance(one, (list, dict)) for one in value):
        return _is_range(value[0])
    if isinstance(value, dict):
        return bool(value) and all(_END.fullmatch(str(name)) for name in value)
    if isinstance(value, str):
        return _FROM_TO.fullmatch(value) is not None and ":" in value
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(_number(one) is not None or (isinstance(one, str) and _CLOCK.fullmatch(one.strip())) for one in value)
    )


def _pair(value: Any, where: str) -> tuple[Any, Any] | None:
    """Start and end of a field that holds both; none for a `clip` that is the name of something."""
    if isinstance(value, str):
        spoken = _FROM_TO.fullmatch(value)
        if not spoken and not where.endswith(("clip", "trim")):
            _refuse(value, where)
        return (spoken[1], spoken[2]) if spoken else None
    if isinstance(value, dict):
        return _values(value, ("", *TIMED), where) or _refuse(value, where)
    if isinstance(value, list) and value and all(isinstance(one, (list, dict)) for one in value):
        pairs = [_pair(one, where) or _refuse(one, where) for one in value]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if isinstance(value, list) and len(value) == 2:
        return value[0], value[1]
    return _refuse(value, where)


def _single(pair: tuple[Any, Any], where: str) -> Range:
    start, end = (None if value is None else _seconds(value, where) for value in pair)
    if end is not None and end <= (start or 0):
        _refuse(f"{start} to {end}", where)
    return start, end


def _seconds(value: Any, where: str) -> float:
    """A time in seconds."""
    if isinstance(value, str) and (clock := _CLOCK.fullmatch(value.strip())):
        hours, minutes, seconds = (float((part or "0").replace(",", ".")) for part in clock.groups())
        return hours * 3600 + minutes * 60 + seconds
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and 0 <= value <= MOST else _refuse(value, where)


def _refuse(value: Any, where: str) -> Any:
    seen = f"{where}: a range of time of {str(value)[:80]!r}"
    raise DataError(Reason.bad_range, seen, EXPECTED, "ignore: [NAME] in the format, if the field means something else")
