"""Two stages: queries start from the boxes of tokens where objects seem to be (docs/BEYOND.md).

Shapes: B images, N queries, L tokens of all scales, C channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import Predictions
from .heads import DetectionHeads
from .layers import full_precision, linear
from .memory import Memory, numbers_on

# The sides of a token's box before it is corrected, for each pixel of its stride: a twentieth of
# the image at stride 8, as in Deformable DETR, a tenth at stride 16 and so on.
_SIDE = 0.05 / 8
# Boxes stay within these fractions of the image, where their logits are small.
_FRACTIONS = (0.001, 0.999)


class Proposals(nn.Module):
    """Finds the tokens with the highest scores, and their boxes.

    It is the first stage of Deformable DETR (arXiv 2010.04159), with a score a class as in DINO
    (arXiv 2203.03605), and learns like a decoder layer.
    """

    def __init__(self, *, num_queries: int, dim: int, heads: DetectionHeads, softmax: bool = False):
        """
        Args:
            num_queries, dim: N and C.
            heads: read classes and boxes from tokens.
            softmax: the last logit is for no object.
        """
        super().__init__()
        self.num_queries = num_queries
        self.softmax = softmax
        self.proj = linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.heads = heads

    @classmethod
    def from_config(cls, cfg) -> dict:
        smca = cfg.MODEL.SMCA
        return {
            "num_queries": smca.NUM_QUERIES,
            "dim": smca.HIDDEN_DIM,
            "heads": DetectionHeads(**DetectionHeads.from_config(cfg), zero_boxes=True),
            "softmax": smca.LOSS.CLASSIFICATION == "softmax",
        }

    def forward(self, memory: Memory) -> tuple[Predictions, Tensor]:
        """Return the predictions of the N best tokens, as those of one layer, and where to start.

        That is (B, N, 4), their boxes cxcywh as logits, without a gradient. Where an image has
        fewer tokens, its last one is taken several times.
        """
        with full_precision(memory.tokens.device):
            features = self.norm(self.proj(memory.tokens.to(self.heads.dtype)))
            best = self._best(features.detach(), memory.padding)[..., None]
            features = features.gather(1, best.expand(-1, -1, features.shape[-1]))
            cells = _cells(memory).to(features.dtype).expand(features.shape[0], -1, -1)
            found = self.heads(features[None], cells.gather(1, best.expand(-1, -1, 4))[None])
        return found, found.boxes[0].detach().clamp(*_FRACTIONS).logit()

    def _best(self, features: Tensor, padding: Tensor | None) -> Tensor:
        """The indices (B, N) of the tokens with the highest scores, best first."""
        with torch.no_grad():
            scores = self.heads.class_head(features)
            if self.softmax:
                scores = scores.softmax(-1)[..., :-1]
            scores = scores.amax(-1)
            if padding is not None:
                scores = scores.masked_fill(padding, -torch.inf)
            # N more, so that maps of any size have as many.
            scores = F.pad(scores, (0, self.num_queries), value=-torch.inf)
            return scores.topk(self.num_queries).indices.clamp(max=features.shape[1] - 1)


def _cells(memory: Memory) -> Tensor:
    """The boxes (B or 1, L, 4) around the cells of all tokens, cxcywh as logits."""
    like = memory.valid_sizes
    sides = numbers_on(like.device, memory.strides, like.dtype) * _SIDE
    boxes = []
    for scale, (rows, columns) in enumerate(memory.shapes):
        x = torch.arange(columns, device=like.device) + 0.5
        y = torch.arange(rows, device=like.device) + 0.5
        y, x = torch.meshgrid(y, x, indexing="ij")
        centers = torch.stack((x, y), dim=-1).flatten(0, 1) / like[:, scale, None]
        boxes.append(torch.cat((centers, sides[scale].expand_as(centers)), dim=-1))
    return torch.cat(boxes, dim=1).clamp(*_FRACTIONS).logit()
