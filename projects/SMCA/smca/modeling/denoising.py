"""Denoising: further queries of a training step that are objects with noise (docs/BEYOND.md).

Shapes: B images, M objects of the fullest image, S sets of W queries an image (Q = S * W in all),
C channels, P queries that have an object to find.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from ..structures import NoisedQueries, Targets, to_device

# Boxes stay within these fractions of the image, where their logits are small.
_FRACTIONS = (0.001, 0.999)


class Denoising(nn.Module):
    """Makes noised queries; a matcher is not needed to know which object each should find.

    "classic" (DN-DETR, arXiv 2203.01305): each object once a set. "contrastive" (DINO, arXiv
    2203.03605): twice, a positive near its object, and a negative farther away that should find
    nothing.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dim: int,
        kind: str = "contrastive",
        sets: int = 5,
        number: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 0.4,
    ):
        """
        Args:
            num_classes, dim: K and C.
            kind: "classic" or "contrastive".
            sets: S, if classic.
            number: of positives an image, over all sets (one set at least), if contrastive.
            label_noise: probability that a label is replaced by one drawn from all classes;
                contrastive takes half of it.
            box_noise: how far a centre, a side or a corner may move, in halves of the box's sides.
        """
        super().__init__()
        self.label_embed = nn.Embedding(num_classes, dim)
        self.contrastive = kind == "contrastive"
        self.sets = sets
        self.number = number
        self.label_noise = label_noise / 2 if self.contrastive else label_noise
        self.box_noise = box_noise

    @classmethod
    def from_config(cls, cfg) -> dict:
        denoising = cfg.MODEL.SMCA.DENOISING
        return {
            "num_classes": cfg.MODEL.SMCA.NUM_CLASSES,
            "dim": cfg.MODEL.SMCA.HIDDEN_DIM,
            "kind": denoising.KIND,
            "sets": denoising.SETS,
            "number": denoising.NUMBER,
            "label_noise": denoising.LABEL_NOISE,
            "box_noise": denoising.BOX_NOISE,
        }

    def forward(self, targets: Targets) -> NoisedQueries:
        """Draw the queries of a training step with torch's generator."""
        most = max(targets.counts)
        sets = max(1, self.number // max(1, most)) if self.contrastive else self.sets
        parts = 2 if self.contrastive else 1
        shape = (len(targets.counts), sets, parts, most)
        labels = targets.labels[:, None, None, :most].expand(shape)
        boxes = targets.boxes[:, None, None, :most].expand(*shape, -1)
        noised = self._boxes(boxes).clamp(*_FRACTIONS).flatten(1, 3)
        content = self.label_embed(self._labels(labels).flatten(1))
        # On the host, so that nothing waits for a device.
        counts = np.array(targets.counts)
        present = np.arange(most) < counts[:, None]  # (B, M)
        found = np.nonzero(np.broadcast_to(present[:, None], (len(counts), sets, most)))
        places = to_device(torch.from_numpy(np.stack(found)), labels.device)
        image, numbered, target = places.unbind()
        idle = None
        if not present.all():
            idle = to_device(torch.from_numpy(np.tile(~present, parts)), labels.device)
        return NoisedQueries(
            sets=sets,
            content=content,
            reference=noised.logit(),
            idle=idle,
            image=image,
            query=numbered * parts * most + target,
            labels=targets.labels[image, target],
            boxes=targets.boxes[image, target],
        )

    def _labels(self, labels: Tensor) -> Tensor:
        others = torch.randint_like(labels, self.label_embed.num_embeddings)
        return torch.where(
            torch.rand(labels.shape, device=labels.device) < self.label_noise, others, labels
        )

    def _boxes(self, boxes: Tensor) -> Tensor:
        """Move boxes (B, S, 1 or 2, M, 4) cxcywh."""
        centers, sides = boxes.split(2, -1)
        if not self.contrastive:
            move, stretch = (torch.rand_like(boxes) * 2 - 1).mul(self.box_noise).split(2, -1)
            return torch.cat((centers + move * sides / 2, sides * (1 + stretch)), dim=-1)
        distance = torch.rand_like(boxes)
        distance[:, :, 1] += 1  # negatives
        sign = torch.randint_like(boxes, 2) * 2 - 1
        corners = box_convert(boxes, "cxcywh", "xyxy")
        moved = corners + sign * distance * self.box_noise * sides.repeat(1, 1, 1, 1, 2) / 2
        return box_convert(moved, "xyxy", "cxcywh")
