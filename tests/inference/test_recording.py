"""What is read of a running detector, against what its parts say when asked by themselves."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from smca.inference.recording import record_co_attention
from smca.modeling import build_detector
from smca.visualization.attention.figure import gaussian_ellipse

SIZES = [(138, 194), (101, 150)]  # no multiples of a stride
OUTPUT_SIZES = [(276, 194), (101, 450)]
ONE_SCALE = ("MODEL.SMCA.IN_FEATURES", ["res5"], "MODEL.SMCA.NUM_SCALES", 1)
KIND = "MODEL.SMCA.MODULATION.SCALE"
SMCA = {
    "fixed": (KIND, "fixed"),
    "single": (KIND, "single"),
    "independent": (KIND, "independent"),
    "oriented": (KIND, "oriented"),
    "one scale": (*ONE_SCALE, KIND, "independent"),
    "anchored": ("MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder"),
    "two stages": (
        *("MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder", "MODEL.SMCA.TWO_STAGE", True),
        *("MODEL.SMCA.ONE_TO_MANY.ENABLED", True),
    ),
    "shared": ("MODEL.SMCA.MODULATION.HEADS", "shared"),
    "no selection": ("MODEL.SMCA.DECODER.SCALE_SELECTION", False),
    "depthwise": (
        *("MODEL.SMCA.ENCODER.NAME", "DepthwiseEncoder", "MODEL.SMCA.NUM_SCALES", 4),
        *("MODEL.SMCA.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.SMCA.ENCODER.NUM_LAYERS", 1),
    ),
}
OTHERS = {
    "DETR": (*ONE_SCALE, "MODEL.SMCA.DECODER.NAME", "DETRDecoder"),
    "Conditional DETR": (*ONE_SCALE, "MODEL.SMCA.DECODER.NAME", "ConditionalDecoder"),
}


@pytest.fixture
def detector(tiny_config):
    """``detector(*opts)``: one whose offsets, scales and selections all differ."""

    def build(*opts):
        torch.manual_seed(0)
        model = build_detector(tiny_config(*opts)).eval()
        with torch.no_grad():
            for name, parameter in model.decoder.named_parameters():
                if ".prior." in name and "norm" not in name:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return model

    return build


def run(model, layers):
    """The record of two padded images, and the arguments of each layer's co-attention."""
    torch.manual_seed(1)
    images = torch.zeros(2, 3, *(max(sides) for sides in zip(*SIZES, strict=True)))
    for image, (h, w) in zip(images, SIZES, strict=True):
        image[:, :h, :w] = torch.randn(3, h, w)
    seen = {}
    for number, layer in enumerate(model.decoder.layers):
        attention = layer.co_attention
        attention.register_forward_pre_hook(lambda module, got, n=number: seen.update({n: got}))
    predictions, record = record_co_attention(
        model, images, SIZES, layers=layers, output_sizes=OUTPUT_SIZES
    )
    return predictions, record, seen


def pixel(cells, stride, image):
    """Points in cells of a map as points of the output image."""
    (h, w), (height, width) = SIZES[image], OUTPUT_SIZES[image]
    return np.asarray(cells) * stride * (width / w, height / h)


def cells(pixels, stride, image):
    return np.asarray(pixels) / pixel((1, 1), stride, image)


@pytest.mark.parametrize("kind", SMCA)
def test_gaussians_are_those_that_modulate(kind, detector):
    model = detector(*SMCA[kind])
    _, record, seen = run(model, layers=(0, -1))
    assert [view.layer for view in record.views(0)] == [0, 1]
    for image in range(2):
        for query in (0, 4, 9):
            for view in record.views(query, image):
                memory, prior = seen[view.layer][2:]
                scale = (
                    0 if prior.selection is None else int(prior.selection[image, query].argmax())
                )
                stride = memory.strides[scale]
                if prior.selection is not None:
                    expected = prior.selection[image, query]
                    torch.testing.assert_close(torch.from_numpy(view.scale_weights), expected)
                for head in range(4):
                    group = head if prior.gaussians.center.shape[3] > 1 else 0
                    points = gaussian_ellipse(view.head_centers[head], view.covariances[head])
                    points = np.vstack([view.head_centers[head], points])
                    points = torch.from_numpy(cells(points, stride, image)).float()
                    density = prior.gaussians.log_density(scale, points)[image, group, query]
                    assert density[0] == pytest.approx(0, abs=1e-4)
                    torch.testing.assert_close(
                        density[1:], torch.full((72,), -0.5), rtol=1e-2, atol=1e-3
                    )


def test_the_center_of_a_layer_is_that_of_the_box_it_started_from(detector):
    model = detector(*SMCA["anchored"])
    torch.nn.init.normal_(model.heads.box_head[-1].weight, std=0.3)
    hidden = []
    model.decoder.layers[0].register_forward_hook(lambda module, got, out: hidden.append(out))
    _, record, _ = run(model, layers=(0, 1))
    first = model.decoder.anchors.weight
    for image, (height, width) in enumerate(OUTPUT_SIZES):
        offsets = model.heads.box_offsets(model.decoder.norm(hidden[0][image]), 0)
        assert offsets.abs().max() > 0.1
        for view, start in zip(record.views(3, image), (first, first + offsets), strict=True):
            expected = start[3, :2].sigmoid().detach().numpy() * (width, height)
            np.testing.assert_allclose(view.shared_center, expected, rtol=1e-4)


@pytest.mark.parametrize("kind", ["independent", "Conditional DETR", "DETR"])
def test_the_shared_center_is_where_boxes_start_from(kind, detector):
    model = detector(*(SMCA | OTHERS)[kind])
    _, record, _ = run(model, layers=(-1,))
    position = model.decoder.query_embed.weight
    reference = model.decoder.initial_reference(position)
    for image, (height, width) in enumerate(OUTPUT_SIZES):
        [view] = record.views(3, image)
        if kind == "DETR":
            assert view.shared_center is None
            continue
        expected = reference[3].sigmoid().detach().numpy() * (width, height)
        np.testing.assert_allclose(view.shared_center, expected, rtol=1e-4)
    if kind != "independent":
        assert view.head_centers is view.covariances is view.scale_weights is None


@pytest.mark.parametrize("kind", [*SMCA, *OTHERS])
def test_maps_have_every_key_at_its_place(kind, detector):
    model = detector(*(SMCA | OTHERS)[kind])
    _, record, seen = run(model, layers=(0, 1))
    for image, query in ((0, 2), (1, 7)):
        for view in record.views(query, image):
            arguments = seen[view.layer]
            memory, prior = arguments[2:]
            with torch.no_grad():
                weights = model.decoder.layers[view.layer].co_attention.weights(*arguments)
            rows, columns = view.maps.shape[1:]
            assert (rows, columns) == memory.shapes[0]
            finest = memory.strides[0]
            np.testing.assert_allclose(view.steps, pixel((1, 1), finest, image), rtol=1e-6)
            expected = np.zeros(view.maps.shape)
            selection = getattr(prior, "selection", None)
            fine = np.mgrid[:rows, :columns] * finest  # y, x of the keys in pixels
            for scale, (shape, stride) in enumerate(
                zip(memory.shapes, memory.strides, strict=True)
            ):
                share = 1 if selection is None else float(selection[image, query, scale])
                for head in range(4):
                    values = weights[scale][image, head, query].reshape(shape).numpy()
                    between = map_coordinates(values, fine / stride, order=1, mode="nearest")
                    expected[head] += share * between * (finest / stride) ** 2
            np.testing.assert_allclose(view.maps, expected, rtol=1e-4, atol=1e-7)


def test_on_one_scale_the_largest_weight_is_that_of_its_key(detector):
    """In particular the map of an image that is no multiple of the stride is not stretched."""
    model = detector(*SMCA["one scale"])
    _, record, seen = run(model, layers=(-1,))
    for image in range(2):
        [view] = record.views(5, image)
        [weights] = model.decoder.layers[-1].co_attention.weights(*seen[1])
        rows, columns = view.maps.shape[1:]
        for head, key in enumerate(weights[image, :, 5].argmax(-1).tolist()):
            y, x = np.unravel_index(view.maps[head].argmax(), (rows, columns))
            assert (y, x) == divmod(key, columns)
            np.testing.assert_allclose((x, y) * view.steps, pixel((x, y), 32, image), rtol=1e-6)
        np.testing.assert_allclose(view.maps.sum(axis=(1, 2)), 1, rtol=1e-4)


def test_hooks_are_gone_afterwards_and_predictions_as_without(detector):
    model = detector()
    predictions, _, _ = run(model, layers=(0, 1))
    for layer in model.decoder.layers:
        hooks = layer.co_attention._forward_pre_hooks
        assert len(hooks) == 1  # the test's own
    images = torch.zeros(2, 3, 138, 194)
    torch.manual_seed(1)
    for image, (h, w) in zip(images, SIZES, strict=True):
        image[:, :h, :w] = torch.randn(3, h, w)
    with torch.no_grad():
        expected = model(images, SIZES)
    torch.testing.assert_close(predictions.boxes, expected.boxes)


def test_deformable_detr_has_no_maps(detector):
    names = {"ENCODER": "DeformableEncoder", "DECODER": "DeformableDecoder"}
    opts = [part for key, name in names.items() for part in (f"MODEL.SMCA.{key}.NAME", name)]
    assert not detector(*opts).decoder.has_attention_maps
    assert detector().decoder.has_attention_maps
