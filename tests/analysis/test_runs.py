"""What runs have written, as curves and as a table, against numbers made up here."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from smca.analysis.runs import History, common_axis, read_metrics

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools/plot_training.py"))
published_runs, read_runs, runs_table = (
    TOOL[name] for name in ("published_runs", "read_runs", "runs_table")
)


def write_run(folder, entries, config=None):
    """A run's folder: `metrics.json` of ``entries``, and `config.yaml` of the text ``config``."""
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("".join(json.dumps(e) + "\n" for e in entries))
    if config is not None:
        (folder / "config.yaml").write_text(config)
    return folder


def rows_of(table):
    head, _, *rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()
    ]
    return [dict(zip(head, row, strict=True)) for row in rows]


ENTRIES = [
    {"iteration": 20, "total_loss": 9.0, "data_time": 0.1},
    {"iteration": 40, "total_loss": 7.0, "bbox/AP": 12.0, "bbox/AP50": 30.0},
    {"iteration": 60, "total_loss": float("nan"), "bbox/APs": float("nan")},
    {"iteration": 40, "total_loss": 6.5},
    {"iteration": 80, "bbox/AP": 20.0, "note": "text"},
]


@pytest.mark.parametrize("last_line", ["", '{"iteration": 100, "total_l', "1"])
def test_metrics_of_a_file_that_may_be_cut_short(tmp_path, last_line):
    path = write_run(tmp_path / "run", ENTRIES) / "metrics.json"
    path.write_text(path.read_text() + last_line)
    assert read_metrics(path) == {
        "total_loss": ([20, 40], [9.0, 6.5]),
        "data_time": ([20], [0.1]),
        "bbox/AP": ([40, 80], [12.0, 20.0]),
        "bbox/AP50": ([40], [30.0]),
    }


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1}\nnonsense\n{"iteration": 2}\n')
    with pytest.raises(ValueError, match=r"metrics.json, line 2 is not a JSON object"):
        read_metrics(path)


class TestPlaces:
    METRICS = {
        "total_loss": ([9, 19, 29], [3.0, 2.0, 1.0]),
        # Of Detectron2 the last has the number of the iteration after the last.
        "bbox/AP": ([4, 9, 30], [1.0, 2.0, 3.0]),
    }

    def test_iterations_are_those_done(self):
        history = History("run", self.METRICS)
        assert history.iterations == 30
        places, values = history.curve("bbox/AP", "iteration")
        assert places.tolist() == [5, 10, 30] and values.tolist() == [1, 2, 3]
        assert [part.tolist() for part in history.curve("bbox/AP75", "iteration")] == [[], []]

    def test_epochs_are_those_written_and_between_them_in_proportion(self):
        # The batch doubled after 10 iterations.
        epoch = ([9, 19, 29], [0.5, 1.5, 2.5])
        history = History("run", {**self.METRICS, "epoch": epoch}, epochs_per_iteration=99.0)
        assert history.curve("total_loss", "epoch")[0].tolist() == [0.5, 1.5, 2.5]
        assert_allclose(history.curve("bbox/AP", "epoch")[0], [0.25, 0.5, 2.5])

    def test_epochs_of_older_runs_are_counted_by_the_batch(self):
        history = History("run", self.METRICS, epochs_per_iteration=0.2)
        assert_allclose(history.curve("bbox/AP", "epoch")[0], [1, 2, 6])

    def test_runs_are_compared_over_what_all_have(self):
        counted = History("counted", self.METRICS, epochs_per_iteration=0.2)
        older = History("older", self.METRICS)
        begun = History("begun", {})
        assert common_axis([counted, begun]) == "epoch"
        assert common_axis([older, begun]) == "iteration"
        with pytest.raises(ValueError, match=r"metrics of older have no epochs.*--images"):
            common_axis([counted, older])

    @pytest.mark.parametrize(
        ("rates", "drops"),
        [
            ([1.0] * 4 + [0.1] * 4 + [0.01] * 2, [80.0, 160.0]),
            ([0.2, 0.5, 1.0, 1.0, 1.0, 0.5], [100.0]),  # after a warm-up
            ([0.5 * (1 + np.cos(t)) for t in np.linspace(0, np.pi, 200)], []),  # cosine
            ([1.0], []),
        ],
    )
    def test_drops_of_the_learning_rate(self, rates, drops):
        lr = ([20 * (i + 1) - 1 for i in range(len(rates))], rates)
        assert History("run", {"lr": lr}).lr_drops("iteration").tolist() == drops

    def test_the_share_of_waiting_for_data(self):
        metrics = {"data_time": ([9, 19], [0.1, 0.3]), "time": ([9, 19, 29], [0.2, 0.4, 9.0])}
        places, share = History("run", metrics).data_share("iteration")
        assert places.tolist() == [10, 20]
        assert_allclose(share, [50, 75])


class TestFolders:
    def test_runs_are_named_by_what_tells_them_apart(self, tmp_path, monkeypatch):
        for name in ("a/seed0", "b/seed0"):
            write_run(tmp_path / name, ENTRIES)
        monkeypatch.chdir(tmp_path)
        assert [run.name for run in read_runs(["a/seed0", "./a/seed0/", "b/seed0"])] == [
            "a/seed0",
            "b/seed0",
        ]
        assert [run.name for run in read_runs(["b/seed0"])] == ["seed0"]
        assert read_runs([]) == []

    def test_the_batch_is_the_configs(self, tmp_path):
        config = "SOLVER: {IMS_PER_BATCH: 8}\nA_KEY: of older code\n"
        folder = write_run(tmp_path / "run", [{"iteration": 9, "total_loss": 1.0}], config)
        (run,) = read_runs([folder], images=40)
        assert run.curve("total_loss", "epoch")[0].tolist() == [2.0]
        assert not read_runs([folder])[0].has_epochs
        (folder / "config.yaml").unlink()
        with pytest.raises(ValueError, match=r"run/config.yaml does not tell SOLVER.IMS_PER_BATCH"):
            read_runs([folder], images=40)

    def test_of_several_datasets_the_first_counts(self, tmp_path):
        entries = [{"iteration": 9, "val/bbox/AP": 1.0, "other/bbox/AP": 2.0}]
        folder = write_run(tmp_path / "run", entries, "DATASETS: {TEST: [val, other]}\n")
        (run,) = read_runs([folder])
        assert run.curve("bbox/AP", "iteration")[1].tolist() == [1.0]

    @pytest.mark.parametrize("text", ["- a\n", "a: [\n"])
    def test_a_config_that_is_none_is_named(self, tmp_path, text):
        folder = write_run(tmp_path / "run", ENTRIES, text)
        with pytest.raises(ValueError, match=r"config\.yaml"):
            read_runs([folder])

    @pytest.mark.parametrize(
        ("name", "changes", "same"),
        [
            ("smca_depthwise_R50_50ep", (), True),
            ("smca_depthwise_R50_50ep", ("MODEL.SMCA.LOSS.L1_WEIGHT", 1.0), False),
            ("smca_depthwise_R50_50ep", ("MODEL.SMCA.LOSS.AUXILIARY", False), False),
            ("quickstart", (), False),  # 3 layers
            ("baselines/detr_R50_500ep", (), False),  # another classification loss
        ],
    )
    def test_whether_a_loss_is_the_authors_sum(self, tmp_path, config, name, changes, same):
        folder = write_run(tmp_path / "run", ENTRIES, config(name, *changes).dump())
        assert read_runs([folder])[0].same_loss is same
        (folder / "config.yaml").unlink()
        assert not read_runs([folder])[0].same_loss


class TestPublished:
    def test_ap_is_what_the_model_zoo_cites(self):
        runs = published_runs()
        names = list(runs)
        assert names == ["depthwise_R50_without_pointwise", "depthwise_R50", "depthwise_R101"]
        last = {}
        for name, run in runs.items():
            for key in ("bbox/AP", "total_loss"):
                places, values = run.curve(key, "epoch")
                assert places.tolist() == list(range(1, 51)) and len(values) == 50
            last[name] = round(run.curve("bbox/AP", "epoch")[1][-1], 1)
        assert last == dict(zip(names, [43.7, 44.4, 45.7], strict=True))

    def test_the_loss_is_that_of_six_layers(self):
        """The other layers' losses are a little larger than the last one's."""
        content = TOOL["published"]()
        assert "SMCA authors" in content["source"]
        layers = content["config"]["MODEL.SMCA.DECODER.NUM_LAYERS"]
        for run in content["runs"].values():
            parts = [run[f"train_loss_{part}"] for part in ("ce", "bbox", "giou")]
            ratio = np.array(run["train_loss"]) / (layers * np.sum(parts, axis=0))
            assert ratio.min() > 1 and ratio.max() < 1.08


def test_the_table_has_the_numbers_of_the_metrics(tmp_path):
    names = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    entries = [
        {"iteration": 9, "total_loss": 3.0, "time": 0.5, "epoch": 1.25},
        {"iteration": 19, "total_loss": 2.0, "time": 0.1, "epoch": 2.5},
        {"iteration": 29, "total_loss": 2.0, "time": 0.25, "epoch": 3.75},
        {"iteration": 19, **{f"bbox/{name}": 30.04 + i for i, name in enumerate(names)}},
        {"iteration": 30, **{f"bbox/{name}": 20.06 + i for i, name in enumerate(names)}},
    ]
    write_run(tmp_path / "whole", entries)
    write_run(tmp_path / "begun", [])
    runs = read_runs([tmp_path / "whole", tmp_path / "begun"])
    whole, begun, theirs = rows_of(runs_table([*runs, published_runs()["depthwise_R50"]]))
    assert whole == {
        **{"run": "whole", "iterations": "30", "epochs": "3.8"},
        **{"AP": "20.1", "AP50": "21.1", "AP75": "22.1", "APs": "23.1", "APm": "24.1"},
        **{"APl": "25.1", "best AP": "30.0", "at epoch": "2.5", "s an iteration": "0.250"},
    }
    assert begun == dict.fromkeys(whole, "") | {"run": "begun", "iterations": "0", "epochs": "0"}
    assert theirs == dict.fromkeys(whole, "") | {
        **{"run": "SMCA's authors, depthwise_R50 (COCO val2017)", "epochs": "50"},
        **{"AP": "44.4", "best AP": "44.4", "at epoch": "50"},
    }


def test_the_table_is_over_iterations_where_there_are_no_epochs(tmp_path):
    (row,) = rows_of(runs_table(read_runs([write_run(tmp_path / "run", ENTRIES)])))
    assert row["epochs"] == "" and (row["best AP"], row["at iteration"]) == ("20.0", "81")
