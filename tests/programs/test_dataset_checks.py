import copy
import json
import math

import numpy as np
import pytest
from PIL import Image

from dataset_checks import findings
from dataset_checks.checks import check_dataset, check_together

CONTENT = {
    "images": [
        {"id": 1, "file_name": "a.png", "width": 40, "height": 30},
        {"id": 2, "file_name": "b.png", "width": 50, "height": 40},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    "annotations": [
        {"image_id": 1, "category_id": 1, "bbox": [1, 2, 10, 10]},
        {"image_id": 1, "category_id": 2, "bbox": [1, 2, 10, 10]},
        {"image_id": 2, "category_id": 1, "bbox": [-0.5, 0, 51, 40.5]},
    ],
}


class Folder:
    """A dataset on disk: a.png and b.png of different noise, and ``content``."""

    def __init__(self, path, seed=0):
        path.mkdir()
        self.path, self.content = path, copy.deepcopy(CONTENT)
        rng = np.random.default_rng(seed)
        for entry in CONTENT["images"]:
            shape = (entry["height"], entry["width"], 3)
            pixels = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(path / entry["file_name"])

    def annotate(self, bbox, image_id=1, **others):
        entry = {"image_id": image_id, "category_id": 1, "bbox": bbox, **others}
        self.content["annotations"].append(entry)

    def image(self, **changes):
        self.content["images"][0] |= changes

    def check(self, name="mine", **options):
        json_file = self.path / "annotations.json"
        json_file.write_text(json.dumps(self.content))
        return check_dataset(name, str(json_file), str(self.path), num_queries=5, **options)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "mine")


@pytest.mark.parametrize("verify", [False, True])
def test_nothing_is_wrong_with_a_good_dataset(folder, verify):
    checked = folder.check(verify=verify)
    check_together([checked], [], num_classes=2)
    assert not checked.findings
    assert checked.class_names == ("cat", "dog")
    assert [len(record["annotations"]) for record in checked.records] == [2, 1]


BOXES = [
    ([5, 5, 0, 5], findings.bad_boxes("of zero or negative size")),
    ([5, 5, 5, -1], findings.bad_boxes("of zero or negative size")),
    ([math.inf, 5, 5, 5], findings.bad_boxes("not finite")),
    ([40, 5, 5, 5], findings.bad_boxes("outside their image")),
    ([30, 5, 15, 5], findings.PARTLY),
    ([-9, 5, 15, 5], findings.PARTLY),
    ([0, 0, 80, 60], findings.BEYOND),
    ([0.1, 0.2, 0.5, 0.5], findings.SMALL),
    ([1, 2, 10, 10], findings.DOUBLE),
]


def test_every_bad_box_is_listed(folder):
    for bbox, _ in BOXES:
        folder.annotate(bbox)
    found = folder.check().findings
    expected = {}
    for position, (bbox, finding) in enumerate(BOXES, start=3):
        entry = f"annotations[{position}] (a.png, cat, {bbox})"
        expected.setdefault(finding, []).append(entry)
    expected[findings.MORE] = ["a.png (11)"]
    assert found == expected


def crowd(folder):
    folder.annotate([3, 3, 9, 9], iscrowd=1)


def stray(folder):
    folder.annotate([3, 3, 9, 9], image_id=77)


def gap(folder):
    folder.content["categories"].append({"id": 9, "name": "emu"})
    folder.annotate([3, 3, 9, 9], category_id=9)


def unused(folder):
    folder.content["categories"].append({"id": 3, "name": "emu"})


def same_class(folder):
    folder.content["categories"].append({"id": 3, "name": "dog"})
    folder.annotate([3, 3, 9, 9], category_id=3)


def empty(folder):
    del folder.content["annotations"][2]


def same_file(folder):
    folder.content["images"].append({**CONTENT["images"][0], "id": 3})
    folder.annotate([3, 3, 9, 9], image_id=3)


def unnamed(folder):
    (folder.path / "more").mkdir()
    Image.new("RGB", (9, 9)).save(folder.path / "more/c.JPG")
    (folder.path / "notes.txt").write_text("no image")


def missing(folder):
    folder.image(file_name="A.png")
    (folder.path / "a.png").unlink()


def unreadable(folder):
    (folder.path / "a.png").write_text("no image")


def resized(folder):
    folder.image(width=41)


@pytest.mark.parametrize(
    ("change", "finding", "entries"),
    [
        (crowd, findings.MANY_CROWDS, ["a.png (1)"]),
        (stray, findings.STRAY, ["annotations[3] (image_id 77)"]),
        (gap, findings.GAPS, ["3 ids from 1 to 9"]),
        (unused, findings.UNUSED, ["emu (id 3)"]),
        (same_class, findings.SAME_CLASS, ["dog (2 times)"]),
        (empty, findings.EMPTY, ["b.png"]),
        (same_file, findings.SAME_FILE, ["a.png (id 1)", "a.png (id 3)"]),
        (unnamed, findings.UNNAMED, ["more/c.JPG"]),
        (missing, findings.MISSING, ["A.png"]),
        (resized, findings.RESIZED, ["a.png (40x30, not 41x30)"]),
    ],
)
@pytest.mark.parametrize("verify", [False, True])
def test_a_finding_names_its_entries(folder, change, finding, entries, verify):
    change(folder)
    checked = folder.check(verify=verify)
    check_together([checked], [])
    assert checked.findings == {finding: entries}


@pytest.mark.parametrize("verify", [False, True])
def test_files_that_are_no_images_are_named(folder, verify):
    unreadable(folder)
    ((finding, entries),) = folder.check(verify=verify).findings.items()
    assert finding == findings.UNREADABLE_FILE
    assert len(entries) == 1 and entries[0].startswith("a.png (it is not an image")


def test_all_entries_that_are_not_cocos_are_listed(folder):
    folder.content["images"] += [{"id": 1}, {"file_name": "c.png"}, "d.png"]
    folder.content["categories"].append({"id": 3})
    folder.annotate([1, 2, 3])
    folder.annotate([1, 2, 3, 4], category_id=8)
    found = folder.check().findings
    assert found.keys() == {findings.FORMAT}
    assert [entry.partition(" ")[0] for entry in found[findings.FORMAT]] == [
        "categories[2]",
        *("images[2]", "images[3]", "images[4]"),
        *("annotations[3]", "annotations[4]"),
    ]
    folder.content = {"images": []}
    assert [*folder.check().findings.values()] == [
        [
            "the file has no list 'categories'",
            "the file has no entries in 'images'",
            "the file has no list 'annotations'",
        ]
    ]


def test_a_file_that_is_none_is_a_finding(folder, tmp_path):
    checked = check_dataset("mine", str(tmp_path / "none.json"), str(tmp_path), num_queries=5)
    check_together([checked], [checked])
    ((finding, (entry,)),) = checked.findings.items()
    assert finding == findings.FILE and "none.json is not an existing file" in entry


def test_only_verification_sees_what_is_behind_a_header(folder):
    whole = (folder.path / "a.png").read_bytes()
    (folder.path / "a.png").write_bytes(whole[: len(whole) // 2])
    assert not folder.check().findings
    ((finding, (entry,)),) = folder.check(verify=True).findings.items()
    assert finding == findings.UNREADABLE_FILE and entry.startswith("a.png (")


@pytest.mark.parametrize("verify", [False, True])
def test_sizes_are_those_of_the_turned_image(folder, verify):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(folder.path / "a.png") as image:
        image.save(folder.path / "a.jpg", exif=exif)
    (folder.path / "a.png").unlink()
    folder.image(file_name="a.jpg")
    turned = {findings.TURNED: ["a.jpg (orientation 6)"]}
    stored = {findings.STORED: ["a.jpg (30x40, not 40x30)"]}
    assert folder.check(verify=verify).findings == turned | stored
    folder.image(width=30, height=40)
    assert folder.check(verify=verify).findings == turned


def test_grey_images_that_use_few_of_their_bits(folder):
    values = np.random.default_rng(0).integers(0, 4096, (30, 40), dtype=np.uint16)
    Image.fromarray(values | 2048).save(folder.path / "a.png")
    assert not folder.check().findings
    assert folder.check(verify=True).findings == {findings.GREY: ["a.png (12 bits)"]}
    ((finding, (entry,)),) = folder.check(verify=True, grey_bits=11).findings.items()
    assert finding == findings.UNREADABLE_FILE and "set it to 12" in entry
    Image.fromarray(values | 32768).save(folder.path / "a.png")
    assert not folder.check(verify=True).findings


def test_more_objects_of_a_class_than_evaluation_counts(folder):
    for number in range(8):
        folder.annotate([number, 2, 9, 9], category_id=1 + number % 2)
    found = folder.check(max_dets=4).findings
    assert found[findings.DENSE] == ["a.png (5 of cat)", "a.png (5 of dog)"]
    assert findings.DENSE not in folder.check(max_dets=5).findings


def test_copies_in_a_dataset(folder):
    (folder.path / "c.png").write_bytes((folder.path / "a.png").read_bytes())
    folder.content["images"].append({**CONTENT["images"][0], "id": 3, "file_name": "c.png"})
    folder.annotate([3, 3, 9, 9], image_id=3)
    assert not folder.check().findings
    assert folder.check(verify=True).findings == {findings.SAME_CONTENT: ["c.png (a.png)"]}


def test_images_of_training_in_the_evaluation(folder, tmp_path):
    val = Folder(tmp_path / "val", seed=1)
    train, test = folder.check("train"), val.check("val")
    check_together([train], [test])
    assert not train.findings and not test.findings, "a.png is another image there"

    (val.path / "b.png").write_bytes((folder.path / "b.png").read_bytes())
    train, test = folder.check("train"), val.check("val")
    check_together([train], [test])
    assert test.findings == {findings.LEAKED: ["b.png (train: b.png)"]}

    (val.path / "b.png").rename(val.path / "z.png")
    val.content["images"][1]["file_name"] = "z.png"
    train, test = folder.check("train"), val.check("val")
    check_together([train], [test])
    assert not test.findings
    train, test = folder.check("train", verify=True), val.check("val", verify=True)
    check_together([train], [test])
    assert test.findings == {findings.LEAKED: ["z.png (train: b.png)"]}

    train = folder.check("train")
    check_together([train], [train])
    assert train.findings == {findings.LEAKED: ["a.png (train: a.png)", "b.png (train: b.png)"]}


def test_datasets_of_one_folder_share_its_images(folder):
    parts = []
    for number in range(2):
        folder.content = copy.deepcopy(CONTENT)
        folder.content["images"] = [CONTENT["images"][number]]
        folder.content["annotations"] = [
            {"image_id": number + 1, "category_id": category, "bbox": [1, 2, 9, 9]}
            for category in (1, 2)
        ]
        parts.append(folder.check(f"part {number}"))
    Image.new("RGB", (9, 9)).save(folder.path / "c.png")
    check_together(parts[:1], parts[1:])
    assert [part.findings for part in parts] == [{findings.UNNAMED: ["c.png"]}, {}]


def test_classes_of_all_datasets_are_the_models(folder, tmp_path):
    val = Folder(tmp_path / "val", seed=1)
    val.content["categories"][1]["name"] = "wolf"
    train, test = folder.check("train"), val.check("val")
    check_together([train], [test])
    assert not train.findings
    classes, fewer = test.findings.pop(findings.CLASSES), test.findings.pop(findings.FEWER)
    assert (classes, fewer, test.findings) == (["'train' lacks wolf"], ["dog of 'train'"], {})
    check_together([train], [test], num_classes=80)
    assert train.findings == {findings.NUM_CLASSES: ["80, not 2 (cat, dog)"]}
