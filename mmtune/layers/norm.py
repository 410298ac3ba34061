"""Layer norm that is always computed in float32.

BERT's epsilon of 1e-12 is zero in float16, so a norm computed in the weights' precision divides by nothing on a
constant input. The cost of the two casts is small beside the linear layers around it.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class LayerNormFloat32(nn.LayerNorm):
    """`nn.LayerNorm` with float32 inside; weights and result keep the input's dtype.  [...,E] -> [...,E]"""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)
