"""One matrix with bias on every token, as in LLaVA 1.0 (arXiv 2304.08485): the cheapest connector."""

from torch import Tensor, nn

from mmtune.connectors._scale import ScaledConfig
from mmtune.connectors._tokenwise import Tokenwise
from mmtune.types import FeatureShape


class Config(ScaledConfig):
    name: str = "linear"


class Linear(Tokenwise):
    """Keys: `proj.weight` [D,E], `proj.bias` [D]."""

    Config = Config

    def __init__(self, config: Config, shape: FeatureShape, llm_width: int) -> None:
        super().__init__(config, shape, llm_width)
        self.proj = nn.Linear(shape.width, llm_width)

    def project(self, tokens: Tensor) -> Tensor:
        return self.proj(tokens)
