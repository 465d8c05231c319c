import json
import pickle
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torchvision.transforms import v2

import smca
from smca.data.coco import load_coco
from smca.data.loader import build_test_loader
from smca.data.mapper import DetrMapper, ResizeShortestEdge, resized_shape
from smca.native.trainer import build_train_loader

BLUE = (10, 20, 250)


@pytest.fixture
def record(tmp_path):
    """A red 200x150 image with a blue box, and annotations that are no targets."""
    image = Image.new("RGB", (200, 150), (250, 20, 10))
    ImageDraw.Draw(image).rectangle((60, 40, 119, 99), fill=BLUE)
    image.save(tmp_path / "image.png")
    return make_record(
        tmp_path / "image.png",
        (200, 150),
        [[60, 40, 60, 60, 3, 0], [0, 0, 50, 50, 1, 1], [200, 0, 9, 9, 2, 0]],
    )


def make_record(path, size, boxes):
    annotations = [
        {"bbox": box[:4], "bbox_mode": 1, "category_id": box[4], "iscrowd": box[5]} for box in boxes
    ]
    return {
        "file_name": str(path),
        "image_id": 8,
        "width": size[0],
        "height": size[1],
        "annotations": annotations,
    }


@pytest.fixture
def cfg(tmp_path):
    """A dataset of six images of different sizes, each with one box; the last has none."""
    images, annotations = [], []
    for i, (width, height) in enumerate(
        [(40, 30), (30, 40), (50, 30), (32, 32), (60, 40), (44, 40)]
    ):
        Image.new("RGB", (width, height), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": width, "height": height})
        if i < 5:
            box = {"bbox": [5, 5, 10, 10 + i], "area": 100, "iscrowd": 0, "category_id": 1}
            annotations.append({"id": i + 1, "image_id": i, **box})
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "thing"}]
    (tmp_path / "a.json").write_text(json.dumps(content))
    cfg = smca.get_cfg()
    cfg.DATASETS.COCO_FORMAT = [["mine", str(tmp_path / "a.json"), str(tmp_path)]]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("mine",)
    cfg.MODEL.SMCA.NUM_CLASSES = 1
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (24, 32, 40), 48
    cfg.INPUT.FORMAT = "RGB"
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    return cfg


def blue_extent(image):
    """xyxy of the blue pixels of a (3, h, w) image, or None."""
    ys, xs = torch.nonzero(image[2].int() - image[0] > 0, as_tuple=True)
    if not len(xs):
        return None
    return torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()


@pytest.mark.parametrize(
    ("height", "width", "short", "longest", "expected"),
    [
        (480, 640, 800, 1333, (800, 1067)),
        (427, 640, 800, 1333, (800, 1199)),
        (640, 427, 480, 1333, (719, 480)),
        (300, 900, 800, 1333, (444, 1333)),
        (64, 64, 32, 40, (32, 32)),
        (1, 9000, 800, 1333, (1, 1333)),
    ],
)
def test_resized_shape(height, width, short, longest, expected):
    assert resized_shape(height, width, short, longest) == expected


def test_mapping_without_resizing_is_the_file(record):
    sample = DetrMapper(augmentations=[])(record)
    pixels = torch.from_numpy(np.array(Image.open(record["file_name"])))
    torch.testing.assert_close(sample.image, pixels.permute(2, 0, 1))
    assert sample.labels.tolist() == [3], "neither the crowd nor the box outside"
    torch.testing.assert_close(sample.boxes, torch.tensor([[60.0, 40, 120, 100]]))
    assert type(sample.boxes) is torch.Tensor
    assert (sample.image_id, sample.height, sample.width) == (8, 150, 200)
    bgr = DetrMapper(augmentations=[], image_format="BGR")(record)
    torch.testing.assert_close(bgr.image, sample.image.flip(0))


def test_boxes_are_clipped_to_the_image(record):
    record["annotations"] = make_record("", (0, 0), [[-20, 100, 60, 90, 0, 0]])["annotations"]
    sample = DetrMapper(augmentations=[ResizeShortestEdge([75], 1333)])(record)
    torch.testing.assert_close(sample.boxes, torch.tensor([[0.0, 50, 20, 75]]))


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "none"])
def test_boxes_stay_on_their_objects(record, flip):
    """Through flips, crops and resizes a box is where the blue pixels are."""
    cfg = smca.get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (96, 120), 170
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.SIZE = True, (60, 100)
    cfg.INPUT.CROP.MIN_SIZE_BEFORE = (80, 100, 140)
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.FORMAT = flip, "RGB"
    mapper = DetrMapper.from_config(cfg, is_train=True)
    shapes, lost = set(), 0
    for seed in range(60):
        torch.manual_seed(seed)
        sample = mapper(record)
        _, height, width = sample.image.shape
        assert (height, width) == resized_shape(height, width, min(height, width), 170)
        assert min(height, width) in (96, 120) or max(height, width) == 170
        shapes.add((height, width))
        extent = blue_extent(sample.image)
        if extent is None or len(sample.boxes) == 0:
            lost += 1
            continue
        assert (sample.boxes[0] - extent).abs().max() <= 2
    assert len(shapes) > 10
    assert lost < 10


def test_augmentations_can_be_added(record):
    """Transforms of pixels, of shapes, of tensors, and such as leave boxes out."""
    torch.manual_seed(0)
    cfg = smca.get_cfg()
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.FORMAT = "none", (0,), "RGB"
    mapper = DetrMapper.from_config(cfg, is_train=True)
    plain = mapper(record)
    mapper.augmentations.insert(0, v2.RandomPhotometricDistort(p=1.0))
    distorted = mapper(record)
    assert not torch.equal(distorted.image, plain.image)
    torch.testing.assert_close(distorted.boxes, plain.boxes)
    mapper.augmentations[0] = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    torch.testing.assert_close(mapper(record).image, plain.image)
    mapper.augmentations[0] = v2.RandomCrop((30, 50))
    for _ in range(20):
        sample = mapper(record)
        assert sample.image.shape == (3, 30, 50) and len(sample.labels) == len(sample.boxes)
        extent = blue_extent(sample.image)
        if extent is None:
            assert len(sample.boxes) == 0
        else:
            torch.testing.assert_close(sample.boxes, extent[None])


def test_flips_happen_half_the_time(record):
    mapper = DetrMapper(augmentations=[v2.RandomHorizontalFlip()])
    torch.manual_seed(0)
    lefts = [mapper(record).boxes[0, 0].item() for _ in range(200)]
    assert set(lefts) == {60.0, 80.0}
    assert 70 < lefts.count(80.0) < 130


def test_sizes_are_drawn_as_the_config_says(record):
    cfg = smca.get_cfg()
    cfg.INPUT.MIN_SIZE_TRAIN = (30, 40)

    def sizes():
        mapper = DetrMapper.from_config(cfg, is_train=True)
        return {mapper(record).image.shape[1] for _ in range(80)}

    assert sizes() == {30, 40}
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    assert {30, 40} <= sizes() <= set(range(30, 41))
    assert len(sizes()) > 8
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "choice"
    assert sizes() == {150}


def test_an_image_of_another_size_than_annotated_counts_as_unreadable(record):
    with pytest.raises(OSError, match=r"image\.png is 200x150 .* says 150x200"):
        DetrMapper(augmentations=[])(record | {"width": 150, "height": 200})


@pytest.fixture
def worker(monkeypatch):
    """``worker(rank, world_size)``: loaders are from now on those of this worker."""

    def become(rank, world_size):
        monkeypatch.setattr("smca.data.loader.rank", lambda: rank)
        monkeypatch.setattr("smca.data.loader.world_size", lambda: world_size)

    return become


def assert_same(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert [s.image_id for s in batch] == [s.image_id for s in other]
        for sample, twin in zip(batch, other, strict=True):
            torch.testing.assert_close(sample.image, twin.image, rtol=0, atol=0)
            torch.testing.assert_close(sample.boxes, twin.boxes, rtol=0, atol=0)


def test_training_batches_depend_on_nothing_but_the_seed(cfg, worker):
    whole = list(islice(build_train_loader(cfg, seed=1), 6))
    assert all(len(batch) == 4 for batch in whole)
    empty = [s for batch in whole for s in batch if s.image_id == 5]
    assert empty and all(s.boxes.shape == (0, 4) and s.labels.dtype == torch.int64 for s in empty)
    assert_same(islice(build_train_loader(cfg, seed=1, start=2), 4), whole[2:])
    for rank in range(2):
        worker(rank, 2)
        loader = build_train_loader(cfg, seed=1)
        assert_same(islice(loader, 6), [batch[rank::2] for batch in whole])
    worker(0, 1)
    cfg.DATALOADER.NUM_WORKERS = 2
    assert_same(islice(build_train_loader(cfg, seed=1), 6), whole)


def test_loaders_leave_torchs_generator_alone(cfg):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    next(iter(build_train_loader(cfg, seed=1)))
    torch.testing.assert_close(torch.rand(1), expected)


def test_grouped_batches_hold_one_kind_of_shape(cfg):
    for batch in islice(build_train_loader(cfg, seed=1), 10):
        assert len({sample.width > sample.height for sample in batch}) == 1


@pytest.mark.parametrize("world_size", [1, 4, 7])
def test_evaluation_is_shared_out_in_order(cfg, worker, world_size):
    dataset = load_coco(*cfg.DATASETS.COCO_FORMAT[0])
    mapper = DetrMapper.from_config(cfg, is_train=False)
    found = []
    for rank in range(world_size):
        worker(rank, world_size)
        loader = build_test_loader(dataset=dataset.records, mapper=mapper, num_workers=0)
        found += [sample for batch in loader for sample in batch]
    assert [sample.image_id for sample in found] == list(range(6))
    assert all(min(sample.image.shape[1:]) == 48 for sample in found)


def test_datasets_can_be_sent_to_spawned_loaders(cfg):
    loader = build_train_loader(cfg, seed=1)
    dataset = loader.dataset
    dataset._warned = None  # shared memory is sent by multiprocessing alone
    assert len(pickle.loads(pickle.dumps(dataset))) == 6


SIGNALLED = """
import os, pickle, signal, sys
from smca.native.trainer import build_train_loader

with open(sys.argv[1], "rb") as file:
    cfg = pickle.load(file)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_IGN)
batches = iter(build_train_loader(cfg, seed=1))
next(batches)
os.killpg(0, signal.SIGTERM)
os.killpg(0, signal.SIGINT)
for _ in range(20):
    next(batches)
"""


@pytest.mark.slow
def test_loader_processes_outlive_a_signal_to_the_group(cfg, tmp_path):
    cfg.DATALOADER.NUM_WORKERS = 2
    (tmp_path / "cfg.pkl").write_bytes(pickle.dumps(cfg))
    command = [sys.executable, "-c", SIGNALLED, str(tmp_path / "cfg.pkl")]
    done = subprocess.run(command, start_new_session=True, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
