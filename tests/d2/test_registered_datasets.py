"""Datasets that other projects have registered, with all that Detectron2's standard dict allows."""

import json
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("detectron2")

from detectron2.data import DatasetCatalog, MetadataCatalog  # noqa: E402
from detectron2.data.datasets import register_coco_instances  # noqa: E402
from detectron2.evaluation import COCOEvaluator, DatasetEvaluator  # noqa: E402
from detectron2.structures import Boxes, BoxMode, Instances  # noqa: E402

from smca.d2.datasets import dataset_records  # noqa: E402
from smca.d2.evaluation import CocoEvaluator  # noqa: E402
from smca.d2.trainer import Trainer  # noqa: E402
from smca.errors import DatasetError  # noqa: E402

CLASSES = ["circle", "rectangle", "triangle"]
NAMES = {"train": "theirs_to_train", "val": "theirs_to_test"}


def standard_dicts(json_file, folder, change=lambda record, number: None):
    content = json.loads(Path(json_file).read_text())
    labels = {entry["id"]: label for label, entry in enumerate(content["categories"])}
    records = []
    for number, image in enumerate(content["images"]):
        objects = [
            {
                "bbox": entry["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": labels[entry["category_id"]],
            }
            for entry in content["annotations"]
            if entry["image_id"] == image["id"]
        ]
        record = {"file_name": f"{folder}/{image['file_name']}", "image_id": image["id"]}
        record |= {"height": image["height"], "width": image["width"], "annotations": objects}
        change(record, number)
        records.append(record)
    return records


@contextmanager
def registered(classes=CLASSES, **records):
    """Dicts by the name of their dataset."""
    for name, dicts in records.items():
        DatasetCatalog.register(name, lambda dicts=dicts: dicts)
        if classes:
            MetadataCatalog.get(name).thing_classes = list(classes)
    try:
        yield
    finally:
        for name in records:
            DatasetCatalog.remove(name)
            MetadataCatalog.pop(name, None)


@pytest.fixture
def train(d2_config, shapes, tmp_path):
    """``train(change)``: the trainer, its evaluation and its detections, with changed records."""

    def run(change=lambda record, number: None, *opts, trainer=Trainer, **metadata):
        parts = {NAMES[part]: standard_dicts(*shapes[part], change) for part in shapes}
        with registered(**parts, **metadata):
            names = [("DATASETS.TRAIN", (NAMES["train"],)), ("DATASETS.TEST", (NAMES["val"],))]
            options = {"SOLVER.MAX_ITER": 2, "SOLVER.STEPS": (1,), "SEED": 5, **dict(names)}
            cfg = d2_config(*(part for pair in options.items() for part in pair), *opts)
            running = trainer(cfg)
            running.resume_or_load(resume=False)
            scores = running.train()
        file = tmp_path / "out/inference/coco_instances_results.json"
        return scores, json.loads(file.read_text()) if file.exists() else None

    return run


def text_ids(record, number):
    record["image_id"] = f"img {number} é"


def numbers_as_text(record, number):
    record["image_id"] = f"{number:04d}"


def some_text(record, number):
    record["image_id"] = number or "first"


def numpys_ids(record, number):
    record["image_id"] = np.int64(number)


def huge_ids(record, number):
    record["image_id"] = 2**80 + number


def no_ids(record, number):
    del record["image_id"]


def no_sizes(record, number):
    del record["height"], record["width"]


def corners(record, number):
    for entry in record["annotations"]:
        x, y, w, h = entry["bbox"]
        entry |= {"bbox": np.array([x, y, x + w, y + h]), "bbox_mode": BoxMode.XYXY_ABS}


IDS = [text_ids, numbers_as_text, some_text, numpys_ids, huge_ids, no_ids]


@pytest.mark.parametrize("change", [*IDS, no_sizes, corners], ids=lambda change: change.__name__)
def test_every_standard_dict_trains_and_evaluates_alike(train, change):
    expected, rows = train()
    scores, found = train(change)
    assert scores["bbox"] == pytest.approx(expected["bbox"], nan_ok=True)
    assert 0 < scores["bbox"]["AR"] < 100
    for row in rows:
        record = {"image_id": row["image_id"], "annotations": []}
        if change in IDS:
            change(record, row["image_id"] - 1)
        row["image_id"] = record.get("image_id", row["image_id"] - 1)
    assert found == rows


def one_too_many(record, number):
    for entry in record["annotations"]:
        entry["category_id"] += 1


@pytest.mark.parametrize("classes", [CLASSES, None], ids=["named", "counted"])
@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_out_of_range_is_named_before_training(train, part, classes):
    def change(record, number):
        if Path(record["file_name"]).parent.name == part:
            one_too_many(record, number)

    told = rf"'{NAMES[part]}': .*/{part}/\d+\.png: .*category_id 3; .*3 classes, from 0 to 2"
    with pytest.raises(DatasetError, match=told):
        train(change, classes=classes)


def test_a_test_set_has_as_many_classes_as_the_model(d2_config, shapes):
    """Also where the training data have no names to compare."""
    train, val = (standard_dicts(*shapes[part], lambda *_: None) for part in ("train", "val"))
    with registered(classes=None, nameless=train), registered(classes="abcd", four=val):
        cfg = d2_config("DATASETS.TRAIN", ("nameless",), "DATASETS.TEST", ("four",))
        with pytest.raises(DatasetError, match="NUM_CLASSES is 3, but dataset 'four' has 4"):
            Trainer(cfg)


def lacks(key):
    return lambda record, number: [entry.pop(key) for entry in record["annotations"]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lacks("bbox_mode"), "'bbox_mode' is missing"),
        (lacks("category_id"), "'category_id' is missing"),
        (lambda record, number: record.pop("file_name"), "record 0: .*image_id"),
        (lambda record, number: record.update(width=None, file_name="no.png"), "No such file"),
    ],
    ids=range(4),
)
def test_a_dict_that_cannot_be_used_is_named(d2_config, shapes, change, reason):
    cfg = d2_config()
    records = standard_dicts(*shapes["val"], change)
    if "record" in reason:
        del records[0]["width"]
        reason = "record 0: 'file_name' is missing"
    with registered(odd=records), pytest.raises(DatasetError, match=rf"^dataset 'odd': .*{reason}"):
        dataset_records(cfg, "odd")


def test_images_have_ids_of_their_own(d2_config, shapes):
    records = standard_dicts(*shapes["val"], lambda *_: None)
    records[3]["image_id"] = records[1]["image_id"]
    with registered(odd=records), pytest.raises(DatasetError, match="several records have image_"):
        dataset_records(d2_config(), "odd")


def perfect(records):
    """Detectron2's inputs and outputs, in which every object is found."""
    for record in records:
        boxes = torch.tensor([entry["bbox"] for entry in record["annotations"]]).reshape(-1, 4)
        instances = Instances((64, 64), scores=torch.linspace(0.9, 0.5, len(boxes)))
        instances.pred_boxes = Boxes(torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1))
        labels = [entry["category_id"] for entry in record["annotations"]]
        instances.pred_classes = torch.tensor(labels, dtype=torch.int64)
        yield [record], [{"instances": instances}]


def scores_of(evaluator, records):
    evaluator.reset()
    for batch in perfect(records):
        evaluator.process(*batch)
    return evaluator.evaluate()["bbox"]


def test_text_ids_of_an_annotation_file(shapes, tmp_path):
    """Registered by Detectron2's own function."""
    json_file, folder = shapes["val"]
    content = json.loads(Path(json_file).read_text())
    for entry in content["images"]:
        entry["id"] = f"no. {entry['id']}"
    for entry in content["annotations"]:
        entry["image_id"] = f"no. {entry['image_id']}"
    file = tmp_path / "text.json"
    file.write_text(json.dumps(content))
    register_coco_instances("text", {}, str(file), folder)
    try:
        records = DatasetCatalog.get("text")
        ours = scores_of(CocoEvaluator("text", output_dir=str(tmp_path)), records)
        theirs = scores_of(COCOEvaluator("text", output_dir=str(tmp_path / "theirs")), records)
        written = json.loads((tmp_path / "coco_instances_results.json").read_text())
        assert {row["image_id"] for row in written} == {r["image_id"] for r in records}
        del records[0]["image_id"]
        with pytest.raises(DatasetError, match="'text': .*no image_id"):
            scores_of(CocoEvaluator("text", output_dir=str(tmp_path)), records)
    finally:
        DatasetCatalog.remove("text")
        MetadataCatalog.remove("text")
    assert {name: ours[name] for name in theirs} == pytest.approx(theirs, nan_ok=True)
    assert ours["AP"] == pytest.approx(100)


def test_areas_are_of_polygons_and_a_dataset_may_change(shapes, tmp_path):
    """Small are then all objects, whatever their boxes; a later registration is not mistaken."""

    def slivers(record, number):
        for entry in record["annotations"]:
            x, y, *_ = entry["bbox"]
            entry["segmentation"] = [[x, y, x + 3, y, x + 3, y + 3]]

    records = standard_dicts(*shapes["val"], slivers)
    with registered(polygons=records):
        theirs = scores_of(COCOEvaluator("polygons", output_dir=str(tmp_path / "theirs")), records)
    for _ in range(2):
        with registered(polygons=records):
            ours = scores_of(CocoEvaluator("polygons", output_dir=str(tmp_path)), records)
        assert {name: ours[name] for name in theirs} == pytest.approx(theirs, nan_ok=True)
        assert ours["APs"] == pytest.approx(100) and np.isnan(ours["APm"])
    last = [{**record, "annotations": record["annotations"][-1:]} for record in records]
    with registered(polygons=last):
        evaluator = CocoEvaluator("polygons", output_dir=str(tmp_path))
        assert scores_of(evaluator, records)["AP"] < 90
        assert scores_of(evaluator, last)["AP"] == pytest.approx(100)


class Other(DatasetEvaluator):
    results: object = None

    def evaluate(self):
        return self.results


def trainer_of(results, *expected):
    """A trainer whose evaluations have these results, and expect AP to be a number, or nothing."""
    evaluator = Other()
    evaluator.results = results

    class Theirs(Trainer):
        def __init__(self, cfg):
            cfg = cfg.clone()
            cfg.defrost()
            cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", number, 1.0] for number in expected]
            super().__init__(cfg)

        @classmethod
        def build_evaluator(cls, cfg, dataset_name):
            return evaluator

    return Theirs


@pytest.mark.parametrize(
    "results", [None, {}, {"segm": {"AP": 4.0}}, {"bbox": 4.0}, {"bbox": {"recall": 4.0}}], ids=str
)
def test_any_evaluator_ends_a_training(train, tmp_path, results):
    recall = results == {"bbox": {"recall": 4.0}}
    assert train(trainer=trainer_of(results, *[4.0] * (not recall)))[0] == (results or {})
    page = (tmp_path / "out/results.md").read_text()
    assert ("## " in page) == recall
    assert not (tmp_path / "out/model_best.pth").exists()


@pytest.mark.parametrize(("wanted", "passes"), [(4.5, True), (9.0, False)])
def test_expected_results_are_compared(train, wanted, passes, tmp_path):
    with nullcontext() if passes else pytest.raises(SystemExit):
        train(trainer=trainer_of({"bbox": {"AP": 4.0}}, wanted))
    assert "4.0" in (tmp_path / "out/results.md").read_text()
