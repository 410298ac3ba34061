"""Parts small enough to follow by hand: a tokenizer of words, an encoder of mean colours, a connector of one matrix."""

import hashlib

import torch
from torch import nn

from mmtune import registry
from mmtune.connectors.base import Connector, ConnectorConfig
from mmtune.encoders.base import Encoder, EncoderConfig
from mmtune.errors import DataError, Reason
from mmtune.llm.base import Tokenizer
from mmtune.prompt import Side, Template
from mmtune.types import Embeds, Features, Media, MediaRef

registry.allow(f"tests.toys:{name}" for name in ("Colours", "Tones", "Flat"))

MARKS = ("<pad>", "<b>", "<u>", "<a>", "</s>", "<m>", "</m>", "<q>", "</q>", "<y>")
WORDS = ("what", "is", "this", "red", "blue", "and", "now", "a", "cat", "ocr:", "stop", "be", "brief")


class Words(Tokenizer):
    """One id for each word; marks come first. Anything else is refused."""

    pad, bos, eos = 0, 1, 4
    vocabulary = len(MARKS) + len(WORDS)
    special_ids = frozenset(range(len(MARKS)))

    def encode(self, text, after="start"):
        try:
            return [len(MARKS) + WORDS.index(word) for word in text.split()]
        except ValueError as error:
            raise DataError(Reason.bad_text, text) from error

    def encode_special(self, text, after="start"):
        ids = []
        while text:
            mark = next(mark for mark in MARKS if text.startswith(mark))
            ids.append(MARKS.index(mark))
            text = text[len(mark) :]
        return ids

    def decode(self, ids):
        return " ".join(WORDS[i - len(MARKS)] for i in ids if i >= len(MARKS))

    def fingerprint(self):
        return hashlib.sha256(repr((MARKS, WORDS)).encode()).hexdigest()


TEMPLATE = Template(
    begin="<b>",
    system=Side(before="<y>", after="</s>"),
    user=Side(before="<u>", after="</s>"),
    assistant=Side(before="<a>", after="</s>"),
    media={"image": ("<m>", "</m>"), "video": ("<m>", "</m>"), "audio": ("<m>", "</m>")},
    quote=("<q>", "</q>"),
    stop=("</s>",),
    tokens=("<b>", "<u>", "<a>", "<m>", "</m>"),
)


class ColourConfig(EncoderConfig):
    width: int = 3
    frames: int = 4
    """Most frames."""


class Colours(Encoder):
    """Mean colour of the upper and of the lower half of each frame: N = 2, E = 3. One matrix, drawn at random."""

    Config, kinds = ColourConfig, ("image", "video")
    tokens_per_frame, grid = 2, (2, 1)

    def __init__(self, config):
        super().__init__(config)
        self.width, self.max_frames = config.width, config.frames
        self.mix = nn.Linear(3, config.width)
        self.drop = nn.Dropout(0.5)

    def sampling(self, kind):
        return self.max_frames

    def prepare(self, media, rng=None):
        """[F,3,height,width], or sound of 48 numbers a frame -> float32 [F,2,3]"""
        data = media.data.view(-1, 3, 4, 4) if media.kind == "audio" else media.data
        upper, lower = data.float().div(255).chunk(2, dim=2)
        return torch.stack([upper.mean((2, 3)), lower.mean((2, 3))], dim=1)

    def forward(self, x, frames):
        return Features(self.drop(self.mix(x)), frames, self.grid)


class Tones(Colours):
    """The same for sound, which here has one "frame" of colours for each second."""

    kinds = ("audio",)


class FlatConfig(ConnectorConfig):
    pass


class Flat(Connector):
    """Every token of every real frame through one matrix: K = 2 F."""

    Config = FlatConfig

    def __init__(self, config, shape, llm_width):
        super().__init__(config, shape, llm_width)
        self.matrix = nn.Linear(shape.width, llm_width)
        self.drop = nn.Dropout(0.5)

    def tokens_out(self, frames):
        return frames * self.shape.tokens

    def forward(self, features):
        tokens = self.matrix(self.drop(features.tokens)).flatten(1, 2)
        return Embeds(tokens, features.frame_mask.repeat_interleave(self.shape.tokens, dim=1))


class Pair:
    """Encoder and connector, as the processor asks for them."""

    def __init__(self, encoder=Colours, kinds=None, width=8):
        self.encoder = encoder(encoder.Config(name="toy"))
        self.connector = Flat(FlatConfig(name="toy"), self.encoder.shape, width)
        self.kinds = kinds or self.encoder.kinds


def fake_load(ref, sampling, limits=None):
    """Media of one colour, for a MediaRef whose bytes are (red, green, blue, frames)."""
    *colour, frames = ref.read()
    data = torch.tensor(colour, dtype=torch.uint8).view(1, 3, 1, 1).expand(frames, 3, 4, 4).contiguous()
    if ref.kind == "audio":
        return Media("audio", data.float().view(1, -1), rate=48, origin=ref.origin)
    return Media("image" if frames == 1 else "video", data, origin=ref.origin)


def picture(colour=(255, 0, 0), name="a.png"):
    return MediaRef("image", bytes([*colour, 1]), name)


def clip(frames=2, colour=(0, 0, 255), name="b.mp4", kind="video"):
    return MediaRef(kind, bytes([*colour, frames]), name)
