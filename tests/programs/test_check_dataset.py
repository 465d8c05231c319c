"""tools/check_dataset.py as users run it."""

import functools
import json
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def check(program):
    """``check("--json", ...)``: exit code and what is printed."""
    return functools.partial(program, "tools/check_dataset.py")


@pytest.fixture
def pairs(shapes):
    """The flags that name the drawn shapes."""
    return [
        part
        for json_file, folder in shapes.values()
        for part in ("--json", json_file, "--images", folder)
    ]


def test_a_good_dataset(check, pairs, shapes, tmp_path):
    code, printed = check(*pairs, "--verify", "--output", tmp_path / "out")
    assert code == 0, printed
    assert printed.splitlines()[-1] == "0 kinds of errors, 0 of warnings"
    assert "INFO: category ids with gaps: 1\n  3 ids from 1 to 7\n" in printed
    train, val = json.loads((tmp_path / "out/report.json").read_text())
    assert (train["name"], val["name"]) == ("train", "val")
    objects = json.loads(Path(shapes["train"][0]).read_text())["annotations"]
    assert train["summary"]["objects"] == len(objects)
    assert f"12 images (0 without objects), {len(objects)} objects" in printed
    assert [finding["level"] for finding in train["findings"]] == ["INFO"]
    for name, count in (("train", 12), ("val", 6)):
        with Image.open(tmp_path / "out" / f"{name}.png") as grid:
            # Rows of four pictures, enlarged to 384 pixels.
            assert grid.size == (4 * 384 + 3 * 8, -(-count // 4) * 392 - 8)

    code, printed = check(*pairs, "--output", tmp_path / "out")
    assert code == 2 and "report.json exists" in printed and "Traceback" not in printed
    code, printed = check(*pairs, "--output", tmp_path / "out", "--overwrite")
    assert code == 0, printed


def test_all_that_is_wrong_is_printed(check, shapes, tmp_path):
    json_file, folder = shapes["train"]
    content = json.loads(Path(json_file).read_text())
    content["images"][0]["file_name"] = "lost.png"
    for bbox in ([99, 99, 9, 9], *([1, 1, 9, -side] for side in range(16))):
        content["annotations"].append({**content["annotations"][0], "bbox": bbox})
    content["images"].append(content["images"][0])
    mine = tmp_path / "mine.json"
    mine.write_text(json.dumps(content))
    config = tmp_path / "mine.yaml"
    own = json.dumps([["mine", str(mine), folder]])
    base = f"_BASE_: {Path('configs/smca_R50_50ep.yaml').resolve()}\n"
    config.write_text(f"{base}DATASETS:\n  TRAIN: ['mine']\n  TEST: []\n  COCO_FORMAT: {own}\n")
    code, printed = check("--config-file", config, "--output", tmp_path / "out")
    assert code == 1
    assert printed.splitlines()[-1].startswith("5 kinds of errors")
    for part in (
        "ERROR: entries that are not in COCO's format: 1\n  images[12] has the id 1",
        "ERROR: image files that do not exist: 1\n  lost.png\n  -> correct file_name",
        "ERROR: boxes of zero or negative size: 16\n",
        "and 6 more",
        "ERROR: boxes outside their image: 1\n",
        "[99, 99, 9, 9])\n  -> bbox is [x, y, width, height] in pixels",
        "ERROR: classes that are not MODEL.SMCA.NUM_CLASSES: 1\n  80, not 3 (circle,",
        "WARNING: images in the folder that no entry names: 1\n  000001.png",
    ):
        assert part in printed
    (report,) = json.loads((tmp_path / "out/report.json").read_text())
    entries = {finding["what"]: finding["entries"] for finding in report["findings"]}
    assert len(entries["boxes of zero or negative size"]) == 16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --json and --images, or --config-file"),
        (["--json", "a.json"], "each --json needs an --images"),
        (["--config-file", "none.yaml"], "ConfigError: config file 'none.yaml' does not exist"),
        (["--config-file", "smca_R50_50ep"], "did you mean /"),
    ],
)
def test_what_cannot_work_is_said(check, flags, message):
    code, printed = check(*flags)
    assert code == 2 and message in printed.splitlines()[-1]


def test_an_error_is_an_exit_code(check, shapes, tmp_path):
    """A script goes by it."""
    code, printed = check("--json", shapes["train"][0], "--images", tmp_path)
    assert code == 1
    assert "ERROR: image files that do not exist: 12\n" in printed and "and 2 more" in printed
