"""Turns of a conversation in the roles that the format `llava` knows.

Data for the calling of functions has more roles. They are written in the words that Hermes and Qwen models use, where
a template of such a model finds them, and as plain text for every other:

    function_call, tool_calls     a turn of the assistant, learned: <tool_call> JSON </tool_call>
    observation, tool, function   a turn of the user, not learned: <tool_response> text </tool_response>
    tools                         at the end of the system turn: <tools> one JSON a line </tools>
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

from mmtune.data._names import SUFFIXES
from mmtune.data.convert.base import Row, bad_json
from mmtune.data.formats.llava import ROLES
from mmtune.errors import DataError, Reason

OTHERS = {"chatgpt": "gpt", "bot": "gpt", "bing": "gpt", "bard": "gpt", "developer": "system"}
"""Roles of published files to those of the format."""
CALLS = ("function_call", "tool_call")
RESULTS = ("observation", "tool", "function", "tool_response", "function_response", "ipython")


def conversation(row: Row) -> Row:
    """A record of LLaVA, ShareGPT or chat messages, its turns in known roles. Raises DataError."""
    key = next((key for key in ("conversations", "messages", "conversation") if row.get(key) is not None), None)
    listed = _listed(row.get(key)) if key else None
    if not isinstance(listed, list) or not listed:
        seen = f"{key} is {str(listed)[:80]!r}" if key else "no turns"
        raise bad_json(seen, "conversations or messages: a list of turns")
    said: list[Row] = []
    for number, turn in enumerate(listed):
        if not isinstance(turn, dict):
            raise bad_json(f"turn {number} is {str(turn)[:80]!r}", "an object with from and value, or role and content")
        said += _turn(number, turn)
    kept = {name: value for name, value in row.items() if name not in ("conversations", "messages", "conversation")}
    tools = _tools(row.get("tools"))
    if tools:
        kept, said = _with_tools(kept, said, tools)
    return {**kept, "conversations": said}


def are_turns(value: Any) -> bool:
    """Whether a field may hold turns: a list, the same as JSON in a text, or a list for each of their fields."""
    return isinstance(value, (list, dict)) or (isinstance(value, str) and value.lstrip().startswith("["))


def _listed(value: Any) -> Any:
    """Turns as a list, also of JSON in a text (as tables have it), or of columns (as data sets of TFDS have it)."""
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    if isinstance(value, dict) and value and all(isinstance(one, list) for one in value.values()):
        with suppress(ValueError):
            return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]
    return value


def unpacked(value: Any) -> Any:
    """Turns that a table holds as JSON in a text, or as a list for each field, as a list; all else as it is."""
    listed = _listed(value)
    are = isinstance(listed, list) and listed and all(isinstance(turn, dict) for turn in listed)
    return listed if are and all("role" in turn or "from" in turn for turn in listed) else value


def _turn(number: int, turn: Row) -> list[Row]:
    """A turn as one or two turns of the format: an answer that also calls a function is two."""
    role = turn.get("from", turn.get("role"))
    content = turn.get("value", turn.get("content"))
    if not isinstance(role, str):
        raise bad_json(f"turn {number} is from {role!r}", f"one of {', '.join(ROLES)}")
    word = role if role in ROLES else role.strip().lower()
    word = OTHERS.get(word, word)
    rest = {key: value for key, value in turn.items() if key not in _OWN}
    if word in CALLS:
        return [{**rest, "from": "gpt", "value": _call(content)}]
    if word in RESULTS and isinstance(content, list) and content and all(isinstance(one, dict) for one in content):
        return [{**rest, "from": "human", "value": ["<tool_response>\n", *content, "\n</tool_response>"]}]
    if word in RESULTS:
        text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
        return [{**rest, "from": "human", "value": f"<tool_response>\n{text}\n</tool_response>"}]
    if word not in ROLES:
        raise bad_json(f"turn {number} is from {role!r}", f"one of {', '.join([*ROLES, *OTHERS, *CALLS, *RESULTS])}")
    calls = turn.get("tool_calls") or ([turn["function_call"]] if turn.get("function_call") else [])
    if not calls:
        return [{**rest, "from": word, "value": _named(content) if ROLES[word] == "user" else content}]
    if not isinstance(calls, list):
        raise bad_json(f"turn {number}: tool_calls is {str(calls)[:80]!r}", "a list of calls")
    text = "\n".join(_call(call) for call in calls)
    if isinstance(content, str) and content.strip():
        text = f"{content.strip()}\n{text}"
    elif content:
        raise bad_json(f"turn {number} calls functions beside {str(content)[:80]!r}", "text beside calls")
    return [{**rest, "from": word, "value": text}]


def _named(content: Any) -> Any:
    """A text in which media are named (`<img>a.jpg</img>`, as Qwen-VL writes it) as parts; any other as it is."""
    if not isinstance(content, str):
        return content
    parts: list[Any] = []
    end = 0
    for found in _NAMED.finditer(content):
        kind = {"img": "image"}.get(found[1], found[1])
        if kind == SUFFIXES.get(found[2].strip().rpartition(".")[2].lower()):
            parts += [{"type": "text", "text": content[end : found.start()]}] * (found.start() > end)
            parts.append({"type": kind, kind: found[2].strip()})
            end = found.end()
    if not parts:
        return content
    return parts + [{"type": "text", "text": content[end:]}] * (end < len(content))


_NAMED = re.compile(r"<(img|image|video|audio)>([^<>\n]{1,1024})</\1>")
_OWN = ("from", "role", "value", "content", "tool_calls", "function_call", "tool_call_id")


def _call(content: Any) -> str:
    """A call of a function. Arguments that are JSON in a text are read, so that a call is one object."""
    value = content
    if isinstance(content, str):
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None
    if isinstance(value, list) and value:
        return "\n".join(_call(one) for one in value)
    if not isinstance(value, dict):
        if isinstance(content, str) and content.strip():
            return f"<tool_call>\n{content.strip()}\n</tool_call>"
        raise DataError(Reason.empty_target, f"a call of a function is {str(content)[:80]!r}", "a name and arguments")
    value = value.get("function") if isinstance(value.get("function"), dict) else value
    arguments = value.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            pass
        else:
            value = {**value, "arguments": arguments}
    return f"<tool_call>\n{json.dumps(value, ensure_ascii=False)}\n</tool_call>"


def _tools(value: Any) -> str:
    """The functions that may be called, one a line; empty where there are none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value.strip()
    if not value:
        return ""
    listed = value if isinstance(value, list) else [value]
    return "\n".join(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in listed)


def _with_tools(kept: Row, said: list[Row], tools: str) -> tuple[Row, list[Row]]:
    """The functions, added to the system turn, which is made if it is missing."""
    block = f"<tools>\n{tools}\n</tools>"
    kept = {key: value for key, value in kept.items() if key != "tools"}
    if isinstance(kept.get("system"), str) and kept["system"].strip():
        return {**kept, "system": f"{kept['system'].strip()}\n\n{block}"}, said
    if said[0]["from"] == "system" and isinstance(said[0]["value"], str):
        return kept, [{**said[0], "value": f"{said[0]['value'].strip()}\n\n{block}"}, *said[1:]]
    return {**kept, "system": block}, said
