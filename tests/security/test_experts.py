"""An expert that means harm: it ends in time with all that it started, and what comes out of it is bounded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mmtune import config, registry
from mmtune.errors import ConfigError
from mmtune.experts import _process, _runner
from mmtune.experts._cache import Cache
from mmtune.experts._runner import Runner
from mmtune.types import MediaRef
from tests.security.hostile import gone, until

ROOT = Path(__file__).resolve().parents[2]
NAME = "tests.security.harmful:Harmful"
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no subreapers")


@pytest.fixture(autouse=True)
def _alarm() -> Iterator[None]:
    """A test that hangs has shown the harm."""

    def ring(*_: object) -> None:
        raise AssertionError("it took longer than its deadline")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make(name: str = NAME, cache: Path | None = None, **options) -> Runner:
    registry.allow([name])
    return Runner(config.validate(config.Outside, {"name": name, **options}), Cache(cache))


def media(what: str) -> MediaRef:
    return MediaRef("image", what.encode(), "x.png")


def test_a_version_that_never_comes(tmp_path: Path) -> None:
    runner = make("tests.security.harmful:Endless", tmp_path, seconds=1.0)
    start = time.monotonic()
    found = runner.look(media("daemon"))
    assert found.status == "failed" and found.note == "it did not answer in time"
    assert time.monotonic() - start < 10 and runner.process is None


def test_one_that_is_never_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_runner, "DESCRIBE", 1.0)
    with pytest.raises(ConfigError, match="cannot be made: it did not answer in time"):
        make("tests.security.harmful:EndlessToMake")


@LINUX
@pytest.mark.parametrize("what", ["daemon", "stop_the_guard"])
def test_what_it_started_ends_with_it(what: str) -> None:
    runner = make()
    numbers = [int(one.text) for one in runner.look(media(what)).evidence]
    assert len(numbers) == 2 and not any(map(gone, numbers))
    runner.close()
    assert until(lambda: all(map(gone, numbers)))


@LINUX
def test_what_it_started_ends_when_it_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    found = make().look(media("daemon_and_crash"))
    assert found.note == "it was ended by SIGSEGV"
    number = int((tmp_path / "daemon").read_text())
    assert until(lambda: gone(number))


@LINUX
@pytest.mark.parametrize("what", ["daemon", "hold_everything"])
def test_what_it_started_ends_when_the_program_is_killed(what: str) -> None:
    code = (
        "import time\n"
        "from mmtune import config, registry\n"
        "from mmtune.experts._cache import Cache\n"
        "from mmtune.experts._runner import Runner\n"
        "from mmtune.types import MediaRef\n"
        f"registry.allow([{NAME!r}])\n"
        f"runner = Runner(config.validate(config.Outside, {{'name': {NAME!r}}}), Cache(None))\n"
        f"found = runner.look(MediaRef('image', {what.encode()!r}, 'x'))\n"
        "print(*[one.text for one in found.evidence], flush=True)\n"
        "time.sleep(600)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert program.stdout is not None
    numbers = [int(word) for word in program.stdout.readline().split()]
    program.stdout.close()
    time.sleep(0.5)  # by now it holds everything
    assert len(numbers) == 2 and not any(map(gone, numbers))
    program.kill()
    program.wait()
    assert until(lambda: all(map(gone, numbers)))


def test_answers_without_an_end_fill_no_memory() -> None:
    runner = make()
    before = psutil.Process().memory_info().rss
    assert runner.look(media("flood")).status == "found"
    number = runner.process
    assert number is not None
    time.sleep(1.5)
    assert psutil.Process().memory_info().rss - before < 64 << 20
    assert until(lambda: gone(number))
    assert runner.look(media("noise")).note == "it spoke without being asked"
    assert runner.look(media("noise")).status == "found"
    runner.close()


def test_noise_is_cut(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MMTUNE_DEBUG", "1")
    runner = make(seconds=20)
    assert runner.look(media("noise")).status == "found"
    runner.close()
    shown = capfd.readouterr().err
    assert "noise" in shown and "(the expert writes more than is shown)" in shown and "\x1b" not in shown
    assert len(shown) < 2 * _process.MAX_NOISE
