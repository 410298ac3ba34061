"""Shards that lie elsewhere: the same samples in the same order, whole or not at all, and never more than the limit."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from pathlib import Path

import fsspec
import pytest

from mmtune.data import fetch, remote
from mmtune.data import index as indexes
from mmtune.data.patterns import expand
from mmtune.data.remote import Cache, Remote
from mmtune.data.shards import Corpus
from mmtune.errors import MmtuneError, UsageError
from tests.data import tars


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with no waits between tries."""
    made = Cache(tmp_path / "cache", 10**9, waits=(0.0, 0.0, 0.0))
    monkeypatch.setattr(remote, "cache", lambda: made)
    return made


@pytest.fixture
def shards(tmp_path):
    """Three shards with their indexes, on a disk."""
    folder = tmp_path / "shards"
    folder.mkdir()
    paths = tars.shards(folder, 3, 5)
    indexes.index_shards([str(folder)])
    return paths


@pytest.fixture
def memory(shards):
    """The same at an address."""
    system = fsspec.filesystem("memory")
    system.rm("/bucket", recursive=True) if system.exists("/bucket") else None
    for path in [*shards, *map(indexes.beside, shards)]:
        system.pipe_file(f"/bucket/{path.name}", path.read_bytes())
    return system


class PromptTerm(http.server.ThreadingHTTPServer):
    """A web server that can be told to misbehave."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        self.faults: list[object] = []
        self.sent, self.stop = 0, threading.Event()
        super().__init__(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        fault = self.server.faults.pop(0) if self.server.faults and self.path.endswith(".tar") else None
        if isinstance(fault, int):
            self.send_error(fault)
        elif fault == "cut":
            data = (Path(self.directory) / self.path.lstrip("/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:700])
        elif fault in ("endless", "stall"):
            self.send_response(200)
            self.end_headers()  # no length
            try:
                while fault == "endless" and self.server.sent < 1 << 30:
                    self.server.sent += self.wfile.write(bytes(1 << 16))
                self.server.stop.wait(20)
            except OSError:
                pass  # the other side has hung up
        else:
            super().do_GET()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(shards):
    with PromptTerm(shards[0].parent) as server:
        yield server
        server.stop.set()
        server.shutdown()


def contents(corpus: Corpus) -> dict[str, dict[str, bytes]]:
    """All files of all samples, by id, in the order of an epoch."""
    keys = [corpus.order(1, 0, place) for place in range(len(corpus))]
    return {corpus.id(key): dict(corpus.record(key).files) for key in keys}


@pytest.mark.parametrize("pattern", ["memory://bucket/", "memory://bucket/*.tar", "memory://bucket/{00000..00002}.tar"])
def test_samples_are_those_of_the_disk(cache, memory, shards, pattern):
    here, there = Corpus(shards), Corpus(pattern)
    assert cache.fetched == 0, "indexes are enough to know the order"
    assert list(contents(there).items()) == list(contents(here).items())
    assert there.fingerprint() == here.fingerprint() and cache.fetched == 3
    contents(Corpus(pattern))
    assert cache.fetched == 3, "they are kept"


def test_the_web(cache, site, shards):
    pattern = f"{site.address}/{{00000..00002}}.tar"
    assert contents(Corpus(pattern)) == contents(Corpus(shards))
    assert len(site.asked) == 6, "three indexes and three shards, each once"


@pytest.mark.parametrize("faults", [[503], [500, "cut"], ["cut"]])
def test_what_passes_is_tried_again(cache, site, shards, faults):
    site.faults = list(faults)
    assert contents(Corpus(f"{site.address}/00000.tar")) == contents(Corpus(shards[0]))
    assert site.faults == [] and sum(path == "/00000.tar" for path in site.asked) == len(faults) + 1


@pytest.mark.parametrize(
    ("fault", "tries", "said"), [(503, 3, "3 tries.*503"), ("cut", 3, "cut"), (403, 1, "not allowed")]
)
def test_what_stays_is_named_and_leaves_nothing(cache, site, fault, tries, said):
    corpus = Corpus(f"{site.address}/00000.tar")
    site.faults = [fault] * 9
    with pytest.raises(MmtuneError, match=rf"127.0.0.1:\d+/00000.tar cannot be fetched, .*{said}"):
        contents(corpus)
    assert 9 - len(site.faults) == tries
    assert not [*cache.folder.rglob("*.tar"), *cache.folder.rglob("*.part")]


def test_a_body_that_does_not_end_is_cut_off(cache, site):
    corpus = Corpus(f"{site.address}/00000.tar")
    site.faults = ["endless"]
    with pytest.raises(MmtuneError, match="00000.tar sends more than 2.,... bytes"):
        contents(corpus)
    assert site.sent < 64 << 20, "what lies in buffers of the system, and no more"
    assert not [*cache.folder.rglob("*.tar"), *cache.folder.rglob("*.part")]


def test_a_body_that_stalls_is_given_up_and_tried_again(cache, site, shards, monkeypatch):
    monkeypatch.setattr(fetch, "SILENCE", 0.3)
    corpus = Corpus(f"{site.address}/00000.tar")
    site.faults = ["stall"]
    assert contents(corpus) == contents(Corpus(shards[0])) and site.faults == []
    corpus.close()
    for path in cache.folder.rglob("*.tar"):
        path.unlink()
    site.faults = ["stall"] * 3
    with pytest.raises(MmtuneError, match="cannot be fetched, 3 tries.*timed out"):
        contents(corpus)


def test_nobody_there(cache):
    with pytest.raises(MmtuneError, match="cannot be fetched, 3 tries"):
        Corpus("http://127.0.0.1:9/a.tar")


def test_a_shard_that_is_not_what_its_index_says(cache, memory):
    corpus = Corpus("memory://bucket/00000.tar")
    memory.pipe_file("/bucket/00000.tar", memory.cat_file("/bucket/00001.tar"))
    with pytest.raises(MmtuneError, match=r"00000\.tar.*7aee6af0d4f7"):
        contents(corpus)
    assert not [*cache.folder.rglob("*.tar"), *cache.folder.rglob("*.part")]


def test_without_an_index_beside_it(cache, memory, shards):
    memory.rm_file("/bucket/00001.tar.index.json")
    said: list[str] = []
    corpus = Corpus("memory://bucket/", said.append)
    assert contents(corpus) == contents(Corpus(shards)) and any("no index beside it" in line for line in said)
    assert corpus.fingerprint() == Corpus(shards).fingerprint()


def held(cache: Cache) -> set[str]:
    return {path.name for path in cache.folder.rglob("*.tar")}


def test_the_limit_holds_and_the_oldest_goes(cache, memory, shards):
    size = shards[0].stat().st_size
    assert {path.stat().st_size for path in shards} == {size}
    cache.limit = 2 * size
    sources = [Remote(f"memory://bucket/{path.name}") for path in shards]
    found = [cache.index(source) for source in sources]
    first = cache.open(sources[0], found[0])
    os.close(cache.open(sources[1], found[1]))
    for age, source in enumerate(reversed(sources[:2])):
        os.utime(cache._place(source), (age, age))  # the second one was used longest ago
    os.close(cache.open(sources[0], found[0]))  # and the first again
    os.close(cache.open(sources[2], found[2]))
    assert held(cache) == {"00000.tar", "00002.tar"}
    for source in (sources[0], sources[2]):
        os.utime(cache._place(source), (5, 5) if source is sources[0] else (9, 9))
    os.close(cache.open(sources[1], found[1]))
    assert held(cache) == {"00001.tar", "00002.tar"} and cache.fetched == 4
    assert os.pread(first, size, 0) == shards[0].read_bytes(), "who reads a shard goes on reading it"
    os.close(first)


def test_a_corpus_larger_than_the_cache(cache, memory, shards):
    cache.limit = shards[0].stat().st_size
    corpus = Corpus("memory://bucket/")
    for _ in range(2):
        assert contents(corpus) == contents(Corpus(shards))
        corpus.close()
    assert len(held(cache)) == 1
    cache.limit -= 1
    corpus.close()
    for path in cache.folder.rglob("*.tar"):
        path.unlink()
    with pytest.raises(UsageError, match="20,480 bytes.* 20,479"):
        contents(corpus)


def test_the_limit_holds_for_addresses_without_the_ending(cache, memory, shards):
    size = shards[0].stat().st_size
    cache.limit = size
    for number, path in enumerate(shards):
        for end in ("", ".index.json"):
            memory.pipe_file(f"/bucket/{number}/content{end}", Path(f"{path}{end}").read_bytes())
        source = Remote(f"memory://bucket/{number}/content")
        os.close(cache.open(source, cache.index(source)))
    assert sum(path.stat().st_size for path in cache.folder.rglob("content*") if path.suffix == ".tar") == size


def test_what_a_killed_process_left_goes_first(cache, memory, shards):
    source = Remote("memory://bucket/00000.tar")
    found = cache.index(source)
    left = cache._place(source).with_name("00000.tar.part")
    left.write_bytes(bytes(found.bytes))
    cache.limit = found.bytes
    other = Remote("memory://bucket/00001.tar")
    os.close(cache.open(other, cache.index(other)))
    assert not left.exists() and held(cache) == {"00001.tar"}


@pytest.mark.parametrize(
    "url", ["pipe:cat a.tar", "ftp://host/a.tar", "simplecache::s3://b/a.tar", "http://host/a.tar"]
)
def test_sources_that_are_not_read(url):
    with pytest.raises(UsageError):
        expand(url)


def test_the_web_lists_nothing():
    with pytest.raises(UsageError, match=r"https://host/\*\.tar"):
        expand("https://host/*.tar")


def test_no_secret_of_an_address_is_shown():
    shown = str(Remote("https://user:pass@host/a/b.tar?X-Signature=abc"))
    assert shown == "https://host/a/b.tar"
