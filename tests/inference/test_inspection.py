import numpy as np
import pytest
import torch

from smca.config import ConfigError
from smca.inference.inspection import Inspection, inspect_image
from smca.inference.predictor import Predictor
from smca.modeling import build_detector
from smca.visualization.attention.views import Detection

BOXES = [[0, 0, 40, 40], [10, 10, 50, 50], [60, 60, 90, 90], [0, 0, 44, 40]]
SCORES = [[0.1, 0.8, 0.1], [0.7, 0.2, 0.1], [0.3, 0.2, 0.9], [0.1, 0.05, 0.4]]


def inspection(boxes=BOXES, scores=SCORES, names=("circle", "square", "triangle")):
    return Inspection(
        image=np.zeros((100, 100, 3), dtype=np.uint8),
        class_names=names,
        boxes=torch.tensor(boxes, dtype=torch.float32),
        scores=torch.tensor(scores),
        record=None,
    )


def shown(detections):
    return [(d.query, d.class_name, pytest.approx(d.score)) for d in detections]


class TestChoice:
    def test_best_scores_first_each_with_its_best_class(self):
        found = inspection().best(3)
        assert shown(found) == [(2, "triangle", 0.9), (0, "square", 0.8), (1, "circle", 0.7)]
        assert found[1].box.tolist() == [0, 0, 40, 40] and found[1].overlap is None
        assert len(inspection().best(9)) == 4

    def test_of_a_class(self):
        found = inspection().best(2, class_name="circle")
        assert shown(found) == [(1, "circle", 0.7), (2, "circle", 0.3)]

    def test_around_a_point(self):
        found = inspection().best(9, point=(42, 20))
        assert shown(found) == [(1, "circle", 0.7), (3, "triangle", 0.4)]
        assert shown(inspection().best(point=(42, 5), class_name="square")) == [(3, "square", 0.05)]
        assert inspection().best(point=(95, 5)) == []

    def test_of_a_query(self):
        assert shown([inspection().detection(3)]) == [(3, "triangle", 0.4)]


class TestTheSameObject:
    def found(self, class_name, box):
        box = np.array(box, dtype=np.float32)
        return Detection(query=0, class_name=class_name, score=0.9, box=box)

    def test_the_best_overlap_of_its_class(self):
        scores = [[0.9, 0, 0], [0.9, 0, 0], [0.9, 0, 0], [0.2, 0, 0]]
        same = inspection(scores=scores).same_object(self.found("circle", [0, 0, 45, 40]))
        assert shown([same]) == [(3, "circle", 0.2)]
        assert same.overlap == pytest.approx(44 / 45)

    def test_by_the_name_of_the_class(self):
        other = inspection(names=("triangle", "circle", "square"))
        same = other.same_object(self.found("circle", [0, 0, 40, 40]))
        assert shown([same]) == [(0, "circle", 0.8)]
        assert other.same_object(self.found("star", [0, 0, 40, 40])) is None

    def test_none_of_the_class_the_score_or_the_place(self):
        assert inspection().same_object(self.found("circle", [60, 60, 90, 90])) is None
        square = self.found("square", [0, 0, 40, 40])
        assert inspection().same_object(square, threshold=0.85) is None
        assert inspection().same_object(self.found("square", [30, 0, 70, 40])) is None


@pytest.fixture
def predictor(tiny_config, tmp_path):
    """``predictor(*opts)``: of an untrained model."""

    def build(*opts):
        torch.manual_seed(0)
        cfg = tiny_config(*opts)
        torch.save({"model": build_detector(cfg).state_dict()}, tmp_path / "model.pth")
        return Predictor(cfg, tmp_path / "model.pth", device="cpu")

    return build


def photo(height=90, width=140):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("loss", ["focal", "softmax"])
def test_queries_detect_what_the_predictor_finds(loss, predictor):
    model = predictor("MODEL.SMCA.LOSS.CLASSIFICATION", loss, "INPUT.MIN_SIZE_TEST", 64)
    seen = inspect_image(model, photo())
    assert seen.image.shape == (90, 140, 3) and seen.scores.shape == (10, 3)
    expected = model(photo())
    [best] = seen.best()
    assert best.score == pytest.approx(float(expected.scores[0]))
    assert best.class_name == expected.class_names[0]
    torch.testing.assert_close(torch.from_numpy(best.box), expected.boxes[0])
    [view] = seen.record.views(best.query)
    assert view.layer == 1 and (view.steps > 16).all()  # the image was made smaller


def test_layers_and_what_has_none(predictor):
    model = predictor()
    for layer, layers in ((None, [0, 1]), (0, [0])):
        seen = inspect_image(model, photo(), layer=layer)
        assert [view.layer for view in seen.record.views(0)] == layers
    for layer in (2, -3):
        with pytest.raises(ConfigError, match=f"no decoder layer {layer}.*NUM_LAYERS is 2"):
            inspect_image(model, photo(), layer=layer)
    names = ("MODEL.SMCA.ENCODER.NAME", "DeformableEncoder")
    names += ("MODEL.SMCA.DECODER.NAME", "DeformableDecoder")
    with pytest.raises(ConfigError, match="'DeformableDecoder', which samples a few places"):
        inspect_image(predictor(*names), photo())
