"""Asking experts: whatever they do, there is a finding; and what they found is kept."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from mmtune import children, config, media, registry
from mmtune.errors import ConfigError, ShapeError
from mmtune.experts import _cache, _protocol
from mmtune.experts._cache import Cache
from mmtune.experts._process import Failure, Process
from mmtune.experts._runner import PATIENCE, REST, Runner
from mmtune.experts.base import Evidence
from mmtune.types import MediaRef

ROOT = Path(__file__).resolve().parents[2]
FAKE = "tests.experts.fakes:Fake"
SETUP = {"name": FAKE, "options": {}, "code": FAKE, "network": False}
LOOK = {"do": "look", "kind": "image", "origin": "x", "start": None, "end": None, "question": None}


def picture(what: str) -> MediaRef:
    return MediaRef("image", what.encode(), "sign.png")


def make(cache: Path | None = None, clock: Callable[[], float] = time.monotonic, **options) -> Runner:
    registry.allow([options.setdefault("name", FAKE)])
    return Runner(config.validate(config.Outside, options), Cache(cache), clock)


@pytest.fixture(scope="module")
def runner() -> Iterator[Runner]:
    """One that keeps nothing; its process is warm between tests."""
    made = make()
    yield made
    made.close()


def until(true: Callable[[], bool]) -> None:
    """Wait for something that is bound to come."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def gone(number: int) -> bool:
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_evidence_becomes_a_finding(runner: Runner) -> None:
    found = runner.look(picture("say"))
    assert found.status == "found" and not found.cached and found.note == ""
    assert found.evidence == (Evidence("EXIT", 0.9), Evidence("dim", 0.1))
    assert found.quote is not None and (found.quote.source, found.quote.text) == ("Fake", "EXIT / dim")
    assert json.loads(json.dumps(found.record()))["text"] == "EXIT / dim"
    assert '"EXIT / dim"' in found.line() and "sign.png" in found.line()


def test_limits_of_a_recipe_hold_in_its_process_and_the_command_line_is_above_them(monkeypatch) -> None:
    def limit(name: str) -> str:
        return runner.look(picture(f"limit {name}")).evidence[0].text

    runner = make()
    try:
        assert limit("points") == str(media.Limits().points)
        runner.within(media.Limits(points=7, wall_seconds=3.5))
        assert (limit("points"), limit("wall_seconds")) == ("7", "3.5")
        monkeypatch.setitem(media._limits._said, "points", "9")
        runner.close()
        assert (limit("points"), limit("wall_seconds")) == ("9", "3.5")
    finally:
        runner.close()


def test_nothing_is_an_answer_too(runner: Runner) -> None:
    found = runner.look(picture("nothing"))
    assert found.status == "nothing" and found.quote is None and "found nothing" in found.line()


def test_the_process_stays_for_the_next_call(runner: Runner) -> None:
    first, second = (runner.look(picture(f"process {number}")) for number in range(2))
    assert first.evidence == second.evidence
    assert psutil.Process(int(first.evidence[0].text)).ppid() == runner.process


@pytest.mark.parametrize(
    ("what", "note"),
    [
        ("raise", "ValueError: a bad day"),
        ("leave", "it ended with code 3"),
        ("die", "it ended with code 4"),
        ("crash", "it was ended by SIGSEGV"),
        ("numbers", "it gave a int instead of Evidence"),
        ("none", "TypeError"),
        ("nan", "evidence with box"),
        ("unheard_of", "AttributeError"),
    ],
)
def test_what_fails_is_told_in_one_line_and_the_next_call_works(runner: Runner, what: str, note: str) -> None:
    found = runner.look(picture(what))
    assert found.status == "failed" and note in found.note and "\n" not in found.line() and found.quote is None
    assert found.line().endswith("going on without it")
    assert runner.look(picture("say")).status == "found"


@pytest.mark.parametrize(
    "frame",
    [
        (1 << 40).to_bytes(8, "big"),
        (9).to_bytes(8, "big") + b"\xff" * 9,
        (4).to_bytes(8, "big") + b"null",
        (2).to_bytes(8, "big") + b"{}",
    ],
    ids=["too long", "no text", "no mapping", "no evidence"],
)
def test_an_expert_that_speaks_for_its_process_is_not_believed(runner: Runner, frame: bytes) -> None:
    before = runner.look(picture("process")).evidence
    assert runner.look(picture(f"lie {frame.hex()}")).status == "failed"
    after = runner.look(picture("process"))
    assert after.status == "found" and after.evidence != before


def test_what_it_prints_is_no_answer(runner: Runner) -> None:
    assert runner.look(picture("noise")).evidence == (Evidence("clear"),)


@pytest.mark.parametrize("what", ["flood", "endless", "boxes"])
def test_too_much_is_cut_where_it_is_made(runner: Runner, what: str) -> None:
    found = runner.look(picture(what))
    assert found.status == "found" and found.cut
    assert len(found.evidence) <= _protocol.MAX_ITEMS
    assert sum(len(one.text) for one in found.evidence) <= _protocol.MAX_CHARS
    assert found.quote is not None and len(found.quote.text) <= 404 and found.quote.text.endswith("...")


def test_text_that_is_none_is_cleaned(runner: Runner) -> None:
    quote = runner.look(picture("half")).quote
    assert quote is not None and quote.text == "half a pair, [31mred"


def test_a_hanging_expert_is_ended_with_all_that_it_started() -> None:
    process = Process(SETUP)
    facts = LOOK
    far = time.monotonic() + 60
    [one], _ = _protocol.unpack(process.call(facts, b"grandchild", far))
    assert not gone(int(one.text))
    with pytest.raises(Failure, match="in time"):
        process.call(facts, b"hang", time.monotonic() + 0.2)
    until(lambda: gone(process.number) and gone(int(one.text)))


def test_the_deadline_covers_the_start() -> None:
    runner = make(seconds=0.001)
    runner.close()  # the process that said what it takes
    found = runner.look(picture("say"))
    assert found.status == "failed" and "in time" in found.note


def test_ctrl_c_passes_and_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = make()
    number = int(runner.look(picture("process")).evidence[0].text)

    class Pressed(queue.SimpleQueue):
        def get(self, *_, **__):
            raise KeyboardInterrupt

    monkeypatch.setattr(runner._process, "_said", Pressed())
    with pytest.raises(KeyboardInterrupt):
        runner.look(picture("hang"))
    until(lambda: gone(number))
    assert runner.look(picture("say")).status == "found"
    runner.close()


def test_it_does_not_outlive_who_asks() -> None:
    code = (
        "import time, sys\n"
        "from mmtune.experts._process import Process\n"
        f"p = Process({SETUP!r})\n"
        f"facts = {LOOK!r}\n"
        "p.call(facts, b'say', time.monotonic() + 60)\n"
        "print(p.number, flush=True)\n"
        "p.call(facts, b'hang', time.monotonic() + 600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    number = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until(lambda: gone(number))


def test_weights_that_are_not_there() -> None:
    runner = make(fail_at_start=True)
    found = runner.look(picture("say"))
    assert found.status == "failed" and found.note == "RuntimeError: no weights"
    runner.close()


def test_one_that_fails_again_and_again_is_left_alone_for_a_while() -> None:
    now = [0.0]
    runner = make(clock=lambda: now[0])
    for _ in range(PATIENCE):
        assert "ValueError" in runner.look(picture("raise")).note
    assert "left alone" in runner.look(picture("say")).note
    now[0] = REST
    assert "ValueError" in runner.look(picture("raise")).note
    assert "left alone" in runner.look(picture("say")).note
    now[0] = 2 * REST
    assert runner.look(picture("say")).status == "found"
    assert "ValueError" in runner.look(picture("raise")).note  # counted from the start again
    assert runner.look(picture("say")).status == "found"
    runner.close()


def test_its_environment_holds_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    runner = make()
    assert runner.look(picture("secret MY_API_KEY")).evidence[0].text == "unknown"
    assert runner.look(picture("secret OMP_NUM_THREADS")).evidence[0].text == "1"
    runner.close()
    assert children.environment({"LC_ALL": "C", "LCX": "no", "PATH": "/bin"}) == {
        "LC_ALL": "C",
        "PATH": "/bin",
        "PYTHONSAFEPATH": "1",
    }


def test_it_has_no_network_unless_it_is_given_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        closed, opened = make(), make(network=True)
        assert "without `network`" in closed.look(picture(f"call {port}")).note
        assert opened.look(picture(f"call {port}")).evidence[0].text == "got through"
        closed.close()
        opened.close()


# ------------------------------------------------------------------------------------------------ what is kept


def test_a_result_is_kept(tmp_path: Path) -> None:
    runner = make(tmp_path / "kept")
    first = runner.look(picture("process"))
    runner.close()
    other = make(tmp_path / "kept")
    again = other.look(MediaRef("image", b"process", "elsewhere.png"))
    other.close()
    assert again.cached and again.evidence == first.evidence and "kept from before" in again.line()
    [file] = (tmp_path / "kept").rglob("*.json")
    assert (tmp_path / "kept").stat().st_mode & 0o077 == 0 and file.parent.stat().st_mode & 0o077 == 0


def test_failures_are_not_kept(tmp_path: Path) -> None:
    runner = make(tmp_path)
    assert runner.look(picture("raise")).status == "failed"
    assert not list(tmp_path.rglob("*.json"))
    runner.close()


def test_what_a_result_depends_on(tmp_path: Path) -> None:
    def name(ref: MediaRef, question: str | None = None, **options) -> str:
        runner = make(tmp_path, **options)
        try:
            return runner._name(ref, ref.read(), question, time.monotonic() + 60)
        finally:
            runner.close()

    plain = name(picture("say"))
    assert plain == name(picture("say"), seconds=5, min_score=0.5, max_chars=20, network=True)
    assert plain == name(MediaRef("image", b"say", "other name"))
    others = [
        name(picture("say more")),
        name(MediaRef("video", b"say", "sign.png")),
        name(picture("say"), text="else"),
        name(picture("say"), frames=2),
        name(picture("say"), question="why?"),
        name(MediaRef("video", b"say", "sign.png", 1.0, 2.0)),
    ]
    assert len({plain, *others}) == 7


def test_a_new_version_looks_again(tmp_path: Path) -> None:
    (tmp_path / "version").write_text("1")
    runner = make(tmp_path / "kept", name="tests.experts.fakes:Versioned", text=str(tmp_path / "version"))
    runner.look(picture("say"))
    assert runner.look(picture("say")).cached
    (tmp_path / "version").write_text("2")
    assert not runner.look(picture("say")).cached
    runner.close()


def test_the_question_is_heeded_only_by_those_that_say_so(tmp_path: Path) -> None:
    deaf, hearing = make(tmp_path), make(tmp_path, ask=True)
    assert deaf.look(picture("question"), "one").evidence == deaf.look(picture("question"), "two").evidence
    assert [hearing.look(picture("question"), ask).evidence[0].text for ask in ("one", "two")] == ["one", "two"]
    deaf.close()
    hearing.close()


@pytest.mark.parametrize(
    "harm",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\x00\xff",
        lambda data: data.replace(b"EXIT", b"EXIL"),
        lambda data: b"[" * 100_000,
        lambda data: b'{"key": 3}',
        lambda data: b"[]",
    ],
)
def test_a_damaged_entry_is_made_again(tmp_path: Path, runner: Runner, harm: Callable[[bytes], bytes]) -> None:
    mine = make(tmp_path)
    mine._process, runner._process = runner._process, None  # a process that is warm already
    whole = mine.look(picture("say"))
    [file] = tmp_path.rglob("*.json")
    data = file.read_bytes()
    file.write_bytes(harm(data))
    again = mine.look(picture("say"))
    assert not again.cached and again.evidence == whole.evidence
    assert file.read_bytes() == data and mine.look(picture("say")).cached
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [file]
    mine._process, runner._process = None, mine._process


def test_an_entry_of_another_name_is_none(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("aa" * 32, (Evidence("x"),), False)
    cache._path("bb" * 32).parent.mkdir()
    cache._path("aa" * 32).rename(cache._path("bb" * 32))
    assert cache.get("bb" * 32) is None


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path, runner: Runner) -> None:
    (tmp_path / "file").write_text("")
    mine = make(tmp_path / "file" / "below")
    mine._process, runner._process = runner._process, None
    assert mine.look(picture("say")).status == "found" and not mine.look(picture("say")).cached
    mine._process, runner._process = None, mine._process


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMTUNE_CACHE", "/a")
    assert _cache.default_folder() == Path("/a/experts")
    monkeypatch.setenv("MMTUNE_CACHE", "")
    assert _cache.default_folder() is None
    monkeypatch.delenv("MMTUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert _cache.default_folder() == Path("/b/mmtune/experts")


# ------------------------------------------------------------------------------------------------ what is believed


def test_evidence_survives_the_wire() -> None:
    found = (Evidence("a\ud800b", 0.5, (0.0, 1.5), (0.0, 0.25, 0.5, 1.0)), Evidence(""))
    assert _protocol.unpack(_protocol.pack(found, True)) == (found, True)


GOOD = {"text": "x", "score": None, "span": None, "box": None}


@pytest.mark.parametrize(
    "change",
    [
        {"text": 3},
        {"score": 2},
        {"score": "high"},
        {"score": True},
        {"span": [3, 1]},
        {"span": [1]},
        {"span": "ab"},
        {"span": {"0": 1}},
        {"box": [0, 0, 2, 1]},
        {"box": [0, 0, 1]},
        {"box": [0, 0, 1, None]},
        {"more": 1},
    ],
)
def test_evidence_out_of_range_is_not_believed(change: dict) -> None:
    reply = json.dumps({"evidence": [GOOD | change], "cut": False}).encode()
    with pytest.raises(_protocol.WireError, match="no evidence"):
        _protocol.unpack(reply)
    assert _protocol.unpack(json.dumps({"evidence": [GOOD], "cut": False}).encode())[0] == (Evidence("x"),)


@pytest.mark.parametrize(
    "reply",
    [
        b'{"evidence": [{"text": "x", "score": NaN, "span": null, "box": null}], "cut": false}',
        b'{"evidence": [{"text": "x", "score": 1e999, "span": null, "box": null}], "cut": false}',
        json.dumps({"evidence": [GOOD] * (_protocol.MAX_ITEMS + 1), "cut": False}).encode(),
        json.dumps({"evidence": [GOOD | {"text": "x" * (_protocol.MAX_CHARS + 1)}], "cut": False}).encode(),
        b"[" * 200_000,
        b'{"evidence": [], "cut": 0}',
    ],
)
def test_replies_that_are_none(reply: bytes) -> None:
    with pytest.raises(_protocol.WireError):
        _protocol.unpack(reply)


def test_evidence_says_what_is_wrong_with_it() -> None:
    with pytest.raises(ShapeError, match=r"0\.\.1"):
        Evidence("x", float("nan"))
    with pytest.raises(ShapeError, match="begin <= end"):
        Evidence("x", span=(2.0, 1.0))


def test_experts_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'orc'"):
        registry.find("experts", "orc")
    with pytest.raises(ConfigError, match="cannot be made: OSError: no disk"):
        make(name="tests.experts.fakes:Unmade")
    broken = make(tmp_path, name="tests.experts.fakes:Broken")
    found = broken.look(picture("say"))
    assert found.status == "failed" and found.note == "RuntimeError: no version"
    broken.close()
