from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from smca.visualization.attention.figure import draw_co_attention, gaussian_ellipse
from smca.visualization.attention.views import AttentionView, Detection
from smca.visualization.detections import class_color, draw_detections, grid

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
        picture = draw_detections(GREY, [[0, 0, 400, 50]], [0], gt_boxes=[[100, 0, 300, 300]])
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

    def test_grid(self):
        images = [Image.new("RGB", (20, 10), color) for color in ("red", "lime", "blue")]
        picture = grid(images, columns=2, gap=4)
        assert picture.size == (44, 24)
        assert has_color(picture, 0, 0, (255, 0, 0))
        assert has_color(picture, 24, 0, (0, 255, 0))
        assert has_color(picture, 0, 14, (0, 0, 255))
        assert has_color(picture, 24, 14, (255, 255, 255))


def test_the_ellipse_lies_where_the_gaussian_is_exp_minus_half():
    center, covariance = np.array([30.0, 50.0]), np.array([[40.0, 12.0], [12.0, 9.0]])
    offsets = gaussian_ellipse(center, covariance) - center
    log_gaussian = -0.5 * np.einsum("pi,ij,pj->p", offsets, np.linalg.inv(covariance), offsets)
    assert_allclose(log_gaussian, np.full(len(offsets), -0.5))
    assert_allclose(np.abs(offsets).max(axis=0), np.sqrt([40.0, 9.0]), rtol=2e-3)


def render(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(float)


def texts_of(figure):
    """All texts beside the panels: titles, names, messages and the legend."""
    texts = [*figure.texts, *(axes.title for axes in figure.axes)]
    return [text for text in texts if text.get_text()]


def all_axes(figure):
    """The axes of a figure, and of bars below them."""
    return [axes for panel in figure.axes for axes in (panel, *panel.child_axes)]


def panels(figure, label):
    return [axes for axes in all_axes(figure) if axes.get_label().startswith(label)]


class TestCoAttention:
    def cell(self, **changes):
        """Two heads, each a Gaussian sampled at keys (j, i) * (8, 6) of an image of 128x72."""
        self.centers = np.array([[40.0, 24.0], [88.0, 52.0]])
        self.covariances = np.array([[[90.0, 0.0], [0.0, 90.0]], [[200.0, 90.0], [90.0, 80.0]]])
        keys = np.stack(np.meshgrid(np.arange(16) * 8, np.arange(12) * 6), axis=-1)
        offsets = keys - self.centers[:, None, None]
        precision = np.linalg.inv(self.covariances)
        view = {
            "layer": 5,
            "maps": np.exp(-0.5 * np.einsum("hyxi,hij,hyxj->hyx", offsets, precision, offsets)),
            "steps": np.array([8.0, 6.0]),
            "strides": (16, 32, 64),
            "shared_center": np.array([64.0, 48.0]),
            "head_centers": self.centers,
            "covariances": self.covariances,
            "scale_weights": np.array([0.5, 0.3, 0.2]),
        }
        found = Detection(
            query=7, class_name="circle", score=0.93, box=np.array([32.0, 16.0, 96.0, 60.0])
        )
        return found, AttentionView(**view | changes)

    def draw(self, rows, width=128, height=72, **options):
        return draw_co_attention(np.zeros((height, width, 3), dtype=np.uint8), rows, **options)

    def test_the_heat_lies_on_its_gaussian_in_the_image(self):
        figure = self.draw([[self.cell()]])
        heads = panels(figure, "head")
        assert len(heads) == 2
        for axes in figure.axes:
            for line in axes.lines:
                line.set_visible(False)  # markers would hide the heat
        pixels = render(figure)
        for axes, center, covariance in zip(heads, self.centers, self.covariances, strict=True):
            assert (axes.get_xlim(), axes.get_ylim()) == ((0, 128), (72, 0))
            grid = np.stack(np.meshgrid(np.arange(2, 127), np.arange(2, 71)), axis=-1)
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

    @pytest.mark.parametrize("key", [(0, 0), (2, 3), (3, 5), (0, 5)])
    def test_the_brightest_place_is_that_of_the_key_with_the_largest_weight(self, key):
        """Also where the image is no multiple of the stride: 4x6 keys of stride 32 on 170x100."""
        maps = np.random.default_rng(0).uniform(0, 0.7, (1, 4, 6))
        maps[0][key] = 1
        cell = self.cell(
            maps=maps, steps=np.array([32.0, 32.0]), shared_center=None, head_centers=None
        )
        figure = self.draw([[cell]], width=170, height=100)
        pixels = render(figure)
        for axes in panels(figure, "head"):
            box = axes.get_window_extent()
            top, left = round(len(pixels) - box.y1), round(box.x0)
            panel = pixels[top + 1 : top + int(box.height), left + 1 : left + int(box.width)]
            heat = panel.sum(axis=2)
            y, x = np.argwhere(heat > 0.995 * heat.max()).mean(axis=0)
            scale = 170 / box.width
            expected = np.array([key[1], key[0]]) * 32
            # Keys on an edge are bright as far as the edge.
            assert_allclose([x * scale, y * scale], expected, atol=7)

    def test_marks_are_where_they_were_put(self):
        figure = self.draw([[self.cell()]], row_titles=["a circle"])
        [image], [mean] = panels(figure, "image"), panels(figure, "mean")
        assert {text.get_text() for text in texts_of(figure)} >= {"a circle", "mean of the heads"}
        assert all(p.get_bbox().bounds == (32, 16, 64, 44) for p in image.patches)
        assert_allclose(np.array(mean.lines[0].get_xydata()), [[64, 48]])
        for index, axes in enumerate(panels(figure, "head")):
            ellipse, circle, square = axes.lines
            assert (circle.get_marker(), square.get_marker()) == ("o", "s")
            assert_allclose(np.array(square.get_xydata()), [[64, 48]])
            assert_allclose(np.array(circle.get_xydata()), [self.centers[index]])
            expected = gaussian_ellipse(self.centers[index], self.covariances[index])
            assert_allclose(ellipse.get_xydata(), expected)

    def test_scale_weights_divide_their_bar(self):
        [bar] = panels(self.draw([[self.cell()]]), "scales")
        assert_allclose([patch.get_x() for patch in bar.patches], [0, 0.5, 0.8])
        assert_allclose([patch.get_width() for patch in bar.patches], [0.5, 0.3, 0.2])
        assert [text.get_text() for text in bar.texts][:2] == ["1/16: 50%", "1/32: 30%"]
        assert (bar.get_xlim(), bar.get_window_extent().height > 10) == ((0, 1), True)

    def test_what_a_model_lacks_is_left_out(self):
        absent = ("shared_center", "head_centers", "covariances", "scale_weights")
        figure = self.draw([[self.cell(**dict.fromkeys(absent))]])
        assert not any(axes.lines for axes in figure.axes) and not panels(figure, "scales")
        assert {text.get_text() for text in texts_of(figure)} >= {"circle 93%"}

    def test_models_side_by_side_and_one_that_has_nothing(self):
        detr = self.cell(head_centers=None, shared_center=None, scale_weights=None)
        rows = [[self.cell(), detr, "no circle here"], [self.cell(), "none", self.cell()]]
        figure = self.draw(rows, column_titles=["SMCA", "DETR", "another"])
        texts = {text.get_text() for text in texts_of(figure)}
        assert {"SMCA: circle 93%", "DETR: circle 93%", "another", "another: circle 93%"} <= texts
        messages = [text.get_text() for axes in panels(figure, "mean") for text in axes.texts]
        assert messages == ["no circle here", "none"]
        assert len(panels(figure, "mean")) == 6 and len(panels(figure, "head")) == 8
        assert len(panels(figure, "scales")) == 3 and len(panels(figure, "image")) == 2

    @pytest.mark.parametrize(
        "size",
        [
            (128, 72),
            pytest.param((900, 300), marks=pytest.mark.slow),
            pytest.param((300, 900), marks=pytest.mark.slow),
        ],
    )
    @pytest.mark.parametrize(("models", "num_heads"), [(1, 1), (1, 8), (1, 16), (2, 1), (2, 12)])
    def test_nothing_covers_anything_else(self, size, models, num_heads):
        repeated = np.arange(num_heads) % 2
        names = ("maps", "head_centers", "covariances")
        many = {name: getattr(self.cell()[1], name)[repeated] for name in names}
        found, view = self.cell(**many)
        found = replace(found, class_name="a class whose name is as long as they come")
        rows = [[(found, view)] * models] * 2
        titles = ["a model with a name that is longer than what it shows"] * models
        figure = self.draw(rows, *size, column_titles=titles, row_titles=["first", "second"])
        renderer = FigureCanvasAgg(figure).get_renderer()
        render(figure)
        boxes = [axes.get_window_extent() for axes in all_axes(figure)]
        for axes, box in zip(all_axes(figure), boxes, strict=True):
            if axes.get_label() != "scales":
                assert_allclose(box.width / box.height, size[0] / size[1])
        boxes += [text.get_window_extent(renderer) for text in texts_of(figure)]
        edges = np.array([box.extents for box in boxes])
        assert edges.min() >= 0
        assert (edges[:, 2:] <= figure.bbox.size).all()
        common = np.minimum(edges[:, None, 2:], edges[None, :, 2:])
        common -= np.maximum(edges[:, None, :2], edges[None, :, :2])
        overlap = common.clip(0).prod(axis=2)
        assert overlap[~np.eye(len(edges), dtype=bool)].max() < 1
