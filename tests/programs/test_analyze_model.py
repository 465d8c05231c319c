"""tools/analyze_model.py as users run it."""

import re

import pytest

TOOL = "tools/analyze_model.py"


@pytest.mark.slow
def test_a_model_by_parts(program):
    output = program(
        TOOL,
        *("--config-file", "configs/quickstart.yaml", "--size", 128, 192, "--batch", 2),
        *("--engine", "native", "MODEL.SMCA.NUM_QUERIES", 7),
    ).done()
    assert "Warning" not in output
    assert "2 x 3 x 128 x 192" in output
    (whole,) = re.findall(r"^all +([\d.]+) M +([\d.]+) M +([\d.]+) G +([\d.]+) M$", output, re.M)
    parts = re.findall(r"^  \w+ +([\d.]+) M +([\d.]+) M +([\d.]+) G +([\d.]+) M$", output, re.M)
    assert len(parts) == 5
    for total, column in zip(whole, zip(*parts, strict=True), strict=True):
        assert float(total) == pytest.approx(sum(map(float, column)), abs=3e-3)
    evaluation, training = map(float, re.findall(r"^  [a-z ]+ ([\d.]+) GiB$", output, re.M))
    assert evaluation < training < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config-file", "configs/none.yaml"), "configs/none.yaml"),
        (("--config-file", "configs/quickstart.yaml", "MODEL.SMCA.QUERIES", 1), "NUM_QUERIES"),
        (("--config-file", "configs/quickstart.yaml", "--size", 0, 1), "--size"),
        (
            (
                "--engine",
                "native",
                "--config-file",
                "configs/baselines/faster_rcnn_FPN_R50_36ep.yaml",
            ),
            "--engine detectron2",
        ),
    ],
)
def test_errors_name_the_remedy(program, arguments, message):
    ended = program(TOOL, *arguments)
    assert ended.returncode == 2
    assert message in ended.last
    assert "Traceback" not in ended.output
