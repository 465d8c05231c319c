"""torch's files that ask for code or memory, or hold what is no weight; and what names them."""

import argparse
import struct
import zipfile

import pytest
import torch
from torch.testing import assert_close

from smca.checkpoints import SafeCheckpointing, read_checkpoint, write_checkpoint
from smca.checkpoints.released import read_options, read_released
from smca.errors import CheckpointError
from smca.modeling import build_detector

# Of tensors that are sparse or quantised, and of TorchScript.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WEIGHT = {"model": {"a": torch.arange(4.0)}}


def refused(path, message, read=read_checkpoint):
    with pytest.raises(CheckpointError) as error:
        read(path)
    assert message in str(error.value) and str(path) in str(error.value)
    assert len(str(error.value)) < 1000 and str(error.value).isprintable()


def repacked(path, change=lambda name, data: data, **options):
    """The parts of a file, changed, in a new one."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", **options) as file:
        for name, data in parts.items():
            file.writestr(name, change(name, data))


def pickled(old, new):
    """Another shape or size in the pickle of ``WEIGHT``."""

    def change(name, data):
        if name.endswith("data.pkl"):
            assert data.count(old) == 1
            return data.replace(old, new)
        return data

    return change


def number(value):
    return b"\x8a\x08" + struct.pack("<q", value)


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
    refused(tmp_path / "a.pth", "its parts are compressed")
    repacked(tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "cannot be read")


SIZE, SHAPE = b"K\x04tq\tQ", b"QK\x00K\x04\x85q\nK\x01\x85"
SIZES = {
    "numbers": pickled(SIZE, number(10**11) + b"tq\tQ"),
    "shape": pickled(SHAPE, b"QK\x00" + number(10**11) + b"\x85q\nK\x01\x85"),
    "spread": pickled(SHAPE, b"QK\x00" + number(10**12) + b"\x85q\nK\x00\x85"),
    "negative": pickled(SHAPE, b"QK\x00" + number(-4) + b"\x85q\nK\x01\x85"),
    "place": pickled(SHAPE, b"Q" + number(10**11) + b"K\x04\x85q\nK\x01\x85"),
    "tuples": lambda name, data: (
        b"\x80\x02})" + b"\x85" * 500_000 + b"K\x01s." if name.endswith("data.pkl") else data
    ),
}


@pytest.mark.parametrize("what", SIZES)
def test_a_small_file_takes_little_memory(tmp_path, little_memory, what):
    torch.save(WEIGHT, tmp_path / "a.pth")
    repacked(tmp_path / "a.pth", SIZES[what])
    with little_memory(1024):
        refused(tmp_path / "a.pth", "a.pth")


def test_parts_that_lie_over_each_other_are_refused(tmp_path):
    """As in files of which every part is the whole of another."""
    path = tmp_path / "a.pth"
    torch.save(WEIGHT, path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("a/data/1", bytes(10_000))
        for copy in range(2, 50):
            other = zipfile.ZipInfo(f"a/data/{copy}")
            part = file.getinfo("a/data/1")
            for key in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(other, key, getattr(part, key))
            file.filelist.append(other)
    refused(path, "parts are larger than it is")


OTHERS = {
    "sparse": (lambda: torch.eye(2).to_sparse(), "only plain ones"),
    "huge sparse": (lambda: torch.sparse_coo_tensor([[1]], [1.0], (10**12,)), "only plain ones"),
    "meta": (lambda: torch.empty(10**12, device="meta"), "only plain ones"),
    "quantized": (
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        "only plain",
    ),
    "complex": (lambda: torch.ones(2, dtype=torch.complex64), "only plain ones"),
    "spread": (lambda: torch.ones(1).expand(10**12), "does not hold all"),
    "list": (lambda: [1.0], "is a list, not a tensor"),
    "none": (lambda: None, "is a NoneType, not a tensor"),
}


@pytest.mark.parametrize("part", ["model", "ema"])
@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_weight_is_named(tmp_path, little_memory, what, part):
    make, message = OTHERS[what]
    torch.save({**WEIGHT, part: {"decoder.weight": make()}}, tmp_path / "a.pth")
    with little_memory(1024):
        refused(tmp_path / "a.pth", message)


def test_parameters_and_numbers_that_are_not_finite_are_weights(tmp_path):
    # The weights of a run that has diverged are there to be looked at.
    model = {"a": torch.nn.Parameter(torch.full((2,), torch.nan)), "b": torch.tensor(3)}
    torch.save({"model": model}, tmp_path / "a.pth")
    assert_close(read_checkpoint(tmp_path / "a.pth")["model"], model, equal_nan=True)


@pytest.mark.parametrize("name", ["\x1b[2J", "a\n", 3, ("a",), "\ud800"])
def test_names_that_are_none_are_refused(tmp_path, name):
    torch.save({"model": {name: torch.ones(1)}}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "is not a tensor's name")


def test_class_names_of_any_language_are_read(tmp_path):
    names = ["nö", "信号機", "traffic\u00a0light", "👩\u200d🚒"]
    write_checkpoint({**WEIGHT, "class_names": names}, tmp_path / "a.pth")
    assert read_checkpoint(tmp_path / "a.pth")["class_names"] == names


@pytest.mark.parametrize("names", [3, "abc", [1, 2], ["a", "\x1b[2J"], ["a\nb"], [["a"]]])
def test_class_names_that_are_none_are_refused(tmp_path, names):
    torch.save({**WEIGHT, "class_names": names}, tmp_path / "a.pth")
    refused(tmp_path / "a.pth", "class_names")


def test_released_files_do_not_make_the_model_large(tmp_path, little_memory):
    path, layer = tmp_path / "a.pth", "transformer.encoder.layers."
    names = [f"{layer}{number}.linear1.weight" for number in range(3000)]
    torch.save({"model": dict.fromkeys(names, torch.ones(1))}, path)
    refused(path, "3000 encoder", lambda path: read_options(read_released(path), "detr"))
    heads = {"class_embed.weight": torch.ones(1).expand(92, 10**10)}
    torch.save({"model": heads, "args": argparse.Namespace(nheads=10**30)}, path)
    with little_memory(1024):
        refused(path, "does not hold all", read_released)


@pytest.fixture
def run(tmp_path, tiny_config):
    """A folder with two checkpoints, and what resumes there."""
    folder = tmp_path / "run"
    folder.mkdir()
    checkpointer = SafeCheckpointing(build_detector(tiny_config()), str(folder))
    for iteration in (1, 2):
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    return checkpointer


@pytest.mark.parametrize(
    "text",
    [b"../other.pth", b"/etc/passwd", b"", b"\n", b"\xff\xfe\x00\x80" * 50, b"a\0b", b"x" * 10**6]
    + [b"\x1b[2Jmodel.pth", b".", b"..", b"../run"],
    ids=range(11),
)
def test_what_names_the_last_checkpoint_names_a_file_beside_it(run, tmp_path, caplog, text):
    write_checkpoint({"model": run.model.state_dict(), "iteration": 9}, tmp_path / "other.pth")
    (tmp_path / "run/last_checkpoint").write_bytes(text)
    assert run.resume_or_load("", resume=True)["iteration"] == 2
    (warning,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert "is damaged" in warning and warning.isprintable() and len(warning) < 1000


def test_a_moved_run_resumes(run, tmp_path):
    (tmp_path / "run/last_checkpoint").write_text("/elsewhere/run/model_0000001.pth")
    assert run.resume_or_load("", resume=True)["iteration"] == 1
