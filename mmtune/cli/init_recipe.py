"""`mmtune init`: from a few answers to a recipe. At a terminal it asks for missing options."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mmtune.cli.complete import builtins, encoders, methods, room
from mmtune.cli.options import app
from mmtune.errors import MmtuneError, UsageError


@app.command()
def init(
    llm: Annotated[
        str | None, typer.Option(metavar="NAME", help="pocket, a folder, or the name of a repository on the hub.")
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="pocket, a folder, a repository, or ENTRY:FOLDER; none for text alone. Repeat.",
            autocompletion=encoders,
        ),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Shards, as 'shards/*.tar', or a card. Repeat.")
    ] = None,
    method: Annotated[
        str | None, typer.Option(metavar="METHOD", help="connector, lora, full or adapter_v2.", autocompletion=methods)
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The YAML file to write.")] = None,
    connector: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="From `mmtune list connectors`; else one that suits the parts. `mmtune export` can write pool "
            "(videos, --method lora) and mlp (pictures).",
            autocompletion=room("connectors"),
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="NAME", help="From `mmtune list prompts`.", autocompletion=builtins("prompts"))
    ] = None,
    epochs: Annotated[float | None, typer.Option(min=0.001, help="Passes over the data.")] = None,
    hold_out: Annotated[
        float | None,
        typer.Option(
            metavar="PART",
            min=0,
            max=0.9,
            help="Part of the records to keep for validation, as 0.1; else 0.05 from 50 records on.",
        ),
    ] = None,
    kinds: Annotated[
        str | None, typer.Option(metavar="KIND,...", help="Media of data that are not on this machine.")
    ] = None,
) -> None:
    """Write a recipe for your own data: asks for missing options, and checks data and parts."""
    words = {"data": data, "llm": llm, "encoder": encoder, "method": method, "out": out, "prompt": prompt}
    given = _asked(words) if _is_terminal() else _all_given(words)

    from mmtune.commands import init as command

    command.run(
        command.Answers(
            llm=given["llm"],
            encoders=tuple(given["encoder"]),
            data=tuple(given["data"]),
            method=given["method"],
            out=Path(given["out"]),
            connector=connector,
            prompt=given["prompt"],
            epochs=epochs,
            hold_out=hold_out,
            kinds=tuple(filter(None, (kinds or "").split(","))),
        )
    )


def _all_given(words: dict) -> dict:
    usual = {"encoder": ["pocket"] if words["llm"] == "pocket" else [], "out": "recipe.yaml", "method": "connector"}
    given = {name: value or usual.get(name) for name, value in words.items()}
    if missing := [f"--{name}" for name, value in given.items() if value in (None, "") and name != "prompt"]:
        raise UsageError(
            f"mmtune init without {', '.join(missing)}, and no terminal to ask at",
            "mmtune init --data PATTERN --llm NAME [--encoder NAME] [--method METHOD] [--out FILE]",
            "mmtune init --data 'shards/*.tar' --llm pocket --encoder pocket, for the small parts of the package",
        )
    return given


def _asked(words: dict) -> dict:
    """Ask for missing options, with the default in brackets, which an empty answer takes; ask again after an answer
    that cannot be used."""
    from mmtune.commands import init as command

    given = dict(words)
    if not given["data"]:
        text = "Shards to train on, as shards/*.tar; several with blanks between"
        given["data"] = _ask(text, lambda answer: command.check_data(answer.split())).split()
    if not given["llm"]:
        given["llm"] = typer.prompt("Language model: pocket, a folder, or a repository on the hub", default="pocket")
    if not given["prompt"]:
        given["prompt"] = _prompt(given["llm"])
    if not given["encoder"]:
        text = "Encoder of the media: pocket, a folder, or a repository; several with blanks between, or none"
        usual = "pocket" if given["llm"] == "pocket" else ""
        given["encoder"] = _ask(text, lambda answer: command.check_encoders(answer.split()), usual).split()
    if not given["method"]:
        given["method"] = _ask("What trains: connector, lora, full or adapter_v2", command.check_method, "connector")
    if not given["out"]:
        given["out"] = _ask("File to write", lambda answer: command.check_out(Path(answer)), "recipe.yaml")
    return given


def _prompt(llm: str) -> str | None:
    """The name of a prompt where the files of the language model do not tell theirs."""
    from mmtune.commands import init as command

    try:
        command.check_prompt(llm, None)
    except MmtuneError as error:
        print(f"{error.seen}\n{error.hint}", file=sys.stderr)
        return _ask("How conversations are written for it", lambda answer: command.check_prompt(llm, answer))
    return None


def _ask(text: str, check: Callable[[str], None], usual: str | None = None) -> str:
    while True:
        answer = typer.prompt(text, default=usual)
        try:
            check(answer)
        except MmtuneError as error:
            print(error, file=sys.stderr)
        else:
            return answer


def _is_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()
