"""The model benchmark on a tiny detector, and the stages its time is divided into."""

import json
from pathlib import Path

import model as program
import pytest
import torch

ROOT = Path(__file__).parents[2]
FLASH = "_scaled_dot_product_flash_attention_for_cpu"
STAGES = ["input", "backbone", "neck", "encoder", "decoder", "heads"]


@pytest.fixture
def workload(tiny_config):
    """``workload("KEY", value, ...)``: of a tiny detector with changes, in float32."""
    setting = program.Setting(size=(64, 96), batch=2, precision="fp32", device="cpu")
    return lambda *opts: program.Workload(tiny_config(*opts), setting)


@pytest.fixture
def run(config_file, measured):
    """``run("--flag", ...)`` runs the program here on a tiny detector and returns its record."""
    one = config_file("MODEL.SMCA.QUERY_GROUPS", 1)
    common = ("--configs", one, "--device", "cpu", "--rounds", 2, "--size", 64, 96)
    return lambda *flags: measured(program, *common, *flags)[1]


def test_every_model_of_the_family_is_measured():
    from smca.analysis.host import NATIVE
    from smca.config import config_names

    def read(name):
        return NATIVE.read(str(ROOT / f"configs/{name}.yaml"))

    measured = {read(name).MODEL.dump() for name in program.FAMILIES}
    assert len(measured) == len(program.FAMILIES)
    for name in config_names(ROOT / "configs"):
        if name.startswith("plus/"):  # groups of queries are rows of models without them
            continue
        cfg = read(name)
        if cfg.MODEL.META_ARCHITECTURE == "SMCA" and cfg.MODEL.SMCA.DECODER.NAME == "SMCADecoder":
            assert cfg.MODEL.dump() in measured or name == "quickstart", name


def test_the_targets_are_of_models_with_fused_attention_in_the_encoder(config):
    kinds = {
        "smca_single_scale_R50_50ep": "single scale",
        "smca_R50_50ep": "multi scale",
        "ablations/table3_5intra": None,
        "smca_depthwise_R50_50ep": None,
        "baselines/detr_focal_R50_50ep": None,
    }
    assert {name: program.kind(config(name)) for name in kinds} == kinds


def test_a_record_of_both_works(run):
    record = run("--no-memory", "--roofline", "--batch", 2, "--groups", 5, 2)
    speeds = [row for row in record["rows"] if "seconds" in row]
    groups = ["fused, 5 groups", "fused, 2 groups"]
    inference = ["fused", "unfused", *groups, "DETR"]
    training = ["fused", "unfused", "unfused, dropout", *groups]
    assert [row["attention"] for row in speeds] == inference + training
    for row in speeds:
        assert row["images_per_s"] == pytest.approx(2 / row["seconds"]["median"])
        assert row["of_unfused"] == 1 or row["attention"] != "unfused"
        assert row["of_recipe"] == 1 or row["attention"] != "unfused, dropout"
        assert row["of_DETR"] == 1 or row["attention"] != "DETR"
        assert (row["of_one_group"] is not None) == (row["attention"] in groups)
        if row["attention"] in groups:
            assert row["of_peak_flops"] is row["of_peak_bandwidth"] is None
        else:
            assert row["of_peak_flops"] > 0 and row["of_peak_bandwidth"] > 0
    assert speeds[5]["of_DETR"] is None
    inference, training = [row for row in record["rows"] if "kernels" in row]
    assert inference["kernels"] == FLASH
    assert training["kernels"] == f"{FLASH} {FLASH}_backward"
    columns = ["config", "work", "attention", *STAGES, "kernels"]
    assert list(inference) == columns
    assert list(training) == [*columns[:-1], "loss", "matcher", "backward", "optimizer", "kernels"]
    names = [bar["name"].partition(": ")[2] for bar in record["bars"]]
    five = "time of five groups, of one"
    of_training = ["time, of the recipe's unfused", five, "matcher and loss, of the time"]
    assert names == [five, *of_training]


def test_attention_dropout_is_the_configs_only_when_asked_for(run):
    flags = ("--no-memory", "--rounds", 1)
    with_it = run(*flags, "--attention-dropout", 0.1, "--precision", "bf16")["rows"]
    assert with_it[-1]["kernels"] == "plain operations"
    assert with_it[-2]["kernels"] == FLASH
    options = ("--opts", "MODEL.SMCA.DECODER.NAME", "DETRDecoder", "MODEL.SMCA.NUM_SCALES", 2)
    detr = run(*flags, "--variants", "fused", *options)["rows"]
    assert [(row["work"], row["attention"]) for row in detr if "seconds" in row] == [
        ("inference", "fused"),
        ("training", "fused"),
    ]
    assert detr[-1]["kernels"] == f"{FLASH} {FLASH}_backward"


def test_variants_compute_the_same(workload):
    found = {}
    for variant in ("fused", "dense", "unfused"):
        work = workload()
        run = program.attending(variant, work.infer)
        found[variant] = [image.boxes for image in run()]
        losses = program.attending(variant, work.train)()
        found[variant].append(torch.tensor(list(losses.values())))
    for variant in ("dense", "unfused"):
        torch.testing.assert_close(found[variant], found["fused"], rtol=1e-3, atol=1e-4)


def test_a_step_updates_the_detector(workload):
    work = workload()
    before = work.detector.encoder.blocks[0].ffn[0].weight.clone()
    work.infer()
    torch.testing.assert_close(work.detector.encoder.blocks[0].ffn[0].weight, before)
    work.train()
    assert not torch.equal(work.detector.encoder.blocks[0].ffn[0].weight, before)


def test_stages_follow_each_other_and_leave_nothing_behind(workload):
    work = workload()
    matcher, update = work.criterion.matcher, work.step.optimizer.step
    seconds = work.stages(work.train)
    assert list(seconds) == [*STAGES, "loss", "matcher", "backward", "optimizer"]
    assert min(seconds.values()) > 0
    assert work.criterion.matcher is matcher and work.step.optimizer.step == update
    assert not work.detector.encoder._forward_pre_hooks
    assert list(work.stages(work.infer)) == STAGES


def test_deep_backbones_stay_within_half_precision(config):
    setting = program.Setting(size=(64, 64), batch=1, precision="fp32", device="cpu")
    work = program.Workload(config("smca_R101_50ep"), setting)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert all(x.abs().max() < 1e4 for x in work.detector.backbone(images).values())


@pytest.mark.slow
def test_the_program_measures_memory(start_program, config_file, tmp_path):
    output = tmp_path / "out.json"
    flags = ("--rounds", 1, "--threads", 1, "--device", "cpu", "--output", output)
    script = ROOT / "benchmarks/model.py"
    printed = start_program(
        "--configs",
        config_file("MODEL.SMCA.QUERY_GROUPS", 1, "MODEL.SMCA.NUM_QUERIES", 100),
        "--size",
        256,
        320,
        *flags,
        "--batch",
        4,
        script=script,
    ).done()
    assert "memory, of the recipe's unfused" in printed and str(output) in printed
    rows = json.loads(output.read_text())["rows"]
    grouped = [row for row in rows if row["attention"] == "fused, 5 groups"]
    assert [row["work"] for row in grouped] == ["inference", "training"]
    # The queries themselves are 1,280 bytes a group.
    assert grouped[0]["peak_of_one_group"] == pytest.approx(1, abs=0.05)
    assert grouped[1]["peak_of_one_group"] > 1
    rows = [row for row in json.loads(output.read_text())["rows"] if "seconds" in row]
    for row in rows:
        measured = row["attention"] != "DETR"
        assert (row["peak_mib"] is not None) == (row["peak_of_unfused"] is not None) == measured
        assert not measured or row["peak_mib"] > 1
