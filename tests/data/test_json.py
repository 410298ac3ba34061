"""JSON from elsewhere: time that grows with the size, memory with a limit, and what is refused."""

import math
import time
import tracemalloc
from contextlib import suppress

import pytest

from mmtune.data import _json
from mmtune.errors import DataError, Reason


def refusal(raw):
    with pytest.raises(DataError) as caught:
        _json.tree(raw, "a.json")
    assert caught.value.reason == Reason.bad_json and caught.value.seen.startswith("a.json: ")
    assert len(caught.value.seen) < 300
    return caught.value.seen


def seconds(raw):
    times = []
    for _ in range(3):
        start = time.process_time()
        with suppress(DataError):
            _json.tree(raw, "a.json")
        times.append(time.process_time() - start)
    return min(times)


SLOW = {
    "one key twice, at the end": lambda n: b"{" + b",".join(b'"%d":0' % i for i in range(n // 8)) + b',"0":1,"0":1}',
    "every key twice": lambda n: b"{" + b",".join(b'"%d":0' % (i // 2) for i in range(n // 8)) + b"}",
    "keys twice in many objects": lambda n: b'{"a":[' + b",".join([b'{"b":0,"b":1}'] * (n // 14)) + b"]}",
    "brackets": lambda n: b'{"a":' + b"[" * n,
    "brackets behind a string that does not end": lambda n: b"[" * 99 + b'{"a":"' + b'\\"[' * (n // 3),
    "the same, and a last backslash": lambda n: b"[" * 99 + b'{"a":"' + b'\\"[' * (n // 3) + b"\\",
    "many strings": lambda n: b"[" * 99 + b'"a",' * (n // 4),
    "many backslashes": lambda n: b"[" * 99 + b'{"a":"' + b"\\" * n,
    "one whole number": lambda n: b'{"a":' + b"9" * n + b"}",
    "many whole numbers": lambda n: b'{"a":[' + b",".join([b"9" * 4000] * (n // 4000)) + b"]}",
}


@pytest.mark.parametrize("make", SLOW.values(), ids=SLOW.keys())
def test_time_grows_with_the_size(make):
    """Eight times the bytes take at most 25 times as long (64 times, where it grows with the square)."""
    small, large = seconds(make(150_000)), seconds(make(1_200_000))
    assert large < max(25 * small, 0.05), f"{small:.4f} s, {large:.4f} s"
    assert large < 3


def test_memory_has_a_limit(monkeypatch):
    """Sixteen megabytes of small values would be a gigabyte of objects; they are counted before any is made."""
    assert _json.MAX_VALUES <= 1_000_000
    monkeypatch.setattr(_json, "MAX_VALUES", 50_000)
    for unit in (b"[],", b"{},", b'{"a":0},', b"0,"):
        raw = b'{"a":[' + unit * 60_000 + b"0]}"
        tracemalloc.start()
        assert "more than 50000 values" in refusal(raw)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2 * len(raw) + 100_000


def test_depth_counts_brackets_outside_of_text():
    assert "deep" in refusal(b'{"a":' + b"[" * 64 + b"]" * 64 + b"}")
    assert "deep" in refusal(b'{"[]": "\\"", "a":' + b"[" * 64 + b"]" * 64 + b"}")
    assert _json.tree(b'{"a":' + b"[" * 63 + b"]" * 63 + b', "b": "' + b"[" * 99 + b'"}', "a.json")["b"] == "[" * 99
    assert len(_json.tree(b'{"a":[' + b"{}," * 500 + b"{}]}", "a.json")["a"]) == 501


def test_numbers_that_are_none_come_as_such():
    found = _json.tree(b'{"a": NaN, "b": -1e999, "c": ' + b"9" * 9999 + b', "d": -' + b"9" * 9999 + b', "e": 12}', "a")
    assert math.isnan(found["a"]) and [found[key] for key in "bcde"] == [-math.inf, math.inf, -math.inf, 12]


def test_a_key_twice_is_named():
    assert "'b' comes twice" in refusal(b'{"a": 1, "b": 2, "c": {"b": 1}, "b": 3}')


def test_a_ledger_from_elsewhere_is_read_line_by_line(tmp_path):
    from mmtune.data import ledger

    path = tmp_path / "skipped.jsonl"
    row = '{"step": %s, "reason": "non_finite", "id": "a"}\n'
    path.write_text(row % 1 + "[" * 100_000 + "\n" + row % '"x"' + row % 2 + '{"st')
    assert [row["step"] for row in ledger.read(path)] == [1, 2]
