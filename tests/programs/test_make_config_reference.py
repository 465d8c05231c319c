"""docs/CONFIG.md says everything of every key, and is up to date."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import pytest

import smca
from smca.config import flatten
from smca.config.model_keys import ABOUT

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools/make_config_reference.py"
config_reference = runpy.run_path(str(TOOL))["config_reference"]
ROW = re.compile(r"^\| `([A-Z][A-Z0-9_.]*)` \| `(.*)` \| (.*) \| (.*) \| (.*) \|$", re.M)


@pytest.fixture(scope="module")
def rows():
    """``{key: (default, may be, meaning, whose)}``"""
    found = ROW.findall(config_reference())
    assert len({key for key, *_ in found}) == len(found)
    return {key: cells for key, *cells in found}


def test_the_page_is_up_to_date(start_program):
    # In its own process: other tests register config keys in this one.
    start_program("--check", script=TOOL).done()


def test_what_is_out_of_date_is_said(monkeypatch, capsys, tmp_path):
    tool = tmp_path / "tools" / TOOL.name
    tool.parent.mkdir()
    shutil.copy(TOOL, tool)
    page = tmp_path / "docs/CONFIG.md"
    page.parent.mkdir()
    page.write_text("# Configuration\n")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", [str(tool), *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(tool), run_name="__main__")
        return end.value.code

    assert run("--check") == 1
    assert f"{page} is out of date: run python {tool}" in capsys.readouterr().err
    assert page.read_text() == "# Configuration\n"
    assert run() == 0 and page.read_text() == config_reference()
    assert run("--check") == 0


def test_every_key_has_a_row_with_its_default(rows):
    defaults = flatten(smca.get_cfg())
    assert {key: cells[0] for key, cells in rows.items()} == {
        key: repr(value) for key, value in defaults.items()
    }


def test_every_key_has_a_meaning(rows):
    assert not [key for key, (_, _, meaning, _) in rows.items() if not meaning]


def test_whose_a_key_is(rows):
    with_ours = set(flatten(smca.get_cfg()))
    ours = {key for key, (*_, whose) in rows.items() if whose == "ours"}
    assert {key for key in with_ours if key.startswith("MODEL.SMCA.")} <= ours
    others = {key for key in ours if not key.startswith("MODEL.SMCA.")}
    assert {"MODEL.EMA.DECAY", "SOLVER.OPTIMIZER", "DATASETS.COCO_FORMAT"} <= others
    assert not {"SOLVER.BASE_LR", "MODEL.WEIGHTS", "SEED"} & others
    assert {cells[-1] for cells in rows.values()} == {"ours", "Detectron2's"}


@pytest.mark.parametrize(
    ("key", "may_be", "meaning"),
    [
        (
            "MODEL.SMCA.MODULATION.HEADS",
            "one of 'multi', 'shared'",
            "'multi': each head has its own",
        ),
        ("MODEL.SMCA.NUM_QUERIES", "integer, at least 1", "object queries"),
        ("MODEL.SMCA.COMPILE", "True or False", "in the first iteration, for images of all"),
        ("MODEL.SMCA.ENCODER.NAME", "one of 'DeformableEncoder', 'DepthwiseEncoder'", "REGISTRY"),
        ("MODEL.EMA.ENABLED", "True or False", "an exponential moving average"),
        ("SOLVER.AMP.ENABLED", "True or False", "mixed precision"),
        ("SOLVER.OPTIMIZER", "one of 'AdamW', 'SGD', 'SGD+AdamW'", "'SGD' is for"),
        ("SOLVER.BASE_LR_END", "number, finite and at least 0", "WarmupCosineLR"),
        ("OUTPUT_DIR", "a path", "run"),
    ],
)
def test_some_rows(rows, key, may_be, meaning):
    assert may_be in rows[key][1] and meaning in rows[key][2]


def test_groups_have_their_sentences():
    page = config_reference()
    for group, sentence in ABOUT.items():
        assert f"\n## {group}\n\n{sentence}\n\n| key |" in page
