"""The forward pass as a GPU would run it, on tensors that have a device but no numbers."""

import pytest
import torch
from cuda_copies import copies_that_wait

from smca.modeling import build_detector
from smca.modeling.gaussians import PARTS

MODELS = {
    "multi scale": (),
    "oriented": ("MODEL.SMCA.MODULATION.SCALE", "oriented"),
    "depthwise": ("MODEL.SMCA.ENCODER.NAME", "DepthwiseEncoder"),
    "anchored": ("MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder"),
    "two stages": (
        *("MODEL.SMCA.DECODER.NAME", "AnchoredSMCADecoder", "MODEL.SMCA.TWO_STAGE", True),
        *("MODEL.SMCA.ONE_TO_MANY.ENABLED", True),
    ),
    "DETR": ("MODEL.SMCA.DECODER.NAME", "DETRDecoder"),
    "Conditional DETR": ("MODEL.SMCA.DECODER.NAME", "ConditionalDecoder"),
    "heads of 12 channels": ("MODEL.SMCA.HIDDEN_DIM", 48),
}


@pytest.mark.parametrize("dtype", [None, *PARTS])
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize("model", MODELS)
def test_no_copy_waits_and_all_heads_fit_fused_kernels(
    tiny_config, monkeypatch, model, padded, dtype
):
    widths = []

    def stand_in(query, key, value, **options):
        assert options.get("attn_mask") is None
        widths.extend(x.shape[-1] for x in (query, key, value))
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_: True)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", stand_in)
    cfg = tiny_config("MODEL.RESNETS.NORM", "GN", *MODELS[model])
    with copies_that_wait() as found:
        with torch.device("cuda"):
            detector = build_detector(cfg).train()
        found.clear()
        images = torch.empty(2, 3, 128, 96, device="cuda")
        with torch.autocast("cuda", dtype, enabled=dtype is not None):
            detector(images, [(128, 96), (100 if padded else 128, 96)])
    assert not found
    assert widths and not any(width % 8 for width in widths)
