"""Tensors of a checkpoint fit the model, or are refused by name."""

import pytest
import torch
import torchvision
from torch.testing import assert_close
from weights_server import write_zoo_resnet

from smca.checkpoints import SafeCheckpointing, load, read_checkpoint, write_checkpoint
from smca.checkpoints.loading import trained_classes
from smca.errors import CheckpointError
from smca.modeling import build_detector

LIGHTNING = {"epoch": 3, "global_step": 7, "hparams_name": "kwargs"}


def test_backbone_weights_load_into_a_detector(tmp_path, config, caplog):
    write_zoo_resnet(tmp_path / "R-18.pkl")
    options = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    detector = build_detector(config("smca_R50_50ep", *options))
    weight = detector.neck.projections[0].weight.clone()
    load(detector, tmp_path / "R-18.pkl")
    state = read_checkpoint(tmp_path / "R-18.pth")["model"]
    own = detector.state_dict()
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        assert_close(own[name], tensor)
    assert_close(detector.neck.projections[0].weight, weight)
    with pytest.raises(CheckpointError, match=r"R-18\.pkl holds a backbone alone.*a trained"):
        load(detector, tmp_path / "R-18.pkl", strict=True)


def test_swavs_backbone_starts_pretraining(tmp_path, config, caplog):
    """Its file has a ResNet-50 in DDP, beside the heads of its own training."""
    torch.manual_seed(1)
    resnet = torchvision.models.resnet50().state_dict()
    state = {name: torch.rand(t.shape) for name, t in resnet.items() if not name.startswith("fc.")}
    state["projection_head.0.weight"] = torch.rand(2048, 2048)
    state["prototypes.weight"] = torch.rand(3000, 128)
    path = tmp_path / "swav_800ep_pretrain.pth.tar"
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    detector = build_detector(config("baselines/up_detr_pretrain_R50"))
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with caplog.at_level("INFO"):
        load(detector, path)
    wrapped, loaded = caplog.messages
    assert "module.conv1.weight; conv1.weight is taken" in wrapped
    assert "backbone loaded, the rest starts anew" in loaded
    after = detector.state_dict()
    backbone = {name: tensor for name, tensor in after.items() if name.startswith("backbone.")}
    assert_close(after["backbone.stem.conv1.norm.bias"], state["bn1.bias"])
    assert_close(after["backbone.res4.5.conv2.weight"], state["layer3.5.conv2.weight"])
    assert_close(after["backbone.res2.0.shortcut.weight"], state["layer1.0.downsample.0.weight"])
    assert not any(torch.equal(tensor, before[name]) for name, tensor in backbone.items())
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - backbone.keys())


def test_another_backbone_is_refused(tmp_path, config):
    write_zoo_resnet(tmp_path / "R-34.pkl", depth=34)
    options = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    detector = build_detector(config("smca_R50_50ep", *options))
    with pytest.raises(CheckpointError, match=r"MODEL\.RESNETS\.DEPTH.*res2\.2"):
        load(detector, tmp_path / "R-34.pkl")
    wider = build_detector(config("smca_R50_50ep", *options[:2]))
    with pytest.raises(CheckpointError, match="holds a backbone alone"):
        load(wider, tmp_path / "R-34.pkl", strict=True)


def test_a_checkpoint_comes_back(tmp_path, detector, tiny_config):
    write_checkpoint({"model": detector.state_dict(), "iteration": 7}, tmp_path / "a.pth")
    torch.manual_seed(1)
    other = build_detector(tiny_config())
    extra = load(other, tmp_path / "a.pth", strict=True)
    assert extra == {"iteration": 7}
    assert list(tmp_path.iterdir()) == [tmp_path / "a.pth"]
    for name, tensor in detector.state_dict().items():
        assert_close(other.state_dict()[name], tensor, atol=0, rtol=0)


def test_another_number_of_classes(tmp_path, detector, tiny_config, caplog):
    write_checkpoint({"model": detector.state_dict()}, tmp_path / "three.pth")
    other = build_detector(tiny_config("MODEL.SMCA.NUM_CLASSES", 5))
    with pytest.raises(CheckpointError, match=r"NUM_CLASSES.*heads\.class_head\.weight"):
        load(other, tmp_path / "three.pth", strict=True)
    head = other.heads.class_head.weight.clone()
    load(other, tmp_path / "three.pth")
    assert "class head" in caplog.text
    assert_close(other.heads.class_head.weight, head)
    assert_close(other.decoder.query_embed.weight, detector.decoder.query_embed.weight)


def test_another_model_is_refused_with_its_tensors(tmp_path, detector, tiny_config):
    write_checkpoint({"model": detector.state_dict()}, tmp_path / "a.pth")
    wider = build_detector(tiny_config("MODEL.SMCA.DIM_FEEDFORWARD", 64))
    with pytest.raises(CheckpointError, match=r"a\.pth.*encoder\.blocks\.0\.ffn\.0\.weight"):
        load(wider, tmp_path / "a.pth")
    deeper = build_detector(tiny_config("MODEL.SMCA.DECODER.NUM_LAYERS", 3))
    with pytest.raises(CheckpointError, match=r"lacks decoder\.layers\.2"):
        load(deeper, tmp_path / "a.pth", strict=True)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of quantised tensors
def test_quantised_weights_are_refused(tmp_path, detector):
    model = {
        name: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)
        for name, tensor in detector.state_dict().items()
        if tensor.is_floating_point()
    }
    torch.save({"model": model}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth has whole numbers for .* quantised"):
        load(detector, tmp_path / "a.pth")


@pytest.mark.parametrize("type", [torch.float64, torch.float16, torch.bfloat16, torch.int8])
def test_weights_of_other_types_are_rounded_or_refused(tmp_path, detector, tiny_config, type):
    model = {name: tensor.to(type) for name, tensor in detector.state_dict().items()}
    write_checkpoint({"model": model}, tmp_path / "a.pth")
    if not type.is_floating_point:
        with pytest.raises(CheckpointError, match=r"a\.pth has whole numbers for backbone\.stem"):
            load(detector, tmp_path / "a.pth")
        return
    found = build_detector(tiny_config())
    load(found, tmp_path / "a.pth")
    for name, tensor in found.state_dict().items():
        assert_close(tensor, model[name].to(tensor.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("strict", [True, False])
def test_blocks_that_norm_something_else_are_refused(tiny_config, tmp_path, pre_norm, strict):
    detr = "MODEL.SMCA.DECODER.NAME", "DETRDecoder", "MODEL.SMCA.PRE_NORM"
    model = build_detector(tiny_config(*detr, pre_norm))
    write_checkpoint({"model": model.state_dict()}, tmp_path / "a.pth")
    other = build_detector(tiny_config(*detr, not pre_norm))
    with pytest.raises(CheckpointError, match=f"set MODEL.SMCA.PRE_NORM {pre_norm}: its blocks"):
        load(other, tmp_path / "a.pth", strict=strict)


@pytest.mark.parametrize(
    ("logits", "softmax", "other"), [(4, False, "softmax"), (3, True, "focal")]
)
def test_a_file_of_another_classification_is_told_by_its_names(logits, softmax, other):
    state, content = {"heads.class_head.bias": torch.zeros(logits)}, {"class_names": list("abc")}
    assert trained_classes(state, content, not softmax) == 3
    assert trained_classes(state, {}, softmax) == logits - softmax
    with pytest.raises(CheckpointError, match=f"for 3 classes; set .*CLASSIFICATION .* to {other}"):
        trained_classes(state, content, softmax)


def test_a_model_without_names_gets_those_of_its_class_head(tiny_config, tmp_path):
    """Unless it is known that its data has none."""
    model = build_detector(tiny_config())
    write_checkpoint({"model": model.state_dict(), "class_names": list("abc")}, tmp_path / "a.pth")
    for names, expected in ((None, ("a", "b", "c")), ((), ())):
        fresh = build_detector(tiny_config())
        fresh.class_names = names
        load(fresh, tmp_path / "a.pth")
        assert fresh.class_names == expected
    other = build_detector(tiny_config("MODEL.SMCA.NUM_CLASSES", 4))
    load(other, tmp_path / "a.pth")
    assert other.class_names is None


def test_other_numbers_of_queries_keep_the_first(tmp_path, detector, tiny_config, caplog):
    learned = ("MODEL.SMCA.DECODER.NAME", "ConditionalDecoder")
    learned += ("MODEL.SMCA.CONDITIONAL.REFERENCE", "parameter")
    saved = build_detector(tiny_config(*learned))
    write_checkpoint({"model": saved.state_dict()}, tmp_path / "ten.pth")
    for number, strict in ((4, True), (4, False), (13, False)):
        caplog.clear()
        torch.manual_seed(1)
        found = build_detector(tiny_config(*learned, "MODEL.SMCA.NUM_QUERIES", number))
        drawn = {name: tensor.clone() for name, tensor in found.state_dict().items()}
        load(found, tmp_path / "ten.pth", strict=strict)
        for name in ("decoder.query_embed.weight", "decoder.reference.weight"):
            expected = torch.cat((saved.state_dict()[name][:number], drawn[name][10:]))
            assert_close(found.state_dict()[name], expected, rtol=0, atol=0)
        (line,) = [record.getMessage() for record in caplog.records]
        taken = "the first are taken" if number == 4 else "all are taken, further ones start anew"
        assert line.endswith(f"has 10 queries, MODEL.SMCA.NUM_QUERIES is {number}: {taken}")
    with pytest.raises(CheckpointError, match=r"has 10 queries, .*NUM_QUERIES to 10 or less"):
        load(found, tmp_path / "ten.pth", strict=True)


@pytest.mark.parametrize(
    ("groups", "queries", "said"),
    [
        (1, 10, "QUERY_GROUPS is 1, NUM_QUERIES 10: the first are taken"),
        (5, 10, "QUERY_GROUPS is 5, NUM_QUERIES 10: all are taken, further ones start anew"),
        (3, 4, "NUM_QUERIES is 4: the first are taken"),
        (2, 15, "QUERY_GROUPS is 2, NUM_QUERIES 15: the first are taken, further ones start anew"),
    ],
)
def test_other_numbers_of_groups_keep_the_first_of_each(
    tmp_path, tiny_config, caplog, groups, queries, said
):
    saved = build_detector(tiny_config("MODEL.SMCA.QUERY_GROUPS", 3))
    SafeCheckpointing(saved, str(tmp_path)).save("three")
    torch.manual_seed(1)
    sizes = ("MODEL.SMCA.QUERY_GROUPS", groups, "MODEL.SMCA.NUM_QUERIES", queries)
    found = build_detector(tiny_config(*sizes))
    drawn = found.decoder.query_embed.weight.detach().clone().unflatten(0, (groups, queries))
    caplog.clear()
    load(found, tmp_path / "three.pth")
    drawn[:3, :10] = saved.decoder.query_embed.weight.unflatten(0, (3, 10))[:groups, :queries]
    assert_close(found.decoder.query_embed.weight, drawn.flatten(0, 1), rtol=0, atol=0)
    (line,) = caplog.messages
    had = "10 queries" if groups == 3 else "3 groups of 10 queries"
    assert line.endswith(f"three.pth has {had}, MODEL.SMCA.{said}")
    # Weights alone do not say how many groups they have.
    torch.save(saved.state_dict(), tmp_path / "weights.pth")
    same = build_detector(tiny_config("MODEL.SMCA.QUERY_GROUPS", 3))
    load(same, tmp_path / "weights.pth")
    assert_close(same.state_dict(), saved.state_dict(), rtol=0, atol=0)


def test_a_single_scale_from_before_its_embedding_is_the_same_model(tmp_path, tiny_config, caplog):
    one = ("MODEL.SMCA.IN_FEATURES", ["res5"], "MODEL.SMCA.NUM_SCALES", 1)
    deformable = ("MODEL.SMCA.ENCODER.NAME", "DeformableEncoder")
    detector = build_detector(tiny_config(*one, *deformable)).eval()
    state = detector.state_dict()
    assert state.pop("neck.level_embed").shape == (1, 32)
    torch.save({"model": state}, tmp_path / "old.pth")
    caplog.set_level("INFO")
    load(detector, tmp_path / "old.pth", strict=True)
    assert "is from before its model had neck.level_embed; zeros are the same" in caplog.text
    assert not detector.neck.level_embed.any()


@pytest.mark.parametrize(
    ("place", "prefix"),
    [
        ("model", "module."),
        ("state_dict", "model."),
        ("state_dict", "model._orig_mod."),
        ("model_state_dict", "module._orig_mod."),
        ("", "_orig_mod."),
    ],
)
def test_names_of_wrapped_models_are_read(tmp_path, detector, tiny_config, caplog, place, prefix):
    state = {prefix + name: tensor for name, tensor in detector.state_dict().items()}
    torch.save({**LIGHTNING, place: state} if place else state, tmp_path / "wrapped.pth")
    torch.manual_seed(1)
    found = build_detector(tiny_config())
    caplog.set_level("INFO")
    load(found, tmp_path / "wrapped.pth", strict=True)
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"named as {prefix}backbone.stem" in line and "; backbone.stem" in line
    assert_close(found.state_dict(), detector.state_dict(), rtol=0, atol=0)


def test_a_part_that_was_compiled_is_read(tmp_path, detector, tiny_config):
    detector.encoder = torch.compile(detector.encoder)
    assert any("encoder._orig_mod." in name for name in detector.state_dict())
    torch.save({"model": detector.state_dict()}, tmp_path / "compiled.pth")
    found = build_detector(tiny_config())
    load(found, tmp_path / "compiled.pth", strict=True)
    assert_close(list(found.parameters()), list(detector.parameters()), rtol=0, atol=0)


def test_safetensors_are_read(tmp_path, detector, tiny_config, monkeypatch):
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "a.safetensors"
    safetensors.save_file(dict(detector.state_dict()), path)
    found = build_detector(tiny_config())
    load(found, path, strict=True)
    assert_close(found.state_dict(), detector.state_dict(), rtol=0, atol=0)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"a\.safetensors cannot be read as a checkpoint"):
        load(found, path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="pip install safetensors"):
        load(found, path)


# Names in files of mmdetection, transformers and the public Deformable DETR.
OTHERS = {
    "mmdetection": ["backbone.conv1.weight", "bbox_head.fc_cls.weight", "query_embedding.weight"],
    "transformers": ["model.query_position_embeddings.weight", "class_labels_classifier.bias"],
    "deformable": ["transformer.level_embed", "query_embed.weight", "class_embed.0.bias"],
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_others_name_no_tool_that_does_not_read_them(tmp_path, detector, kind):
    torch.save({"state_dict": dict.fromkeys(OTHERS[kind], torch.ones(2))}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth holds none of the model's") as refused:
        load(detector, tmp_path / "a.pth")
    assert "convert_checkpoint" not in str(refused.value)
