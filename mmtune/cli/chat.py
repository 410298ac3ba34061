"""`mmtune chat` and `eval`: a trained model answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmtune.cli.complete import room
from mmtune.cli.options import AllowCode, AllowRemote, Limit, MediaLimit, Run, app, records_of
from mmtune.errors import UsageError


@app.command()
def chat(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN|FILE|QUESTION",
            help="A run folder, media files (a range may follow a clip: 00:10-00:20), a question.",
        ),
    ] = None,
    image: Annotated[list[str] | None, typer.Option(metavar="PATH", help="An image; `-` reads a pipe.")] = None,
    video: Annotated[list[str] | None, typer.Option(metavar="PATH", help="A video; `-` reads a pipe.")] = None,
    audio: Annotated[list[str] | None, typer.Option(metavar="PATH", help="A sound; `-` reads a pipe.")] = None,
    points: Annotated[list[str] | None, typer.Option(metavar="PATH", help="A point cloud; `-` reads a pipe.")] = None,
    attach: Annotated[
        list[str] | None,
        typer.Option("-a", "--attach", metavar="PATH", help="Any of these, recognised by content, in order."),
    ] = None,
    go_on: Annotated[bool, typer.Option("-c", "--continue", help="Continue the last conversation.")] = False,
    expert: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:K=V]", help="A program that reads the media too; see `mmtune list experts`."),
    ] = None,
    experts_of_run: Annotated[
        bool, typer.Option("--experts-of-run", help="With the experts that the recipe of the run names.")
    ] = False,
    no_experts: Annotated[bool, typer.Option("--no-experts", help="Without them, and without a note.")] = False,
    system: Annotated[str | None, typer.Option("-s", "--system", help="Text of a system turn.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0: the likeliest token each time.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Makes a drawn answer repeatable; 0 if not given.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is complete.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON record: answer, tokens, times, media.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Numbers on stderr after the answer.")] = False,
    limit: MediaLimit = None,
    allow_code: AllowCode = None,
) -> None:
    """Talk with a model: one answer when a question is given or piped in, else a conversation.

    Without RUN it takes the small model inside the package. Media stand before the question: images first, then
    videos, sounds, points, what -a names, and files named without an option.

    A question may name a file too. Text that is piped in beside a question is quoted before it.
    """
    if limit:
        raise UsageError(seen=f"--limit {limit[0]}", expected="NAME=VALUE", hint="--limit wall_seconds=300")
    named = {"image": image, "video": video, "audio": audio, "points": points, None: attach}
    media = [(kind, path) for kind, paths in named.items() for path in paths or []]
    if sum(path == "-" for _, path in media) > 1:
        raise UsageError(seen="`-` more than once", expected="at most one medium from standard input")

    from mmtune.serve.chat import Options, command

    options = Options(
        words=words or [],
        media=media,  # type: ignore[arg-type]
        go_on=go_on,
        experts=expert or [],
        no_experts=no_experts,
        experts_of_run=experts_of_run,
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
        device=device,
        stream=not no_stream,
        json=as_json,
        verbose=verbose,
    )
    if code := command(options):
        raise SystemExit(code)


@app.command("eval")
def evaluate(
    run: Run,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="NAME[:K=V]",
            help="A name from `mmtune list eval/tasks`, as qa for records of your own; else the one of the recipe.",
            autocompletion=room("eval/tasks"),
        ),
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Shards, as 'data/*.tar'; else those of the recipe.")
    ] = None,
    limit: Limit = None,
    blind: Annotated[bool, typer.Option("--blind", help="Control: no media features.")] = False,
    frames: Annotated[str | None, typer.Option(metavar="shuffled|reversed", help="Control: order of frames.")] = None,
    other_media: Annotated[bool, typer.Option("--other-media", help="Control: media of another sample.")] = False,
    all_controls: Annotated[bool, typer.Option("--all-controls", help="The plain run and every control.")] = False,
    expert: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:K=V]", help="Ask without and with its findings, as ocr."),
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Only questions of this type, as text.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report here.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    allow_remote: AllowRemote = False,
    allow_code: AllowCode = None,
) -> None:
    """Ask a model a benchmark's questions and score the answers."""
    if frames not in (None, "shuffled", "reversed"):
        raise UsageError(seen=f"--frames {frames}", expected="shuffled or reversed")
    chosen = ["blind"] * blind + [frames] * bool(frames) + ["other_media"] * other_media

    from mmtune.commands import evaluate as command

    wanted = [c for c in chosen if c]
    command.run(
        run, task, data or [], records_of(limit), wanted, all_controls, json_file, device, expert, kind,
        allow_remote=allow_remote,
    )  # fmt: skip
