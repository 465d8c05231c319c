import json

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from smca.visualization.attention import draw_co_attention, gaussian_ellipse
from smca.visualization.curves import plot_ap, read_metrics
from smca.visualization.detections import class_color, draw_detections, save_grid

GREY = np.full((400, 400, 3), 128, dtype=np.uint8)


def has_color(picture: Image.Image, x: int, y: int, color: tuple[int, int, int]) -> bool:
    return picture.getpixel((x, y)) == color


class TestDetections:
    def test_the_edges_of_a_box_have_the_color_of_its_class(self):
        picture = draw_detections(GREY, [[50, 100, 350, 300]], [2], [0.9], threshold=0.5)
        assert picture.size == (400, 400)
        for x, y in [(50, 200), (349, 200), (200, 100), (200, 299), (50, 299), (349, 299)]:
            assert has_color(picture, x, y, class_color(2)), (x, y)
        for x, y in [(200, 200), (45, 200), (354, 200), (200, 304)]:
            assert has_color(picture, x, y, (128, 128, 128)), (x, y)

    def test_small_images_are_enlarged_with_their_boxes(self):
        picture = draw_detections(GREY[:96, :128], [[32, 32, 96, 64]], [0])
        assert picture.size == (384, 288)
        assert has_color(picture, 96, 150, class_color(0))
        assert has_color(picture, 287, 150, class_color(0))
        assert has_color(picture, 200, 191, class_color(0))

    def test_only_certain_detections_are_drawn_and_the_most_certain_on_top(self):
        boxes = [[50, 100, 350, 300], [50, 100, 350, 300], [100, 150, 200, 250]]
        picture = draw_detections(GREY, boxes, [0, 1, 2], [0.9, 0.6, 0.2], threshold=0.5)
        assert has_color(picture, 50, 200, class_color(0))
        assert has_color(picture, 100, 200, (128, 128, 128))
        assert_array_equal(np.asarray(draw_detections(GREY, boxes, [0] * 3, [0.1] * 3)), GREY)

    def test_two_tags_of_one_corner_are_both_readable(self):
        box = [150, 150, 250, 250]
        names = ["first", "second"]
        both = np.asarray(draw_detections(GREY, [box, box], [0, 1], [0.9, 0.8], names))
        for label, score in ((0, 0.9), (1, 0.8)):
            alone = np.asarray(draw_detections(GREY, [box], [label], [score], names))
            ground = (alone == class_color(label)).all(axis=2)
            ground[147:253, 147:253] = False
            kept = (both == class_color(label)).all(axis=2)
            kept[147:253, 147:253] = False
            assert kept.sum() == ground.sum() > 100

    def test_ground_truth_is_dashed_black_and_white_under_the_detections(self):
        picture = draw_detections(GREY, [[0, 0, 400, 50]], [0], truth=[[100, 0, 300, 300]])
        left_edge = {picture.getpixel((100, y)) for y in range(60, 300)}
        assert left_edge == {(0, 0, 0), (255, 255, 255)}
        assert has_color(picture, 100, 49, class_color(0))

    def test_boxes_that_leave_the_image_or_have_no_size(self):
        boxes = [[-100, -100, 900, 900], [10, 10, 10, 10]]
        assert draw_detections(GREY, boxes, [0, 1]).size == (400, 400)
        assert draw_detections(GREY, np.zeros((0, 4)), []).size == (400, 400)

    def test_colors_tell_classes_apart(self):
        colors = np.array([class_color(label) for label in range(10)], dtype=float)
        distances = np.linalg.norm(colors[:, None] - colors[None], axis=2)
        assert distances[~np.eye(10, dtype=bool)].min() > 40

    def test_grid(self, tmp_path):
        images = [Image.new("RGB", (20, 10), color) for color in ("red", "lime", "blue")]
        save_grid(images, tmp_path / "new" / "grid.png", columns=2, gap=4)
        with Image.open(tmp_path / "new" / "grid.png") as grid:
            assert grid.size == (44, 24)
            assert grid.getpixel((0, 0)) == (255, 0, 0)
            assert grid.getpixel((24, 0)) == (0, 255, 0)
            assert grid.getpixel((0, 14)) == (0, 0, 255)
            assert grid.getpixel((24, 14)) == (255, 255, 255)
        with pytest.raises(ValueError, match="no images"):
            save_grid([], tmp_path / "none.png")


def test_the_ellipse_lies_where_the_gaussian_is_exp_minus_half():
    center, covariance = np.array([30.0, 50.0]), np.array([[40.0, 12.0], [12.0, 9.0]])
    offsets = gaussian_ellipse(center, covariance) - center
    log_gaussian = -0.5 * np.einsum("pi,ij,pj->p", offsets, np.linalg.inv(covariance), offsets)
    assert_allclose(log_gaussian, np.full(len(offsets), -0.5))
    assert_allclose(np.abs(offsets).max(axis=0), np.sqrt([40.0, 9.0]), rtol=2e-3)


class TestCoAttention:
    def draw(self, **changes):
        """One query and two heads, each a Gaussian sampled at keys (j, i) * 8 of a black image."""
        self.centers = np.array([[[40.0, 24.0], [88.0, 72.0]]])
        self.covariances = np.array([[[[90.0, 0.0], [0.0, 90.0]], [[200.0, 90.0], [90.0, 80.0]]]])
        keys = np.stack(np.meshgrid(np.arange(16) * 8, np.arange(12) * 8), axis=-1)
        offsets = keys - self.centers[:, :, None, None]
        precision = np.linalg.inv(self.covariances)
        maps = np.exp(-0.5 * np.einsum("qhyxi,qhij,qhyxj->qhyx", offsets, precision, offsets))
        arguments = {
            "shared_centers": np.array([[64.0, 48.0]]),
            "head_centers": self.centers,
            "covariances": self.covariances,
            "boxes": np.array([[32.0, 16.0, 96.0, 80.0]]),
            "scale_weights": np.array([[0.5, 0.3, 0.2]]),
        } | changes
        image = np.zeros((96, 128, 3), dtype=np.uint8)
        return draw_co_attention(image, maps, **arguments)

    def render(self, figure):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].astype(float)

    def test_the_heat_lies_on_its_gaussian_in_the_image(self):
        figure = self.draw()
        detection, mean, *heads = figure.axes
        assert len(heads) == 2
        for axes in figure.axes:
            for line in axes.lines:
                line.set_visible(False)  # markers would hide the heat
        pixels = self.render(figure)
        for axes, center, covariance in zip(
            heads, self.centers[0], self.covariances[0], strict=True
        ):
            assert (axes.get_xlim(), axes.get_ylim()) == ((0, 128), (96, 0))
            grid = np.stack(np.meshgrid(np.arange(2, 127), np.arange(2, 95)), axis=-1)
            x, y = axes.transData.transform(grid.reshape(-1, 2)).T
            heat = pixels[(len(pixels) - y).astype(int), x.astype(int)].sum(axis=1)
            weights = heat / heat.sum()
            found = weights @ grid.reshape(-1, 2)
            assert_allclose(found, center, atol=1.5)
            offsets = grid.reshape(-1, 2) - found
            spread = np.einsum("p,pi,pj->ij", weights, offsets, offsets)
            correlation = spread[0, 1] / np.sqrt(spread[0, 0] * spread[1, 1])
            expected = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
            assert_allclose(correlation, expected, atol=0.12)

    def test_marks_are_where_they_were_put(self):
        figure = self.draw(titles=["circle 0.93"])
        detection, mean, *heads = figure.axes
        assert detection.get_title() == "circle 0.93"
        assert all(p.get_bbox().bounds == (32, 16, 64, 64) for p in detection.patches)
        assert_allclose(np.array(mean.lines[0].get_xydata()), [[64, 48]])
        for index, axes in enumerate(heads):
            square, ring, ellipse = (line.get_xydata() for line in axes.lines)
            assert_allclose(square, [[64, 48]])
            assert_allclose(ring, [self.centers[0, index]])
            assert_allclose(
                ellipse, gaussian_ellipse(self.centers[0, index], self.covariances[0, index])
            )

    def test_scale_weights_divide_their_bar(self):
        [bar] = self.draw().axes[0].child_axes
        assert_allclose([patch.get_x() for patch in bar.patches], [0, 0.5, 0.8])
        assert_allclose([patch.get_width() for patch in bar.patches], [0.5, 0.3, 0.2])

    def test_it_is_saved_and_the_options_are_optional(self, tmp_path):
        self.draw(
            covariances=None, boxes=None, scale_weights=None, out_png=tmp_path / "a" / "b.png"
        )
        self.draw(shared_centers=None, head_centers=None)
        with Image.open(tmp_path / "a" / "b.png") as picture:
            assert picture.format == "PNG" and min(picture.size) > 200


class TestCurves:
    def write(self, path, last_line=""):
        entries = [
            {"iteration": 20, "total_loss": 9.0, "data_time": 0.1},
            {"iteration": 40, "total_loss": 7.0, "bbox/AP": 12.0, "bbox/AP50": 30.0},
            {"iteration": 60, "total_loss": float("nan"), "bbox/APs": float("nan")},
            {"iteration": 40, "total_loss": 6.5},
            {"iteration": 80, "bbox/AP": 20.0, "note": "text"},
        ]
        path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + last_line)
        return path

    @pytest.mark.parametrize("last_line", ["", '{"iteration": 100, "total_l', "1"])
    def test_metrics_of_a_file_that_may_be_cut_short(self, tmp_path, last_line):
        assert read_metrics(self.write(tmp_path / "metrics.json", last_line)) == {
            "total_loss": ([20, 40], [9.0, 6.5]),
            "data_time": ([20], [0.1]),
            "bbox/AP": ([40, 80], [12.0, 20.0]),
            "bbox/AP50": ([40], [30.0]),
        }

    def test_a_broken_line_in_the_middle_is_named(self, tmp_path):
        path = tmp_path / "metrics.json"
        path.write_text('{"iteration": 1}\nnonsense\n{"iteration": 2}\n')
        with pytest.raises(ValueError, match=r"metrics.json, line 2 is not a JSON object"):
            read_metrics(path)

    def test_curves_are_drawn_with_and_without_evaluations(self, tmp_path):
        self.write(tmp_path / "metrics.json")
        plot_ap(tmp_path / "metrics.json", tmp_path / "plots" / "ap.png")
        (tmp_path / "young.json").write_text("")
        plot_ap(tmp_path / "young.json", tmp_path / "young.png")
        with Image.open(tmp_path / "plots" / "ap.png") as full:
            with_curves = np.asarray(full.convert("RGB"))
        with Image.open(tmp_path / "young.png") as empty:
            without = np.asarray(empty.convert("RGB"))
        for blue in ((31, 119, 180), (214, 39, 40)):
            assert (with_curves == blue).all(axis=2).sum() > 20
            assert not (without == blue).all(axis=2).any()
