"""The `mmtune` command: parsing only. Each command imports what it needs when it runs."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mmtune.errors import MmtuneError, UsageError

app = typer.Typer(
    name="mmtune",
    help="Add sight and sound to a language model, tune it, and talk with it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Make, index and check shards of training data.", no_args_is_help=True)
app.add_typer(data_app, name="data")

Recipe = Annotated[str, typer.Argument(metavar="RECIPE", help="A YAML file, or a name from `mmtune list recipes`.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, as schedule.steps=100.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as `mmtune train` writes it.")]


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Run folder to write.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last saved state in the folder.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Build all, take one step, save nothing.")] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="Resume although this changed: recipe, data, tokenizer, base, prompts, code, ledger, or all. Repeat.",
        ),
    ] = None,
) -> None:
    """Train a recipe. To go on with a run: mmtune train --resume FOLDER."""
    changes = _overrides(overrides)

    from mmtune.commands import train as command

    if code := command.run(recipe, changes, out, resume, dry_run, allow or []):
        raise SystemExit(code)


@app.command()
def chat(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[RUN] [QUESTION]", help="A run folder, then a question.")
    ] = None,
    image: Annotated[list[str] | None, typer.Option(metavar="PATH", help="An image; `-` reads a pipe.")] = None,
    video: Annotated[list[str] | None, typer.Option(metavar="PATH", help="A video; `-` reads a pipe.")] = None,
    audio: Annotated[list[str] | None, typer.Option(metavar="PATH", help="A sound; `-` reads a pipe.")] = None,
    points: Annotated[list[str] | None, typer.Option(metavar="PATH", help="A point cloud; `-` reads a pipe.")] = None,
    attach: Annotated[
        list[str] | None,
        typer.Option("-a", "--attach", metavar="PATH", help="Any of these, told by its content, in the order given."),
    ] = None,
    expert: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:K=V]", help="Who else looks at the media, as ocr; see `mmtune list experts`."),
    ] = None,
    no_experts: Annotated[bool, typer.Option("--no-experts", help="Without the experts of the recipe.")] = False,
    system: Annotated[str | None, typer.Option("-s", "--system", help="Text of a system turn.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0.0, help="0: the likeliest token each time.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Makes a drawn answer repeatable.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is whole.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON record: answer, tokens, times, media.")] = False,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Numbers on stderr after the answer.")] = False,
) -> None:
    """Talk with a model: one answer when a question is given or piped in, else a conversation.

    Without RUN it takes the small model inside the package. Media stand before the question: images first, then
    videos, sounds, points, and what -a names.
    """
    run, question = _run_and_question(words or [])
    named = {"image": image, "video": video, "audio": audio, "points": points, None: attach}
    media = [(kind, path) for kind, paths in named.items() for path in paths or []]
    if sum(path == "-" for _, path in media) > 1:
        raise UsageError(seen="`-` more than once", expected="at most one medium from standard input")

    from mmtune.serve.chat import Options, command

    options = Options(
        run=run,
        question=question,
        media=media,  # type: ignore[arg-type]
        experts=expert or [],
        no_experts=no_experts,
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
    task: Annotated[str, typer.Option(help="A name from `mmtune list eval/tasks`.")],
    data: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Shards, as 'data/*.tar'; else those of the recipe.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples to ask about.")] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Control: no media features.")] = False,
    frames: Annotated[str | None, typer.Option(metavar="shuffled|reversed", help="Control: order of frames.")] = None,
    other_media: Annotated[bool, typer.Option("--other-media", help="Control: media of another sample.")] = False,
    all_controls: Annotated[bool, typer.Option("--all-controls", help="The plain run and every control.")] = False,
    expert: Annotated[
        list[str] | None, typer.Option(metavar="NAME[:K=V]", help="Ask without and with what it finds, as ocr.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Only questions of this type, as text.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the report here.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Ask a model a benchmark's questions and score the answers."""
    if frames not in (None, "shuffled", "reversed"):
        raise UsageError(seen=f"--frames {frames}", expected="shuffled or reversed")
    chosen = ["blind"] * blind + [frames] * bool(frames) + ["other_media"] * other_media

    from mmtune.commands import evaluate as command

    command.run(run, task, data or [], limit, [c for c in chosen if c], all_controls, json_file, device, expert, kind)


@app.command()
def show(
    recipe: Recipe,
    overrides: Overrides = None,
    groups: Annotated[bool, typer.Option("--groups", help="Who trains what, how fast, by which stream.")] = False,
) -> None:
    """Say what a recipe builds and what trains, without reading weights."""
    changes = _overrides(overrides)

    from mmtune.commands import show as command

    command.run(recipe, changes, groups)


@app.command()
def replay(
    run: Run,
    id: Annotated[list[str] | None, typer.Option(metavar="ID", help="A sample, as skipped.jsonl names it.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Try the samples of steps that were not finite, each alone, with the weights last saved."""
    from mmtune.commands import replay as command

    command.run(run, id or [], device)


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    devices: Annotated[int, typer.Option(min=1, help="Devices of the run.")] = 1,
    device_memory: Annotated[float, typer.Option(min=0.1, help="Memory of each, GB.")] = 80.0,
    device_tflops: Annotated[float, typer.Option(min=0.001, help="What each can do, 10^12 operations/s.")] = 989.0,
    utilisation: Annotated[float, typer.Option(min=0.01, max=1.0, help="Part of that which a run reaches.")] = 0.4,
    link: Annotated[float, typer.Option(min=0.01, help="Between devices, GB a second for each.")] = 400.0,
) -> None:
    """Say what each device would hold and how long a step would take, by arithmetic, for each run.strategy."""
    changes = _overrides(overrides)

    from mmtune.commands import plan as command

    command.run(recipe, changes, command.Devices(devices, device_memory, device_tflops, utilisation, link))


@app.command("import")
def import_(
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="A name from `mmtune import --list`.")] = None,
    paths: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATH...", help="Published files or folders, in the order of the list or as ROLE=PATH."),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="RUN", help="Run folder to write.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An oddity of the published weights, by its name.")
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A change to the recipe of the run.")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="The kinds, what each takes, and their options.")] = False,
) -> None:
    """Make a run of a published checkpoint, to chat with, train on or export."""
    from mmtune.commands import import_ as command

    if show_list:
        command.show()
        return
    if kind is None or not paths or out is None:
        raise UsageError(
            seen="mmtune import without " + ("a kind" if kind is None else "paths" if not paths else "--out"),
            expected="mmtune import KIND PATH... --out RUN",
            hint="mmtune import --list shows the kinds and what each takes",
        )
    command.run(kind, paths, out, option or [], _overrides(change))


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")],
    kind: Annotated[str, typer.Option(help="A name from `mmtune import --list`.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the published layout.")],
    option: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="An option of the kind.")] = None,
) -> None:
    """Write a run in a published layout, for the programs that read that."""
    from mmtune.commands import export as command

    command.run(run, kind, out, option or [])


@app.command("list")
def list_names(
    room: Annotated[str | None, typer.Argument(metavar="[ROOM]", help="encoders, recipes, prompts, ...")] = None,
) -> None:
    """The names that a recipe may use."""
    from mmtune.commands import names as command

    command.run(room)


@app.command()
def env() -> None:
    """Versions, devices, and which decoders work here."""
    from mmtune.commands import env as command

    command.run()


@data_app.command("make")
def data_make(
    world: Annotated[str, typer.Argument(metavar="WORLD", help="pocket")],
    out: Annotated[Path, typer.Option(help="Folder for the shards.")],
    clips: Annotated[int, typer.Option(min=1, help="Number of clips.")],
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same clips.")] = 0,
    level: Annotated[str, typer.Option(metavar="easy|full", help="How much happens in a clip.")] = "full",
    per_shard: Annotated[int, typer.Option(min=1, help="Clips in one shard.")] = 500,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    split: Annotated[str, typer.Option(metavar="train|val|test", help="Splits never share a clip.")] = "train",
    kinds: Annotated[
        str | None, typer.Option(help="What successive records are about: video,image,audio,points; repeats count.")
    ] = None,
) -> None:
    """Draw clips with questions and answers, and write them as shards."""
    if world != "pocket":
        raise UsageError(seen=f"WORLD {world}", expected="pocket")

    from mmtune.commands import data as command

    command.make(
        out=out, clips=clips, seed=seed, level=level, split=split, per_shard=per_shard, workers=workers, kinds=kinds
    )


@data_app.command("index")
def data_index(patterns: Annotated[list[str], typer.Argument(metavar="PATTERN...", help="Shards.")]) -> None:
    """Read shards once and write an index beside each, with digests and what was refused."""
    from mmtune.commands import data as command

    command.index(patterns)


@data_app.command("check")
def data_check(
    words: Annotated[
        list[str],
        typer.Argument(metavar="PATTERN... [KEY=VALUE]...", help="Shards or dataset cards; changes to the recipe."),
    ],
    recipe: Annotated[str, typer.Option(metavar="RECIPE", help="The recipe that would train on them.")],
    stream: Annotated[str | None, typer.Option(help="Stream of the recipe; needed when it has several.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Records to look at.")] = 200,
    samples: Annotated[int, typer.Option(min=0, help="Samples to print in full, with labels.")] = 2,
) -> None:
    """Say what a recipe would make of some data: counts, skips by reason, lengths, and a few samples in full."""
    changes = [word for word in words if _looks_like_change(word)]
    patterns = [word for word in words if word not in changes]
    if not patterns:
        raise UsageError(seen="no shards", expected="patterns or names of cards before the changes")

    from mmtune.commands import check as command

    command.run(patterns, recipe, stream, limit, samples, changes)


def _overrides(words: list[str] | None) -> list[str]:
    wrong = [word for word in words or [] if "=" not in word]
    if wrong:
        raise UsageError(
            seen=" ".join(wrong), expected="changes as KEY=VALUE after the recipe", hint="schedule.steps=100"
        )
    return words or []


def _looks_like_change(word: str) -> bool:
    """KEY=VALUE where a path may stand too: a dotted name before the sign. A file of such a name is written ./NAME."""
    key, sign, _ = word.partition("=")
    return bool(sign) and all(part.isidentifier() or part.isdigit() for part in key.split("."))


def _run_and_question(words: list[str]) -> tuple[Path | None, str | None]:
    """The first word is the run if it is a folder with a recipe, else the question."""
    run: Path | None = None
    if words:
        first = Path(words[0])
        if words[0] and _is_run(first):
            run, words = first, words[1:]
        elif len(words) > 1 or (words[0] and _looks_like_path(words[0])):
            raise UsageError(
                seen=f"{words[0]} is not the folder of a run" + (": it has no recipe.yaml" if first.is_dir() else ""),
                expected="mmtune chat [RUN] [QUESTION], with one question",
                hint="put a question of several words in quotes",
            )
    if len(words) > 1:
        raise UsageError(
            seen=f"{len(words)} words after the run",
            expected="one question",
            hint=f'quotes around it: "{" ".join(words)}"',
        )
    return run, words[0] if words else None


def _is_run(path: Path) -> bool:
    try:
        return (path / "recipe.yaml").is_file()
    except OSError:  # a question longer than a file name may be
        return False


def _looks_like_path(word: str) -> bool:
    """A folder by its look: nothing that a person would ask."""
    try:
        return Path(word).is_dir() or ("/" in word and not any(c.isspace() for c in word))
    except OSError:
        return False


def main() -> None:
    """Run the command and leave the process with its code.

    0 done; 1 a fault of the program (with traceback); 2 bad input or a refused request (plain lines, and the
    traceback with `MMTUNE_DEBUG=1`); 130 stopped by Ctrl-C.
    """
    _open_streams()
    code = 0
    try:
        code = app(standalone_mode=False) or 0
        if code == 130:  # typer's word for Ctrl-C; a command that handled it itself leaves with SystemExit
            raise KeyboardInterrupt
    except MmtuneError as error:
        if os.environ.get("MMTUNE_DEBUG", "") not in ("", "0"):
            raise
        print(f"mmtune: {error}", file=sys.stderr)
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        print("\nmmtune: stopped", file=sys.stderr)
        code = 130
    except SystemExit as leave:
        code = leave.code  # type: ignore[assignment]
    except typer.Exit as leave:
        code = leave.exit_code
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except OSError as error:  # a full disk, a folder that may not be written: the machine's, not the program's
        if error.errno is None or os.environ.get("MMTUNE_DEBUG", "") not in ("", "0"):
            raise
        print(f"mmtune: {f'{error.filename}: ' if error.filename else ''}{error.strerror}", file=sys.stderr)
        print("expected: files and folders that can be read and written, and room for them", file=sys.stderr)
        print("try: MMTUNE_DEBUG=1 shows where this happened", file=sys.stderr)
        code = 2
    except Exception as error:
        if not hasattr(error, "format_message"):  # a fault, not a mistake in the command line
            raise
        error.show()  # type: ignore[attr-defined]
        code = error.exit_code  # type: ignore[attr-defined]
    _leave(int(code))


def _open_streams() -> None:
    """Stand in for a stream that is closed (`>&-`): Python has None there, and the next file opened has its number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            try:
                os.fstat(number)  # taken since by something that must keep it
            except OSError:
                os.dup2(nowhere, number, inheritable=True)
            setattr(sys, name, os.fdopen(nowhere, "w" if number else "r"))


def _leave(code: int) -> None:
    """End the process, at once where a thread is still importing or reading weights: nothing waits for its result."""
    import threading

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or Python tries once more, and fails
            if stream is sys.stdout:  # a reader or a terminal that left undoes nothing; a full disk lost our answer
                code = code or {errno.EPIPE: 141, errno.EIO: 0}.get(error.errno or 0, 2)
    if any(thread.name == "mmtune-load" for thread in threading.enumerate()):
        os._exit(code)
    sys.exit(code)
