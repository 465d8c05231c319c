"""What a run saves, and what it resumes from."""

import pytest
import torch
from torch.testing import assert_close

from smca.checkpoints import SafeCheckpointing, load, write_checkpoint
from smca.errors import CheckpointError
from smca.modeling import build_detector


def test_no_path_loads_nothing(tmp_path, detector):
    for path in (None, ""):
        assert SafeCheckpointing(detector, str(tmp_path)).load(path) == {}


def test_an_address_that_nobody_knows(tmp_path, detector):
    """Addresses that are known are tested in test_fetching.py."""
    with pytest.raises(CheckpointError, match="manifold://a.pth cannot be fetched .* other means"):
        SafeCheckpointing(detector, str(tmp_path)).load("manifold://a.pth")
    with pytest.raises(FileNotFoundError, match="manifold://a.pth' does not exist; download it"):
        load(detector, "manifold://a.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        load(detector, tmp_path)


@pytest.mark.parametrize("fault", ["truncated", "flipped", "empty", "gone"])
def test_a_damaged_newest_file_is_passed_over(tmp_path, tiny_config, caplog, fault):
    detector = build_detector(tiny_config())
    for number in range(3):
        with torch.no_grad():
            detector.decoder.query_embed.weight.fill_(number)
        checkpointer = SafeCheckpointing(detector, str(tmp_path))
        checkpointer.save_periodic(number)
    newest = tmp_path / "model_0000002.pth"
    content = bytearray(newest.read_bytes())
    if fault == "flipped":
        content[len(content) // 2] ^= 16
    newest.write_bytes({"truncated": content[:-1000], "flipped": content}.get(fault, b""))
    if fault == "gone":
        newest.unlink()
    extra = checkpointer.resume_or_load("", resume=True)
    assert extra["iteration"] == 1
    assert (detector.decoder.query_embed.weight == 1).all()
    (warning,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert "model_0000002.pth is damaged" in warning

    for path in tmp_path.glob("*.pth"):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint.*model_0000002\.pth.*000000"):
        checkpointer.resume_or_load("", resume=True)


def averaged_file(path, detector):
    """A checkpoint whose averaged weights are twice those of training; returns both."""
    state = detector.state_dict()
    average = {name: 2 * tensor for name, tensor in state.items()}
    write_checkpoint({"model": state, "ema": average, "iteration": 7}, path)
    return state, average


def test_a_reader_of_weights_takes_the_averaged_ones(tmp_path, detector, tiny_config):
    _, average = averaged_file(tmp_path / "a.pth", detector)
    other = build_detector(tiny_config())
    assert load(other, tmp_path / "a.pth", strict=True) == {"iteration": 7}
    assert_close(other.state_dict(), average, rtol=0, atol=0)
    # A new run that starts from them, too.
    other = build_detector(tiny_config())
    checkpointer = SafeCheckpointing(other, str(tmp_path / "new"))
    assert "ema" not in checkpointer.resume_or_load(str(tmp_path / "a.pth"), resume=True)
    assert_close(other.state_dict(), average, rtol=0, atol=0)


def test_a_resumed_run_takes_both(tmp_path, detector, tiny_config):
    state, average = averaged_file(tmp_path / "a.pth", detector)
    (tmp_path / "last_checkpoint").write_text("a.pth")
    other = build_detector(tiny_config())
    checkpointer = SafeCheckpointing(other, str(tmp_path))
    rest = checkpointer.resume_or_load("", resume=True)
    assert_close(other.state_dict(), state, rtol=0, atol=0)
    assert_close(rest["ema"], average, rtol=0, atol=0)
    # An evaluation of the same file does not.
    evaluated = build_detector(tiny_config())
    SafeCheckpointing(evaluated, strict=True).load(str(tmp_path / "a.pth"), checkpointables=[])
    assert_close(evaluated.state_dict(), average, rtol=0, atol=0)


def test_class_names_are_saved_where_they_are_known(tmp_path, detector):
    names = ("circle", "square", "triangle")
    SafeCheckpointing(detector, str(tmp_path)).save("without")
    detector.class_names = names
    SafeCheckpointing(detector, str(tmp_path)).save("with", iteration=3)
    assert "class_names" not in load(detector, tmp_path / "without.pth")
    extra = load(detector, tmp_path / "with.pth")
    assert extra == {"class_names": list(names), "iteration": 3}


def test_a_folder_with_another_runs_checkpoints(tmp_path, caplog):
    """A run that begins anew there says so, and resumes only from its own files."""
    checkpointer = SafeCheckpointing(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save_periodic(9)
    checkpointer.resume_or_load("", resume=False)
    assert "--resume would have gone on from them" in caplog.text
    for number in (1, 3):
        checkpointer.save_periodic(number)
    (tmp_path / "model_0000003.pth").write_bytes(b"")
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")


def test_a_resumed_run_keeps_its_number_of_queries(tmp_path, detector, tiny_config):
    SafeCheckpointing(detector, str(tmp_path)).save_periodic(0)
    message = r"check MODEL\.SMCA\.NUM_QUERIES and QUERY_GROUPS: .*query_embed\.weight .*\(10, 32\)"
    for key, number in (("NUM_QUERIES", 4), ("QUERY_GROUPS", 2)):
        other = build_detector(tiny_config(f"MODEL.SMCA.{key}", number))
        with pytest.raises(CheckpointError, match=message):
            SafeCheckpointing(other, str(tmp_path)).resume_or_load("", resume=True)
