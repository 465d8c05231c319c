"""Multiply-adds by hand, and against torch's own counter."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from smca.analysis.counting import count_model, count_parameters
from smca.analysis.host import NATIVE

SIZE = (64, 96)
LENGTHS = (4 * 6, 2 * 3, 1 * 2)  # tokens of the strides 16, 32 and 64
C, HEADS, QUERIES = 32, 4, 10
SMALL = [
    *("MODEL.SMCA.HIDDEN_DIM", C, "MODEL.SMCA.NHEADS", HEADS, "MODEL.SMCA.NUM_QUERIES", QUERIES),
    *("MODEL.SMCA.IN_FEATURES", ["res4", "res5"], "MODEL.SMCA.NUM_SCALES", 3),
    *("MODEL.RESNETS.DEPTH", 10, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
    *("MODEL.SMCA.ENCODER.BLOCKS", ["intra", "multi"], "MODEL.SMCA.DECODER.NUM_LAYERS", 2),
]


def count(cfg, batch=1):
    return count_model(NATIVE.build(cfg, "cpu"), size=SIZE, batch=batch)


def test_modulated_attention_by_hand(config):
    """Three images: projections, and both products over the C / H channels of each head."""
    counts = count(config("smca_R50_50ep", *SMALL), batch=3)
    tokens = sum(LENGTHS)
    projections = 2 * (QUERIES + tokens) * C * C
    products = 2 * QUERIES * tokens * C
    part = counts.parts["decoder.layers.1.co_attention"]
    assert part.multiply_adds == 3 * (projections + products)
    # 8 channels a head are computed as 16: with 5 of the Gaussian and 3 zeros, values with 8 zeros.
    assert counts.carried == 2 * 3 * HEADS * QUERIES * tokens * (8 + 8)
    intra, multi = (counts.parts[f"encoder.blocks.{i}.attention"] for i in (0, 1))
    assert intra.multiply_adds == 3 * (4 * tokens * C * C + 2 * sum(n * n for n in LENGTHS) * C)
    assert multi.multiply_adds == 3 * (4 * tokens * C * C + 2 * tokens * tokens * C)


def test_a_model_that_is_to_be_compiled_is_counted_too(config):
    plain, compiled = (
        count(config("smca_R50_50ep", *SMALL, "MODEL.SMCA.COMPILE", value))
        for value in (False, True)
    )
    assert plain == compiled


def test_conditional_attention_by_hand(config):
    """Queries and keys of twice the values' channels, which the kernel wants to be as many."""
    counts = count(config("baselines/conditional_detr_R50_50ep", *SMALL))
    tokens = sum(LENGTHS)
    part = counts.parts["decoder.layers.1.co_attention"]
    products = QUERIES * tokens * (2 * C + C)
    assert part.multiply_adds == 3 * (QUERIES + tokens) * C * C + products
    assert counts.carried == 2 * QUERIES * tokens * C


CONFIGS = [
    "smca_R50_50ep",
    "smca_depthwise_R50_50ep",
    "baselines/detr_R50_50ep",
    "baselines/detr_DC5_R50_50ep",
    "baselines/conditional_detr_R50_50ep",
    "baselines/deformable_detr_R50_50ep",
    "baselines/deformable_detr_refine_R50_50ep",
]


@pytest.mark.parametrize("name", CONFIGS)
def test_every_product_is_counted(config, name):
    """As torch's own counter has it, which sees what kernels are called with.

    Attention is written out for it: not every torch counts the CPU's fused kernel.
    """
    thin = ("MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 8)
    cfg = config(name, *thin, "MODEL.SMCA.HIDDEN_DIM", 64, "MODEL.SMCA.DECODER.NUM_LAYERS", 2)
    subject = NATIVE.build(cfg, "cpu")
    subject.model.requires_grad_(False)
    counts = count_model(subject, size=SIZE, activations=False)
    written_out = sdpa_kernel(SDPBackend.MATH)
    with torch.no_grad(), written_out, FlopCounterMode(display=False) as torchs:
        subject.infer(torch.rand(1, 3, *SIZE))
    no_products = {"layer_norm", "group_norm", "grid_sampler", "upsample_bilinear2d"}
    products = sum(n for kind, n in counts.operators.items() if kind not in no_products)
    assert products + counts.carried == torchs.get_total_flops() // 2


def test_parts_add_up(config):
    counts = count(config("smca_R50_50ep", *SMALL))
    whole = counts.parts[""]
    parts = [counts.parts[name] for name in ("backbone", "neck", "encoder", "decoder", "heads")]
    for key, value in vars(whole).items():
        assert value == sum(vars(part)[key] for part in parts) > 0, key
    assert sum(counts.operators.values()) == whole.multiply_adds
    assert whole.trainable < whole.parameters


def test_frozen_parameters_are_not_trainable():
    model = torch.nn.Linear(3, 5)
    model.bias.requires_grad = False
    counts = count_parameters(model)
    assert_close((counts.trainable, counts.parameters), (15, 20))


@pytest.mark.parametrize(
    ("name", "trained", "all_of_them"),
    [
        ("tsp_fcos_R50_36ep", 51_236_522, 51_458_922),
        ("tsp_fcos_R101_36ep", 70_176_426, 70_398_826),
    ],
)
def test_tsp_fcos_has_the_published_codes_parameters(config, name, trained, all_of_them):
    count = count_parameters(NATIVE.build(config(f"baselines/{name}"), "meta").model)
    assert (count.trainable, count.parameters) == (trained, all_of_them)


@pytest.mark.slow
def test_tsp_fcos_has_the_published_codes_multiply_adds(config):
    cfg = config("baselines/tsp_fcos_R50_36ep")
    whole = count_model(NATIVE.build(cfg, "cpu"), size=(800, 1066), activations=False).parts[""]
    assert whole.multiply_adds == pytest.approx(186.6e9, rel=0.01)
