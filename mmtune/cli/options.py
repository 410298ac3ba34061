"""The app, and what several commands read in the same way."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmtune.cli._help import App
from mmtune.cli.complete import recipes
from mmtune.errors import UsageError
from mmtune.version import __version__

app = App(
    name="mmtune",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = App(help="Make, index and check shards of training data.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Recipe = Annotated[
    str,
    typer.Argument(metavar="RECIPE", help="A YAML file, or a name from `mmtune list recipes`.", autocompletion=recipes),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to the recipe, as schedule.steps=100.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as `mmtune train` writes it.")]
AllowRemote = Annotated[
    bool, typer.Option("--allow-remote", help="Contact the addresses that the recipe in the run folder names.")
]


def _print_version(asked: bool) -> None:
    if asked:
        print(f"mmtune {__version__}")
        raise typer.Exit()


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Add sight and sound to a language model, tune it, and talk with it."""


def _allow(names: list[str] | None) -> list[str] | None:
    from mmtune import registry

    registry.allow(names or [])
    return names


AllowCode = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-code",
        metavar="NAME",
        callback=_allow,
        help="Let this class from outside mmtune run, package.module:Class, where it is named. Repeat.",
    ),
]
"""An option of every command that reads a recipe, a run or an entry; it applies to the whole process."""


def _limit(texts: list[str] | None) -> list[str] | None:
    """Set limits of media for the process; the command checks values that are no NAME=VALUE."""
    from mmtune import media

    media.say([text for text in texts or [] if "=" in text])
    return [text for text in texts or [] if "=" not in text] or None


MediaLimit = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=VALUE",
        callback=_limit,
        help="The most that one item of media may cost, as wall_seconds=300; see `limits` of a recipe. Repeat.",
    ),
]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="N|NAME=VALUE",
        callback=_limit,
        help="Only so many records; or a limit of media, as wall_seconds=300, see `limits` of a recipe. Repeat.",
    ),
]


def records_of(limit: list[str] | None) -> int | None:
    """The number of records in `--limit`. Raises UsageError for a value that is no number."""
    wrong = [text for text in limit or [] if not text.isdecimal() or not int(text)]
    if wrong or len(limit or []) > 1:
        seen = f"--limit {' --limit '.join(limit or [])}"
        raise UsageError(seen, "one number of records, or NAME=VALUE", "--limit 100, or --limit wall_seconds=300")
    return int(limit[0]) if limit else None


def overrides_of(words: list[str] | None) -> list[str]:
    """The arguments after a recipe. Raises UsageError for one that is no KEY=VALUE."""
    wrong = [word for word in words or [] if "=" not in word]
    if wrong:
        raise UsageError(
            seen=" ".join(wrong), expected="changes as KEY=VALUE after the recipe", hint="schedule.steps=100"
        )
    return words or []
