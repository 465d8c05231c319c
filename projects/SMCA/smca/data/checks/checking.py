"""What is wrong with datasets in COCO's format: all of it. (Loading stops at the first error.)"""

from __future__ import annotations

import filecmp
import functools
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from PIL import Image

from ...errors import DatasetError
from ..coco import shown
from ..coco_format import (
    FormatError,
    box_fault,
    read_annotation_file,
    read_annotations,
    read_categories,
    read_images,
)
from . import findings as problems
from .findings import SLACK, TINY, Problem
from .image_files import look_at_all


@dataclass
class Checked:
    """A dataset and what was found in it.

    Attributes:
        name, json_file, image_root: as in DATASETS.COCO_FORMAT.
        categories: name by COCO id.
        records: see :mod:`smca.data.coco`; entries that are not in COCO's format are left out.
        digests: SHA-256 by file name, of images that were verified.
        findings: the entries that each problem has.
    """

    name: str
    json_file: str
    image_root: str
    categories: dict[int, str] = field(default_factory=dict)
    records: list[dict] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    findings: dict[Problem, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def class_names(self) -> tuple[str, ...]:
        return tuple(self.categories.values())

    def short(self, file_name: str) -> str:
        """An image's file name as its entry has it."""
        return file_name.removeprefix(os.path.join(os.path.abspath(self.image_root), ""))

    def add(self, problem: Problem, entry: str) -> None:
        self.findings[problem].append(entry)


def check_dataset(
    name: str, json_file: str, image_root: str, *, num_queries: int, verify: bool = False
) -> Checked:
    """Everything that is wrong with one dataset, and some that is only remarkable.

    Args:
        name, json_file, image_root: as in DATASETS.COCO_FORMAT.
        num_queries: of the model.
        verify: decode every image and compare what the files hold; else only headers are read.
    """
    checked = Checked(name, json_file, image_root)
    try:
        content = read_annotation_file(name, json_file, image_root)
    except DatasetError as error:
        checked.add(problems.FILE, str(error))
        return checked

    def report(error: FormatError) -> None:
        checked.add(problems.FORMAT, str(error))

    checked.categories = read_categories(content, report)
    by_id = read_images(content, image_root, report)
    checked.records = list(by_id.values())
    _check_annotations(checked, by_id, read_annotations(content, checked.categories, report))
    _check_images(checked, num_queries)
    _check_categories(checked)
    _check_files(checked, verify)
    return checked


def check_together(
    training: Sequence[Checked], evaluation: Sequence[Checked], *, num_classes: int = 0
) -> None:
    """Add to the findings what is wrong between datasets.

    Args:
        training, evaluation: the datasets of DATASETS.TRAIN and of DATASETS.TEST.
        num_classes: that the model has; 0: as many as the data has.
    """
    everything = list({id(checked): checked for checked in (*training, *evaluation)}.values())
    readable = [checked for checked in everything if checked.categories]
    for checked in readable:
        names, (first, *_) = checked.class_names, readable
        if num_classes not in (0, len(names)):
            checked.add(problems.NUM_CLASSES, f"{num_classes}, not {len(names)} ({shown(names)})")
        if names != first.class_names:
            others = f"{first.name!r} has {shown(first.class_names)}"
            checked.add(problems.CLASSES, f"{checked.name!r} has {shown(names)}; {others}")
    for test in evaluation:
        for train in training:
            _check_leak(train, test)
    _check_folders(everything)


def _check_annotations(
    checked: Checked, records: dict[int, dict], annotations: Iterable[tuple[int, int, dict]]
) -> None:
    seen = set()
    for position, image_id, annotation in annotations:
        where = f"annotations[{position}]"
        record = records.get(image_id)
        if record is None:
            checked.add(problems.STRAY, f"{where} (image_id {image_id})")
            continue
        record["annotations"].append(annotation)
        bbox, label = annotation["bbox"], annotation["category_id"]
        key = (image_id, label, *bbox)
        found = [_box_problem(bbox, record["height"], record["width"])]
        found += [problems.DOUBLE] if key in seen else []
        for problem in filter(None, found):
            place = f"{checked.short(record['file_name'])}, {checked.class_names[label]}, {bbox}"
            checked.add(problem, f"{where} ({place})")
        seen.add(key)


def _box_problem(bbox: list[float], height: int, width: int) -> Problem | None:
    if fault := box_fault(bbox, height, width):
        return problems.bad_boxes(fault)
    x, y, w, h = bbox
    if w > width + SLACK or h > height + SLACK:
        return problems.BEYOND
    if min(x, y) < -SLACK or x + w > width + SLACK or y + h > height + SLACK:
        return problems.PARTLY
    return problems.SMALL if min(w, h) < TINY else None


def _check_images(checked: Checked, num_queries: int) -> None:
    uses = Counter(record["file_name"] for record in checked.records)
    for record in checked.records:
        crowds = sum(entry["iscrowd"] for entry in record["annotations"])
        objects = len(record["annotations"]) - crowds
        name = checked.short(record["file_name"])
        if objects > num_queries:
            checked.add(problems.more_than(num_queries), f"{name} ({objects})")
        if crowds:
            checked.add(problems.CROWDS, f"{name} ({crowds})")
        if not record["annotations"]:
            checked.add(problems.EMPTY, name)
        if uses[record["file_name"]] > 1:
            checked.add(problems.SAME_FILE, f"{name} (id {record['image_id']})")


def _check_categories(checked: Checked) -> None:
    ids = list(checked.categories)
    if ids and len(ids) <= max(ids) - min(ids):
        checked.add(problems.GAPS, f"{len(ids)} ids from {min(ids)} to {max(ids)}")
    for name, count in Counter(checked.class_names).items():
        if count > 1:
            checked.add(problems.SAME_CLASS, f"{name} ({count} times)")
    used = {entry["category_id"] for record in checked.records for entry in record["annotations"]}
    for index, (category, name) in enumerate(checked.categories.items()):
        if index not in used:
            checked.add(problems.UNUSED, f"{name} (id {category})")


def _check_files(checked: Checked, verify: bool) -> None:
    first: dict[str, str] = {}
    names = [record["file_name"] for record in checked.records]
    images = look_at_all(names, verify=verify, title=checked.name)
    for record, (size, digest, fault) in zip(checked.records, images, strict=True):
        file_name, expected = record["file_name"], (record["width"], record["height"])
        name = checked.short(file_name)
        if not os.path.exists(file_name):
            checked.add(problems.MISSING, name)
        elif fault is not None:
            checked.add(problems.UNREADABLE_FILE, f"{name} ({fault})")
        elif size != expected:
            sizes = "{}x{}, not {}x{}".format(*size, *expected)
            checked.add(problems.RESIZED, f"{name} ({sizes})")
        if digest is not None:
            checked.digests[file_name] = digest
            if first.setdefault(digest, name) != name:
                checked.add(problems.SAME_CONTENT, f"{name} ({first[digest]})")


def _check_leak(train: Checked, test: Checked) -> None:
    """Images that both have: by path, by name and content, and by content alone where verified."""
    paths = {_real(record["file_name"]) for record in train.records}
    copies = {digest: file_name for file_name, digest in train.digests.items()}
    alike = {_name_and_size(record["file_name"]): record["file_name"] for record in train.records}
    alike.pop(None, None)
    for record in test.records:
        path = record["file_name"]
        copy = path if _real(path) in paths else copies.get(test.digests.get(path, ""))
        if not copy and not test.digests and (other := alike.get(_name_and_size(path))):
            copy = other if filecmp.cmp(path, other, shallow=False) else None
        if copy:
            test.add(problems.LEAKED, f"{test.short(path)} ({train.name}: {train.short(copy)})")


def _check_folders(datasets: Sequence[Checked]) -> None:
    """A folder may serve several datasets, each with a part of its images."""
    named = {_real(record["file_name"]) for checked in datasets for record in checked.records}
    endings = tuple(
        ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN
    )
    roots: set[str] = set()
    for checked in datasets:
        root = os.path.realpath(checked.image_root)
        if root in roots or not checked.records:
            continue
        roots.add(root)
        for folder, _, files in os.walk(root):
            for file in sorted(files):
                path = os.path.join(folder, file)
                if file.lower().endswith(endings) and path not in named:
                    checked.add(problems.UNNAMED, os.path.relpath(path, root))


def _name_and_size(file_name: str) -> tuple[str, int] | None:
    if not os.path.isfile(file_name):
        return None
    return os.path.basename(file_name), os.path.getsize(file_name)


_real_folder = functools.lru_cache(os.path.realpath)


def _real(file_name: str) -> str:
    """The path with no symbolic link among its folders."""
    folder, name = os.path.split(file_name)
    return os.path.join(_real_folder(folder), name)
