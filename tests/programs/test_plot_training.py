"""tools/plot_training.py as users run it."""

import json
import re

import pytest
from PIL import Image


@pytest.fixture
def plot(program):
    """``plot(folder, "--output", ...)`` runs the program: its exit code, and what it printed."""

    def start(*arguments):
        code, printed = program("tools/plot_training.py", *arguments)
        return code, printed.splitlines()

    return start


@pytest.fixture
def run(tmp_path):
    """A run written by hand, without epochs."""
    folder = tmp_path / "by_hand"
    folder.mkdir()
    lines = [
        {"iteration": 19, "total_loss": 9.0, "lr": 1e-4, "time": 0.5, "data_time": 0.1},
        {"iteration": 39, "total_loss": 7.0, "lr": 1e-4, "time": 0.5, "data_time": 0.1},
        {"iteration": 39, "bbox/AP": 12.34, "bbox/AP50": 30.0},
    ]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.yaml").write_text("SOLVER:\n  IMS_PER_BATCH: 6\n")
    return folder


def test_a_run_beside_another_and_the_authors(run, config_file, train_net, plot, tmp_path):
    trained = tmp_path / "out"
    file = config_file("TEST.EVAL_PERIOD", 3)
    train_net("--engine", "native", "--config-file", file)
    picture, table = tmp_path / "training.png", tmp_path / "training.md"
    command = (trained, run, tmp_path, "--output", picture, "--markdown", table, "--more")
    options = ("--images", 12, "--authors", "all", "--ap50")
    passed_over = f"{tmp_path} has no metrics.json and is passed over"
    assert plot(*command, *options) == (0, [passed_over, str(picture), str(table)])
    with Image.open(picture) as image:
        assert image.width > 1000 and image.height > 1000

    head, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.read_text().splitlines()
    ]
    rows = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    entries = map(json.loads, (trained / "metrics.json").read_text().splitlines())
    found = [entry["bbox/AP"] for entry in entries if "bbox/AP" in entry]
    assert len(found) == 2
    ours = rows["out"]
    assert (ours["iterations"], ours["epochs"]) == ("6", "2")
    assert (ours["AP"], ours["best AP"]) == (f"{found[-1]:.1f}", f"{max(found):.1f}")
    assert ours["at epoch"] == ("1" if found[0] >= found[1] else "2")
    assert (rows["by_hand"]["epochs"], rows["by_hand"]["AP"]) == ("20", "12.3")
    assert rows["by_hand"]["s an iteration"] == "0.500"
    assert sum(name.startswith("SMCA's authors") for name in rows) == 3

    before = picture.read_bytes()
    code, printed = plot(*command, *options)
    assert code == 2 and "training.png exists; give --overwrite" in printed[-1]
    assert picture.read_bytes() == before
    assert plot(*command, "--images", 12, "--overwrite")[0] == 0
    assert picture.read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("RUN", "--authors", "depthwise_R50"), r"of by_hand have no epochs.*--images"),
        (("RUN", "--authors", "R50"), "depthwise_R101"),
        (("RUN", "--images", 0), "--images is at least 1"),
        (("RUN", "--smooth", 200), "--smooth is a percentage"),
        (("RUN", "--output", "FOLDER/training.xyz"), "xyz"),
        (("RUN", "--output", "FOLDER/none/training.png"), "give a file in a folder that exists"),
        (("FOLDER",), "there is no run to draw"),
    ],
)
def test_errors_name_the_remedy(run, plot, tmp_path, arguments, message):
    names = {"RUN": str(run), "FOLDER": str(tmp_path)}
    filled = [re.sub("RUN|FOLDER", lambda m: names[m[0]], str(part)) for part in arguments]
    code, printed = plot("--output", tmp_path / "training.png", *filled)
    assert code == 2 and re.search(message, printed[-1])
    assert not list(tmp_path.glob("training.*"))


def test_a_broken_file_is_named(run, plot, tmp_path):
    path = run / "metrics.json"
    path.write_text("nonsense\n" + path.read_text())
    code, printed = plot(run, "--output", tmp_path / "training.svg")
    assert code == 2 and f"{path}, line 1 is not a JSON object" in printed[-1]
