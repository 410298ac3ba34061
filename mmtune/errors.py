"""The exceptions of mmtune. Each says what was seen, what was expected, and what to try.

Every exception pickles, because most of them are raised in a data worker and read in the main process.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from mmtune.addresses import without_secrets


class Reason(StrEnum):
    """Why a record was refused or skipped: the closed list that a ledger may hold."""

    incomplete_group = "incomplete_group"
    missing_key = "missing_key"
    duplicate_key = "duplicate_key"
    unsafe_suffix = "unsafe_suffix"
    unsafe_member = "unsafe_member"
    truncated_shard = "truncated_shard"
    digest_mismatch = "digest_mismatch"
    unreadable_image = "unreadable_image"
    too_many_pixels = "too_many_pixels"
    unreadable_video = "unreadable_video"
    no_video_stream = "no_video_stream"
    short_video = "short_video"
    video_limits = "video_limits"
    unreadable_audio = "unreadable_audio"
    no_audio_stream = "no_audio_stream"
    audio_limits = "audio_limits"
    unreadable_points = "unreadable_points"
    points_limits = "points_limits"
    bad_range = "bad_range"
    bad_text = "bad_text"
    bad_json = "bad_json"
    bad_weight = "bad_weight"
    unused_field = "unused_field"
    empty_target = "empty_target"
    placeholder_mismatch = "placeholder_mismatch"
    too_long = "too_long"
    download_failed = "download_failed"
    wrong_media_type = "wrong_media_type"
    non_finite = "non_finite"


class Note(StrEnum):
    """What was unusual about an item that was used all the same: the closed list that a ledger counts."""

    odd_metadata = "odd_metadata"
    """A library warned of side data that are not read, or there were such as make no sense."""
    end_missing = "end_missing"
    """A picture without the mark at its end; its pixels are all there."""
    open_length = "open_length"
    """A sound whose header does not know its length, as of a recorder that writes into a pipe."""
    junk_skipped = "junk_skipped"
    """Bytes before a sound that do not belong to it."""
    gaps_filled = "gaps_filled"
    """Silence where a sound sent nothing."""
    sound_before_pictures = "sound_before_pictures"
    """Sound before the first frame beside it, which is left out so that both begin together."""
    range_clamped = "range_clamped"
    """The end of a clip was a little after that of its item."""
    points_left_out = "points_left_out"
    """Points of a cloud without a place."""
    columns_left_out = "columns_left_out"
    """Columns of a cloud, beside the place, that are not numbers throughout."""


class MmtuneError(Exception):
    """Base of every error that mmtune raises on purpose. What is secret in an address does not come into its words.

    Args:
        seen: what was found, naming the file, key or shape.
        expected: what would have been right.
        hint: what to type or change.
    """

    def __init__(self, seen: str, expected: str = "", hint: str = "") -> None:
        self.seen, self.expected, self.hint = map(without_secrets, (seen, expected, hint))
        super().__init__(self.seen, self.expected, self.hint)

    def __str__(self) -> str:
        lines = [self.seen]
        if self.expected:
            lines.append(f"expected: {self.expected}")
        if self.hint:
            lines.append(f"try: {self.hint}")
        return "\n".join(lines)


class ConfigError(MmtuneError):
    """A recipe, template or card that cannot be used as written."""


class CheckpointError(MmtuneError):
    """Weights that are missing, unexpected, misshapen or damaged."""


class ModelError(MmtuneError):
    """Parts of a model that do not fit each other, or a package that one of them needs and is absent."""


class UsageError(MmtuneError):
    """A command or call that asks for something that cannot be done."""


class ShapeError(MmtuneError):
    """A value of `mmtune.types` that breaks its own description."""


class _ReasonedError(MmtuneError):
    """An error about one record, with the reason under which a ledger counts it."""

    def __init__(self, reason: Reason, seen: str, expected: str = "", hint: str = "") -> None:
        super().__init__(seen, expected, hint)
        self.reason = Reason(reason)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.seen, self.expected, self.hint)


class MediaError(_ReasonedError):
    """A picture, video, sound or point cloud that cannot be decoded within its limits."""


class DataError(_ReasonedError):
    """A record, shard or sample that cannot be used."""
