"""Who listens to a run may be slow, stuck or gone; the run goes on, and what was not read is counted."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time

import pytest

from mmtune.output import Output


class Pipe:
    """Standard output as a pipe, for the length of a `with`."""

    def __enter__(self):
        self.end, write = os.pipe()
        self.stream, self.before = os.fdopen(write, "w", encoding="utf-8"), sys.stdout
        sys.stdout = self.stream
        return self

    def __exit__(self, *_):
        sys.stdout = self.before
        self.stream.close()
        if self.end is not None:
            os.close(self.end)

    def held(self):
        """What the pipe holds, taken out of it."""
        found = b""
        while select.select([self.end], [], [], 0)[0]:
            found += os.read(self.end, 1 << 16)
        return found.decode()


@pytest.fixture
def pipe():
    return Pipe()  # entered by the test itself: pytest sets the streams again when it begins


def test_a_pipe_with_a_reader_gets_every_line(pipe):
    reader = Output("stdout")
    lines = [f"step {number} äöü {'x' * number}" for number in range(100)]
    with pipe:
        for line in lines:
            reader.say(line)
        assert pipe.held().splitlines() == lines and reader.lost == 0


def test_a_full_pipe_is_waited_for_once_and_what_is_lost_is_said_later(pipe):
    reader, line = Output("stdout", patience=0.3), "y" * 999
    with pipe:
        begun = time.monotonic()
        for _ in range(1000):  # a pipe holds 64 KiB
            reader.say(line)
        assert 0.25 < time.monotonic() - begun < 3 and 900 < reader.lost < 1000
        lost = reader.lost
        assert pipe.held().count(line + "\n") == 1000 - lost
        reader.say("read again")
        assert pipe.held().splitlines() == [f"({lost} lines are missing here: no reader)", "read again"]
        reader.say("and again")
        assert pipe.held() == "and again\n" and reader.lost == lost


def test_a_line_longer_than_a_pipe_holds(pipe):
    reader = Output("stdout", patience=0.2)
    with pipe:
        reader.say("z" * 200_000)
        assert reader.lost == 1 and set(pipe.held()) == {"z"}


def test_a_reader_that_left_and_a_stream_that_is_none(pipe, monkeypatch):
    reader = Output("stdout")
    with pipe:
        os.close(pipe.end)
        pipe.end = None
        reader.say("to nobody")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        reader.say("to nobody")
    assert reader.lost == 0  # nobody missed them


def test_a_program_whose_output_nobody_reads_comes_to_its_end():
    code = (
        "from mmtune.training.log import Progress\n"
        "voice = Progress('lines'); voice._say.__self__._patience = 0.2\n"
        "for number in range(3000): voice.line('a line of some length, number %d' % number)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.wait(60) == 0
    assert 500 < len(process.stdout.read().splitlines()) < 3000
    process.stdout.close()
