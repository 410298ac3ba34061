"""The most that one item may cost, and the one way in which a limit refuses: by its name, and with what to type."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from mmtune import config
from mmtune.config import Config
from mmtune.errors import ConfigError, MediaError, Reason

Whole = Annotated[int, Field(ge=0)]
Real = Annotated[float, Field(ge=0)]


class Limits(Config):
    """The most that one item may cost. Judged from headers and packets before anything is decoded where possible.

    A recipe sets them in its section `limits`, a command with `--limit NAME=VALUE`.
    """

    bytes: Whole = 1 << 30
    """Encoded size."""
    image_pixels: Whole = 50_000_000
    """Height times width of a picture."""
    scan_pixels: Whole = 1_000_000_000
    """Height times width of a JPEG, times its scans: each is a pass over the whole picture."""
    frame_pixels: Whole = 36_000_000
    """Height times width of a video frame (8K is 33 million)."""
    output_pixels: Whole = 400_000_000
    """Pixels of all chosen frames together; three bytes each."""
    video_seconds: Real = 4 * 3600.0
    """Length of a video."""
    packets: Whole = 1_000_000
    """Packets read from a container, or promised by its tables."""
    decoded_frames: Whole = 500_000
    """Frames that must be decoded to reach the chosen ones. A clip of hours with one key frame may need all of them;
    what that takes is up to `wall_seconds`."""
    wall_seconds: Real = 120.0
    """Time spent on decoding one item."""
    memory: Whole = 1 << 30
    """Bytes by which the process may grow while a picture, film or sound is read, beside what comes of it."""
    audio_seconds: Real = 3600.0
    """Length of a sound, when all of it is asked for."""
    audio_values: Whole = 200_000_000
    """Samples times channels, before resampling; four bytes each."""
    channels: Whole = 8
    """Channels of a sound."""
    min_rate: Whole = 1000
    """Least samples per second of a sound as stored, Hz."""
    max_rate: Whole = 384_000
    """Most samples per second of a sound as stored, Hz."""
    points: Whole = 5_000_000
    """Points of a cloud."""
    point_values: Whole = 40_000_000
    """Points times values of each; four bytes each."""
    complete: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Least share of the promised frames or samples that must be there; less is a damaged file."""

    def refusal(self, name: str, reason: Reason, seen: str) -> MediaError:
        """The error for an item beyond the limit `name`: `raise limits.refusal(...)`."""
        value, least = getattr(self, name), name in ("min_rate", "complete")
        said = f"{value:g}" if isinstance(value, float) else str(value)
        return MediaError(
            reason,
            seen,
            f"{'at least' if least else 'at most'} {said} (limit {name})",
            f"another item, or {'lower' if least else 'raise'} the limit on purpose: limits.{name}=VALUE in the "
            f"recipe or behind train, --limit {name}=VALUE for the other commands",
        )


_said: dict[str, str] = {}
"""What the command line says, by name: it holds for the process, whatever a recipe says."""
_usual: list[Limits] = []


def say(settings: Iterable[str]) -> None:
    """Set limits from texts such as "wall_seconds=300", for this process and those that it starts.

    Raises ConfigError: no such limit, or no such value.
    """
    for text in settings:
        name, sign, value = text.partition("=")
        name = name.strip().removeprefix("limits.")
        if not sign or name not in Limits.model_fields:
            raise ConfigError(
                f"the limit {text!r}", f"NAME=VALUE with one of {', '.join(Limits.model_fields)}",
                "--limit wall_seconds=300",
            )  # fmt: skip
        config.validate(Limits, {name: value.replace("_", "")}, f"--limit {text}")
        _said[name] = value.replace("_", "")
    _usual.clear()


def said(limits: Limits | None = None) -> list[str]:
    """What another process has to `say` for the limits to be the same there: those of a recipe that are not the usual
    ones, and what `say` was told here."""
    own = {name: str(value) for name, value in limits or () if value != Limits.model_fields[name].default}
    return [f"{name}={value}" for name, value in (own | _said).items()]


def settled(limits: Limits | None = None) -> Limits:
    """`limits`, or the usual ones, with what the command line says."""
    if limits is not None:
        return limits if not _said else Limits(**{**limits.model_dump(), **_said})  # type: ignore[arg-type]
    if not _usual:
        _usual.append(Limits(**_said))  # type: ignore[arg-type]
    return _usual[0]
