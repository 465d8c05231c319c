"""The encoder's block and the decoder's layer against torch's, with norms after and before."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from smca.modeling.decoder import CoAttention, DecoderLayer, QuerySelfAttention
from smca.modeling.encoder import EncoderBlock, ScaleSelfAttention
from smca.modeling.layers import FFN
from smca.modeling.memory import Memory

B, N, L, C, H, HIDDEN = 2, 5, 12, 32, 4, 24
TORCHS = {"dim_feedforward": HIDDEN, "dropout": 0.0, "batch_first": True}


def make_memory():
    """One map of 3 x 4 cells, without positions: torch's layers add none."""
    return Memory(
        tokens=torch.randn(B, L, C),
        positions=torch.zeros(1, L, C),
        shapes=((3, 4),),
        strides=(32,),
        valid_sizes=torch.tensor([[[4.0, 3.0]]]),
        padding=None,
    )


def randomised(module):
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def fill(theirs, ours, attentions, num_norms):
    """Give torch's layer the weights of ours; ``attentions`` are pairs of their names and ours."""
    for their_name, name in attentions:
        attention, parts = getattr(theirs, their_name), getattr(ours, name)
        projections = (parts.q_proj, parts.k_proj, parts.v_proj)
        attention.in_proj_weight.data = torch.cat([part.weight for part in projections]).data
        attention.in_proj_bias.data = torch.cat([part.bias for part in projections]).data
        attention.out_proj.load_state_dict(parts.out_proj.state_dict())
    names = [f"norm{number}" for number in range(1, num_norms + 1)]
    for norm in names:
        getattr(theirs, norm).load_state_dict(getattr(ours, norm).state_dict())
    for linear, number in ((theirs.linear1, 0), (theirs.linear2, 3)):
        linear.load_state_dict(ours.ffn[number].state_dict())


@pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])
def test_encoder_block(pre_norm, tolerance):
    torch.manual_seed(0)
    block = EncoderBlock(
        mixer=ScaleSelfAttention(kind="multi", dim=C, num_heads=H),
        ffn=FFN(C, HIDDEN, 0.0),
        dim=C,
        dropout=0.0,
        pre_norm=pre_norm,
    )
    theirs = nn.TransformerEncoderLayer(C, H, norm_first=pre_norm, **TORCHS)
    fill(theirs, randomised(block), [("self_attn", "attention")], num_norms=2)
    memory = make_memory()
    assert_close(block(memory).tokens, theirs.train()(memory.tokens), **tolerance)


@pytest.mark.parametrize("pre_norm", [False, True], ids=["post-norm", "pre-norm"])
def test_decoder_layer(pre_norm, tolerance):
    torch.manual_seed(0)
    layer = DecoderLayer(
        self_attention=QuerySelfAttention(dim=C, num_heads=H),
        co_attention=CoAttention(dim=C, num_heads=H),
        ffn=FFN(C, HIDDEN, 0.0),
        dim=C,
        dropout=0.0,
        pre_norm=pre_norm,
    )
    theirs = nn.TransformerDecoderLayer(C, H, norm_first=pre_norm, **TORCHS)
    names = [("self_attn", "self_attention"), ("multihead_attn", "co_attention")]
    fill(theirs, randomised(layer), names, num_norms=3)
    memory, target = make_memory(), torch.randn(B, N, C)
    found = layer(target, torch.zeros_like(target), memory, None)
    assert_close(found, theirs.train()(target, memory.tokens), **tolerance)
