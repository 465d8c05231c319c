"""What keeps the model lean: fused kernels, linear memory, half precision, compiling."""

import pytest
import torch
from operations import Operations
from torch import nn
from torch._dynamo.utils import counters

from smca.analysis.host import detector_subject
from smca.inference.recording import record_co_attention
from smca.modeling import build_detector
from smca.modeling.gaussians import Gaussians
from smca.modeling.layers import compile_layers
from smca.modeling.memory import Memory, valid_map_sizes

FLASH = "_scaled_dot_product_flash_attention_for_cpu"
FUSED = ("MODEL.SMCA.ATTENTION_DROPOUT", 0.0)
MODELS = {
    "multi scale": (),
    "single scale": ("MODEL.SMCA.NUM_SCALES", 1, "MODEL.SMCA.IN_FEATURES", ["res4"]),
    "oriented": ("MODEL.SMCA.MODULATION.SCALE", "oriented"),
    "depthwise": ("MODEL.SMCA.ENCODER.NAME", "DepthwiseEncoder"),
    "anchored": ("MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder"),
    "two stages": (
        *("MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder", "MODEL.SMCA.TWO_STAGE", True),
        *("MODEL.SMCA.ONE_TO_MANY.ENABLED", True),
    ),
    "DETR": ("MODEL.SMCA.DECODER.NAME", "DETRDecoder"),
    "Conditional DETR": ("MODEL.SMCA.DECODER.NAME", "ConditionalDecoder"),
}


@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("model", MODELS)
def test_attention_runs_on_fused_kernels_alone(tiny_config, model, padded):
    queries = 200
    cfg = tiny_config(*FUSED, *MODELS[model], "MODEL.SMCA.NUM_QUERIES", queries)
    detector = build_detector(cfg).train()
    size = 512, 384
    sizes = [(512, 370 if padded else 384)]
    with Operations() as operations:
        predictions = detector(torch.randn(1, 3, *size), sizes)
        (predictions.logits.sum() + predictions.boxes.sum()).backward()
    assert operations.attention == [FLASH, f"{FLASH}_backward"]
    finest = size[0] * size[1] // 16**2
    assert operations.largest < queries * finest * cfg.MODEL.SMCA.NHEADS


def kept_and_largest(decoder: nn.Module, rows: int) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward pass; elements of the largest tensor."""
    channels, shape = decoder.norm.normalized_shape[0], (rows, 25)
    memory = Memory(
        tokens=torch.randn(1, rows * 25, channels, requires_grad=True),
        positions=torch.randn(1, rows * 25, channels),
        shapes=(shape,),
        strides=(16,),
        valid_sizes=valid_map_sizes([(rows * 16, 400)], (16,), "cpu"),
        padding=None,
    )
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        # The storage itself, so that its address is not given to another one.
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), Operations() as operations:
        hidden, _ = decoder(memory)
        hidden.sum().backward()
    return sum(storage.nbytes() for storage in kept.values()), operations.largest


def test_memory_grows_linearly_with_keys_and_queries(tiny_config):
    options = (*FUSED, *MODELS["single scale"], "MODEL.SMCA.NUM_QUERIES")
    kept, largest = [], []
    for factor in (1, 2, 4, 8):
        decoder = build_detector(tiny_config(*options, 50 * factor)).decoder.train()
        counted = kept_and_largest(decoder, 20 * factor)
        kept.append(counted[0])
        largest.append(counted[1])
    growth = [larger - smaller for smaller, larger in zip(kept[:-1], kept[1:], strict=True)]
    assert growth[1:] == pytest.approx([2 * growth[0], 4 * growth[0]], rel=0.02)
    assert largest[3] <= 8 * largest[0]


def test_memory_grows_linearly_with_groups_of_queries(tiny_config):
    options = (*FUSED, *MODELS["single scale"], "MODEL.SMCA.NUM_QUERIES", 100)
    found = [
        kept_and_largest(
            build_detector(
                tiny_config(*options, "MODEL.SMCA.QUERY_GROUPS", groups)
            ).decoder.train(),
            20,
        )
        for groups in (1, 2, 3, 5, 9)
    ]
    kept, largest = zip(*found, strict=True)
    growth = [larger - smaller for smaller, larger in zip(kept[:-1], kept[1:], strict=True)]
    assert growth[1:] == pytest.approx([growth[0], 2 * growth[0], 4 * growth[0]], rel=0.02)
    assert largest[-1] <= 9 * largest[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model", ["single scale", "multi scale"])
def test_logits_of_half_precision_are_those_of_float32(config, model, dtype):
    torch.manual_seed(0)
    scales = ("MODEL.SMCA.NUM_SCALES", 3, "MODEL.SMCA.ENCODER.BLOCKS", ["intra", "multi"])
    detector = build_detector(config("quickstart", *(scales if "multi" in model else ())))
    images, sizes = torch.randn(2, 3, 128, 128), [(128, 128), (100, 128)]
    with torch.no_grad():
        expected = detector.eval()(images, sizes)
        with torch.autocast("cpu", dtype):
            found = detector(images, sizes)
    assert found.logits.dtype == found.boxes.dtype == torch.float32
    assert 0 < (found.logits - expected.logits).abs().max() < 0.02
    assert (found.boxes - expected.boxes).abs().max() < 0.02


@pytest.mark.slow
def test_a_compiled_detector_is_the_same_and_compiles_once_for_all_sizes(tiny_config):
    torch._dynamo.reset()
    options = (*FUSED, "MODEL.SMCA.DROPOUT", 0.0, "MODEL.SMCA.QUERY_GROUPS", 2)
    detector = build_detector(tiny_config(*options))
    cfg = tiny_config(*options, "MODEL.SMCA.COMPILE", True)
    compiled = build_detector(cfg)
    compiled.load_state_dict(detector.state_dict())
    graphs = []
    for size in ((138, 194), (258, 252), (200, 163), (128, 290)):
        images = torch.randn(1, 3, *size)
        losses = []
        for model in (detector, compiled):
            model.zero_grad()
            loss = detector_subject(model.train(), cfg).loss(images)
            loss.backward()
            losses.append(loss)
        torch.testing.assert_close(*losses)
        graphs.append(counters["stats"]["unique_graphs"])
        for one, other in zip(detector.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)
    assert 0 < graphs[0] == graphs[-1]
    # Pictures read the layers by hooks.
    records = [
        record_co_attention(model.eval(), images, [size], output_sizes=[size])[1]
        for model in (detector, compiled)
    ]
    for query in range(10):
        [one], [other] = (record.views(query) for record in records)
        torch.testing.assert_close(one.maps, other.maps, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_compiling_leaves_log_g_exact_in_half_precision(tiny_config, monkeypatch):
    """A compiler would merge the rounding steps that split a float32 into bfloat16 numbers."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    detector = build_detector(tiny_config(*FUSED, *MODELS["single scale"])).eval()
    compile_layers(detector.decoder)
    seen, original = [], Gaussians.biases

    def biases(self, grid):
        seen.append((self, grid.shapes[0], original(self, grid)[0]))
        return [seen[-1][2]]

    monkeypatch.setattr(Gaussians, "biases", biases)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        detector(torch.randn(1, 3, 512, 640), [(512, 640)])
    assert len(seen) == len(detector.decoder.layers)
    for gaussians, (rows, columns), bias in seen:
        assert bias.query.dtype == bias.key.dtype == torch.bfloat16
        points = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).flip(-1)
        log_g = bias.query.float() @ bias.key.float().mT
        torch.testing.assert_close(log_g, gaussians.log_density(0, points), rtol=0, atol=1e-2)
