"""What a watched block of operations is known to run."""

import torch
import torch.nn.functional as F
from operations import Operations

FLASH = "_scaled_dot_product_flash_attention_for_cpu"


def test_attention_kernels_are_named_of_both_passes():
    query = torch.rand(1, 2, 5, 8, requires_grad=True)
    key = torch.rand(1, 2, 7, 8)
    with Operations() as operations:
        F.scaled_dot_product_attention(query, key, key).sum().backward()
    assert operations.attention == [FLASH, f"{FLASH}_backward"]
    # No kernel of a CPU is fused with dropout.
    with Operations() as operations:
        F.scaled_dot_product_attention(query, key, key, dropout_p=0.1)
    assert operations.attention == []


def test_the_largest_tensor_is_one_that_takes_memory():
    x = torch.zeros(10)
    with Operations() as operations:
        x.expand(9, 10).transpose(0, 1)
        assert operations.largest == 0
        (x[:, None] * x).sum()
    assert operations.largest == 100
