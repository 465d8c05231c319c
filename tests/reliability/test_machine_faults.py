"""Faults of the machine under train_net.py, in each host: losses and messages."""

import subprocess
from pathlib import Path

import pytest
import torch


@pytest.fixture
def disk(tmp_path):
    """``disk(bytes)``: a folder on a disk of that size; called again, the disk gets this size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def size(count):
        options = f"size={count}" + (",remount" if folder.is_mount() else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount a tmpfs")
        return folder

    yield size
    if folder.is_mount():
        # At once, although a log in it may still be open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_leaves_the_checkpoint_before(
    engine, config_file, program, train_net, tmp_path, disk
):
    run = ("--engine", engine, "--config-file", config_file("MODEL.RESNETS.NORM", "FrozenBN"))
    train_net(*run)
    whole = tmp_path / "out/model_final.pth"
    # Room for a checkpoint and a half, and the logs.
    folder = disk(whole.stat().st_size * 3 // 2 + 200_000)
    returncode, output = program("train_net.py", *run, "OUTPUT_DIR", folder)
    assert returncode == 2, output[-3000:]
    message = (
        f"CheckpointError: {folder}/model_0000003.pth cannot be written: No space left on device."
    )
    assert output.splitlines()[-1].startswith(message), output[-3000:]
    assert sorted(path.name for path in folder.glob("*.pth*")) == ["model_0000001.pth"]
    assert (folder / "last_checkpoint").read_text() == "model_0000001.pth"

    disk(whole.stat().st_size * 10)
    train_net(*run, "--resume", "OUTPUT_DIR", folder)
    models = [torch.load(path, weights_only=True) for path in (whole, folder / whole.name)]
    torch.testing.assert_close(models[0]["model"], models[1]["model"], rtol=0, atol=0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_a_disk_that_has_no_room_for_results_or_the_log(
    engine, config_file, start_program, tmp_path
):
    results = tmp_path / "out/inference/coco_instances_results.json"
    results.parent.mkdir(parents=True)
    for path in (results, tmp_path / "out/log.txt"):
        path.symlink_to("/dev/full")
    file = config_file("SOLVER.MAX_ITER", 1, "SOLVER.STEPS", ())
    process = start_program("--engine", engine, "--config-file", file)
    output = process.printed()
    assert process.returncode == 2, output[-3000:]
    last = output.splitlines()[-1]
    assert last.startswith("OSError: [Errno 28] No space left on device; give the place the room ")
    assert "Traceback" not in output
    assert (tmp_path / "out/last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize("fault", ["truncated", "flipped", "empty"])
def test_resuming_passes_over_a_damaged_checkpoint(engine, config_file, train_net, tmp_path, fault):
    run = ("--engine", engine, "--config-file", config_file("MODEL.RESNETS.NORM", "FrozenBN"))
    train_net(*run)
    folder = tmp_path / "out"
    expected = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    newest = sorted(set(folder.glob("model_[0-9f]*.pth")) - {folder / "model_0000001.pth"})
    assert len(newest) > 1
    for path in newest:
        content = bytearray(path.read_bytes())
        if fault == "flipped":
            content[len(content) // 3] ^= 1
        damaged = {"truncated": content[: len(content) // 2], "flipped": content, "empty": b""}
        path.write_bytes(damaged[fault])
    output = train_net(*run, "--resume")
    assert all(f"{path.name} is damaged" in output for path in newest), output
    resumed = torch.load(folder / "model_final.pth", weights_only=True)["model"]
    torch.testing.assert_close(resumed, expected, rtol=0, atol=0)
