"""The data of UP-DETR's pre-training: folders of images, and random patches of them."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image

from smca.data.loader import build_train_loader
from smca.data.patches import PatchMapper, image_records, random_boxes
from smca.errors import DatasetError


@pytest.fixture
def folder(tmp_path):
    """Photographs of noise in a tree of folders, and other files between them."""
    rng = np.random.default_rng(0)
    sizes = {"a.png": (90, 60), "b/c.JPG": (40, 70), "b/d/e.webp": (17, 33)}
    for name, (width, height) in sizes.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
            path, format="PNG"
        )
    (tmp_path / "images" / "b" / "labels.json").write_text("{}")
    return tmp_path / "images"


@pytest.fixture
def pretraining(config, folder):
    """``pretraining("KEY", value, ...)``: the published config on the folder, with changes."""
    return lambda *opts: config(
        "baselines/up_detr_pretrain_R50",
        *("DATASETS.TRAIN", ("mine",), "DATASETS.COCO_FORMAT", [["mine", "", str(folder)]]),
        *opts,
    )


def test_every_image_in_a_tree_of_folders_is_a_record(pretraining, folder):
    assert image_records(pretraining()) == [
        {"file_name": str(folder / name), "image_id": number}
        for number, name in enumerate(["a.png", "b/c.JPG", "b/d/e.webp"])
    ]


def test_links_are_followed_once(pretraining, folder, tmp_path):
    (tmp_path / "more").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "more" / "z.png")
    (tmp_path / "more" / "._z.png").write_bytes(b"a Mac's")
    (folder / "linked").symlink_to(tmp_path / "more")
    (folder / "b" / "up").symlink_to(folder)
    names = [record["file_name"] for record in image_records(pretraining())]
    assert [name.removeprefix(f"{folder}/") for name in names] == [
        *("a.png", "b/c.JPG", "b/d/e.webp", "linked/z.png")
    ]


def test_imagenet_lies_beside_coco(config, folder, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder.parent))
    (folder.parent / "imagenet").mkdir()
    folder.rename(folder.parent / "imagenet" / "train")
    assert len(image_records(config("baselines/up_detr_pretrain_R50"))) == 3


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", r"'mine': the folder .*nowhere does not exist; .*\[\['mine', '', 'FOLDER'\]\]"),
        ("empty", r"'mine': the folder .*empty has no images in it; name a folder of images"),
    ],
)
def test_a_folder_without_images_is_named(config, tmp_path, place, message):
    (tmp_path / "empty").mkdir()
    files = [["mine", "", str(tmp_path / place)]]
    cfg = config("quickstart", "DATASETS.TRAIN", ("mine",), "DATASETS.COCO_FORMAT", files)
    with pytest.raises(DatasetError, match=message):
        image_records(cfg)


def test_sides_and_places_of_patches_are_uniform():
    torch.manual_seed(0)
    boxes = random_boxes((48, 30), 40_000)
    assert boxes.dtype == torch.int64
    sides, corners = boxes[:, 2:] - boxes[:, :2], boxes[:, :2]
    for axis, length in enumerate((48, 30)):
        values, counts = sides[:, axis].unique(return_counts=True)
        assert values.tolist() == list(range(8, length - 8 + 1))
        expected = 40_000 / len(values)
        # Five standard deviations.
        assert (counts - expected).abs().max() < 5 * expected**0.5
        for side in (8, 12):
            places, counts = corners[sides[:, axis] == side, axis].unique(return_counts=True)
            assert places.tolist() == list(range(length - side))
            expected = counts.double().mean()
            assert (counts - expected).abs().max() < 5 * expected**0.5


def test_patches_are_what_the_boxes_show(pretraining, folder):
    mapper = PatchMapper.from_config(pretraining())
    mapper.patch_augmentations = lambda patch: patch
    torch.manual_seed(0)
    sample = mapper({"file_name": str(folder / "a.png"), "image_id": 7})
    assert sample.patches.shape == (10, 3, 128, 128) and sample.patches.dtype == torch.uint8
    assert sample.labels.tolist() == [1] * 10 and sample.image_id == 7
    # The short side is one of ten lengths, the long side at most 600.
    height, width = sample.image.shape[1:]
    assert width == height * 90 // 60 and height in mapper.augmentations[-1].sizes
    assert (sample.height, sample.width) == (60, 90)
    image = Image.open(folder / "a.png")
    for patch, box in zip(sample.patches, sample.boxes * 60 / height, strict=True):
        corners = box.round().int().tolist()
        torch.testing.assert_close(box.tolist(), list(map(float, corners)), atol=1e-4, rtol=0)
        expected = image.crop(corners).resize((128, 128), Image.Resampling.BILINEAR)
        assert np.array_equal(patch.permute(1, 2, 0).numpy(), np.array(expected))


def test_patches_change_their_colours_and_the_image_does_not(pretraining, folder):
    cfg = pretraining("INPUT.MIN_SIZE_TRAIN", (0,), "INPUT.FORMAT", "BGR")
    record = {"file_name": str(folder / "a.png"), "image_id": 0}
    mapper = PatchMapper.from_config(cfg)
    image = np.array(Image.open(folder / "a.png"))
    grey = sharp = 0
    for seed in range(40):
        torch.manual_seed(seed)
        augmented = mapper(record)
        torch.manual_seed(seed)
        boxes = random_boxes((90, 60), 10)
        # Neither flipped nor cropped.
        assert np.array_equal(augmented.image.permute(1, 2, 0).numpy(), image[..., ::-1])
        assert torch.equal(augmented.boxes, boxes.float())
        patches = augmented.patches.int()
        grey += (patches == patches[:, :1]).flatten(1).all(1).sum()
        torch.manual_seed(seed)
        plain = PatchMapper.from_config(cfg)
        plain.patch_augmentations = lambda patch: patch
        sharp += (patches == plain(record).patches).flatten(1).all(1).sum()
    # One in five is grey; of the others one in ten has neither colour jitter nor blur.
    assert 50 < grey < 110 and 12 < sharp < 52


def test_images_too_small_for_patches_are_left_out(pretraining, folder, caplog):
    Image.new("RGB", (16, 200)).save(folder / "0.png")
    cfg = pretraining("INPUT.MIN_SIZE_TRAIN", (0,))
    loader = build_train_loader(
        dataset=image_records(cfg),
        mapper=PatchMapper.from_config(cfg),
        total_batch_size=4,
        aspect_ratio_grouping=False,
        num_workers=0,
    )
    with caplog.at_level(logging.WARNING):
        names = [sample.file_name for sample in next(iter(loader))]
    assert sorted(set(names)) == sorted(str(folder / n) for n in ("a.png", "b/c.JPG", "b/d/e.webp"))
    assert "0.png: it has 16x200 pixels, and patches need sides of more than 16" in caplog.text
