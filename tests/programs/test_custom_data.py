"""docs/CUSTOM_DATA.md, as its readers follow it: every block in its order, in each host."""

import contextlib
import csv
import io
import json
import re
import shlex
from pathlib import Path

import pytest
import released_reference
import torch
import yaml
from engines import ENGINES

from smca.data.shapes import write_shapes_dataset

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/CUSTOM_DATA.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
# Options and messages of the last table.
MISTAKES = re.findall(r"^\| `(.+?)` \| `(.+?)` \|$", TEXT.partition("## Common mistakes")[2], re.M)

# What makes train_net.py short.
SHORT = [
    *("SOLVER.MAX_ITER", 6, "SOLVER.STEPS", [4], "SOLVER.IMS_PER_BATCH", 2),
    *("SOLVER.CHECKPOINT_PERIOD", 6, "TEST.EVAL_PERIOD", 0, "DATALOADER.NUM_WORKERS", 0),
    *("INPUT.MIN_SIZE_TRAIN", [64], "INPUT.MIN_SIZE_TEST", 64, "INPUT.CROP.ENABLED", False),
    *("MODEL.DEVICE", "cpu"),
]


def write_user_data(folder):
    """``boxes.csv`` and ``images/`` of drawn shapes."""
    drawn = folder.parent / "drawn"
    files = write_shapes_dataset(drawn, num_train=15, num_val=1, image_size=64)
    content = json.loads(Path(files["train"][0]).read_text())
    Path(files["train"][1]).rename(folder / "images")
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    images = {entry["id"]: entry["file_name"] for entry in content["images"]}
    with (folder / "boxes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "class", "x1", "y1", "x2", "y2"])
        for entry in content["annotations"]:
            x, y, w, h = entry["bbox"]
            table.writerow(
                [images[entry["image_id"]], names[entry["category_id"]], x, y, x + w, y + h]
            )


def write_released_file(path):
    """A file with the layout that SMCA's authors released, of a small encoder and decoder."""
    torch.manual_seed(0)
    tensors = released_reference.Detector("smca_depthwise", columns=91).state_dict()
    for name, tensor in tensors.items():
        if name.endswith("bn3.weight"):
            tensor.fill_(0.2)  # without statistics, a frozen batch norm lets values grow
    torch.save({"model": tensors}, path)


class Reader:
    """Runs the blocks of the document in a folder that looks like a clone of the repository."""

    def __init__(self, folder, engine, program):
        self.folder, self.engine, self.program = folder, engine, program
        self.options, self.printed = [], {}
        for name in ("tools", "configs"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "my_data").mkdir()
        write_user_data(folder / "my_data")
        write_released_file(folder / "released.pth")

    def bash(self, block):
        for line in block.replace("\\\n", "").splitlines():
            python, program, *arguments = shlex.split(line)
            assert python == "python"
            if program in ("train_net.py", "demo.py"):
                arguments = ["--engine", self.engine, *arguments]
            if program == "train_net.py":
                arguments += [*SHORT, *self.options]
            printed = self.program(program, *arguments).done()
            self.printed.setdefault(program, []).append(printed)
            if program == "tools/convert_checkpoint.py":
                # As the document says, what follows the weights is for the config.
                *_, command = printed.splitlines()
                self.options = shlex.split(command.partition("checkpoint.pth ")[2])

    def python(self, block):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(block, {"__name__": "__main__"})
        self.printed["python"] = printed.getvalue()

    def yaml(self, block):
        name = re.match(r"# (\S+)\n", block)[1]
        (self.folder / name).write_text(block)


@pytest.fixture(scope="module")
def folders():
    return {}


@pytest.fixture(params=ENGINES)
def reader(request, folders, program, tmp_path_factory, monkeypatch):
    """Who has followed the document to its end."""
    engine = request.param
    new = engine not in folders
    if new:
        folders[engine] = Reader(tmp_path_factory.mktemp(engine), engine, program)
    monkeypatch.chdir(folders[engine].folder)
    if new:
        for language, block in BLOCKS:
            getattr(folders[engine], language)(block)
    return folders[engine]


@pytest.mark.slow
def test_the_walk_through_ends_with_a_detector(reader):
    names = ["circle", "rectangle", "triangle"]
    (checked,) = reader.printed["tools/check_dataset.py"]
    assert "\n0 kinds of errors" in checked
    assert (reader.folder / "output/check/train.png").exists()
    trained, evaluated = reader.printed["train_net.py"]
    assert "MODEL.SMCA.NUM_CLASSES: 3, as in dataset 'my_train': circle, " in trained
    assert "class head not loaded, it starts anew" in trained and " lacks " not in trained
    assert "AP50" in evaluated
    output = reader.folder / "output/my_data"
    cfg = yaml.safe_load((output / "config.yaml").read_text())
    assert cfg["MODEL"]["SMCA"]["NUM_CLASSES"] == 3
    checkpoint = torch.load(output / "model_best.pth", weights_only=True)
    assert checkpoint["class_names"] == names
    assert len(checkpoint["model"]["heads.class_head.bias"]) == 3
    assert (output / "training.png").exists()
    assert len(list((output / "demo").rglob("0000*.*"))) == 15
    assert any((output / "attention").iterdir())
    assert reader.printed["python"].startswith("tensor(")


@pytest.mark.slow
def test_mistakes_are_told_as_the_document_says(reader):
    assert len(MISTAKES) == 9
    start = ["--config-file", "my_data.yaml", *map(str, [*SHORT, *reader.options])]
    for number, (options, message) in enumerate(MISTAKES):
        last = ("OUTPUT_DIR", f"output/{number}", *shlex.split(options))
        ended = reader.program("train_net.py", "--engine", reader.engine, *start, *last)
        expected = ".*".join(map(re.escape, message.split("...")))
        assert ended.returncode in (2, 3) and re.fullmatch(expected, ended.last), options
