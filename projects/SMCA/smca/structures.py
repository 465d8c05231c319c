"""The data that parts of the project hand to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import box_convert

Size = tuple[int, int]


class Sample(NamedTuple):
    """An image as the detector gets it, with its objects.

    Attributes:
        image: (3, h, w) uint8, channels in the order of INPUT.FORMAT.
        labels: (n,) int64 contiguous class indices.
        boxes: (n, 4) float32 xyxy in pixels of ``image``.
        image_id: COCO's.
        file_name: absolute path.
        height, width: of the file's image, in pixels.
        patches: (M, 3, S, S) uint8, parts of the image that ``boxes`` show, to pre-train with.
    """

    image: Tensor
    labels: Tensor
    boxes: Tensor
    image_id: int
    file_name: str
    height: int
    width: int
    patches: Tensor | None = None


@dataclass(frozen=True)
class Targets:
    """The objects of a batch, padded to the fullest image.

    Attributes:
        labels: (B, M) contiguous classes; 0 where padded.
        boxes: (B, M, 4) cxcywh in [0, 1] of the unpadded image; 0 where padded.
        counts: number of objects of each image, on the host.
        patches: (B, M, 3, S, S), what the boxes show, normalised, to pre-train with.
        pixel_boxes: (B, M, 4), the boxes as they were given: xyxy in pixels, on their device.
    """

    labels: Tensor
    boxes: Tensor
    counts: tuple[int, ...]
    patches: Tensor | None = None
    pixel_boxes: Tensor | None = None

    @classmethod
    def from_images(
        cls,
        labels: Sequence[Tensor],
        boxes: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        device: torch.device,
        patches: Tensor | None = None,
    ) -> Targets:
        """
        Args:
            labels: (n,) int64 of each image, on any device.
            boxes: (n, 4) float32 xyxy in pixels of each image, on any device.
            sizes: (h, w) of each image, in the same pixels.
            device: where to put the targets.
            patches: on this device.
        """
        scales = torch.tensor([(w, h, w, h) for h, w in sizes], dtype=torch.float32)
        padded = pad_sequence(list(boxes), batch_first=True)
        fractions = padded / to_device(scales, padded.device)[:, None]
        return cls(
            labels=to_device(pad_sequence(list(labels), batch_first=True), device),
            boxes=to_device(box_convert(fractions, "xyxy", "cxcywh"), device),
            counts=tuple(len(image) for image in labels),
            patches=patches,
            pixel_boxes=padded,
        )

    def repeat(self, times: int) -> Targets:
        """The objects of each image ``times`` times, side by side: for groups of queries."""
        if times == 1:
            return self
        return Targets(
            labels=self.labels.repeat_interleave(times, dim=0),
            boxes=self.boxes.repeat_interleave(times, dim=0),
            counts=tuple(count for count in self.counts for _ in range(times)),
        )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Send a tensor to ``device``, from the host without waiting for the device."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class NoisedQueries:
    """Queries of a training step that are objects with noise: S sets of W an image, Q in all.

    Attributes:
        sets: S.
        content: (B, Q, C).
        reference: (B, Q, 4), the noised boxes, cxcywh as logits.
        idle: (B, W), True where a set has no object; None where all images have as many objects.
        image, query: (P,), places of the queries with an object to find.
        labels, boxes: (P,) and (P, 4) cxcywh in [0, 1], these objects.
    """

    sets: int
    content: Tensor
    reference: Tensor
    idle: Tensor | None
    image: Tensor
    query: Tensor
    labels: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        """Q, 0 in a batch without objects."""
        return self.content.shape[1]


@dataclass(frozen=True)
class PlacePredictions:
    """What TSP-FCOS predicts of places of its maps: S levels, L places in all, N of them encoded.

    Attributes:
        levels: (B, N), the level of each encoded place.
        num_levels: S.
        nms_thresh: IoU from which a box is left out beside a better one of its class.
        local_logits: (B, L, K), by which places are chosen.
        points: (B, N, 2), x and y of encoded places in pixels.
        strides: (B, N), pixels a cell.
        distances: (B, N, 4), from the places to their boxes' left, top, right and bottom, in
            strides.
        centerness: (B, N), logits.
        assigned: in training the object of each place, (B, L), and of each encoded one, (B, N);
            -1 where it has none.
    """

    levels: Tensor
    num_levels: int
    nms_thresh: float
    local_logits: Tensor
    points: Tensor
    strides: Tensor
    distances: Tensor
    centerness: Tensor
    assigned: tuple[Tensor, Tensor] | None


@dataclass(frozen=True)
class Predictions:
    """The detector's output for a batch: B images, N queries, K logits a query.

    In training each of an image's G groups of queries counts as an image of its own: B * G.

    Attributes:
        logits: (layers, B, N, K), of all decoder layers, in evaluation of the last one only.
        boxes: (layers, B, N, 4) cxcywh in [0, 1] of the unpadded image.
        centers: (B, N, 2), the centres x, y that the last layer's boxes started from, in [0, 1] of
            the unpadded image; None where boxes start from no place (DETR).
        noised: in training with denoising, the predictions of these queries: (layers, B, Q, ...).
        proposals: in training with two stages, those of the first, as of one layer.
        one_to_many: in training with one-to-many supervision, what queries predict before they see
            each other.
        features: to pre-train, the features of patches (B, M, F), and those that queries predict
            (layers, B, N, F).
        places: of TSP-FCOS.
    """

    logits: Tensor
    boxes: Tensor
    centers: Tensor | None
    noised: tuple[NoisedQueries, Predictions] | None = None
    proposals: Predictions | None = None
    one_to_many: Predictions | None = None
    features: tuple[Tensor, Tensor] | None = None
    places: PlacePredictions | None = None


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first; or of a batch, with shapes (B, D, ...).

    Attributes:
        boxes: (D, 4) xyxy in pixels, not clipped to the image.
        scores: (D,).
        labels: (D,) contiguous class indices.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
