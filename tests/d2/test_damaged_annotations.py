"""Detectron2's side of annotation files and configs that are odd or hostile."""

import copy
import json
import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("detectron2")

from detectron2.config import get_cfg  # noqa: E402
from detectron2.data import MetadataCatalog  # noqa: E402
from detectron2.structures import Boxes, Instances  # noqa: E402
from scored import scored  # noqa: E402

import smca  # noqa: E402
from smca.config import ConfigError, load_cfg  # noqa: E402
from smca.d2 import add_smca_config, register_datasets  # noqa: E402
from smca.d2.datasets import dataset_records  # noqa: E402
from smca.d2.evaluation import CocoEvaluator  # noqa: E402
from smca.data.coco import load_coco, usable_records  # noqa: E402
from smca.errors import DatasetError
from smca.structures import Detections  # noqa: E402

CONTENT = {
    "info": {},
    "images": [
        {"id": 9, "file_name": "a.png", "height": 20, "width": 30},
        {"id": -4, "file_name": "b.png", "height": 20, "width": 30},
    ],
    "categories": [{"id": 7, "name": "star"}, {"id": 2, "name": "cross"}],
    "annotations": [
        {"image_id": 9, "category_id": 7, "bbox": [1, 2.5, 3, 4], "iscrowd": 0},
        {"image_id": 9, "category_id": 2, "bbox": [5, 6, 7, 8], "iscrowd": 1, "area": 9},
        {"image_id": -4, "category_id": 2, "bbox": [0, 0, 9.5, 8], "id": 0},
    ],
}
PLACES = [
    (section, place, key)
    for section, entries in CONTENT.items()
    if section != "info"
    for place, entry in enumerate(entries)
    for key in (*entry, "area", "segmentation")
]
VALUES = st.one_of(
    st.integers(-2, 12),
    st.sampled_from(
        [True, None, 10**12, 2**63, -(2**63), 10**400, "7", "star", "../a.png", "", []]
    ),
    st.floats(),
    st.lists(st.floats(), min_size=4, max_size=4),
    st.lists(st.integers(-30, 30), min_size=4, max_size=4),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (30, 20)).save(root / name)
    return root


def registered(folder, data):
    """The config of a dataset of this content, whose name is new in each call."""
    (folder / "a.json").write_bytes(data)
    cfg = get_cfg()
    add_smca_config(cfg)
    cfg.DATASETS.COCO_FORMAT = [["hostile", str(folder / "a.json"), str(folder)]]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("hostile",)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SMCA.NUM_CLASSES = "SMCA", 2
    register_datasets(cfg)
    return cfg


def changed(*changes):
    content = copy.deepcopy(CONTENT)
    for (section, place, key), value in changes:
        content[section][place][key] = value
    return content


@settings(max_examples=150)
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3).map(tuple))
@example(((("annotations", 0, "bbox"), [math.nan, 2, 3, 4]),))
@example(((("annotations", 0, "area"), "large"),))
@example(((("annotations", 1, "iscrowd"), "0"),))
@example(((("categories", 0, "name"), "cross"),))
@example(((("images", 0, "id"), 2**63 - 1), (("annotations", 0, "image_id"), 2**63 - 1)))
def test_both_hosts_say_the_same_of_every_file(folder, changes):
    cfg = registered(folder, json.dumps(changed(*changes)).encode())
    try:
        ours = load_coco("hostile", str(folder / "a.json"), str(folder))
    except DatasetError as error:
        with pytest.raises(DatasetError) as theirs:
            dataset_records(cfg, "hostile")
        assert str(theirs.value) == str(error)
        return
    if len(ours.class_names) != 2:
        return
    records = dataset_records(cfg, "hostile")
    assert records == ours.records
    usable_records([("hostile", records)], filter_empty=False)
    evaluator = CocoEvaluator("hostile", output_dir=str(folder / "d2"))
    evaluator.reset()
    found = []
    for record in ours.records:
        boxes, labels = [[0.0, 0.0, 9.0, 9.0]], [0]
        for entry in record["annotations"]:
            if all(map(math.isfinite, entry["bbox"])) and max(map(abs, entry["bbox"])) < 1e6:
                x, y, w, h = entry["bbox"]
                boxes.append([x, y, x + w, y + h])
                labels.append(entry["category_id"])
        scores = torch.linspace(0.9, 0.3, len(labels))
        detections = Detections(torch.tensor(boxes), scores, torch.tensor(labels))
        found.append((record["image_id"], detections))
        instances = Instances((record["height"], record["width"]))
        instances.pred_boxes, instances.scores = Boxes(detections.boxes), scores
        instances.pred_classes = detections.labels
        evaluator.process([record], [{"instances": instances}])
    theirs = evaluator.evaluate().get("bbox", {})
    native = scored(found, ours, folder / "native")
    assert theirs == pytest.approx(native, abs=1e-6, nan_ok=True)
    assert all(math.isnan(ap) or 0 <= ap <= 100.0001 for ap in theirs.values())
    ids = MetadataCatalog.get("hostile").thing_dataset_id_to_contiguous_id
    assert ids == {category: index for index, category in enumerate(ours.category_ids)}


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[]", b"\xff\xfe", json.dumps(CONTENT).encode("utf-16")],
)
def test_a_file_that_is_none_is_named_by_evaluation_too(folder, data):
    cfg = registered(folder, data)
    with pytest.raises(DatasetError, match=r"'hostile'.*a\.json"):
        dataset_records(cfg, "hostile")
    with pytest.raises(DatasetError, match=r"'hostile'.*a\.json"):
        CocoEvaluator("hostile", output_dir=str(folder / "d2"))


def test_a_byte_order_mark_is_passed_over(folder):
    cfg = registered(folder, json.dumps(CONTENT).encode("utf-8-sig"))
    assert len(dataset_records(cfg, "hostile")) == 2
    assert len(CocoEvaluator("hostile", output_dir=str(folder / "d2"))._coco_api.anns) == 3


@pytest.mark.parametrize("tag", ["apply:os.mkdir ['{made}']", "new:os.mkdir ['{made}']"])
def test_detectron2s_configs_run_no_code(tmp_path, tag):
    # Detectron2's own merge_from_file would.
    made, file = tmp_path / "made", tmp_path / "evil.yaml"
    file.write_text("OUTPUT_DIR: !!python/object/" + tag.format(made=made) + "\n")
    for text in (None, f"_BASE_: {file}\n"):
        if text:
            (tmp_path / "other.yaml").write_text(text)
        path = tmp_path / "other.yaml" if text else file
        with pytest.raises(ConfigError, match=r"evil\.yaml, line 1 cannot be read"):
            load_cfg(get_cfg(), str(path))
        with pytest.raises(ConfigError, match=r"evil\.yaml, line 1 cannot be read"):
            smca.Predictor(path, engine="detectron2")
    assert not made.exists()
