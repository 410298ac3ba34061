"""Every command, YAML and Python of README and docs does what it says; what is not run is listed with its reason."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from mmtune import cli, config, registry
from tools import docs, docs_inputs

PAGES = [path.relative_to(docs.ROOT).as_posix() for path in docs.pages()]
STEPS = ["schedule.epochs=null", "schedule.steps=2", "schedule.warmup=1", "run.workers=0", "eval.every=0"]
SHORT = (
    (r"mmtune train (?!--resume)", STEPS),
    (r"mmtune train --resume", []),
    (r"mmtune eval ", ["--limit", "2"]),
    (r"mmtune chat ", ["--max-tokens", "4"]),
)
"""What a command is given besides what is written, so that it takes seconds; `tools/docs` adds nothing."""
OF_ALL_STEPS = (r"\.\.\.$", r"\d+ epochs of ", "written in float32; read back and compared with the run: the same to ")
"""Lines of a page that a run of two steps does not say, or says in other words."""
PLAIN = (
    "000012.json   000012.jpg",
    "#!/bin/bash",
)
"""First lines of blocks without a language that are no commands: the layout of a shard, a job of SLURM."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    docs_inputs.make(folder)
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copytree(made, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(tmp_path / "here")  # classes that a page has whole lie there
    yield tmp_path / "here"
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def run(command: docs.Command) -> str:
    """The command, in this process where it is ours: the heavy packages are here already."""
    words = command.words
    if words[0] != "mmtune":
        done = subprocess.run(["bash", "-c", command.text], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{command.where}: {command.text}\n{done.stdout}{done.stderr}"
        return done.stdout
    assert not re.search(r"[*\[]", _unquoted(command.text)), f"{command.where}: quotes around what a shell would read"
    more = next((more for pattern, more in SHORT if re.match(pattern, command.text)), [])
    done = CliRunner().invoke(cli.app, [*words[1:], *more])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise AssertionError(f"{command.where}: {command.text}\n{done.output}{done.exception}") from done.exception
    assert done.exit_code == 0, f"{command.where}: {command.text}\n{done.output}"
    return done.stdout if command.text.startswith("mmtune plan") else done.output


def _unquoted(text: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"|#.*", "", text)


def options_of(words: list[str]) -> set[str]:
    """All options of the command that some words begin with."""
    found = get_command(cli.app)
    names = set()
    for word in words:
        names |= {option for one in found.params for option in one.opts}
        if word not in getattr(found, "commands", {}):
            break
        found = found.commands[word]
    else:
        names |= {option for one in found.params for option in one.opts}
    return names | {option for one in found.params for option in one.opts} | {"--help", "-h"}


@pytest.mark.parametrize("page", PAGES)
def test_commands_run_as_written(page: str, here: Path) -> None:
    for command in docs.commands(docs.ROOT / page):
        if command.is_usage or command.reason:
            continue
        said = run(command)
        shown = [line for line in command.output if line.strip()]
        if shown and command.text.startswith("mmtune plan"):
            assert said.rstrip().splitlines() == shown, command.where
        if command.text.startswith(("mmtune data convert", "mmtune init")):
            assert [line for line in shown if line not in said.splitlines()] == [], command.where
        elif not command.text.startswith(("mmtune plan", "mmtune chat")):  # the one is above; an answer is cut here
            there = {shape(line) for line in said.splitlines()}
            missing = [line for line in shown if shape(line) not in there]
            assert [line for line in missing if not re.match("|".join(OF_ALL_STEPS), line)] == [], command.where


def shape(line: str) -> str:
    """A line without its numbers, which differ with the steps and the machine."""
    return " ".join(re.sub(r"\d[\d.,e-]*", "#", line).split())


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_of_a_known_kind(page: str, here: Path) -> None:
    for block in docs.blocks(docs.ROOT / page):
        text = "\n".join(block.lines)
        if block.language == "yaml":
            config.parse(text, f"{page}:{block.line}")
        elif block.language == "python":
            exec(compile(text, f"{page}:{block.line}", "exec"), {"__name__": "a_page"})
        elif block.language not in docs.SHOWN:
            assert block.commands or block.lines[0] in PLAIN, f"{page}:{block.line}: {block.lines[0]}"
            shown = any(line.startswith("$ ") for line in block.lines)
            for number, line in enumerate(block.lines if block.commands and not shown else ()):
                joined = number and block.lines[number - 1].endswith("\\")
                assert joined or not line.strip() or docs.is_command(line), f"{page}:{block.line + number}: {line}"


def spelled() -> Iterator[tuple[str, list[str]]]:
    """Commands that stand in running text or say how they are spelled."""
    for path in docs.pages():
        page = path.relative_to(docs.ROOT).as_posix()
        for command in docs.commands(path):
            if command.is_usage and command.words[0] == "mmtune":
                yield command.where, command.words[1:]
        for found in re.finditer(r"`(mmtune [^`]+)`", path.read_text(encoding="utf-8")):
            line = path.read_text(encoding="utf-8")[: found.start()].count("\n") + 1
            try:
                yield f"{page}:{line}", shlex.split(" ".join(found[1].split()))[1:]
            except ValueError:
                continue


def test_commands_in_running_text_are_spelled_right() -> None:
    seen = 0
    for where, words in spelled():
        if "|" in words or words[0].isupper():
            continue
        assert words[0] in get_command(cli.app).commands or words[0].startswith("-"), f"{where}: mmtune {words[0]}"
        known = options_of(words)
        for word in words:
            if option := re.match(r"\[?(--?[a-z][\w-]*)", word):
                assert option[1] in known, f"{where}: {shlex.join(words)} has no {option[1]}"
        seen += 1
    assert seen > 20


def test_what_is_not_run_has_a_reason_and_is_in_a_page() -> None:
    texts = [command.text for path in docs.pages() for command in docs.commands(path)]
    for pattern, why in docs.NOT_RUN:
        assert why
        assert any(re.match(pattern, text) for text in texts) or "needs the extra" in why, f"{pattern} is in no page"


def test_the_list_of_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main(["--list", "README.md"]) == 0
    said = capsys.readouterr().out
    assert "mmtune data convert films.csv --media films --out shards/films\n    run" in said
    assert "tools/demo" in said and "takes minutes" in said


def test_a_page_with_a_command_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text\n\n    python -c 'raise SystemExit(3)'\n\n```sh\n$ python -c 'print(7)'\n7\n```\n")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    assert [command.output for command in docs.commands(page)] == [(), ("7",)]
    assert docs.run(page, tmp_path, show=True) == 1
    said = capsys.readouterr().out
    assert "page.md:3: FAILED with 3" in said and "page.md:6: ok" in said and "\n7\n" in said
    assert sys.executable


# ------------------------------------------------------------------------------------------- lists that docs print


def named(text: str, start: str) -> set[str]:
    """Names in backquotes of the row of a table that begins so, up to what stands in brackets or behind a semicolon."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {start} "))
    part = re.sub(r"\([^)]*\)", "", row.removeprefix(f"| {start} ").partition(";")[0].partition(" |")[0])
    return set(re.findall(r"`(\w+)`", part))


def test_lists_of_the_readme_are_complete() -> None:
    text = (docs.ROOT / "README.md").read_text(encoding="utf-8")
    assert named(text, "encoders") == set(registry.names("encoders"))
    assert named(text, "connectors") == set(registry.names("connectors"))
    assert named(text, "fusions") == set(registry.names("fusion"))
    assert named(text, "tuners") >= set(registry.names("tuners"))
    assert named(text, "tasks") == set(registry.names("eval/tasks"))
    assert named(text, "experts") == set(registry.names("experts"))
    commands = get_command(cli.app).commands
    wanted = {name for name in commands if name != "data"} | {f"data {name}" for name in commands["data"].commands}
    spelled = re.search(r"`mmtune (init \|[^`]*)`", text)
    assert spelled and {" ".join(word.split()) for word in spelled[1].split("|")} == wanted


def test_every_card_and_format_is_in_the_page_about_data() -> None:
    text = (docs.ROOT / "data" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", text, re.M)
    cards = set(registry.shipped("cards"))
    assert cards <= set(rows), f"not in the table: {cards - set(rows)}"
    assert len(rows) == len(set(rows))
    for name in registry.names("data/formats"):
        assert f"* `{name}`" in text, name


def test_pages_that_are_linked_are_there() -> None:
    for path in docs.pages():
        for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).exists(), f"{path.name}: {target}"
