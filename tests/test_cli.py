"""The command line: what starts quickly, how mistakes are told, which code it leaves with."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import mmtune
from mmtune import cli
from mmtune.cli import entry
from mmtune.errors import UsageError

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "transformers", "numpy", "open_clip", "timm", "peft", "accelerate", "webdataset", "PIL")


def _run(*words: str, code: str | None = None):
    program = ["-c", code] if code else ["-m", "mmtune"]
    command = [sys.executable, *program, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["chat", "-h"], ["data", "make", "--help"]])
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys, mmtune.cli\n"
        "try:\n    mmtune.cli.main()\n"
        "except SystemExit as leave:\n    assert not leave.code, leave.code\n"
        f"print('LOADED', [name for name in {HEAVY} if name in sys.modules])"
    )
    done = _run(*words, code=code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("LOADED []")


def _complete(line: str) -> list[str]:
    """What a shell would offer behind a line; the last word is the one that is being typed."""
    words = line.split(" ")
    variables = {"_MMTUNE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    code = (
        "import sys, mmtune.cli\n"
        "sys.argv = ['mmtune']\n"
        "try:\n    mmtune.cli.main()\n"
        f"finally:\n    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False, env={**os.environ, **variables},
    )  # fmt: skip
    assert done.stderr.strip() == "[]", "the shell waits for nothing heavy"
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("mmtune sho", ["show"]),
        ("mmtune train pocket_d", ["pocket_distill", "pocket_dpo"]),
        ("mmtune show llava_1_5_7b_lo", ["llava_1_5_7b_lora"]),
        ("mmtune plan pocket_j", ["pocket_joint"]),
        ("mmtune list enc", ["encoders"]),
        ("mmtune list sec", ["sections"]),
        ("mmtune list connectors mlp", ["mlp"]),
        ("mmtune list prompts chat", ["chatml"]),
        ("mmtune import llava", ["llava_hf"]),
        ("mmtune export run --layout pll", ["pllava"]),
        ("mmtune eval run --task pocket", ["pocket_qa"]),
        ("mmtune data check x.tar --recipe pocket_s", ["pocket_senses"]),
        ("mmtune train --dr", ["--dry-run"]),
    ],
)
def test_the_tab_key_offers_names(line: str, offered: list[str]) -> None:
    assert _complete(line) == offered


def test_completion_for_the_shell_that_asks() -> None:
    command = ["bash", "-c", '"$@"; exit $?', "bash", sys.executable, "-m", "mmtune", "--show-completion"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.returncode == 0 and "complete -o default -F _mmtune_completion mmtune" in done.stdout, done.stderr


def test_the_version() -> None:
    done = _run("--version")
    assert (done.returncode, done.stdout) == (0, f"mmtune {mmtune.__version__}\n")


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_what_looks_around_comes_at_once(words: list[str]) -> None:
    """Processor time, the least of four tries: a busy machine does not fail this, a heavy import does."""
    best = 9.0
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert _run(*words).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert best < 0.5


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
def test_streams_that_are_closed_at_the_start_change_no_code(closed: tuple[int, ...], tmp_path: Path) -> None:
    """As `mmtune ... >&-`. The next file opened has the number of a closed stream, and must not get what is printed."""
    words = ["data", "make", "pocket", "--out", str(tmp_path), "--clips", "1", "--split", "test"]
    shell = " ".join(f"{number}>&-" if number else "<&-" for number in closed)
    command = ["sh", "-c", f'exec "$@" {shell}', "sh", sys.executable, "-m", "mmtune"]
    assert subprocess.run([*command, *words], timeout=120, cwd=ROOT, check=False).returncode == 0
    (shard,) = tmp_path.glob("*.tar")
    with tarfile.open(shard) as tar:
        assert "0000000.mp4" in tar.getnames()
    assert subprocess.run([*command, "train", "nowhere.yaml"], timeout=120, cwd=ROOT, check=False).returncode == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_answer_that_could_not_be_written_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "mmtune", "list"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, timeout=120, cwd=ROOT, check=False)
    assert done.returncode == 2 and b"Traceback" not in done.stderr


def test_a_terminal_that_left_changes_no_code() -> None:
    ours, theirs = pty.openpty()
    code = (
        "import sys, mmtune.cli\n"
        "from mmtune.training.log import Progress\n"
        "sys.stdin.readline()\n"
        "Progress('lines').line('a line of a run')\n"
        "mmtune.cli.entry._leave(0)\n"
    )
    words = [sys.executable, "-c", code]
    entry = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=theirs, stderr=subprocess.PIPE, cwd=ROOT)
    os.close(theirs)
    os.close(ours)
    assert entry.communicate(b"now\n", timeout=120)[1] == b"" and entry.returncode == 0


def test_every_command_has_its_help() -> None:
    group = get_command(cli.app)
    names = [name for name in group.commands if name != "data"]
    for words in (*names, *(f"data {name}" for name in group.commands["data"].commands), "data", ""):
        result = CliRunner().invoke(cli.app, [*words.split(), "--help"], env={"COLUMNS": "100"})
        assert result.exit_code == 0 and len(result.output) > 100, words
        assert not re.search(r"<(bool|str|path|int|float|list)\b|\[\[|\]\.\.\.\]", result.output), words


@pytest.mark.parametrize("columns", ["60", "140"])
def test_paragraphs_of_the_help_are_as_wide_as_the_terminal(columns: str) -> None:
    text = CliRunner().invoke(cli.app, ["data", "convert", "--help"], env={"COLUMNS": columns}).output
    lines = text[text.index("SOURCE is recognised") :].partition("╭")[0].strip().splitlines()
    words = [line.split() for line in lines]
    for line, following in zip(lines, words[1:], strict=False):
        assert len(line.rstrip()) + len(following[0]) >= int(columns) - 4, f"cut before its end: {line}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train nowhere.yaml", "nowhere.yaml"),
        ("train --resume nowhere", "nowhere is not the folder of a run"),
        ("train pocket steps 100", "changes as KEY=VALUE"),
        ("train pocket --steps 100", "No such option: --steps"),
        ("list rooms", "no room 'rooms'"),
        ("list encoders clipp", "encoders has no 'clipp'"),
        ("list sections runn", "a recipe has no section 'runn'"),
        ("list prompts chatmll", "one of chatml, llava_chatml, "),
        ("show", "show with no RECIPE"),
        ("show pocket --schema", "show with pocket and --schema"),
        ("show pocket --groups --resolved", "--groups and --resolved"),
        ("train pokcet", "one of pocket, pocket_dpo, pocket_joint (all "),
        ("data make pocket --out x --clips 3 --level hard", "hard"),
        ("data make moon --out x --clips 3", "WORLD moon"),
        ("data make pocket --out x --clips 0", "clips"),
        ("eval nowhere --task pocket_qa --data x --frames mixed", "--frames mixed"),
        ("eval nowhere --task pocket_qa", "nowhere has no recipe.yaml"),
        ("data convert ~nobody.at.all/x.json --out y", "a path begins with ~NAME"),
        ("nonsense", "expected: mmtune [OPTIONS] COMMAND [ARGS]...\ntry: mmtune --help"),
        ("trian", "mmtune: No such command 'trian'. Did you mean 'train'?"),
        ("plan", "expected: mmtune plan [OPTIONS] {RECIPE} [KEY=VALUE]...\ntry: mmtune plan --help"),
    ],
)
def test_mistakes_are_told_in_plain_lines_with_code_2(words: str, message: str) -> None:
    done = _run(*words.split())
    assert done.returncode == 2 and done.stdout == ""
    assert message in done.stderr and "Traceback" not in done.stderr


def _main(monkeypatch: pytest.MonkeyPatch, act) -> int:
    def app(**_):
        return act()

    monkeypatch.setattr(entry, "app", app)
    with pytest.raises(SystemExit) as leave:
        cli.main()
    return leave.value.code


def test_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def raising(error: BaseException):
        def act():
            raise error

        return act

    monkeypatch.delenv("MMTUNE_DEBUG", raising=False)
    assert _main(monkeypatch, lambda: None) == 0
    assert _main(monkeypatch, raising(KeyboardInterrupt())) == 130
    assert _main(monkeypatch, lambda: 130) == 130 and capsys.readouterr().err.count("mmtune: stopped") == 2
    assert _main(monkeypatch, raising(SystemExit(143))) == 143 and capsys.readouterr().err == ""
    assert _main(monkeypatch, raising(UsageError("this", "that", "so"))) == 2
    assert "mmtune: this\nexpected: that\ntry: so\n" in capsys.readouterr().err
    assert _main(monkeypatch, raising(OSError(28, "No space left on device", "runs/x"))) == 2
    assert capsys.readouterr().err.startswith("mmtune: runs/x: No space left on device\nexpected: ")
    with pytest.raises(OSError):  # no word of the system: a fault of the program
        _main(monkeypatch, raising(OSError("odd")))
    with pytest.raises(ZeroDivisionError):  # a fault of the program shows itself
        _main(monkeypatch, raising(ZeroDivisionError()))
    monkeypatch.setenv("MMTUNE_DEBUG", "1")
    with pytest.raises(UsageError):
        _main(monkeypatch, raising(UsageError("this")))


def test_list_names_what_a_recipe_may_use() -> None:
    done = _run("list", "encoders")
    assert done.returncode == 0 and "clip" in done.stdout.split()
    everything = _run("list").stdout
    assert all(f"{room}: " in everything for room in ("encoders", "tuners", "recipes", "prompts"))


def test_env_says_what_works() -> None:
    done = _run("env")
    assert done.returncode == 0, done.stderr
    assert "torch" in done.stdout and "decord" in done.stdout and ("works" in done.stdout)


def test_the_record_of_an_answer_is_plain_data() -> None:
    from mmtune.serve.conversation import Answer

    assert json.loads(json.dumps(Answer().record()))["finish"] == "waiting"


def test_libraries_draw_no_progress_bars() -> None:
    code = (
        "import mmtune.cli.entry as process\n"
        "process._settle_output()\n"
        "import tqdm\n"
        "from huggingface_hub.utils import tqdm as hub\n"
        "from transformers.utils.logging import tqdm as weights\n"
        "for bar in (tqdm.tqdm, hub, weights):\n    list(bar(range(3), desc='raw'))\n"
    )
    done = _run(code=code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
