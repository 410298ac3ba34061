"""`mmtune chat` as a program: what goes where, in pipes and at a terminal. The engine is scripted."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 64
WAV = b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 64

PATIENCE = 120.0
"""Seconds to wait for what is bound to come: on a busy machine a program takes long to start. Only a fault waits so
long."""
LONG = {"answer": "word " * 4000, "pause": 0.01}
"""An answer that nobody waits to the end of: some 100 s."""
NEVER = {"wait": 3600}
"""Weights that are not read within the time of any test."""


def _command(script: dict, *words: str) -> list[str]:
    return [sys.executable, "-m", "tests.serve.drive", json.dumps(script), "chat", *words]


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "MMTUNE_HISTORY": "", "TERM": "dumb", "OMP_NUM_THREADS": "1", **more}


def _run(*words: str, script: dict | None = None, stdin: bytes | None = None, **more: str):
    return subprocess.run(
        _command(script or {}, *words),
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=PATIENCE,
        env=_environment(**more),
        check=False,
    )


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "a picture.png"
    path.write_bytes(PNG)
    return str(path)


# ------------------------------------------------------------------------------------------------ pipes


@pytest.mark.parametrize("flags", [(), ("--no-stream",), ("-v",)])
def test_only_the_answer_goes_to_stdout(picture: str, flags: tuple[str, ...]) -> None:
    done = _run("--image", picture, "what?", *flags)
    assert (done.returncode, done.stdout) == (0, b"a red circle\n")
    assert b"a fake model for tests" in done.stderr
    assert (b"tokens/s" in done.stderr) == ("-v" in flags)


def test_json_is_one_record(picture: str) -> None:
    done = _run("--image", picture, "what?", "--json")
    record = json.loads(done.stdout)
    assert done.stdout.count(b"\n") == 1
    assert record["answer"] == "a red circle" and record["question"] == "what?" and record["finish"] == "stop"
    assert record["tokens"]["media"] == 4 and record["tokens"]["answer"] == 12
    assert record["media"][0]["origin"] == picture and record["media"][0]["kind"] == "image"
    assert record["seconds"]["total"] >= record["seconds"]["first_token"] > 0
    assert record["seconds"]["load"] >= 0


def test_the_question_may_come_from_a_pipe(picture: str) -> None:
    assert _run("--image", picture, stdin=b"what?\n").stdout == b"a red circle\n"


def test_the_picture_may_come_from_a_pipe() -> None:
    record = json.loads(_run("--image", "-", "what?", "--json", stdin=PNG).stdout)
    assert record["media"][0]["kind"] == "image" and record["media"][0]["origin"] == "standard input"


def test_the_kind_of_an_attachment_is_told_by_its_content() -> None:
    assert json.loads(_run("-a", "-", "what?", "--json", stdin=PNG).stdout)["media"][0]["kind"] == "image"


@pytest.mark.parametrize(
    ("words", "stdin", "message"),
    [
        (("--audio", "-", "what?"), WAV, "standard input is audio"),
        (("--image", "-", "what?"), WAV, "given as image, holds audio"),
        (("--image", "-", "what?"), b"", "nothing on standard input"),
        (("-a", "-", "what?"), b"plain words", "no known kind"),
        (("--image", "-"), PNG, "no question"),
        (("--image", "-", "--audio", "-", "what?"), PNG, "more than once"),
        (("--image", "missing.png", "what?"), None, "missing.png: no such file"),
        ((), b" \n", "no question"),
        (("what", "is", "this"), None, "put a question of several words in quotes"),
        (("./runs/nowhere",), None, "not the folder of a run"),
        (("--max-tokens", "0", "what?"), None, "max-tokens"),
        (("--nonsense", "what?"), None, "nonsense"),
    ],
)
def test_mistakes_are_told_in_plain_lines(words: tuple[str, ...], stdin: bytes | None, message: str) -> None:
    done = _run(*words, stdin=stdin, script=NEVER)  # refused before weights are read
    assert done.returncode == 2 and done.stdout == b""
    assert message in done.stderr.decode() and b"Traceback" not in done.stderr


def test_debug_shows_the_traceback() -> None:
    done = _run("--image", "missing.png", "what?", MMTUNE_DEBUG="1")
    assert done.returncode != 0 and b"Traceback" in done.stderr


def test_weights_that_cannot_be_read_end_the_program() -> None:
    done = _run("what?", script={"fault": True})
    assert (done.returncode, done.stdout) == (2, b"") and b"no weights" in done.stderr


def test_a_reader_that_goes_away_is_no_fault() -> None:
    script = {"answer": "word " * 2000, "pause": 0.0005}
    words = " ".join(f"'{word}'" for word in _command(script, "--max-tokens", "9999", "what?"))
    done = subprocess.run(
        ["bash", "-c", f"{words} | head -c 4"], capture_output=True, timeout=PATIENCE, env=_environment(), check=False
    )
    assert done.stdout == b"word" and b"Traceback" not in done.stderr


# ------------------------------------------------------------------------------------------------ a terminal


class Terminal:
    """A program at a pseudo-terminal."""

    def __init__(self, script: dict, *words: str, **more: str) -> None:
        self.process, self._end = pty.fork()
        if self.process == 0:
            os.execvpe(sys.executable, _command(script, *words), _environment(**more))
        self.seen = ""

    def wait(self, text: str, seconds: float = PATIENCE) -> str:
        """Read until `text` appears after what was waited for before; returns what came before it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            left = end - time.monotonic()
            if left <= 0 or not select.select([self._end], [], [], left)[0]:
                raise AssertionError(f"{text!r} did not come; seen: {self.seen!r}")
            try:
                self.seen += os.read(self._end, 4096).decode(errors="replace").replace("\r\n", "\n")
            except OSError:
                raise AssertionError(f"ended before {text!r}; seen: {self.seen!r}") from None
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def interrupt(self, text: str, tries: int = 5) -> str:
        """Press Ctrl-C until `text` appears, as a person would; returns what came before it.

        At the prompt one press can be overlooked: the readline loop of CPython notices a signal only while it waits for
        a key, so one that comes while a key is being handled is acted on with the next key.
        """
        for _ in range(tries - 1):
            self.type("\x03")
            with contextlib.suppress(AssertionError):
                return self.wait(text, seconds=4)
        self.type("\x03")
        return self.wait(text)

    def code(self) -> int:
        """Wait for the end."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if select.select([self._end], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self._end, 4096).decode(errors="replace").replace("\r\n", "\n")
            done, status = os.waitpid(self.process, os.WNOHANG)
            if done:
                self.process = 0
                return os.waitstatus_to_exitcode(status)
        raise AssertionError(f"still running; seen: {self.seen!r}")

    def close(self) -> None:
        if self.process:
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
        os.close(self._end)


@pytest.fixture
def terminal():
    opened: list[Terminal] = []

    def start(script: dict | None = None, *words: str, **more: str) -> Terminal:
        opened.append(Terminal(script or {}, *words, **more))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def test_lines_that_are_pasted_are_one_question(terminal) -> None:
    """A terminal that knows of it puts marks around what is pasted."""
    t = terminal({})
    t.wait(">>> ")
    t.type("\x1b[200~first line\nsecond line\x1b[201~\n")
    t.wait("a red circle\n")
    t.wait(">>> ")
    t.type("/show\n")
    t.wait("user: first line\nsecond line\nassistant: a red circle\n")


def test_a_conversation_at_a_terminal(terminal, picture: str, tmp_path: Path) -> None:
    t = terminal({})
    t.wait("a fake model for tests")
    t.wait(">>> ")
    t.type(f"/image '{picture}'\n")
    t.wait("(image ")
    t.wait(">>> ")
    t.type("what?\n")
    t.wait("a red circle\n")
    t.wait(">>> ")
    t.type("/media\n")
    t.wait("4 tokens")
    t.type("/show\n")
    t.wait("user: <image>what?\nassistant: a red circle\nuser: \nassistant:")
    t.type("/set temperature 0.5\n")
    t.wait("(temperature 0.5)")
    t.type("/set temperature hot\n")
    t.wait("a number")
    t.type("/retry\n")
    t.wait("a red circle\n")
    t.type(f"/save {tmp_path}/talk.json\n")
    t.wait("(saved")
    t.type(f"/save {tmp_path}/talk.json\n")
    t.wait("was not written")
    t.type("/undo\n")
    t.wait("(forgot: what?)")
    t.type("/nonsense\n")
    t.wait("/help")
    t.type('"""\ntwo\nlines\n"""\n')
    t.wait("a red circle\n")
    t.type("/clear\n")
    t.wait("(a fresh start)")
    t.wait(">>> ")
    t.type("\x04")
    assert t.code() == 0
    record = json.loads((tmp_path / "talk.json").read_text())
    assert [turn["role"] for turn in record["turns"]] == ["user", "assistant"]
    assert record["turns"][0]["parts"][0]["origin"] == picture and record["settings"]["temperature"] == 0.5


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal) -> None:
    t = terminal(LONG, "--max-tokens", "9999")
    t.wait(">>> ")
    t.type("go on\n")
    t.wait("word word")
    t.type("\x03")
    t.wait("(stopped)")
    t.wait(">>> ")
    t.type("/show\n")
    shown = t.wait("user: \nassistant:")
    assert 2 <= shown.count("word") < 1999  # what was said stays in the conversation
    t.type("/exit\n")
    assert t.code() == 0


def test_ctrl_c_at_the_prompt_says_how_to_leave(terminal) -> None:
    t = terminal({})
    t.wait(">>> ")
    t.type("half a quest")
    t.wait("half a quest")
    t.interrupt("Ctrl-D")
    t.type("what?\n")
    t.wait("a red circle\n")


def test_ctrl_c_ends_a_single_answer(terminal) -> None:
    t = terminal(LONG, "--max-tokens", "9999", "go on")
    t.wait("word word")
    t.type("\x03")
    t.wait("(stopped)")
    assert t.code() == 130


def test_ctrl_c_while_the_weights_are_read(terminal) -> None:
    t = terminal(NEVER)
    t.wait(">>> ")
    t.type("what?\n")
    t.wait("reading the weights")
    t.type("\x03")
    t.wait(">>> ")
    t.type("/exit\n")
    assert t.code() == 0  # nobody waits for weights that nobody needs


def test_weights_that_cannot_be_read_end_the_conversation(terminal) -> None:
    t = terminal({"fault": True})
    t.wait(">>> ")
    t.type("what?\n")
    t.wait("no weights")
    assert t.code() == 2


def test_kinds_that_the_run_does_not_take_are_refused_by_name(terminal, tmp_path: Path) -> None:
    sound = tmp_path / "a.wav"
    sound.write_bytes(WAV)
    t = terminal(NEVER)
    t.wait(">>> ")
    t.type(f"/audio {sound}\n")
    t.wait("a.wav is audio")
    t.type(f"{sound}\n")  # a dropped file
    t.wait("a.wav is audio")


def test_escape_sequences_of_an_answer_do_not_reach_the_terminal(terminal) -> None:
    t = terminal({"answer": "red\x1b[2Jcircle"})
    t.wait(">>> ")
    t.type("what?\n")
    t.wait("red[2Jcircle\n")


def test_history_is_kept_for_its_owner(terminal, tmp_path: Path) -> None:
    history = tmp_path / "state" / "history"
    for _ in range(2):
        t = terminal({}, MMTUNE_HISTORY=str(history))
        t.wait(">>> ")
        t.type("what?\n")
        t.wait("a red circle\n")
        t.wait(">>> ")
        t.type("\x04")
        assert t.code() == 0
    assert re.findall("^what.*$", history.read_text(), re.MULTILINE)
    assert history.stat().st_mode & 0o77 == 0


# ------------------------------------------------------------------------------------------------ what people type


def test_files_are_taken_as_people_write_them(terminal, picture: str, tmp_path: Path) -> None:
    talk, history = tmp_path / "my talk.json", tmp_path / "history"
    t = terminal({}, MMTUNE_HISTORY=str(history), MMTUNE_CONVERSATION=str(tmp_path / "last.json"))
    t.wait(">>> ")
    escaped = picture.replace(" ", "\\ ")
    for dropped in (f"'{picture}' what?", f"{escaped} what?", f"what is in {escaped}?"):
        t.type(f"{dropped}\n")
        t.wait("a red circle\n")
        t.wait(">>> ")
    t.type("true/false?\n")
    t.wait("a red circle\n")
    t.type("/undo\n")
    t.wait("(forgot: true/false?)")
    t.type("/undo\n")
    t.wait("(forgot: what is in a picture.png?)")
    t.wait("waits for the next question)")
    t.type("and this?\n")
    t.wait("a red circle\n")
    t.type(f'/save "{talk}"\n')
    t.wait(f"(saved {talk})")
    t.type("/clear\n")
    t.wait("(a fresh start)")
    t.type(f"/load '{talk}'\n")
    t.wait("3 exchanges, 3 media shown)")
    t.type("/show\n")
    t.wait("user: <image>and this?\nassistant: a red circle\n")
    t.type(f"/image {tmp_path!s}/a\\ pic\t\n")  # Tab behind a blank
    t.wait("(image ")
    t.type("/exit\n")
    assert t.code() == 0
    again = terminal({}, "-c", MMTUNE_CONVERSATION=str(tmp_path / "last.json"))
    again.wait("(going on: 3 exchanges, 3 media shown)")
    again.type("/show\n")
    again.wait("assistant: a red circle\nuser: <image>\nassistant:")


def test_going_on_with_the_last_conversation(picture: str, tmp_path: Path) -> None:
    last = {"MMTUNE_CONVERSATION": str(tmp_path / "last.json")}
    assert b"no conversation to go on with" in _run("-c", "what?", **last).stderr
    assert _run(picture, "what?", "-s", "be brief", **last).returncode == 0
    record = json.loads(_run("-c", "and?", "--json", **last).stdout)
    assert record["tokens"]["prompt"] == len(
        "system: be brief\nuser: <image>what?\nassistant: a red circle\nuser: and?\nassistant:"
    )
    Path(picture).write_bytes(PNG + b"changed")
    done = _run("-c", "and?", **last)
    assert done.returncode == 0 and b"has changed since it was shown; it is left out" in done.stderr
    assert (tmp_path / "last.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("words", "stdin", "answer"),
    [
        (("what?",), b"some words", "user: [standard input: some words]what?\nassistant:"),
        (("what?",), PNG, "user: <image>what?\nassistant:"),
        ((), "größer?".encode("utf-16"), "user: größer?\nassistant:"),
        (("{}", "what?"), None, "user: <image>what?\nassistant:"),
        (("true/false?",), None, "user: true/false?\nassistant:"),
        (("is '{}' good?",), None, "user: <image>is a picture.png good?\nassistant:"),
    ],
)
def test_what_the_model_is_asked(picture: str, words: tuple[str, ...], stdin: bytes | None, answer: str) -> None:
    done = _run(*(word.format(picture) for word in words), script={"echo": True}, stdin=stdin)
    assert (done.returncode, done.stdout.decode()) == (0, answer + "\n"), done.stderr


def test_a_question_in_another_encoding_is_a_plain_line() -> None:
    for done in (_run(stdin="größer?".encode("latin-1")), _run(os.fsdecode("größer?".encode("latin-1")))):
        assert done.returncode == 2 and b"is not UTF-8: byte 0xf6" in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize("settings", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_an_answer_that_the_terminal_has_no_letters_for(settings: dict[str, str]) -> None:
    script = {"answer": "größer \u2192"}
    assert _run("größer?", script=script, PYTHONCOERCECLOCALE="0", **settings).stdout == b"gr\\xf6\\xdfer \\u2192\n"
    done = _run("what?", "--json", script=script, PYTHONCOERCECLOCALE="0", **settings)
    assert json.loads(done.stdout)["answer"] == "größer \u2192"
