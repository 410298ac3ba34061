"""The most that one item may cost, and the one way in which a limit refuses: by its name, and with what to type."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from mmtune.errors import ConfigError, MediaError, Reason


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one item may cost. Judged from headers and packets before anything is decoded where possible.

    A recipe sets them in its section `limits`, a command with `--limit NAME=VALUE`.
    """

    bytes: int = 1 << 30
    """Encoded size."""
    image_pixels: int = 50_000_000
    """Height times width of a picture."""
    scan_pixels: int = 1_000_000_000
    """Height times width of a JPEG, times its scans: each is a pass over the whole picture."""
    frame_pixels: int = 36_000_000
    """Height times width of a video frame (8K is 33 million)."""
    output_pixels: int = 400_000_000
    """Pixels of all chosen frames together; three bytes each."""
    video_seconds: float = 4 * 3600.0
    """Length of a video."""
    packets: int = 1_000_000
    """Packets read from a container, or promised by its tables."""
    decoded_frames: int = 30_000
    """Frames that must be decoded to reach the chosen ones."""
    wall_seconds: float = 120.0
    """Time spent on decoding one item."""
    audio_seconds: float = 3600.0
    """Length of a sound, when all of it is asked for."""
    audio_values: int = 200_000_000
    """Samples times channels, before resampling; four bytes each."""
    channels: int = 8
    """Channels of a sound."""
    min_rate: int = 1000
    """Least samples per second of a sound as stored, Hz."""
    max_rate: int = 384_000
    """Most samples per second of a sound as stored, Hz."""
    points: int = 5_000_000
    """Points of a cloud."""
    point_values: int = 40_000_000
    """Points times values of each; four bytes each."""
    complete: float = 0.9
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


def parse(settings: list[str], base: Limits | None = None) -> Limits:
    """Limits from texts such as "wall_seconds=300". Raises ConfigError."""
    base, known = base or Limits(), {one.name: one.type for one in fields(Limits)}
    for text in settings:
        name, equal, value = text.partition("=")
        name = name.strip().removeprefix("limits.")
        if not equal or name not in known:
            raise ConfigError(f"the limit {text!r}", f"NAME=VALUE with one of {', '.join(known)}")
        try:
            number = float(value.replace("_", ""))
            base = replace(base, **{name: number if known[name] == "float" else int(number)})
        except (ValueError, OverflowError) as error:
            raise ConfigError(f"the limit {text!r}", "a number", f"--limit {name}={getattr(base, name)}") from error
    return base
