"""Queries that are boxes: where they start, how layers correct them, and who learns of it."""

import torch
from torch.testing import assert_close

from smca.modeling import build_detector
from smca.modeling.anchored_decoder import AnchoredSMCADecoder

NAME = ("MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder")
SIZES = [(64, 96), (50, 80)]


def predicted(detector):
    torch.manual_seed(0)
    images = torch.zeros(2, 3, 64, 96)
    for image, (h, w) in zip(images, SIZES, strict=True):
        image[:, :h, :w].normal_()
    return detector.train()(images, SIZES)


def test_anchors_start_all_over_the_image_with_half_of_its_sides():
    torch.manual_seed(0)
    decoder = AnchoredSMCADecoder(
        num_layers=1, num_queries=3000, num_scales=1, dim=16, num_heads=2, ffn_dim=16
    )
    centers, sides = decoder.anchors.weight.sigmoid().split(2, -1)
    assert sides.eq(0.5).all()
    assert 0.02 <= centers.min() < 0.025 and 0.975 < centers.max() <= 0.98
    assert_close(centers.mean(0), torch.full((2,), 0.5), rtol=0, atol=0.02)


def test_a_new_box_head_leaves_boxes_at_their_anchors_through_all_layers(tiny_config):
    detector = build_detector(tiny_config(*NAME, "MODEL.SMCA.DECODER.NUM_LAYERS", 3))
    predictions = predicted(detector)
    anchors = detector.decoder.anchors.weight.sigmoid().expand(3, 2, -1, -1)
    assert_close(predictions.boxes, anchors)


def test_boxes_and_gaussians_go_where_the_layers_before_moved_them(tiny_config):
    detector = build_detector(tiny_config(*NAME, "MODEL.SMCA.DECODER.NUM_LAYERS", 3)).double()
    moved = torch.tensor([0.3, -0.2, 0.1, 0.4], dtype=torch.float64)
    detector.heads.box_head[-1].bias.data.copy_(moved)
    starts = []
    for layer in detector.decoder.layers:
        layer.prior.register_forward_hook(lambda module, got, prior: starts.append(prior))
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
        predictions = detector.train()(images, [(64, 96)])
    anchors = detector.decoder.anchors.weight
    strides = detector.neck.strides
    for number, prior in enumerate(starts):
        assert_close(predictions.boxes[number, 0], (anchors + (number + 1) * moved).sigmoid())
        center = (anchors + number * moved).sigmoid()[:, :2]
        for scale, stride in enumerate(strides):
            expected = center * torch.tensor([96.0, 64.0]).double() / stride
            assert_close(prior.start[0, :, scale, 0], expected)


def test_anchors_learn_from_the_first_layers_boxes_and_from_all_places(tiny_config):
    """Later layers start from given boxes: nothing flows back through these."""
    detector = build_detector(tiny_config(*NAME))
    anchors = detector.decoder.anchors.weight

    def gradient(output):
        return torch.autograd.grad(output.sum(), anchors, retain_graph=True)[0]

    # The box head's last weight is zero: its boxes know nothing of the content.
    first, last = predicted(detector).boxes
    slope = anchors.sigmoid() * (1 - anchors.sigmoid())
    assert_close(gradient(first), 2 * slope)
    assert gradient(last).eq(0).all()
    # The content was found with the positions and the Gaussians.
    torch.nn.init.normal_(detector.heads.box_head[-1].weight, std=0.1)
    predictions = predicted(detector)
    for output in (predictions.boxes[1], *predictions.logits):
        assert gradient(output).ne(0).any(1).all()
