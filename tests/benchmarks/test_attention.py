"""The attention benchmark at tiny sizes, and the references it compares with."""

import json
from pathlib import Path

import attention as program
import pytest
import references
import torch

from smca.modeling.attention import Attention, LogitBias, attend, padding_biases

ROOT = Path(__file__).parents[2]
FLASH = "_scaled_dot_product_flash_attention_for_cpu"


@pytest.fixture
def run(measured):
    """``run("--flag", ...)`` runs the program here and returns its record."""
    common = ("--device", "cpu", "--rounds", 2, "--least-seconds", 0)
    return lambda *flags: measured(program, *common, *flags)[1]


@pytest.mark.parametrize("name", ["dense", "unfused"])
def test_the_references_compute_what_the_fused_attention_does(name):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, n, 8, requires_grad=True) for n in (5, 9, 9))
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    factor = torch.randn(2, 4, 5, 3, requires_grad=True)
    bias = LogitBias(factor, torch.randn(2, 1, 9, 3))
    biases = [bias, *padding_biases(padding)]
    results = []
    for function in (attend, references.ATTENDS[name]):
        out = function(query, key, value, biases=biases)
        gradients = torch.autograd.grad(out.square().sum(), (query, key, value, factor))
        results.append((out, *gradients))
    torch.testing.assert_close(*results)


def test_the_unfused_reference_drops_attention_weights():
    query, key = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 2000, 4)
    value = torch.ones(1, 1, 2000, 4)
    out = references.unfused_attend(query, key, value, dropout=0.5)
    assert out.min() > 0.8 and out.max() < 1.2 and not torch.equal(out, torch.ones(1, 1, 1, 4))


def test_attention_is_replaced_for_a_while(monkeypatch):
    module = Attention(dim=8, num_heads=2, dropout=0.25).train()
    x, seen = torch.randn(1, 3, 8), []

    def other(query, key, value, *, biases, dropout):
        seen.append((query.shape, biases, dropout))
        return value

    monkeypatch.setitem(references.ATTENDS, "other", other)
    with references.attention_replaced("other"):
        module(x, x, x)
    module(x, x, x)
    assert seen == [((1, 2, 3, 4), (), 0.25)]


@pytest.mark.slow
def test_rows_say_what_ran_and_how_exact_it_is(run):
    record = run("--maps", "12x20", "--batches", 2, "--queries", 100, "--no-memory", "--roofline")
    rows = {(row["pass"], row["attention"]): row for row in record["rows"]}
    assert len(rows) == len(record["rows"]) == 6
    assert rows["forward", "fused"]["kernels"] == FLASH
    assert rows["forward+backward", "fused"]["kernels"] == f"{FLASH} {FLASH}_backward"
    for (_, name), row in rows.items():
        assert (row["map"], row["batch"], row["precision"]) == ("12x20", 2, "fp32")
        assert 0 < row["output_error"] < 1e-4 and 0 < row["log_g_error"] < 1e-3
        assert row["seconds"]["low"] <= row["seconds"]["median"] <= row["seconds"]["high"]
        assert row["over_fused"] == 1 or name != "fused"
        assert (row["kernels"] == "plain operations") or name != "unfused"
        assert (row["largest_tensor"] >= 1) == (name != "fused")
        assert row["of_peak_flops"] > 0 and row["of_peak_bandwidth"] > 0
    assert record["bars"] == []


@pytest.mark.slow
def test_half_precision_keeps_log_g_only_without_a_mask_of_its_own(run):
    flags = ("--maps", "12x20", "--batches", 1, "--queries", 8, "--no-memory")
    record = run(*flags, "--precisions", "bf16", "fp16")
    for row in record["rows"]:
        if row["attention"] == "fused":
            assert row["log_g_error"] < 1e-3
        if row["attention"] == "dense":
            assert row["log_g_error"] > 0.01
        bound = {"bf16": 0.05, "fp16": 0.01}[row["precision"]]
        assert row["attention"] == "dense" or row["output_error"] < bound


def test_targets_are_of_the_map_and_precision_they_name():
    row = {"map": "50x84", "batch": 1, "queries": 300, "precision": "fp32"}
    forward = row | {"pass": "forward", "of_unfused": 0.3, "over_fused": 1.0}
    unfused = row | {"pass": "forward+backward", "over_fused": 6.0, "of_unfused": 1.0}
    rows = [forward | {"attention": "fused"}, unfused | {"attention": "unfused"}]
    memory, speed = program.targets([*rows, rows[0] | {"precision": "bf16"}])
    assert (memory.value, memory.limit, memory.passed) == (0.3, 0.25, False)
    assert (speed.value, speed.limit, speed.passed) == (6.0, 5.0, True)


def test_growth_is_an_exponent_of_memory(run, monkeypatch):
    def mebibytes(case, name, backward):
        keys = case.shape[0] * case.shape[1]
        return float(case.queries * keys if name == "unfused" else case.queries + keys)

    monkeypatch.setattr(program, "mebibytes", mebibytes)
    record = run("--scaling", "--maps", "5x60", "--attentions", "fused", "unfused")
    rows = record["rows"]
    assert len(rows) == 3 * 2 * 4 + 6
    assert rows[3] == {
        **{"vary": "keys", "attention": "fused", "batch": 1},
        **{"keys": 2400, "queries": 300, "peak_mib": 2700.0},
    }
    exponents = {(r["vary"], r["attention"]): r["exponent"] for r in rows if "exponent" in r}
    assert exponents["keys and queries", "unfused"] == pytest.approx(2)
    assert exponents["keys and queries", "fused"] == pytest.approx(1)
    assert exponents["keys", "fused"] < 1 == pytest.approx(exponents["keys", "unfused"])
    assert [bar["passed"] for bar in record["bars"]] == [True] * 3


@pytest.mark.slow
def test_the_program_measures_memory_and_how_it_grows(start_program, tmp_path):
    output = tmp_path / "out.json"
    common = ("--attentions", "fused", "unfused", "--device", "cpu", "--threads", 1)
    flags = (*common, "--rounds", 1, "--output", output)
    script = ROOT / "benchmarks/attention.py"
    printed = start_program("--maps", "25x42", "--batches", 2, *flags, script=script).done()
    assert "fused / unfused memory" not in printed and str(output) in printed
    rows = json.loads(output.read_text())["rows"]
    for row in rows:
        if row["attention"] == "unfused":
            # At least the logits and the sum with log G.
            assert row["peak_mib"] > 2 * 2 * 8 * 300 * 25 * 42 * 4 / 2**20
        else:
            assert row["of_unfused"] < 0.5
