"""Fields that change what a record means, in the words that other tools have for them.

Weights are read into turns. What cannot be done is refused by name, so that no record is learned as something else than
it says. All other fields (ids, sources, scores, sizes) may be there and are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmtune.data._json import absent
from mmtune.data.formats._pairs import ANSWERS
from mmtune.data.formats.base import FormatConfig
from mmtune.errors import DataError, Reason
from mmtune.types import WEIGHTS_SAID, Role, is_weight

WEIGHTS = ("weight", "loss_weight", "loss_scale", "sample_weight", "example_weight")
"""Factors of the loss, of a turn or of a whole record. A number."""
SWITCHES = ("loss", "loss_mask", "learn", "train", "training", "trainable", "is_trainable", "train_on_turn",
            "calculate_loss", "compute_loss")  # fmt: skip
"""The same for a turn, where true and false stand for 1 and 0; of a record only these two are clear."""

_PAIR = "a preference between answers, which `format: preference` reads"
_TOOLS = "calls of tools, for which no template has words (`mmtune data convert` writes them into the text)"
_REGION = "a part of a picture, and pictures are shown whole"
_TURNS = "which turns are learned, and that is said with each turn (train: false)"
_DETAIL = "parts of a turn to learn, and a turn is learned whole"
_FRAMES = "frames by their number, and clips are given in seconds (start, end)"
_SAMPLING = "how an item is sampled, which the encoder's settings in the recipe say for all items"

RECORD: dict[str, str] = {
    **dict.fromkeys((*(name for names in ANSWERS for name in names), "rejected_images", "kto_tag", "label"), _PAIR),
    **dict.fromkeys(("weights", "loss_weights", "loss_masks"), "weights in a list, which are given with each turn"),
    **dict.fromkeys(("mask_history", "train_on_inputs", "train_on_prompt", "train_on_input"), _TURNS),
    **dict.fromkeys(("tools", "functions"), _TOOLS),
    **dict.fromkeys(("bbox", "bboxes", "crop", "crop_box", "roi", "mask", "masks", "objects"), _REGION),
    **dict.fromkeys(("max_pixels", "min_pixels"), _SAMPLING),
    **dict.fromkeys(("start_frame", "end_frame", "frame_range", "frame_indices", "frame_idx", "frames_idx"), _FRAMES),
}
"""Field of a record to what it would mean. Empty ones (null, false, 0, "", [], {}) say nothing."""
TURN: dict[str, str] = {
    **dict.fromkeys(("tool_calls", "function_call", "tools", "functions"), _TOOLS),
    **dict.fromkeys(("train_detail", "training_detail", "mask", "masked"), _DETAIL),
    **dict.fromkeys(("ignore_loss", "no_loss", "skip_loss", "mask_loss"), "that it is not learned (train: false)"),
    **dict.fromkeys(("reasoning_content", "thinking"), "a text beside the answer, for which no template has a place"),
    **dict.fromkeys(
        ("image", "images", "video", "videos", "audio", "audios"),
        "media of a turn, which are named in the record or in parts of the turn's content",
    ),
}
"""The same for a turn."""
MEDIA: dict[str, str] = dict.fromkeys(
    ("image", "images", "video", "videos", "audio", "audios", "points", "point", "point_cloud"),
    "media, and this format is text alone",
)
"""Fields of a record of text."""
PART: dict[str, str] = {
    **dict.fromkeys(
        (
            "fps", "sample_fps", "nframes", "num_frames", "max_frames", "min_frames", "total_pixels", "max_pixels",
            "min_pixels", "resized_height", "resized_width",
        ),
        _SAMPLING,
    ),
    **dict.fromkeys(("bbox", "crop", "crop_box", "roi", "mask"), _REGION),
    **dict.fromkeys(("start_frame", "end_frame", "frame_range", "frame_indices", "frame_idx", "frames_idx"), _FRAMES),
    **dict.fromkeys((*WEIGHTS, *SWITCHES), _DETAIL),
}  # fmt: skip
"""The same for a part of a turn's content, and for media that a record names with more than a name."""


class FieldsConfig(FormatConfig):
    """What the config of a format has that reads these fields."""

    ignore: tuple[str, ...] = ()
    """Fields that are not looked at, of records, turns and parts, although their names have a meaning (data/README.md
    lists them)."""

    def without(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """Facts without the fields that are not looked at."""
        return {key: value for key, value in facts.items() if key not in self.ignore}

_AS_USUAL = frozenset((*WEIGHTS, *SWITCHES, "kto_tag"))
"""Of these, true and 1 say nothing, and the others do."""
_FALSE = frozenset(("label",))
"""Of these, false alone says something: an answer that is not wanted. Numbers and words name a class."""
_OTHERWISE = "leave the field out, or write ignore: [{}] in the format of the stream, if it means something else here"


def refuse(facts: Mapping[str, Any], table: Mapping[str, str], where: str) -> None:
    """Refuse what has a field that cannot be honoured. Raises DataError unused_field."""
    for name in sorted(table.keys() & facts.keys()):
        value = facts[name]
        neutral = value in (True, 1, "", [], {}) if name in _AS_USUAL else not value or value in ("[]", "{}")
        neutral = value is not False if name in _FALSE else neutral
        if absent(value) or neutral:
            continue
        raise DataError(
            Reason.unused_field,
            f"{where} has {name}: {table[name]}",
            "records whose fields can all be honoured",
            _OTHERWISE.format(name),
        )


def weight(facts: Mapping[str, Any], where: str, role: Role | None = None, whole: float = 1.0) -> float:
    """What the text of a turn counts in the loss, or of a whole record where there is no role: the product of its
    weights, 1 where it names none.

    Args:
        whole: weight of the record that the turn is of.

    Raises:
        DataError: bad_weight: not a number that can be one. unused_field: a turn of a user that is to be learned.
    """
    product = whole
    for name in (*WEIGHTS, *SWITCHES):
        value, switch = facts.get(name), name in SWITCHES
        if value is None or (switch and role is None and not _of_record(name, value, where)):
            continue
        if isinstance(value, bool) and switch:
            value = int(value)
        if not is_weight(value):
            expected = WEIGHTS_SAID + (", true or false" if switch else "")
            raise DataError(
                Reason.bad_weight, f"{where}: {name} is {str(facts[name])[:80]!r}", expected, _OTHERWISE.format(name)
            )
        if switch and value and role in ("user", "system"):
            raise DataError(
                Reason.unused_field, f"{where}, of the {role}, has {name}", "only turns of an assistant to be learned"
            )
        product *= value
    if not is_weight(product):
        raise DataError(Reason.bad_weight, f"{where}: its weights together are {product:g}", WEIGHTS_SAID)
    return product


def _of_record(name: str, value: Any, where: str) -> bool:
    """Whether a switch of a whole record is one; text is a note. Raises DataError unused_field for other numbers, and
    for lists of them."""
    listed = isinstance(value, list) and value and all(isinstance(one, (bool, int, float)) for one in value)
    if listed or (isinstance(value, (bool, int, float)) and not absent(value) and value not in (0, 1)):
        seen = f"{where}: {name} is {str(value)[:20]} of a record, which may be a weight or a measured loss"
        raise DataError(Reason.unused_field, seen, "loss_weight for a weight; true or false", _OTHERWISE.format(name))
    return isinstance(value, (bool, int, float)) and not absent(value)
