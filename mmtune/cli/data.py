"""`mmtune data ...`: shards of training data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmtune.cli.complete import recipes
from mmtune.cli.options import AllowCode, Limit, data_app, records_of
from mmtune.errors import UsageError


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


@data_app.command("convert")
def data_convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A file of records, a folder, or an address.")],
    out: Annotated[str, typer.Option(metavar="FOLDER", help="For the shards: a separate folder, or an address.")],
    media: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder with the media; names may not lead out of it. Repeat. Else the folder of SOURCE.",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="auto, preference, llava, alpaca, caption, question, video_chatgpt, videochat2, cauldron, webvid",
        ),
    ] = "auto",
    rename: Annotated[
        list[str] | None, typer.Option(metavar="FIELD=NAME", help="Read a field or column under another name. Repeat.")
    ] = None,
    ignore: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="Leave a field out of the shards, as mask. Repeat.")
    ] = None,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Of a data set that has several.")] = None,
    per_shard: Annotated[
        int | None, typer.Option(min=1, help="Records in a shard; else what makes about 256 MB, 1000 at most.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many records.")] = None,
    frame_rate: Annotated[
        float, typer.Option(min=0.001, max=1000, help="Frames/s of a video given as pictures, without `fps`.")
    ] = 1.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes; the shards are the same with any number.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a conversion that was stopped.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the shards of an earlier one first.")] = False,
) -> None:
    """Make shards of records and their media.

    SOURCE is recognised by its content: a JSON list, JSON lines, CSV or TSV with column names, parquet, a data set of
    Hugging Face on disk, or a folder of media with .txt or .json beside them. Records may be conversations (LLaVA,
    ShareGPT, chat messages), questions and answers, or captions. Media are names, addresses file:// and data:, base64,
    or bytes; a list of pictures under `video` is one video. FOLDER/convert.jsonl lists each record that cannot be used.
    """
    pairs = dict(word.partition("=")[::2] for word in rename or [])
    if not all(pairs) or not all(pairs.values()):
        raise UsageError(f"--rename {' '.join(rename or [])}", "FIELD=NAME", "--rename clip_path=video")
    if resume and overwrite:
        raise UsageError("--resume and --overwrite", "one of them")

    from mmtune.commands import convert as command
    from mmtune.data.convert.base import Options

    options = Options(form, tuple(media or ()), pairs, tuple(ignore or ()), split, per_shard, limit, frame_rate)
    command.run(source, out, options, workers, resume, overwrite)


@data_app.command("index")
def data_index(patterns: Annotated[list[str], typer.Argument(metavar="PATTERN", help="Shards.")]) -> None:
    """Read shards once and write an index beside each, with digests and refused records."""
    from mmtune.commands import data as command

    command.index(patterns)


@data_app.command("check")
def data_check(
    words: Annotated[
        list[str],
        typer.Argument(metavar="PATTERN|KEY=VALUE", help="Shards or dataset cards; changes to the recipe."),
    ],
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE", help="The recipe that would train on them.", autocompletion=recipes)
    ],
    stream: Annotated[str | None, typer.Option(help="Stream of the recipe; needed when it has several.")] = None,
    limit: Limit = None,
    samples: Annotated[int, typer.Option(min=0, help="Samples to print in full, with labels.")] = 2,
    allow_code: AllowCode = None,
) -> None:
    """Show how a recipe would read some data: counts, skips by reason, lengths, and a few samples in full."""
    changes = [word for word in words if _looks_like_change(word)]
    patterns = [word for word in words if word not in changes]
    if not patterns:
        raise UsageError(seen="no shards", expected="patterns or names of cards before the changes")

    from mmtune.commands import check as command

    if code := command.run(patterns, recipe, stream, records_of(limit) or 200, samples, changes):
        raise SystemExit(code)


def _looks_like_change(word: str) -> bool:
    """KEY=VALUE where a path is allowed too: a dotted name before the sign. Write a file of such a name as ./NAME."""
    key, sign, _ = word.partition("=")
    return bool(sign) and all(part.isidentifier() or part.isdigit() for part in key.split("."))
