"""Odd and hostile files given to train_net.py, in each host."""

import json
from pathlib import Path

import pytest
from engines import ENGINES


@pytest.fixture(params=ENGINES)
def run(request, config_file, train_net, shapes, tmp_path):
    """``run(change)``: trains on annotation files that ``change`` has changed."""

    def start(change):
        entries = []
        for name, (json_file, folder) in shapes.items():
            content = json.loads(Path(json_file).read_text())
            change(content)
            path = tmp_path / f"{name}.json"
            path.write_text(json.dumps(content), encoding="utf-8-sig")
            entries.append([name, str(path), folder])
        file = config_file("DATASETS.COCO_FORMAT", entries)
        return train_net("--engine", request.param, "--config-file", file)

    return start


def test_what_is_odd_is_trained_on_and_scored(run, tmp_path):
    def change(content):
        content["info"] = "none"
        for entry in content["images"]:
            entry["id"] -= 10**15
        ids = {}
        for number, entry in enumerate(content["categories"]):
            ids[entry["id"]] = 2**40 * number - 7
            entry.update(id=ids[entry["id"]], name="a|<b> $x$")
        for entry in content["annotations"]:
            entry["image_id"] -= 10**15
            entry["category_id"] = ids[entry["category_id"]]
            entry.update(segmentation={"counts": [[]]}, area="large", id="x", iscrowd=False)
        wrong = [float("nan"), 1, 5, 5], [1, 1, float("inf"), 5], [1e300, 1, 5, 5], [1, 1, -5, 0]
        first = content["annotations"][0]
        content["annotations"] += [{**first, "bbox": box} for box in wrong]
        content["annotations"] += [{**first, "image_id": 3}]

    output = run(change)
    assert "train: dropped 4 unusable boxes" in output
    assert "1 annotations are of images that the file does not have" in output
    metrics = [json.loads(line) for line in (tmp_path / "out/metrics.json").open()]
    last = {key: value for entry in metrics for key, value in entry.items()}
    assert 0 <= last["bbox/AP"] <= 100
    assert [key for key in last if "AP-" in key] == [
        f"bbox/AP-a|<b> $x${number}" for number in ("", " (2)", " (3)")
    ]
    results = (tmp_path / "out/results.md").read_text()
    assert r"| a\|&lt;b> $x$ (3) |" in results
    found = json.loads((tmp_path / "out/inference/coco_instances_results.json").read_text())
    assert {row["category_id"] for row in found} <= {-7, 2**40 - 7, 2**41 - 7}
    assert all(-(10**15) - 1 < row["image_id"] < -(10**14) for row in found)
