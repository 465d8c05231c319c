"""torch's files that ask to run code, or hold something other than weights; and their names."""

import zipfile

import pytest
import torch
from torch.testing import assert_close

from released_files import read_released
from smca.checkpoints import SafeCheckpointing, read_checkpoint, write_checkpoint
from smca.errors import CheckpointError
from smca.modeling import build_detector

# torch warns of TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WEIGHT = {"model": {"a": torch.arange(4.0)}}


def refused(path, message, read=read_checkpoint):
    with pytest.raises(CheckpointError) as error:
        read(path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert len(str(error.value)) < 1000 and str(error.value).isprintable()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["model", "trainer", "key"])
def test_no_code_runs_wherever_it_stands(tmp_path, payload, zipped, where):
    content = {
        "model": {"model": {"a": payload}},
        "trainer": {**WEIGHT, "trainer": [{"hooks": (payload,)}]},
        "key": {**WEIGHT, payload: 1},
    }[where]
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    for read in (read_checkpoint, read_released):
        refused(tmp_path / "a.pth", "refused to load posix.mkdir", read)


def test_files_from_before_zip_are_read(tmp_path):
    torch.save(WEIGHT, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert_close(read_checkpoint(tmp_path / "a.pth")["model"], WEIGHT["model"])
    content = (tmp_path / "a.pth").read_bytes()
    for end in range(0, len(content), 7):
        (tmp_path / "a.pth").write_bytes(content[:end])
        refused(tmp_path / "a.pth", "cannot be read")


def test_torchscript_is_no_checkpoint(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "cannot be read")


def test_a_file_that_was_packed_again_is_read(tmp_path):
    torch.save(WEIGHT, tmp_path / "a.pth")
    with (
        zipfile.ZipFile(tmp_path / "a.pth") as file,
        zipfile.ZipFile(tmp_path / "b.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in file.namelist():
            packed.writestr(name, file.read(name))
    assert_close(read_checkpoint(tmp_path / "b.pth")["model"], WEIGHT["model"])


OTHERS = {
    "list": ([1.0], "is a list, not a tensor"),
    "none": (None, "is a NoneType, not a tensor"),
}


@pytest.mark.parametrize("part", ["model", "ema"])
@pytest.mark.parametrize("kind", OTHERS)
def test_other_things_than_weights_are_named(tmp_path, kind, part):
    content, message = OTHERS[kind]
    torch.save({**WEIGHT, part: {"decoder.weight": content}}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", message)


def test_parameters_and_numbers_that_are_not_finite_are_weights(tmp_path):
    # The weights of a run that has diverged are there to be looked at.
    model = {"a": torch.nn.Parameter(torch.full((2,), torch.nan)), "b": torch.tensor(3)}
    torch.save({"model": model}, tmp_path / "a.pth")
    assert_close(read_checkpoint(tmp_path / "a.pth")["model"], model, equal_nan=True)


@pytest.mark.parametrize("name", ["\x1b[2J", "a\n", 3, ("a",), "\ud800"])
def test_names_that_are_not_text_are_refused(tmp_path, name):
    torch.save({"model": {name: torch.ones(1)}}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "is not a tensor's name")


def test_class_names_of_any_language_are_read(tmp_path):
    names = ["nö", "信号機", "traffic\u00a0light", "👩\u200d🚒"]
    write_checkpoint({**WEIGHT, "class_names": names}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")["class_names"] == names


@pytest.mark.parametrize("names", [3, "abc", [1, 2], ["a", "\x1b[2J"], ["a\nb"], [["a"]]])
def test_class_names_that_are_no_list_of_names_are_refused(tmp_path, names):
    torch.save({**WEIGHT, "class_names": names}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "class_names")


@pytest.mark.parametrize("groups", ["5", 0, -1, 2.5, [5]])
def test_query_groups_that_are_no_number_are_refused(tmp_path, groups):
    torch.save({**WEIGHT, "query_groups": groups}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "query_groups")


@pytest.fixture
def run(tmp_path, tiny_config):
    """The checkpointer of a run whose folder has two checkpoints."""
    folder = tmp_path / "run"
    folder.mkdir()
    checkpointer = SafeCheckpointing(build_detector(tiny_config()), str(folder))
    for iteration in (1, 2):
        checkpointer.save_periodic(iteration)
    return checkpointer


@pytest.mark.parametrize(
    "text",
    [b"../other.pth", b"/etc/passwd", b"", b"\n", b"\xff\xfe\x00\x80" * 50, b"a\0b", b"..", b"."],
    ids=range(8),
)
def test_last_checkpoint_names_a_file_beside_it(run, tmp_path, caplog, text):
    write_checkpoint({"model": run.model.state_dict(), "iteration": 9}, tmp_path / "other.pth")
    (tmp_path / "run/last_checkpoint").write_bytes(text)
    assert run.resume_or_load("", resume=True)["iteration"] == 2
    (warning,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert "is damaged" in warning


def test_a_moved_run_resumes(run, tmp_path):
    (tmp_path / "run/last_checkpoint").write_text("/elsewhere/run/model_0000001.pth")
    assert run.resume_or_load("", resume=True)["iteration"] == 1
