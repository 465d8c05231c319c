"""The check of datasets in COCO's format, which lists all findings; loading stops at the first
error.
"""

import filecmp
import functools
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field

from PIL import Image
from tqdm import tqdm

from dataset_checks import findings
from dataset_checks.findings import SLACK, TINY, Finding
from dataset_checks.image_files import probe_image
from smca.data import coco_format
from smca.data.classes import lacking, shown
from smca.data.coco import MANY_CROWDS
from smca.errors import DatasetError


@dataclass(eq=False)
class CheckedDataset:
    """A dataset and what was found in it.

    Attributes:
        name, json_file, image_root: as in DATASETS.COCO_FORMAT.
        categories: name by COCO id.
        records: see :mod:`smca.data.coco`; entries that are not in COCO's format are left out.
        fingerprints: see :class:`ImageFile`, by file name, of the images that can be read.
        turned: file names of the images that EXIF turns.
        grey_bits: INPUT.GREY_BITS, with which the images are read.
        findings: the entries that have each finding.
    """

    name: str
    json_file: str
    image_root: str
    categories: dict[int, str] = field(default_factory=dict)
    records: list[dict] = field(default_factory=list)
    fingerprints: dict[str, str | tuple[str, int]] = field(default_factory=dict)
    turned: set[str] = field(default_factory=set)
    grey_bits: int = 0
    findings: dict[Finding, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.categories.values())

    def short(self, file_name: str) -> str:
        """Return an image's file name relative to the image folder."""
        return file_name.removeprefix(os.path.join(os.path.abspath(self.image_root), ""))

    def add(self, finding: Finding, entry: str) -> None:
        self.findings[finding].append(entry)


def check_dataset(
    name: str,
    json_file: str,
    image_root: str,
    *,
    num_queries: int,
    max_dets: int = 100,
    grey_bits: int = 0,
    verify: bool = False,
    needs_annotations: bool = True,
) -> CheckedDataset:
    """Check one dataset for everything that is wrong or remarkable.

    Args:
        name, json_file, image_root: as in DATASETS.COCO_FORMAT.
        num_queries: of the model.
        max_dets: detections of a class in an image that evaluation counts.
        grey_bits: INPUT.GREY_BITS.
        verify: decode every image and compare the files' contents; otherwise read only headers.
        needs_annotations: the dataset is to train on.
    """
    checked = CheckedDataset(name, json_file, image_root, grey_bits=grey_bits)
    try:
        content = coco_format.read_annotation_file(name, json_file, image_root)
    except DatasetError as error:
        checked.add(findings.FILE, str(error))
        return checked

    if "annotations" not in content and not needs_annotations:
        content["annotations"] = []
        checked.add(findings.UNSCORED, json_file)
    report = functools.partial(checked.add, findings.FORMAT)
    checked.categories = coco_format.read_categories(content, report)
    by_id = coco_format.read_images(content, image_root, report)
    checked.records = list(by_id.values())
    seen = set()
    for position, image_id, annotation in coco_format.read_annotations(
        content, checked.categories, report
    ):
        where = f"annotations[{position}]"
        if image_id not in by_id:
            checked.add(findings.STRAY, f"{where} (image_id {image_id})")
            continue
        record = by_id[image_id]
        record["annotations"].append(annotation)
        bbox, label = annotation["bbox"], annotation["category_id"]
        key = (image_id, label, *bbox)
        found = [_box_finding(bbox, record["height"], record["width"])]
        found += [findings.DOUBLE] if key in seen else []
        for finding in filter(None, found):
            place = f"{checked.short(record['file_name'])}, {checked.class_names[label]}, {bbox}"
            checked.add(finding, f"{where} ({place})")
        seen.add(key)
    _check_images(checked, num_queries, max_dets)
    _check_categories(checked)
    _check_crowds(checked)
    _check_files(checked, verify)
    return checked


def check_together(
    training: Sequence[CheckedDataset],
    evaluation: Sequence[CheckedDataset],
    *,
    num_classes: int = 0,
) -> None:
    """Add to the findings what is wrong between datasets.

    Args:
        training, evaluation: the datasets of DATASETS.TRAIN and of DATASETS.TEST.
        num_classes: of the model; 0: as many as the data has.
    """
    everything = list(dict.fromkeys((*training, *evaluation)))
    readable = [checked for checked in everything if checked.categories]
    trained = next((checked for checked in training if checked.categories), None)
    for checked in readable if trained else ():
        names, known = checked.class_names, trained.class_names
        if checked in training and num_classes not in (0, len(names)):
            checked.add(findings.NUM_CLASSES, f"{num_classes}, not {len(names)} ({shown(names)})")
        if new := lacking(names, known):
            checked.add(findings.CLASSES, f"{trained.name!r} lacks {shown(new)}")
        if absent := lacking(known, names):
            finding = findings.CLASSES if checked in training else findings.FEWER
            checked.add(finding, f"{shown(absent)} of {trained.name!r}")
    for test in evaluation:
        for train in training:
            _check_leak(train, test)
    _check_folders(everything)


def _box_finding(bbox: list[float], height: int, width: int) -> Finding | None:
    if fault := coco_format.box_fault(bbox, height, width):
        return findings.bad_boxes(fault)
    x, y, w, h = bbox
    if w > width + SLACK or h > height + SLACK:
        return findings.BEYOND
    if min(x, y) < -SLACK or x + w > width + SLACK or y + h > height + SLACK:
        return findings.PARTLY
    return findings.SMALL if min(w, h) < TINY else None


def _check_images(checked: CheckedDataset, num_queries: int, max_dets: int) -> None:
    uses = Counter(record["file_name"] for record in checked.records)
    for record in checked.records:
        objects = Counter(e["category_id"] for e in record["annotations"] if not e["iscrowd"])
        name = checked.short(record["file_name"])
        if objects.total() > num_queries:
            checked.add(findings.MORE, f"{name} ({objects.total()})")
        for label, count in objects.items():
            if count > max_dets:
                checked.add(findings.DENSE, f"{name} ({count} of {checked.class_names[label]})")
        if not record["annotations"]:
            checked.add(findings.EMPTY, name)
        if uses[record["file_name"]] > 1:
            checked.add(findings.SAME_FILE, f"{name} (id {record['image_id']})")


def _check_categories(checked: CheckedDataset) -> None:
    ids = list(checked.categories)
    if ids and len(ids) <= max(ids) - min(ids):
        checked.add(findings.GAPS, f"{len(ids)} ids from {min(ids)} to {max(ids)}")
    for name, count in Counter(checked.class_names).items():
        if count > 1:
            checked.add(findings.SAME_CLASS, f"{name} ({count} times)")
    used = {entry["category_id"] for record in checked.records for entry in record["annotations"]}
    for index, (category, name) in enumerate(checked.categories.items()):
        if index not in used:
            checked.add(findings.UNUSED, f"{name} (id {category})")


def _check_crowds(checked: CheckedDataset) -> None:
    crowds = {r["file_name"]: sum(e["iscrowd"] for e in r["annotations"]) for r in checked.records}
    total = sum(len(record["annotations"]) for record in checked.records)
    part = sum(crowds.values()) / max(1, total)
    finding = findings.CROWDS if part <= MANY_CROWDS else findings.MANY_CROWDS
    for file_name, count in crowds.items():
        if count:
            name = checked.short(file_name)
            checked.add(findings.ALL_CROWDS if part == 1 else finding, f"{name} ({count})")


def _check_files(checked: CheckedDataset, verify: bool) -> None:
    """Read all image files, with ``verify`` in as many processes as there are cores."""
    names = [record["file_name"] for record in checked.records]
    probe = functools.partial(probe_image, verify=verify, grey_bits=checked.grey_bits)
    first: dict[object, str] = {}
    deep: dict[str, int] = {}
    with ProcessPoolExecutor() if verify else nullcontext() as pool:
        images = pool.map(probe, names, chunksize=16) if pool else map(probe, names)
        images = tqdm(images, checked.name, total=len(names), unit=" images", disable=None)
        for record, image in zip(checked.records, images, strict=True):
            size, fingerprint, fault, orientation, bits = image
            file_name, expected = record["file_name"], (record["width"], record["height"])
            name = checked.short(file_name)
            if not os.path.exists(file_name):
                checked.add(findings.MISSING, name)
            elif fault is not None:
                checked.add(findings.UNREADABLE_FILE, f"{name} ({fault})")
            elif size != expected:
                sizes = "{}x{}, not {}x{}".format(*size, *expected)
                stored = orientation > 4 and size == expected[::-1]
                checked.add(findings.STORED if stored else findings.RESIZED, f"{name} ({sizes})")
            if orientation > 1:
                checked.turned.add(file_name)
                checked.add(findings.TURNED, f"{name} (orientation {orientation})")
            if bits:
                deep[name] = bits
            if fingerprint is not None:
                checked.fingerprints[file_name] = fingerprint
                if verify and first.setdefault(fingerprint, name) != name:
                    checked.add(findings.SAME_CONTENT, f"{name} ({first[fingerprint]})")
    for name, bits in deep.items() if max(deep.values(), default=16) < 16 else ():
        checked.add(findings.GREY, f"{name} ({bits} bits)")


def _check_leak(train: CheckedDataset, test: CheckedDataset) -> None:
    """Find images that both have: the same file, or copies."""
    paths = {_real(record["file_name"]) for record in train.records}
    copies = {fingerprint: file_name for file_name, fingerprint in train.fingerprints.items()}
    for record in test.records:
        path = record["file_name"]
        copy = path if _real(path) in paths else copies.get(test.fingerprints.get(path, ""))
        if copy and (copy == path or filecmp.cmp(path, copy, shallow=False)):
            test.add(findings.LEAKED, f"{test.short(path)} ({train.name}: {train.short(copy)})")


def _check_folders(datasets: Sequence[CheckedDataset]) -> None:
    """Find images that no dataset names. Several datasets may share a folder."""
    endings = tuple(
        ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN
    )
    named = {_real(record["file_name"]) for checked in datasets for record in checked.records}
    with_records = [checked for checked in datasets if checked.records]
    folders = {os.path.realpath(checked.image_root): checked for checked in with_records[::-1]}
    for root, checked in folders.items():
        for folder, _, files in os.walk(root):
            for file in sorted(files):
                path = os.path.join(folder, file)
                if file.lower().endswith(endings) and _real(path) not in named:
                    checked.add(findings.UNNAMED, os.path.relpath(path, root))


_real = functools.cache(os.path.realpath)
