"""CONTRIBUTING.md's parts of your own, block by block, in each host."""

import importlib.util
import json
import re
import shlex
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from engines import ENGINES

from smca.config import ConfigError, Own, register_keys
from smca.config.model_keys import MODEL_KEYS
from smca.data.coco_format import SMCA_READER_REGISTRY
from smca.data.sampler import SMCA_SAMPLER_REGISTRY
from smca.imports import IMPORTED
from smca.modeling import SMCA_BACKBONE_REGISTRY, SMCA_DECODER_REGISTRY

ROOT = Path(__file__).parents[2]
PARTS = (ROOT / "CONTRIBUTING.md").read_text().partition("\n## Parts of your own\n")[2]
SECTIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^###|\Z)", PARTS, re.M | re.S))
OPENED = [
    *(SMCA_BACKBONE_REGISTRY, SMCA_DECODER_REGISTRY),
    *(SMCA_READER_REGISTRY, SMCA_SAMPLER_REGISTRY),
]


def write_voc(folder, content):
    folder.mkdir(parents=True)
    names = {entry["id"]: entry["name"] for entry in content["categories"]}
    for image in content["images"]:
        root = ET.Element("annotation")
        ET.SubElement(root, "filename").text = image["file_name"]
        size = ET.SubElement(root, "size")
        for side in ("width", "height"):
            ET.SubElement(size, side).text = str(image[side])
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                item = ET.SubElement(root, "object")
                ET.SubElement(item, "name").text = names[entry["category_id"]]
                box = ET.SubElement(item, "bndbox")
                x, y, w, h = entry["bbox"]
                sides = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
                for side, value in sides.items():
                    ET.SubElement(box, side).text = str(value)
        ET.ElementTree(root).write(folder / f"{Path(image['file_name']).stem}.xml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, shapes):
    """A clone's configs, photographs and their VOC annotations; what is registered is forgotten."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "configs").symlink_to(ROOT / "configs")
    for split, (annotations, images) in shapes.items():
        (folder / "photos").mkdir(exist_ok=True)
        (folder / "photos" / split).symlink_to(images)
        write_voc(folder / "xml" / split, json.loads(Path(annotations).read_text()))
    before = [dict(registry._obj_map) for registry in OPENED], dict(MODEL_KEYS)
    yield folder
    for registry, parts in zip(OPENED, before[0], strict=True):
        registry._obj_map.clear()
        registry._obj_map.update(parts)
    IMPORTED.clear()
    MODEL_KEYS.clear()
    MODEL_KEYS.update(before[1])


def blocks(section, folder):
    """Write the files of a section; return its commands."""
    commands = []
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", SECTIONS[section], re.M | re.S):
        if language == "bash":
            commands += [shlex.split(line)[1:] for line in block.splitlines()]
        else:
            (folder / re.match(r"# (\S+)\n", block)[1]).write_text(block)
    assert commands
    return commands


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_part_of_your_own(section, engine, folder, program, shapes, tiny_opts, monkeypatch):
    monkeypatch.chdir(folder)
    data = [["shapes_train", *shapes["train"]], ["shapes_val", *shapes["val"]]]
    short = ["SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "DATALOADER.NUM_WORKERS", 0]
    if "dataset" not in section:
        short += ["DATASETS.COCO_FORMAT", data]
    for name, *arguments in blocks(section, folder):
        flags = [] if name.startswith("tools/") else ["--engine", engine]
        if name == "demo.py":
            flags += ["--overwrite"]
        opts = [*tiny_opts, *short] if name == "train_net.py" else []
        program(name, *flags, *arguments, *opts).done()
    (output,) = re.findall(r"^OUTPUT_DIR: (\S+)", SECTIONS[section], re.M)
    assert (folder / output / "model_final.pth").exists()
    metrics = (folder / output / "metrics.json").read_text()
    assert "bbox/AP" in metrics


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_each_worker_imports_it(engine, folder, start_program, shapes, tiny_opts, tmp_path):
    blocks("A decoder of your own", folder)
    data = [["shapes_train", *shapes["train"]], ["shapes_val", *shapes["val"]]]
    start_program(
        *("--engine", engine, "--import", folder / "grid_decoder.py", "--num-gpus", 2),
        *("--config-file", folder / "grid.yaml", *tiny_opts, "OUTPUT_DIR", tmp_path / "out"),
        *("SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "DATALOADER.NUM_WORKERS", 0),
        *("DATASETS.COCO_FORMAT", data),
    ).done()
    assert (tmp_path / "out/model_final.pth").exists()


def test_the_decoders_own_test(folder):
    blocks("A decoder of your own", folder)
    spec = importlib.util.spec_from_file_location("grid_test", folder / "test_grid_decoder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.test_queries_begin_on_a_grid()


def test_what_cannot_be_imported_is_said(program, tmp_path):
    (tmp_path / "json.py").write_text("")
    (tmp_path / "a.b.py").write_text("")
    config = ("--config-file", "configs/quickstart.yaml")
    for name, message in [
        ("no_such_module", "there is no such module; install it"),
        ("smca.no_such_module", "there is no such module; install it"),
        (tmp_path / "nowhere.py", "there is no such file"),
        (tmp_path / "json.py", "a module 'json' exists; rename the file"),
        (tmp_path / "a.b.py", "its name cannot be a module's; rename the file"),
    ]:
        ended = program("train_net.py", "--import", name, *config)
        assert ended.returncode == 2 and message in ended.last
    ended = program("train_net.py", *config, "XYZ.ABC", 1)
    assert ended.returncode == 2 and "a key of your own needs --import" in ended.last


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("MODEL.RESNETS", {"DEPTH": Own(1, "")}, "the config key MODEL.RESNETS.DEPTH exists"),
        ("MODEL.FPN", {"WIDTH": Own(1, "")}, "the config key MODEL.FPN exists"),
        ("MODEL", {"RESNETS": Own(1, "")}, "exists; give MODEL.RESNETS another name"),
        ("MODEL.SMCA.NHEADS", {"X": Own(1, "")}, "the config key MODEL.SMCA.NHEADS exists"),
        ("MODEL.MINE", {"X": 0.5}, "MODEL.MINE.X is 0.5; it must be an Own"),
    ],
)
def test_keys_that_cannot_be_registered(name, keys, message):
    before = dict(MODEL_KEYS)
    with pytest.raises(ConfigError, match=message):
        register_keys(name, **keys)
    assert before == MODEL_KEYS
