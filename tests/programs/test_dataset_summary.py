from dataset_checks.summary import format_summary, summarise


def record(width, height, *boxes):
    annotations = [
        {"category_id": label, "bbox": bbox, "iscrowd": crowd} for label, bbox, crowd in boxes
    ]
    return {"width": width, "height": height, "annotations": annotations}


RECORDS = [
    record(640, 480, (0, [0, 0, 10, 20], 0), (0, [5, 5, 40, 40], 0), (1, [0, 0, 100, 100], 0)),
    record(320, 480, (0, [1, 1, 30, 10], 0), (0, [0, 0, 300, 300], 1), (1, [0, 0, 0, 9], 0)),
    record(100, 90),
]


def test_sizes_are_cocos():
    boxes = [(0, [0, 0, side, side], 0) for side in (31, 32, 95, 96)]
    summary = summarise([record(100, 100, *boxes)], ["cat"])
    assert summary["sizes"] == {"small": 1, "medium": 2, "large": 1}


def test_numbers_are_of_objects_that_can_be_learned():
    summary = summarise(RECORDS, ["cat", "dog", "emu"])
    cat, dog, emu = summary.pop("classes")
    assert cat == {"name": "cat", "images": 2, "objects": 3, "small": 2, "medium": 1, "large": 0}
    assert dog == {"name": "dog", "images": 1, "objects": 1, "small": 0, "medium": 0, "large": 1}
    assert emu["objects"] == emu["images"] == 0
    assert summary == {
        "images": 3,
        "images_without_objects": 1,
        "objects": 4,
        "crowds": 1,
        "sizes": {"small": 2, "medium": 1, "large": 1},
        "objects_per_image": {"least": 0, "median": 1, "most": 3},
        "image_widths": {"least": 100, "median": 320, "most": 640},
        "image_heights": {"least": 90, "median": 480, "most": 480},
        "width_by_height": {"least": 0.5, "median": 1, "most": 3},
    }


def test_format_summary():
    text = format_summary(summarise(RECORDS, ["cat", "dog", "emu"]))
    first, *_, cat, dog, emu = text.splitlines()
    assert first == "3 images (1 without objects), 4 objects: 2 small, 1 medium, 1 large"
    assert [line.split() for line in (cat, dog, emu)] == [
        ["cat", "3", "2", "2", "1", "0"],
        ["dog", "1", "1", "0", "0", "1"],
        ["emu", "0", "0", "0", "0", "0"],
    ]
    assert format_summary(summarise([], [])).startswith("0 images (0 without objects), 0 objects")
