"""The focal loss (arXiv 1708.02002)."""

import torch.nn.functional as F
from torch import Tensor


def focal_loss(logits: Tensor, weight: float, gamma: float) -> Tensor:
    """Compute the focal loss of logits that should be low. For high ones pass ``-logits``.

    It equals torchvision's, but needs no dense targets. The power is taken in logarithms, whose
    gradient is finite even where the probability is zero.
    """
    return weight * (gamma * F.logsigmoid(logits)).exp() * F.softplus(logits)
