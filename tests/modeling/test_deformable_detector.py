"""The configurations of Deformable DETR: their sizes, padding and gradients."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from smca.modeling import build_detector


@pytest.mark.parametrize(
    ("name", "millions"),
    [("R50_50ep", 40), ("R50_150ep", 40), ("single_scale_R50_50ep", 34)],
)
def test_parameters_are_the_papers(config, name, millions):
    with torch.device("meta"):
        detector = build_detector(config(f"baselines/deformable_detr_{name}"))
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert abs(trained / 1e6 - millions) < 0.7


@pytest.mark.parametrize(("name", "embeddings"), [("R50", 4), ("single_scale_R50", 1)])
def test_every_scale_has_an_embedding(config, name, embeddings):
    with torch.device("meta"):
        detector = build_detector(config(f"baselines/deformable_detr_{name}_50ep"))
    assert detector.neck.level_embed.shape == (embeddings, 256)


def test_one_scale_has_as_many_parameters_as_in_public_programs(config):
    classes = ("MODEL.SMCA.NUM_CLASSES", 91)  # theirs are COCO's ids
    with torch.device("meta"):
        detector = build_detector(
            config("baselines/deformable_detr_single_scale_R50_50ep", *classes)
        )
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert trained == 33_844_193


@pytest.mark.parametrize("name", ["R50", "refine_R50", "single_scale_DC5_R50"])
def test_the_whole_detector_ignores_padding_and_trains(config, name):
    torch.manual_seed(0)
    cfg = config(
        f"baselines/deformable_detr_{name}_50ep",
        *("MODEL.SMCA.DECODER.NUM_LAYERS", 2, "MODEL.SMCA.ENCODER.NUM_LAYERS", 1),
        *("MODEL.SMCA.DROPOUT", 0.0, "MODEL.SMCA.ATTENTION_DROPOUT", 0.0),
        *("MODEL.SMCA.NUM_QUERIES", 10),
    )
    detector = build_detector(cfg)
    for head in detector.heads.box_head.modules():
        if isinstance(head, nn.Linear):  # boxes that differ from their references
            nn.init.normal_(head.weight, std=0.02)
    sizes = [(96, 128), (70, 100)]
    images = torch.zeros(2, 3, 96, 128)
    for image, (h, w) in zip(images, sizes, strict=True):
        image[:, :h, :w].normal_()
    predictions = detector.train()(images, sizes)
    assert predictions.boxes.shape == (2, 2, 10, 4)
    (predictions.boxes.square().sum() + predictions.logits.square().sum()).backward()
    missing = [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing

    with torch.no_grad():
        batched = detector.eval()(images, sizes)
        for i, (h, w) in enumerate(sizes):
            single = detector(images[i : i + 1, :, :h, :w], [(h, w)])
            assert_close(batched.boxes[:, i : i + 1], single.boxes, atol=1e-5, rtol=0)
            assert_close(batched.logits[:, i : i + 1], single.logits, atol=1e-5, rtol=1e-5)
    # Alone, the last layer has the head and the reference it has among all.
    assert_close(batched.boxes[-1], predictions.boxes[-1], atol=1e-5, rtol=0)
