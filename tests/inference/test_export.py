"""Exported files do what the model does, for images and batches of other sizes than the example."""

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from distinct_detector import distinct_detector
from PIL import Image
from torch.torch_version import TorchVersion

from smca.checkpoints import write_checkpoint
from smca.errors import ExportError
from smca.inference import export as exporting
from smca.inference import export_check
from smca.inference.export import FORMATS, PixelDetector, export, metadata
from smca.inference.predictor import Predictor
from smca.modeling.resnet_blocks import BasicStem

pytest.importorskip("onnxruntime", reason="pip install -e '.[export]'")
pytest.importorskip("onnxscript", reason="pip install -e '.[export]'")

NAMES = ("circle", "rectangle", "triangle")
ONE_SCALE = ("MODEL.SMCA.IN_FEATURES", ["res5"], "MODEL.SMCA.NUM_SCALES", 1)
# Less to export: "multi_scale" and "deformable_refine" have several layers, of which one hands on
# to the next, and a scale beyond the backbone's.
ONE_LAYER = ("MODEL.SMCA.DECODER.NUM_LAYERS", 1)
TWO_SCALES = (*ONE_LAYER, "MODEL.SMCA.NUM_SCALES", 2)
BLOCKS = "MODEL.SMCA.ENCODER.BLOCKS"
MODULATION = "MODEL.SMCA.MODULATION"
CONDITIONAL = (*ONE_SCALE, BLOCKS, [], "MODEL.SMCA.DECODER.NAME", "ConditionalDecoder")
DEFORMABLE = (
    *("MODEL.SMCA.ENCODER.NAME", "DeformableEncoder", "MODEL.SMCA.ENCODER.NUM_LAYERS", 1),
    *("MODEL.SMCA.DECODER.NAME", "DeformableDecoder", "MODEL.SMCA.NECK.NORM", "GN"),
)
# Together they have every encoder, decoder, modulation, norm and stem.
FAMILIES = {
    "multi_scale": (),
    "oriented_and_nothing_shared": (
        *TWO_SCALES,
        *("MODEL.SMCA.ENCODER.SHARE_ATTENTION", False, "MODEL.SMCA.ENCODER.SHARE_FFN", False),
        *("MODEL.SMCA.DECODER.SHARE_KEY_VALUE", False, "MODEL.SMCA.DECODER.SCALE_SELECTION", False),
        *(f"{MODULATION}.SCALE", "oriented", "INPUT.FORMAT", "BGR"),
        *("MODEL.RESNETS.NORM", "GN", "MODEL.RESNETS.STEM_TYPE", "conv"),
    ),
    "single_scale_fixed_head_shared": (
        *(*ONE_SCALE, BLOCKS, ["intra"], "MODEL.RESNETS.NORM", "FrozenBN"),
        *(f"{MODULATION}.SCALE", "fixed", f"{MODULATION}.HEADS", "shared"),
    ),
    "anchored": (*ONE_SCALE, BLOCKS, [], "MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder"),
    "two_stages": (
        *("MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder", "MODEL.SMCA.TWO_STAGE", True),
        *("MODEL.SMCA.ONE_TO_MANY.ENABLED", True),
    ),
    "depthwise_single": (
        *TWO_SCALES,
        *("MODEL.SMCA.ENCODER.NAME", "DepthwiseEncoder", "MODEL.SMCA.ENCODER.NUM_LAYERS", 1),
        *(f"{MODULATION}.SCALE", "single"),
    ),
    "detr_softmax_dilated": (
        *ONE_LAYER,
        *(*ONE_SCALE, BLOCKS, ["intra"], "MODEL.SMCA.DECODER.NAME", "DETRDecoder"),
        *("MODEL.SMCA.LOSS.CLASSIFICATION", "softmax"),
        *("MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.RES5_DILATION", 2),
        *("MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 32),
    ),
    "conditional": CONDITIONAL,
    "conditional_learned": (
        *CONDITIONAL,
        *("MODEL.SMCA.CONDITIONAL.REFERENCE", "parameter"),
        *("MODEL.SMCA.CONDITIONAL.SPATIAL_QUERY", "CSQ-I"),
    ),
    "deformable": (*DEFORMABLE, *TWO_SCALES),
    "deformable_refine": (*DEFORMABLE, "MODEL.SMCA.DEFORMABLE.REFINE", True),
}
# Odd sides, one image and more, narrow ones.
BATCHES = [(1, 96, 131), (3, 65, 70), (2, 66, 200)]


@pytest.fixture
def pixel_detector(tiny_config):
    """``pixel_detector(*opts)``: config and model, with weights that tell detections apart."""

    def build(*opts):
        cfg = tiny_config("TEST.DETECTIONS_PER_IMAGE", 12, *opts)
        return cfg, PixelDetector(cfg, distinct_detector(cfg))

    return build


@pytest.mark.parametrize("family", FAMILIES)
def test_a_trace_is_the_model_for_any_size(family, pixel_detector, tmp_path):
    check("torchscript", *pixel_detector(*FAMILIES[family]), tmp_path)


def test_a_trace_runs_again_without_no_grad(pixel_detector, tmp_path):
    cfg, model = pixel_detector()
    export(model, tmp_path / "a.ts", form="torchscript", metadata=metadata(cfg, NAMES))
    assert all(parameter.requires_grad for parameter in model.detector.decoder.parameters())
    traced = torch.jit.load(tmp_path / "a.ts")
    images = torch.rand(1, 3, 64, 96) * 255
    expected = [tensor.detach() for tensor in model(images)]
    for _ in range(3):
        torch.testing.assert_close(list(traced(images)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_graph_is_the_model_for_any_size(family, pixel_detector, monkeypatch, tmp_path):
    """In both forms. They are written from one capture, which takes most of the time."""
    monkeypatch.setattr(exporting, "_capture", functools.cache(exporting._capture))
    cfg, model = pixel_detector(*FAMILIES[family])
    for form in ("export", "onnx"):
        folder = tmp_path / form
        folder.mkdir()
        check(form, cfg, model, folder)


@pytest.mark.parametrize("version", ["2.12.1", "2.13.0"])
def test_a_stem_is_captured_for_even_and_odd_sides(version, monkeypatch):
    """By a torch whose exporter refuses pooling with strides, too."""
    monkeypatch.setattr(torch, "__version__", min(torch.__version__, TorchVersion(version)))
    stem = BasicStem(4, norm="BN").eval()
    sides = {2: torch.export.Dim("height", min=8), 3: torch.export.Dim("width", min=8)}
    arguments = torch.rand(1, 3, 33, 50), None, None
    file = torch.export.export(stem, arguments, dynamic_shapes=(sides, None, None), strict=False)
    for height, width in ((9, 8), (34, 51), (35, 52), (36, 53)):
        images = torch.rand(1, 3, height, width)
        assert torch.equal(file.module()(images, None, None), stem(images, None, None))


def check(form, cfg, model, folder):
    """Export a model, and compare the file with it more closely than the tool must."""
    path = folder / "model"
    found = export(model, path, form=form, metadata=metadata(cfg, NAMES), checks=BATCHES)
    assert [each.shape for each in found] == BATCHES
    assert max(each.scores for each in found) < 1e-4, found
    assert max(each.boxes for each in found) < 0.05, found
    assert list(folder.iterdir()) == [path]


@pytest.mark.slow
def test_onnx_says_what_it_is_and_detects_what_the_predictor_does(pixel_detector, shapes, tmp_path):
    import onnx

    sizes = ("INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 160)
    cfg, model = pixel_detector(*sizes, "INPUT.FORMAT", "BGR")
    path = tmp_path / "model.onnx"
    export(model, path, form="onnx", metadata=metadata(cfg, NAMES), opset=18)
    content = onnx.load(path)
    onnx.checker.check_model(content, full_check=True)
    stored = {entry.key: json.loads(entry.value) for entry in content.metadata_props}
    assert stored["class_names"] == list(NAMES)
    assert (stored["min_size"], stored["max_size"], stored["size"]) == (96, 160, None)
    assert stored["description"] == content.doc_string and "red, green, blue" in content.doc_string
    assert [entry.version for entry in content.opset_import if not entry.domain] == [18]
    (images,) = content.graph.input
    sides = [side.dim_param or side.dim_value for side in images.type.tensor_type.shape.dim]
    assert (images.name, sides) == ("images", ["batch", 3, "height", "width"])
    assert [output.name for output in content.graph.output] == ["boxes", "scores", "labels"]

    # The same image by way of this package's reading, padding and masks.
    write_checkpoint({"model": model.detector.state_dict()}, tmp_path / "model.pth")
    image = Image.open(sorted(Path(shapes["val"][1]).iterdir())[0]).convert("RGB")
    image = image.resize((80, 60))
    result = Predictor(cfg, tmp_path / "model.pth")(image)
    resized = np.asarray(image.resize((128, 96), Image.Resampling.BILINEAR), dtype=np.float32)
    images = torch.from_numpy(resized).permute(2, 0, 1)[None]
    boxes, scores, labels = FORMATS["onnx"].read(path)(images)
    torch.testing.assert_close(scores[0], result.scores, rtol=0, atol=1e-5)
    assert labels.dtype == torch.int64 and labels[0].tolist() == result.labels.tolist()
    torch.testing.assert_close(boxes[0] * (60 / 96), result.boxes, rtol=0, atol=1e-2)


def test_a_fixed_size(pixel_detector, tmp_path):
    cfg, model = pixel_detector(*FAMILIES["conditional"])
    path = tmp_path / "model.pt2"
    facts = metadata(cfg, NAMES, (70, 90))
    checks = export_check.check_batches(cfg, size=(70, 90))
    assert len(export(model, path, form="export", metadata=facts, checks=checks)) == 2
    with pytest.raises((AssertionError, RuntimeError), match="70"):  # by version of torch
        FORMATS["export"].read(path)(torch.zeros(1, 3, 80, 90))


def test_a_file_that_is_not_the_model_is_not_kept(pixel_detector, tmp_path, monkeypatch):
    """It is of a model that does something else each time; the file of before stays."""

    class Drifting(PixelDetector):
        calls = 0

        def forward(self, images):
            Drifting.calls += 1  # also where a copy is traced
            boxes, scores, labels = super().forward(images)
            return boxes + self.calls, scores, labels

    cfg, model = pixel_detector()
    drifting = Drifting(cfg, model.detector)
    path = tmp_path / "model.ts"
    path.write_text("of before")
    facts = metadata(cfg, NAMES)
    with pytest.raises(ExportError, match=r"is not the model: 1 of 64x64: .* boxes by 1.0e\+00"):
        export(drifting, path, form="torchscript", metadata=facts, checks=[(1, 64, 64)])
    assert path.read_text() == "of before"
    assert [file.name for file in tmp_path.iterdir()] == ["model.ts"]


def test_another_order_of_equal_scores_is_right():
    boxes = torch.tensor([[[0.0, 0, 9, 9], [5, 5, 8, 8], [1, 1, 2, 2], [3, 3, 4, 4]]])
    scores = torch.tensor([[0.9, 0.5, 0.5, 0.1]])
    labels = torch.tensor([[0, 1, 2, 0]])

    def model(_):
        return boxes, scores, labels

    def file(order, shift=0.0):
        return lambda _: (boxes[:, order] + shift, scores[:, order], labels[:, order])

    shape = (1, 16, 16)
    assert export_check.compare(model, file([0, 2, 1, 3]), shape).boxes == 0
    assert export_check.compare(model, file([1, 0, 2, 3]), shape).scores > 0.1
    assert not export_check.compare(model, file([0, 1, 2, 3], float("nan")), shape).passes
    assert not export_check.compare(model, file([0, 1, 1, 3]), shape).passes


def test_a_model_that_cannot_be_captured_is_refused_in_one_line(pixel_detector, tmp_path):
    cfg, model = pixel_detector()

    class Looking(torch.nn.Module):
        def forward(self, memory):
            return memory if memory.tokens.sum() > 0 else None

    model.detector.encoder = Looking()
    for form in ("onnx", "export"):
        with pytest.raises(ExportError, match="ResNet, Looking, SMCADecoder cannot") as caught:
            export(model, tmp_path / "model", form=form, metadata=metadata(cfg, NAMES))
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(pixel_detector, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    absent = lambda name: None if name == "onnxscript" else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    cfg, model = pixel_detector()
    with pytest.raises(ExportError, match=r"needs onnxscript: pip install onnxscript"):
        export(model, tmp_path / "model.onnx", form="onnx", metadata=metadata(cfg, NAMES))
