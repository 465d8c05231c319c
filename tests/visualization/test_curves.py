"""The lines of training curves, against the numbers that they draw."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from numpy.testing import assert_allclose
from PIL import Image

from smca.analysis.runs import History
from smca.visualization.curves import draw_histories, running_mean, summary

TOOL = Path(__file__).parents[2] / "tools/plot_training.py"
published_runs = runpy.run_path(str(TOOL))["published_runs"]
LINES = list(range(19, 2000, 20))


def history(name="run", *, level=40.0, **changes):
    """A run of 2,000 iterations and 10 epochs, evaluated every 400, best before the last."""
    loss = 10.0 + np.sin(np.arange(100.0))
    metrics = {
        "total_loss": (LINES, loss.tolist()),
        "lr": (LINES, [1e-4] * 80 + [1e-5] * 20),
        "bbox/AP": ([399, 799, 1199, 1599, 1999], [level + ap for ap in (0, 4, 6, 9, 8)]),
        "bbox/AP50": ([399, 799, 1199, 1599, 1999], [60.0, 61.0, 62.0, 63.0, 64.0]),
        "epoch": (LINES, [(i + 1) / 200 for i in LINES]),
    }
    return History(name, metrics | changes.pop("metrics", {}), **changes)


def line_data(axes):
    """Of each line that is no learning rate's: colour, style and points."""
    return [
        (to_hex(line.get_color()), line.get_linestyle(), np.transpose(line.get_data()))
        for line in axes.lines
        if len(line.get_xdata()) > 2
    ]


def drops(axes):
    return [tuple(line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def titles(axes):
    return axes.get_title(loc="left"), axes.get_title(loc="right")


def test_each_run_has_a_color_and_its_numbers_over_epochs():
    runs = [history("first"), history("second", level=30.0)]
    figure = draw_histories(runs, smooth=0)
    precision, loss = figure.axes
    assert precision.get_xlabel() == loss.get_xlabel() == "epoch"
    for axes, key in ((precision, "bbox/AP"), (loss, "total_loss")):
        drawn = line_data(axes)
        assert [color for color, _, _ in drawn] == ["#1f77b4", "#ff7f0e"]
        for run, (_, style, points) in zip(runs, drawn, strict=True):
            iterations, values = run.metrics[key]
            assert style == "-"
            assert_allclose(points, np.transpose([np.add(iterations, 1) / 200, values]))
        assert_allclose(drops(axes), [(8, 8)] * 2)
        assert axes.get_xlim()[0] == axes.get_ylim()[0] == 0
    assert_allclose([star.get_offsets()[0] for star in precision.collections], [[8, 49], [8, 39]])
    assert legend(figure) == [
        "first: AP 48.0, best 49.0 at epoch 8",
        "second: AP 38.0, best 39.0 at epoch 8",
    ]


def test_without_epochs_curves_are_over_iterations():
    run = history(metrics={"epoch": ([], [])})
    del run.metrics["epoch"]
    figure = draw_histories([run])
    assert figure.axes[0].get_xlabel() == "iteration"
    assert line_data(figure.axes[0])[0][2][:, 0].tolist() == [400, 800, 1200, 1600, 2000]
    assert legend(figure) == ["run: AP 48.0, best 49.0 at iteration 1,600"]


def test_ap50_is_dotted_in_the_color_of_its_run():
    precision = draw_histories([history()], ap50=True).axes[0]
    (color, _, _), (same, style, points) = line_data(precision)
    assert (same, style) == (color, ":")
    assert points[:, 1].tolist() == [60, 61, 62, 63, 64]
    assert titles(precision) == ("AP (%)", "dotted: AP50; vertical: learning rate falls")


def test_the_loss_is_a_running_mean():
    run = history()
    loss = draw_histories([run], smooth=5).axes[1]
    ((_, _, smooth),) = line_data(loss)
    values = run.metrics["total_loss"][1]
    expected = [np.mean(values[max(0, i - 4) : i + 1]) for i in range(100)]
    assert_allclose(smooth[:, 1], expected)
    assert titles(loss) == ("Total loss", "mean of the last 5% of a run")


@pytest.mark.parametrize("window", [1, 3, 7, 20])
def test_running_mean(window):
    values = np.array([1.0, 4.0, 2.0, 8.0, 5.0, 7.0, 0.0])
    expected = [values[max(0, i + 1 - window) : i + 1].mean() for i in range(7)]
    assert_allclose(running_mean(values, window), expected)


def test_the_authors_curves_are_grey_and_dashed():
    theirs = [published_runs()[name] for name in ("depthwise_R50", "depthwise_R101")]
    figure = draw_histories([history(same_loss=True), *theirs])
    for axes, key in zip(figure.axes, ("bbox/AP", "total_loss"), strict=True):
        for run, (color, style, points) in zip(theirs, line_data(axes)[-2:], strict=True):
            red, green, blue = color[1:3], color[3:5], color[5:7]
            assert red == green == blue and style == "--"
            assert_allclose(points, np.transpose([np.arange(1, 51), run.metrics[key][1]]))
    assert legend(figure)[1:] == [
        "SMCA's authors, depthwise_R50 (COCO val2017): AP 44.4, its best",
        "SMCA's authors, depthwise_R101 (COCO val2017): AP 45.7, its best",
    ]


def test_the_authors_losses_are_left_out_where_a_run_has_another_sum():
    runs = [published_runs()["depthwise_R50"], history(same_loss=True), history("other")]
    precision, loss = draw_histories(runs, smooth=0).axes
    assert [len(points) for _, _, points in line_data(precision)] == [50, 5, 5]
    assert [len(points) for _, _, points in line_data(loss)] == [100, 100]
    assert titles(loss) == ("Total loss", "the authors' is another sum")


def test_more_curves():
    times = {"data_time": (LINES, [0.05] * 100), "time": (LINES, [0.2] * 100)}
    norm = {"grad_norm": (LINES[:50], list(range(50)))}
    figure = draw_histories([history(metrics=times | norm)], smooth=0, more=True)
    *_, waiting, norms = figure.axes
    assert_allclose(line_data(waiting)[0][2][:, 1], [25] * 100)
    assert line_data(norms)[0][2][:, 1].tolist() == list(range(50))
    figure = draw_histories([history()], more=True)
    assert [axes.texts[0].get_text() for axes in figure.axes[2:]] == ["nothing recorded"] * 2


def test_many_runs_have_colors_of_their_own():
    figure = draw_histories([history(str(number)) for number in range(15)])
    assert len({color for color, _, _ in line_data(figure.axes[0])}) == 15


def test_a_run_that_has_not_been_evaluated():
    run = History("young", {"total_loss": ([19], [3.0])})
    assert summary(run, "iteration") == "young: not evaluated"
    precision, loss = draw_histories([run]).axes
    assert precision.texts[0].get_text() == "nothing recorded" and not loss.texts


def test_the_picture_of_a_run_has_the_color_of_its_curves(tmp_path):
    blue = (31, 119, 180)
    amounts = []
    for name, run in (("full", history()), ("young", History("young", {}))):
        draw_histories([run], ap50=True).savefig(tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            amounts.append((np.asarray(picture.convert("RGB")) == blue).all(axis=2).sum())
    full, young = amounts
    assert full > 5 * young
