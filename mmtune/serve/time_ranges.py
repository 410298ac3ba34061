"""Ranges of time as a person writes them after the name of a clip: `00:10-00:20`, `10s-20s`, `1:05..1:10.5`, `90-`."""

from __future__ import annotations

import re

from mmtune.errors import UsageError

Span = tuple[float | None, float | None]
"""Begin and end in seconds; none for the clip's own."""

_CLOCK = r"(?:\d+:){1,2}\d+(?:\.\d+)?"
_UNITS = r"(?=\d)(?:\d+(?:\.\d+)?h)?(?:\d+(?:\.\d+)?m(?:in)?)?(?:\d+(?:\.\d+)?s(?:ec)?)?"
_PLAIN = r"\d+(?:\.\d+)?"
_DASH = r"(?:-|\u2013|\u2014|\.\.)"
_TOLD = rf"(?:{_CLOCK}|{_UNITS})"
_ANY = rf"(?:{_CLOCK}|{_PLAIN}(?![\d.]*[hms])|{_UNITS})"
_BEHIND = r"(?=$|[\s?!,;)\]])"
_RANGE = re.compile(
    rf"(?P<a>{_TOLD})\s*{_DASH}\s*(?P<b>{_TOLD}){_BEHIND}"  # blanks around the dash only where both are plainly times
    rf"|(?P<c>{_ANY}){_DASH}(?P<d>{_ANY})?{_BEHIND}"
    rf"|{_DASH}(?P<e>{_ANY}){_BEHIND}"
)
_ONE = re.compile(rf"(?:{_CLOCK}){_BEHIND}")
_PART = re.compile(r"(\d+(?:\.\d+)?)(h|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def leading(text: str) -> tuple[Span | None, str]:
    """A range at the beginning of a text, and the rest of the text; None where the text begins with other words.

    Raises:
        UsageError: it looks like a range but is not valid, as `00:20-00:10`, `1:75-2:00` or `00:10` alone.
    """
    text = text.lstrip()
    found = _RANGE.match(text)
    if found is None:
        if alone := _ONE.match(text):
            raise _wrong(alone[0], "it is one time, not a range")
        return None, text
    begin, end = found["a"] or found["c"], found["b"] or found["d"] or found["e"]
    if begin and end and begin.replace(".", "").isdigit() and end[-1] in _SECONDS:
        begin += end[-1]  # 10-20m is in minutes on both sides
    start = _seconds(begin) if begin else None
    stop = _seconds(end) if end else None
    if stop is not None and stop <= (start or 0.0):
        raise _wrong(found[0], "it does not end after it begins")
    return (start, stop), text[found.end() :]


def is_range(text: str) -> bool:
    """Whether a text is a range and nothing else. Raises as `leading` does."""
    span, rest = leading(text)
    return span is not None and not rest


def written(span: Span) -> str:
    """A range for people, seconds as `10-20 s`."""
    start, end = span
    return f"{start or 0:g}-{'' if end is None else f'{end:g}'} s"


def _seconds(text: str) -> float:
    if ":" in text:
        *upper, last = (float(part) for part in text.split(":"))
        if last >= 60 or (len(upper) == 2 and upper[1] >= 60):
            raise _wrong(text, "minutes and seconds behind a colon are below 60")
        return sum(value * 60.0**power for power, value in enumerate(reversed((*upper, last))))
    if parts := _PART.findall(text):
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    return float(text)


def _wrong(text: str, why: str) -> UsageError:
    return UsageError(
        seen=f"{text} behind a clip: {why}",
        expected="a range of time, begin-end",
        hint="clip.mp4 00:10-00:20, 10s-20s, 1:05-1:10.5, or 90- for the rest",
    )
