"""Shared by connectors that treat every token alone: each frame keeps its N places."""

from torch import Tensor

from mmtune.connectors._scale import OutputScale, ScaledConfig
from mmtune.connectors.base import Connector
from mmtune.types import Embeds, Features, FeatureShape


class Tokenwise(Connector):
    """Applies `project` to every token and lays frames one after another; F frames take F * N places.

    `tokens` is N, the places of a frame; an entry that gives another number of them than the encoder sets it.
    """

    def __init__(self, config: ScaledConfig, shape: FeatureShape, llm_width: int) -> None:
        super().__init__(config, shape, llm_width)
        self.tokens = shape.tokens
        self.scale = OutputScale(config, llm_width)

    def project(self, tokens: Tensor) -> Tensor:
        """[R,N,E] -> [R,N,D]"""
        raise NotImplementedError

    def tokens_out(self, frames: int) -> int:
        """Places K of an item with `frames` real frames: frames * N."""
        return frames * self.tokens

    def calibrate(self, rms: float) -> None:
        self.scale.calibrate(rms)

    def forward(self, features: Features) -> Embeds:
        """[M,F,N,E] -> tokens [M,F*N,D], frame-major; places of masked frames are zero and masked."""
        tokens = features.tokens[features.frame_mask].to(next(self.parameters()).dtype)
        real = self.scale(self.project(tokens))
        out = real.new_zeros(*features.frame_mask.shape, *real.shape[1:])
        out = out.index_put((features.frame_mask,), real)
        mask = features.frame_mask[:, :, None].expand(out.shape[:3])
        return Embeds(out.flatten(1, 2), mask.flatten(1, 2))
