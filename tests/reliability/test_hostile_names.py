"""Names that files give, to images, classes and datasets: where they lead, what they do there."""

import json
import os
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scored import scored

from dataset_checks import findings
from dataset_checks.checks import check_dataset
from smca.analysis.markdown import markdown_table
from smca.data.classes import distinct
from smca.data.coco import load_coco
from smca.engine.guard import guarded
from smca.engine.report import results_tables
from smca.errors import DatasetError
from smca.structures import Detections
from smca.visualization.attention.figure import draw_co_attention
from smca.visualization.attention.page import Column, write_co_attention
from smca.visualization.attention.views import AttentionView, Detection
from smca.visualization.curves import draw_histories
from smca.visualization.detections import draw_detections


def write(folder, file_name="a.png", names=("star",), boxes=((1, 1, 9, 9),)):
    """An annotation file, an image that it may name, and one beside the image folder."""
    images = folder / "images"
    (images / "sub").mkdir(parents=True, exist_ok=True)
    for path in (images / "a.png", images / "sub/a.png", folder / "a.png"):
        Image.new("RGB", (30, 20)).save(path)
    content = {
        "images": [{"id": 1, "file_name": str(file_name), "width": 30, "height": 20}],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": list(box)} for box in boxes],
    }
    (folder / "a.json").write_text(json.dumps(content))
    return "mine", str(folder / "a.json"), str(images)


@pytest.mark.parametrize(
    "name",
    ["a.png", "sub/a.png", "./a.png", "sub/../a.png", "sub//a.png", "../a.png", "linked/a.png"],
)
def test_names_are_paths_from_the_image_folder_or_absolute(tmp_path, name):
    for file_name in (name, tmp_path / "images" / name):
        files = write(tmp_path, file_name)
        (tmp_path / "images/linked").unlink(missing_ok=True)
        (tmp_path / "images/linked").symlink_to(tmp_path)
        (record,) = load_coco(*files).records
        assert os.path.isabs(record["file_name"])
        assert Image.open(record["file_name"]).size == (30, 20)


@pytest.mark.parametrize("name", ["..", "sub", "/etc/passwd", "/dev/zero"])
def test_names_of_what_is_no_image_are_named(tmp_path, name):
    files = write(tmp_path, name)
    (finding,) = check_dataset(*files, num_queries=9).findings.keys() - {findings.UNNAMED}
    assert finding == findings.UNREADABLE_FILE


def test_classes_of_one_name_have_an_ap_each(tmp_path):
    assert distinct(["a", "b", "a", "a (2)", "a"]) == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]
    dataset = load_coco(*write(tmp_path, names=("star", "star", "moon")))
    found = Detections(torch.tensor([[1.0, 1, 10, 10]]), torch.ones(1), torch.tensor([0]))
    result = scored([(1, found)], dataset, tmp_path)
    assert result["AP-star"] == pytest.approx(100)
    assert [key for key in result if "star" in key] == ["AP-star", "AP-star (2)"]


@pytest.mark.parametrize(
    "box", [(np.nan, 1, 9, 9), (1, 1, np.inf, 9), (1, 1, 9, 0), (9, 9, -5, -5)]
)
def test_a_box_that_is_none_is_missed_and_never_found(tmp_path, box):
    dataset = load_coco(*write(tmp_path, boxes=[(1, 1, 9, 9), box]))
    boxes = torch.tensor([[1.0, 1, 10, 10], [0, 0, 30, 20], [4, 4, 9, 9]])
    found = Detections(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3, dtype=torch.int64))
    result = scored([(1, found)], dataset, tmp_path)
    # One of two objects, before anything false: precision 1 up to half of the recall.
    assert result["AP"] == pytest.approx(100 * 51 / 101)


EVIL = "<script>alert('$x$ | \"')</script>"


@pytest.mark.filterwarnings("ignore:Glyph:UserWarning")
def test_names_are_text_in_pages_tables_and_pictures(tmp_path):
    image = np.zeros((20, 30, 3), np.uint8)
    view = AttentionView(layer=0, maps=np.ones((1, 2, 2)), steps=np.array([8.0, 8.0]), strides=(8,))
    found = Detection(query=0, class_name=EVIL, score=0.5, box=np.array([0.0, 0, 9, 9]))
    columns = [Column(EVIL, EVIL, EVIL, [(found, [view])])]
    text = write_co_attention(tmp_path, EVIL, image, columns)[1].read_text()
    assert "<script" not in text and text.count("&lt;script&gt;") == 14
    assert not re.search(r'alt="[^"]*[<>]', text) and "'\"" not in text

    rows = [[EVIL + "\nb", "1"]]
    assert markdown_table(["a", "b"], rows).splitlines()[2:] == [
        "| &lt;script>alert('$x$ \\| \"')&lt;/script> b | 1 |"
    ]
    result = {"bbox": {"AP": 1.0, f"AP-{EVIL}": 2.0}}
    assert "<script" not in results_tables({"mine": result})

    for name in (EVIL, "$\\frac{$", "x" * 1000, "ノード", "\U0001f600"):
        assert draw_detections(image, [[1, 1, 9, 9]], [0], [0.5], [name]).size[0] >= 30
        names = {"row_titles": [name], "column_titles": [name]}
        draw_co_attention(image, [[f"no {name}"]], **names).savefig(tmp_path / "names.png")


def test_runs_in_folders_of_any_name_are_drawn(tmp_path):
    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools/plot_training.py"))
    for name in ("$\\frac{$ $", "a|b", "_c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text('{"iteration": 3, "bbox/AP": 1.5}\n')
    histories = tool["read_runs"](sorted(tmp_path.iterdir()))
    draw_histories(histories).savefig(tmp_path / "runs.png")
    assert "| a\\|b |" in tool["runs_table"](histories)


def test_a_message_has_no_escapes_that_a_terminal_obeys(capsys):
    def program():
        raise DatasetError("a\x1b[2Jb\x9bc\ud800 é\nd")

    assert guarded(program) == 2
    assert capsys.readouterr().err == "DatasetError: a\\x1b[2Jb\\x9bc\\ud800 é\nd\n"
    assert sys.stderr
