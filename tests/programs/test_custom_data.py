"""docs/CUSTOM_DATA.md, as its readers follow it: every block in its order, in each host."""

import csv
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from smca.data.shapes import write_shapes_dataset

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/CUSTOM_DATA.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
# Options and messages of the last table.
MISTAKES = re.findall(r"^\| `(.+?)` \| `(.+?)` \|$", TEXT.partition("## Common mistakes")[2], re.M)

needs_detectron2 = pytest.mark.skipif(
    importlib.util.find_spec("detectron2") is None, reason="Detectron2 is not installed"
)
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
    source = ROOT / "tests/support/released_reference.py"
    spec = importlib.util.spec_from_file_location(source.stem, source)
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    torch.manual_seed(0)
    tensors = reference.Detector("smca_depthwise", columns=91).state_dict()
    for name, tensor in tensors.items():
        if name.endswith("bn3.weight"):
            tensor.fill_(0.2)  # without statistics, a frozen batch norm lets values grow
    torch.save({"model": tensors}, path)


class Reader:
    """Runs the blocks of the document in a folder that looks like a clone of the repository."""

    def __init__(self, folder, engine):
        self.folder, self.engine, self.options, self.printed = folder, engine, [], {}
        for name in ("train_net.py", "demo.py", "tools", "configs"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "my_data").mkdir()
        write_user_data(folder / "my_data")
        write_released_file(folder / "released.pth")

    def run(self, command):
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "projects/SMCA")}
        environment["PYTHONUNBUFFERED"] = "1"  # the last line is the last that was printed
        finished = subprocess.run(
            list(map(str, command)),
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert finished.returncode == 0, finished.stdout[-5000:]
        return finished.stdout

    def bash(self, block):
        for line in block.replace("\\\n", "").splitlines():
            python, program, *arguments = shlex.split(line)
            assert python == "python"
            if program in ("train_net.py", "demo.py"):
                arguments = ["--engine", self.engine, *arguments]
            if program == "train_net.py":
                arguments += [*SHORT, *self.options]
            printed = self.run([sys.executable, program, *arguments])
            self.printed.setdefault(program, []).append(printed)
            if program == "tools/convert_checkpoint.py":
                # As the document says, what follows the weights is for the config.
                *_, command = printed.splitlines()
                self.options = shlex.split(command.partition("checkpoint.pth ")[2])

    def python(self, block):
        self.printed["python"] = self.run([sys.executable, "-c", block])

    def yaml(self, block):
        name = re.match(r"# (\S+)\n", block)[1]
        (self.folder / name).write_text(block)


@pytest.fixture(scope="module")
def folders():
    return {}


@pytest.fixture(params=["native", pytest.param("detectron2", marks=needs_detectron2)])
def reader(request, folders, tmp_path_factory):
    """Who has followed the document to its end."""
    engine = request.param
    if engine not in folders:
        folders[engine] = Reader(tmp_path_factory.mktemp(engine), engine)
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


TRIES = """
import json, sys
from smca.engine.arguments import argument_parser
from smca.engine.guard import guarded
from importlib import import_module

run = import_module(f"smca.{sys.argv[1]}.launch").run
for options in json.loads(sys.argv[2]):
    print("<", guarded(run, argument_parser().parse_args(options)), ">")
"""


@pytest.mark.slow
def test_mistakes_are_told_as_the_document_says(reader):
    assert len(MISTAKES) == 10
    start = ["--config-file", "my_data.yaml", *map(str, [*SHORT, *reader.options])]
    tries = [
        [*start, "OUTPUT_DIR", f"output/{number}", *shlex.split(options)]
        for number, (options, _) in enumerate(MISTAKES)
    ]
    host = {"native": "native", "detectron2": "d2"}[reader.engine]
    printed = reader.run([sys.executable, "-c", TRIES, host, json.dumps(tries)])
    ends = re.findall(r"^(.+)\n< [23] >$", printed, flags=re.MULTILINE)
    for (options, message), last in zip(MISTAKES, ends, strict=True):
        expected = ".*".join(map(re.escape, message.split("...")))
        assert re.fullmatch(expected, last), options
