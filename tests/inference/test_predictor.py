"""A predictor against the same steps by hand, for every form an image can come in."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision.ops import box_convert

import smca
from smca.checkpoints import write_checkpoint
from smca.config import ConfigError
from smca.errors import CheckpointError
from smca.modeling import build_detector

OPTIONS = ["INPUT.MIN_SIZE_TEST", 80, "INPUT.MAX_SIZE_TEST", 120, "DATASETS.COCO_FORMAT", []]
NAMES = ["circle", "rectangle", "triangle"]


def randomised(detector, seed=0):
    """With numbers that tell queries and images apart."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        detector.heads.class_head.bias.zero_()
    return detector.eval()


@pytest.fixture
def model(tiny_config, tmp_path):
    """``model("KEY", value, ..., class_names=[...])``: config, detector and checkpoint of a model.

    Further keywords are what else the checkpoint holds.
    """

    def make(*opts, **content):
        cfg = tiny_config(*OPTIONS, *opts)
        detector = randomised(build_detector(cfg))
        path = tmp_path / "model.pth"
        write_checkpoint({"model": detector.state_dict(), **content}, path)
        return cfg, detector, path

    return make


@pytest.fixture
def picture(tmp_path):
    """A coloured photograph of noise, and its file."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((150, 100), Image.Resampling.BICUBIC)
    image.save(tmp_path / "picture.png")
    return image, tmp_path / "picture.png"


def same(found, expected, tolerance=0.0):
    for name in ("boxes", "scores"):
        assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance)
    assert_close(found.labels, expected.labels)
    assert found.class_names == expected.class_names


@pytest.mark.parametrize("order", ["RGB", "BGR"])
@pytest.mark.parametrize("classification", ["focal", "softmax"])
def test_it_is_the_detector_with_what_an_evaluation_does(model, picture, order, classification):
    image, path = picture
    cfg, detector, weights = model(
        *("INPUT.FORMAT", order, "MODEL.SMCA.LOSS.CLASSIFICATION", classification),
        *("TEST.DETECTIONS_PER_IMAGE", 7),
    )
    # 100 x 150 pixels: a short side of 80 makes the long one 120.
    pixels = np.asarray(image.resize((120, 80), Image.Resampling.BILINEAR)).astype(np.float32)
    pixels = pixels if order == "RGB" else pixels[..., ::-1]
    mean, std = torch.tensor(cfg.MODEL.PIXEL_MEAN), torch.tensor(cfg.MODEL.PIXEL_STD)
    batch = ((torch.tensor(pixels.copy()) - mean) / std).permute(2, 0, 1)[None]
    with torch.no_grad():
        predictions = detector(batch, [(80, 120)])
    logits, boxes = predictions.logits[-1, 0], predictions.boxes[-1, 0]
    if classification == "softmax":
        scores, labels = logits.softmax(-1)[:, :3].max(-1)
    else:
        scores, labels = logits.sigmoid().flatten(), torch.arange(3).repeat(len(boxes))
        boxes = boxes.repeat_interleave(3, 0)
    best = scores.argsort(descending=True)[:7]
    boxes = box_convert(boxes[best], "cxcywh", "xyxy") * torch.tensor([150, 100, 150, 100])

    predictor = smca.Predictor(cfg, weights, device="cpu")
    found = predictor(path)
    assert_close(found.boxes, boxes, rtol=0, atol=1e-4)
    assert_close(found.scores, scores[best], rtol=0, atol=1e-5)
    assert_close(found.labels, labels[best])
    assert len(found) == 7
    assert predictor.device == torch.device("cpu")
    assert isinstance(predictor.detector, smca.modeling.Detector)

    inputs, sizes, (original,) = predictor.inputs(path)
    assert_close(inputs, batch, rtol=0, atol=1e-5)
    assert sizes == [(80, 120)]
    assert np.array_equal(original, np.asarray(image))


def test_every_form_of_an_image_gives_the_same(model, picture):
    image, path = picture
    predictor = smca.Predictor(*model()[::2])
    expected = predictor(path)
    for form in (str(path), image, image.convert("RGBA"), np.asarray(image)):
        same(predictor(form), expected)
    grey = image.convert("L")
    same(predictor(np.asarray(grey)), predictor(grey))
    # An array is RGB: in the other order it is another image.
    swapped = predictor(np.asarray(image)[..., ::-1])
    assert not torch.allclose(swapped.scores, expected.scores, atol=1e-4)


def test_a_path_may_begin_at_the_home_folder(model, picture, monkeypatch):
    _, path = picture
    predictor = smca.Predictor(*model()[::2])
    monkeypatch.setenv("HOME", str(path.parent))
    same(predictor(f"~/{path.name}"), predictor(path))


def test_a_photograph_is_turned_as_its_file_says(model, picture, tmp_path):
    image, path = picture
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned clockwise
    image.rotate(90, expand=True).save(tmp_path / "turned.png", exif=turned)
    predictor = smca.Predictor(*model()[::2])
    same(predictor(tmp_path / "turned.png"), predictor(path))
    with Image.open(tmp_path / "turned.png") as opened:
        same(predictor(opened), predictor(path))


def test_a_batch_gives_what_its_images_give_alone(model, picture):
    image, path = picture
    predictor = smca.Predictor(*model()[::2])
    others = [path, image.crop((0, 0, 60, 90)), np.asarray(image)[:50]]
    batch = predictor(others, threshold=0.1)
    assert len(batch) == 3
    for found, other in zip(batch, others, strict=True):
        same(found, predictor(other, threshold=0.1), tolerance=1e-3)
    same(predictor((path,))[0], predictor(path))
    assert predictor([]) == []
    inputs, sizes, originals = predictor.inputs(others)
    assert inputs.shape == (3, 3, 120, 120)
    assert sizes == [(80, 120), (120, 80), (40, 120)]
    assert [original.shape for original in originals] == [(100, 150, 3), (90, 60, 3), (50, 150, 3)]


def test_a_threshold_leaves_out_the_rest(model, picture):
    _, path = picture
    predictor = smca.Predictor(*model(class_names=NAMES)[::2])
    everything = predictor(path)
    least = everything.scores[4].item()
    found = predictor(path, threshold=least)
    assert len(found) == 5
    assert_close(found.boxes, everything.boxes[:5])
    assert found.class_names == tuple(NAMES[label] for label in found.labels.tolist())
    assert len(predictor(path, threshold=1.1)) == 0


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), r"shape \(4, 5, 3\) and type float32"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\).*\(h, w, 3\) RGB"),
        (np.zeros((4, 5, 4), np.uint8), r"shape \(4, 5, 4\)"),
        (np.zeros((2, 4, 5, 3), np.uint8), r"shape \(2, 4, 5, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (torch.zeros(3, 4, 5), r"Tensor is no image: give a path"),
        (None, r"NoneType is no image"),
    ],
)
def test_what_is_no_image_is_refused_by_name(model, image, message):
    predictor = smca.Predictor(*model()[::2])
    with pytest.raises((TypeError, ValueError), match=message):
        predictor(image)


def test_files_that_are_no_images_are_named(model, tmp_path):
    predictor = smca.Predictor(*model()[::2])
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(OSError, match=r"text\.png cannot be read as an image"):
        predictor(tmp_path / "text.png")
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        predictor([tmp_path / "missing.png"])


def annotations(path, names):
    ids = range(len(names), 0, -1)  # in another order than the ids'
    categories = [{"id": i, "name": name} for i, name in zip(ids, reversed(names), strict=True)]
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": categories}))
    return [["mine", str(path), "nowhere"]]


def test_where_class_names_come_from(model, tmp_path, monkeypatch):
    def names(*opts, **content):
        return smca.Predictor(*model("DATASETS.TEST", ("mine",), *opts, **content)[::2]).class_names

    own = annotations(tmp_path / "mine.json", NAMES)
    assert names("DATASETS.COCO_FORMAT", own, class_names=["a", "b", "c"]) == ("a", "b", "c")
    assert names("DATASETS.COCO_FORMAT", own) == tuple(NAMES)
    # Those of other classes than the model's are not taken.
    assert names("DATASETS.COCO_FORMAT", own, class_names=["a", "b"]) == tuple(NAMES)
    assert names("DATASETS.COCO_FORMAT", own, "MODEL.SMCA.NUM_CLASSES", 2) == ("0", "1")
    assert names("DATASETS.TRAIN", ("unknown",)) == ("0", "1", "2")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    coco = names("DATASETS.TEST", ("coco_2017_val",), "MODEL.SMCA.NUM_CLASSES", 80)
    assert len(set(coco)) == 80 and (coco[0], coco[11], coco[79]) == (
        "person",
        "stop sign",
        "toothbrush",
    )


def test_the_averaged_weights_are_those_predicted_with(model, picture, tmp_path):
    cfg, detector, weights = model()
    expected = smca.Predictor(cfg, weights)(picture[1])
    other = randomised(build_detector(cfg), seed=1)
    content = {"model": other.state_dict(), "ema": detector.state_dict()}
    write_checkpoint(content, tmp_path / "averaged.pth")
    same(smca.Predictor(cfg, tmp_path / "averaged.pth")(picture[1]), expected)


def test_configs_and_weights_by_path_name_and_key(model, picture, tmp_path):
    cfg, _, weights = model()
    expected = smca.Predictor(cfg, weights)(picture[1])
    (tmp_path / "tiny.yaml").write_text(cfg.dump())
    opts = ["MODEL.WEIGHTS", str(weights), "MODEL.SMCA.NUM_CLASSES", 0]
    same(smca.Predictor(tmp_path / "tiny.yaml", opts=opts)(picture[1]), expected)
    assert cfg.MODEL.SMCA.NUM_CLASSES == 3 and not cfg.MODEL.WEIGHTS
    with pytest.raises(CheckpointError, match=r"model\.pth"):
        smca.Predictor("quickstart", weights)


def test_what_cannot_work_is_said(model):
    cfg, _, weights = model()
    with pytest.raises(ConfigError, match=r"no trained weights: MODEL\.WEIGHTS is empty"):
        smca.Predictor(cfg)
    with pytest.raises(FileNotFoundError, match=r"missing\.pth"):
        smca.Predictor(cfg, "missing.pth")
    with pytest.raises(ConfigError, match="smca_R50_50eb.*did you mean smca_R50_50ep"):
        smca.Predictor("smca_R50_50eb", weights)
    with pytest.raises(ConfigError, match="'auto'; it must be 'native' or 'detectron2'"):
        smca.Predictor(cfg, weights, engine="auto")
    with pytest.raises(ConfigError, match="must be 'SMCA' or 'TSPFCOS', or one of Detectron2's"):
        smca.Predictor("baselines/faster_rcnn_FPN_R50_36ep", weights)
    with pytest.raises(ConfigError, match="INPUT.FORMAT"):
        smca.Predictor(cfg, weights, opts=["INPUT.FORMAT", "L"])


def test_weights_that_are_not_finite_are_said(model, picture):
    cfg, detector, path = model()
    with torch.no_grad():
        detector.heads.class_head.bias[0] = float("nan")
    write_checkpoint({"model": detector.state_dict()}, path)
    with pytest.raises(FloatingPointError, match="take an earlier checkpoint"):
        smca.Predictor(cfg, path)(picture[1])


def test_importing_the_package_stays_light():
    code = "import smca, sys; print([m for m in sys.modules if m in sys.argv[1:]])"
    heavy = [
        "detectron2",
        "smca.inference.predictor",
        "torchvision.transforms.v2",
        "matplotlib",
        "cv2",
    ]
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            code + "; smca.Predictor; print('detectron2' in sys.modules)",
            *heavy,
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split("\n")[:2] == ["[]", "False"]
