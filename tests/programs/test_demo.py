"""demo.py as users run it, and where it reads from and writes to."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert

import smca
from smca.checkpoints import write_checkpoint
from smca.config import ConfigError
from smca.inference import sources
from smca.modeling import build_detector

NAMES = ["circle", "rectangle", "triangle"]


@pytest.fixture
def run(config_file, tiny_config, program, tmp_path):
    """``run(...)``: the program with a model of random numbers; ``run.predictor`` has the same."""
    torch.manual_seed(0)
    detector = build_detector(tiny_config())
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        detector.heads.class_head.bias.zero_()
    weights = tmp_path / "model.pth"
    write_checkpoint({"model": detector.state_dict(), "class_names": NAMES}, weights)
    model = ["--config-file", config_file(), "--weights", weights]

    def start(*arguments):
        return program("demo.py", *model, *arguments)

    start.predictor = smca.Predictor(model[1], weights)
    return start


def rows_of(result, category_ids):
    boxes = box_convert(result.boxes, "xyxy", "xywh").tolist()
    return [
        {"category_id": category_ids[label], "bbox": pytest.approx(box, abs=1e-3)}
        for box, label in zip(boxes, result.labels.tolist(), strict=True)
    ]


def read_rows(path):
    """The entries of a results file by image id."""
    rows = {}
    for row in json.loads(Path(path).read_text()):
        rows.setdefault(row["image_id"], []).append(row)
    return rows


def check(rows, image_id, file_name, result, category_ids=(1, 2, 3), **more):
    found = rows[image_id]
    places = [{key: row[key] for key in ("category_id", "bbox")} for row in found]
    assert places == rows_of(result, category_ids)
    assert [row["score"] for row in found] == pytest.approx(result.scores.tolist(), abs=1e-5)
    for row in found:
        assert row["file_name"] == str(file_name)
        assert {key: row[key] for key in more} == more
        assert row.keys() == {"image_id", "category_id", "bbox", "score", "file_name", *more}


def test_files_folders_and_patterns(run, shapes, tmp_path):
    files = sorted(Path(shapes["val"][1]).iterdir())
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir(), two.mkdir()
    Image.open(files[0]).save(one / "a.png")
    Image.open(files[1]).save(two / "a.png")
    Image.open(files[2]).save(two / "b.bmp")
    (two / "notes.txt").write_text("no image")
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(files[3].read_bytes()[:200])
    out = tmp_path / "out"
    arguments = ["--input", one / "a.png", two, broken, files[4].parent / f"*{files[4].name[-6:]}"]
    arguments += [one / "a.png", "--threshold", 0.1, "--output", out, "--batch", 2]
    arguments += ["--engine", "native", "--device", "cpu", "--save-json", out / "results.json"]
    returncode, output = run(*arguments, "TEST.DETECTIONS_PER_IMAGE", 6)
    assert returncode == 1, output[-3000:]
    assert output.count(str(broken)) == 2 and "Traceback" not in output
    assert output.splitlines()[-1] == f"1 inputs could not be read: {broken}"
    assert output.splitlines()[1] == f"Weights: {tmp_path / 'model.pth'} (as named)"
    assert f"pictures in {out}, by {tmp_path / 'model.pth'}" in output.splitlines()[-4:]
    assert "s an image, without reading and drawing (median of 1, without the first)" in output

    written = sorted(str(path.relative_to(out)) for path in out.rglob("*.*") if path.is_file())
    pictures = ["b.bmp.png", files[4].name, "one/a.png", "two/a.png"]
    assert [name for name in written if name.endswith(".png")] == sorted(pictures)
    rows = read_rows(out / "results.json")
    assert sorted(rows) == [1, 2, 3, 4]
    for image_id, path in enumerate([one / "a.png", two / "a.png", two / "b.bmp", files[4]], 1):
        result = run.predictor(path, 0.1)
        expected = smca.inference.predictor.Result(
            result.boxes[:6], result.scores[:6], result.labels[:6], result.class_names[:6]
        )
        check(rows, image_id, path, expected)
    drawn = np.asarray(Image.open(out / "one/a.png"))
    assert drawn.shape == (384, 384, 3)
    plain = np.asarray(Image.open(files[0]).resize((384, 384), Image.Resampling.BICUBIC))
    assert (drawn != plain).any(-1).mean() > 0.01

    # Again, in place of what is there; pairs after --input are no files.
    before = (out / "results.json").read_bytes()
    again = ["--output", out, "--engine", "native", "--threshold", 0.1, "--overwrite"]
    again += ["--save-json", out / "results.json", "--input", one / "a.png"]
    run(*again, "TEST.DETECTIONS_PER_IMAGE", 6).done()
    assert (out / "results.json").read_bytes() != before
    assert (out / "a.png").exists()


def test_images_of_the_configs_dataset_keep_their_ids(run, shapes, tmp_path):
    json_file, folder = shapes["val"]
    content = json.loads(Path(json_file).read_text())
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    categories = sorted(entry["id"] for entry in content["categories"])
    assert categories != [1, 2, 3]
    results = tmp_path / "results.json"
    chosen = [Path(folder) / name for name in list(ids)[3:5]]
    run("--input", *chosen, "--output", tmp_path / "out", "--save-json", results).done()
    rows = read_rows(results)
    assert sorted(rows) == [ids[path.name] for path in chosen]
    for path in chosen:
        check(rows, ids[path.name], path, run.predictor(path, 0.3), categories)


def test_a_video_is_written_with_its_rate_and_size(run, shapes, tmp_path):
    cv2 = pytest.importorskip("cv2")
    frames = [np.asarray(Image.open(path)) for path in sorted(Path(shapes["val"][1]).iterdir())]
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 12.5, (64, 64))
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    arguments = ["--input", clip, tmp_path / "broken.mp4", "--output", out, "--batch", 4]
    arguments += ["--threshold", 0.1, "--save-json", tmp_path / "results.json"]
    returncode, output = run(*arguments)
    assert returncode == 1, output[-3000:]
    assert f"1 inputs could not be read: {tmp_path / 'broken.mp4'}" in output
    drawn = cv2.VideoCapture(str(out / "clip.avi.mp4"))
    assert drawn.get(cv2.CAP_PROP_FPS) == pytest.approx(12.5)
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == len(frames) == 6
    assert drawn.read()[1].shape == (64, 64, 3)
    rows = read_rows(tmp_path / "results.json")
    seen = sources.read_frames([sources.Source(str(clip), out)], None)
    for number, frame in enumerate(seen):
        # Red, green and blue have not changed places.
        assert np.abs(frame.image.astype(int) - frames[number]).mean() < 12
        check(rows, number + 1, clip, run.predictor(frame.image, 0.1), frame=number)


def test_what_cannot_work_is_one_line(run, shapes, tmp_path):
    path = sorted(Path(shapes["val"][1]).iterdir())[0]
    ended = run("--input", path, "--output", path.parent)
    assert ended.returncode == 2
    assert ended.last.startswith(f"ConfigError: {path} is an input")
    assert "Traceback" not in ended.output


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--threshold", "nan", "--threshold is nan; scores are from 0 to 1"),
        ("--threshold", "30", "--threshold is 30; scores are from 0 to 1"),
        ("--webcam", "-5", "--webcam is -5; cameras have numbers from 0"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(flag, value, message, program):
    ended = program("demo.py", "--config-file", "a.yaml", flag, value)
    assert ended.returncode == 2 and message in ended.last


def write_images(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)


def test_names_of_outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sources, "opencv", lambda: None)
    names = ["a.jpg", "x/a.jpg", "x/y/b.PNG", "x/c.gif", "z/d[1].png"]
    write_images(*map(Path, names))
    Path("e.mov").write_bytes(b"")
    found = sources.gather(["a.jpg", "x", "**/b.PNG", "z/d[1].png", "./a.jpg", "e.mov"], "out")
    assert [(source.path, source.output.as_posix()) for source in found] == [
        ("a.jpg", "out/a.jpg"),
        ("x/a.jpg", "out/x/a.jpg"),
        ("x/c.gif", "out/c.gif.png"),
        ("x/y/b.PNG", "out/b.PNG"),
        ("z/d[1].png", "out/d[1].png"),
        ("e.mov", "out/e.mov.mp4"),
    ]
    (camera,) = sources.gather([], "out", camera=0)
    assert camera.is_video and camera.output == Path("out/camera0.mp4")
    for inputs, message in [
        (["missing.png"], "missing.png does not exist"),
        (["x/*.tif"], "tif does not exist"),
        ([], "nothing to look at"),
    ]:
        with pytest.raises(ConfigError, match=message):
            sources.gather(inputs, "out")
    Path("empty").mkdir()
    with pytest.raises(ConfigError, match="empty has no images"):
        sources.gather(["empty"], "out")


def test_nothing_of_the_users_is_overwritten(tmp_path):
    mine, other = tmp_path / "mine.png", tmp_path / "other.png"
    write_images(mine, other)
    (tmp_path / "link.png").symlink_to(mine)
    new = tmp_path / "new" / "a.png"
    for outputs in ([mine], [tmp_path / "link.png"], [new, new]):
        for overwrite in (False, True):
            with pytest.raises(ConfigError, match="is an input or another output"):
                sources.check_outputs(outputs, [str(mine)], overwrite=overwrite)
    with pytest.raises(ConfigError, match=r"other\.png exists; give --overwrite"):
        sources.check_outputs([new, other], [str(mine)], overwrite=False)
    sources.check_outputs([new, other], [str(mine)], overwrite=True)
    assert new.parent.is_dir() and not new.exists()
    with pytest.raises(OSError, match=r"mine\.png"):
        sources.check_outputs([mine / "a.png"], [], overwrite=False)


def test_videos_say_what_they_need(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "cv2", None)  # as where it is not installed
    with pytest.raises(ConfigError, match="pip install opencv-python-headless"):
        sources.gather([str(tmp_path / "a.mp4")], "out")
    with pytest.raises(ConfigError, match="pip install opencv-python-headless"):
        sources.gather([], "out", camera=0)
