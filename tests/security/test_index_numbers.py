"""Numbers of an index that comes from elsewhere: each is held against the others before it is used."""

from __future__ import annotations

import http.server
import json
import threading
import time
from pathlib import Path

import pytest

from mmtune.data import _index_file, patterns, remote
from mmtune.data import index as indexes
from mmtune.data.remote import Cache, Remote
from mmtune.data.shards import Corpus
from mmtune.errors import DataError, MmtuneError, UsageError
from tests.data import tars


@pytest.fixture
def shard(tmp_path):
    (path,) = tars.shards(tmp_path / "shards", 1, 3)
    indexes.index_shards([str(path)])
    return path


HUGE = int("9" * 4000)
HOSTILE = [
    ("sizes", [10**15, 2, 2]), ("sizes", [1.5, 2, 2]), ("sizes", ["2", 2, 2]), ("sizes", [-2, 2, 6]), ("sizes", None),
    ("sizes", [True, 3, 2]), ("bytes", 1e15), ("bytes", "many"), ("bytes", HUGE), ("bytes", 3), ("mtime_ns", 1.5),
    ("mtime_ns", HUGE), ("keys", ["a"]), ("keys", [1, 2, 3]), ("members.offset", [10**15] * 6),
    ("members.offset", [-512] * 6), ("members.offset", [0.5] * 6), ("members.size", [HUGE] * 6),
    ("members.size", ["²"] * 6), ("members.suffix", [-1] * 6), ("members.suffix", [9] * 6),
    ("members.sha256", ["short"] * 6), ("refused", {"²": ["too_long", ""]}), ("refused", {"9": ["too_long", ""]}),
    ("refused", {"0": ["no_such_reason", ""]}), ("duplicates", {"-1": 1}), ("duplicates", {"0": 0.5}), ("version", "1"),
    ("version", HUGE), ("passed_over", {"count": -1, "names": []}), ("sha256", 5), ("more", 1), ("damage", "text"),
]  # fmt: skip


@pytest.mark.parametrize(("field", "value"), HOSTILE, ids=[f"{name}-{str(value)[:20]}" for name, value in HOSTILE])
def test_a_hostile_number_is_refused_by_name(shard, monkeypatch, field, value):
    monkeypatch.setattr("sys.set_int_max_str_digits", lambda n: None, raising=False)
    where = indexes.beside(shard)
    tree = json.loads(where.read_text())
    at, *rest = field.split(".")
    if rest:
        tree[at][rest[0]] = value
    else:
        tree[at] = value
    where.write_text(json.dumps(tree))
    begun = time.process_time()
    with pytest.raises(DataError, match=r"00000.tar.index.json(.|\n)*mmtune data index"):
        Corpus([shard])
    assert time.process_time() - begun < 2


@pytest.mark.parametrize("text", ["", "[]", "null", "NaN", "[" * 100_000, '{"version": 1}', "\xff", '{"a":1}' * 9])
def test_a_file_that_is_no_index(shard, text):
    indexes.beside(shard).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=r"00000.tar.index.json"):
        Corpus([shard])


@pytest.mark.parametrize("where", ["index", "manifest"])
def test_an_index_linked_to_what_never_ends(shard, where):
    path = indexes.beside(shard) if where == "index" else shard.parent / "manifest.json"
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="no plain file"):
        Corpus([shard]) if where == "index" else indexes.index_shards([str(shard)])


def test_an_index_is_written_as_it_is_read(shard):
    index = indexes.read(indexes.beside(shard))
    assert _index_file.ShardIndex.parse(index.dump(), "again") == index


class Endless(http.server.BaseHTTPRequestHandler):
    """An index that does not end."""

    sent = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while Endless.sent < 1 << 28:
                Endless.sent += self.wfile.write(b"[" * (1 << 16))
        except OSError:
            pass

    def log_message(self, *args: object) -> None:
        pass


def test_an_index_elsewhere_that_does_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr(_index_file, "MOST", 1 << 20)
    monkeypatch.setattr(indexes, "MOST", 1 << 20)
    cache = Cache(tmp_path, 10**12, waits=(0.0,))
    monkeypatch.setattr(remote, "cache", lambda: cache)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        with pytest.raises(MmtuneError, match="sends more than 1,048,576 bytes"):
            cache.index(Remote(f"http://127.0.0.1:{site.server_port}/a.tar"))
        site.shutdown()
    assert Endless.sent < 64 << 20, "what lies in buffers, and no more"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# ----------------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize(
    "pattern", ["a" + "{a,b}" * 40 + ".tar", "{0..99999999}", "{0..999999}{a,b}", f"{{0..{9**99}}}"]
)
def test_braces_are_counted_before_the_first_choice_is_made(pattern: str) -> None:
    began = time.monotonic()
    with pytest.raises(UsageError, match="files by its braces"):
        next(patterns.braces(pattern))
    assert time.monotonic() - began < 5


def test_a_pattern_that_begins_too_far_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `/**/*.tar` does."""
    for number in range(30):
        (tmp_path / f"{number // 5}/{number}").mkdir(parents=True)
    (tmp_path / "0/0/a.tar").write_bytes(b"")
    assert patterns.expand(str(tmp_path / "**/*.tar"))
    monkeypatch.setattr(patterns, "FOLDERS", 20)
    with pytest.raises(UsageError, match="folders below"):
        patterns.expand(str(tmp_path / "**/*.tar"))
    monkeypatch.setattr(patterns, "FOLDERS", 1000)
    monkeypatch.setattr(patterns, "SECONDS", -1)
    with pytest.raises(UsageError, match="looked through within"):
        patterns.expand(str(tmp_path / "**/*.tar"))
