"""Every attention of the model on drawn maps, most of which may be padding, and its Gaussians."""

import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from smca.modeling import AnchoredSMCADecoder, ConditionalDecoder, DETRDecoder, SMCADecoder
from smca.modeling.attention import attend, attention_weights, padding_biases
from smca.modeling.deformable import DeformableDecoder, DeformableEncoder
from smca.modeling.encoder import IntraMultiEncoder
from smca.modeling.gaussians import Gaussians, Grid
from smca.modeling.memory import Memory, valid_cells, valid_map_sizes
from smca.modeling.spatial_prior import Places, SpatialPrior

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KINDS = ("fixed", "single", "independent", "oriented")
STRIDES = (16, 32)
C, H, N = 16, 2, 3
seeds, dtypes, kinds = st.integers(0, 2**32 - 1), st.sampled_from(DTYPES), st.sampled_from(KINDS)
sides = st.integers(1, 70)
image_sizes = st.lists(st.tuples(sides, sides), min_size=1, max_size=3)


def drawn_memory(sizes, dtype=torch.float32):
    """Images of these sizes, padded to a third more than the largest sides."""
    height, width = (4 * max(side) // 3 for side in zip(*sizes, strict=True))
    shapes = [valid_cells((height, width), stride) for stride in STRIDES]
    padding = []
    for (rows, columns), stride in zip(shapes, STRIDES, strict=True):
        masks = torch.ones(len(sizes), rows, columns, dtype=torch.bool)
        for mask, size in zip(masks, sizes, strict=True):
            h, w = valid_cells(size, stride)
            mask[:h, :w] = False
        padding.append(masks.flatten(1))
    padding = torch.cat(padding, dim=1)
    return Memory(
        tokens=torch.randn(*padding.shape, C, dtype=dtype),
        positions=torch.randn(*padding.shape, C, dtype=dtype),
        shapes=tuple(shapes),
        strides=STRIDES,
        valid_sizes=valid_map_sizes(sizes, STRIDES, torch.device("cpu"), dtype),
        padding=padding,
    )


def one_valid(length, kept):
    """One image, of whose keys all but one are padding."""
    return (torch.arange(length) != kept)[None]


@settings(max_examples=400)
@given(
    st.integers(1, 24),
    st.sampled_from(["none", "some", "all but one", "all"]),
    dtypes,
    st.floats(-2, 2),
    seeds,
)
def test_weights_of_the_fused_kernel_sum_to_one_and_padding_has_none(
    length, padded, dtype, power, seed
):
    """Values that are the rows of a unit matrix make the output the weights."""
    torch.manual_seed(seed)
    query = torch.randn(1, H, N, 24) * 10**power
    key = torch.randn(1, H, length, 24)
    padding = {
        "none": None,
        "some": (torch.rand(1, length) < 0.5) & one_valid(length, 0),
        "all but one": one_valid(length, int(torch.randint(length, ()))),
        "all": torch.ones(1, length, dtype=torch.bool),
    }[padded]
    value = torch.eye(24)[:length].expand(1, H, -1, -1)
    query, key, value = (x.to(dtype).requires_grad_() for x in (query, key, value))
    weights = attend(query, key, value, biases=padding_biases(padding))
    found = weights.float()[..., :length]
    assert_close(found.sum(-1), torch.ones(1, H, N), rtol=0, atol=length * 0.01 + 1e-5)
    if dtype == torch.float32:
        assert_close(found.sum(-1), torch.ones(1, H, N))
    drawn = attention_weights(query, key, biases=padding_biases(padding))
    assert_close(drawn.sum(-1), torch.ones(1, H, N))
    if padded != "all":  # whose logits, far from zero, round as they are summed
        # Logits of up to 1e3 are sums of float32.
        assert_close(found, drawn.detach(), rtol=0, atol=1e-3 if dtype == torch.float32 else 2e-2)
    gradients = torch.autograd.grad((weights.float() ** 2).sum(), (key, value))
    assert all(gradient.isfinite().all() for gradient in gradients)
    if padded not in ("none", "all"):
        for x in (found.mT, drawn.mT, *gradients):
            assert x[:, :, padding[0]].eq(0).all()


def decoders(kind):
    sizes = {"num_queries": N, "dim": C, "num_heads": H, "ffn_dim": 8, "num_layers": 2}
    scales = {"num_scales": len(STRIDES)}
    return {
        "SMCA": lambda: SMCADecoder(**sizes, **scales, scale_kind=kind),
        "SMCA, one for all heads": lambda: SMCADecoder(
            **sizes, **scales, scale_kind=kind, per_head=False
        ),
        "anchored": lambda: AnchoredSMCADecoder(**sizes, **scales, scale_kind=kind),
        "DETR": lambda: DETRDecoder(**sizes),
        "Conditional": lambda: ConditionalDecoder(**sizes),
        "Deformable": lambda: DeformableDecoder(**sizes, **scales, num_points=2),
    }


def encoders():
    sizes = {"num_scales": len(STRIDES), "dim": C, "num_heads": H, "ffn_dim": 8}
    return {
        "intra": lambda: IntraMultiEncoder(blocks=["intra"], **sizes),
        "multi": lambda: IntraMultiEncoder(blocks=["multi"], share_attention=False, **sizes),
        "Deformable": lambda: DeformableEncoder(num_layers=1, num_points=2, **sizes),
    }


def assert_padding_is_not_read(read, memory):
    """Other tokens in the padding: the same numbers, bit by bit, and no gradient there."""
    memory.tokens.requires_grad_()
    out = read(memory)
    assert out.isfinite().all()
    (gradient,) = torch.autograd.grad((out.float() ** 2).sum(), memory.tokens)
    assert gradient[memory.padding].eq(0).all() and gradient[~memory.padding].any()
    changed = memory.tokens.detach().clone()
    changed[memory.padding] = 1e3
    assert_close(read(memory.with_tokens(changed)), out, rtol=0, atol=0)


@settings(max_examples=200)
@given(st.sampled_from(list(decoders("fixed"))), kinds, image_sizes, dtypes, seeds)
def test_no_decoder_reads_padding(name, kind, sizes, dtype, seed):
    torch.manual_seed(seed)
    decoder = decoders(kind)[name]().eval()
    memory = drawn_memory(sizes)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        assert_padding_is_not_read(
            lambda memory: decoder(memory, lambda hidden, _: hidden[..., :4].float())[0], memory
        )


@settings(max_examples=100)
@given(st.sampled_from(list(encoders())), image_sizes, dtypes, seeds)
def test_no_encoder_reads_padding(name, sizes, dtype, seed):
    torch.manual_seed(seed)
    encoder = encoders()[name]().eval()
    memory = drawn_memory(sizes)
    inside = ~memory.padding
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        assert_padding_is_not_read(lambda memory: encoder(memory).tokens[inside], memory)


def drawn_gaussians(kind, shape, power, *, on_a_key=False):
    """One query's Gaussian: scales of up to ``10 ** power``, centres up to a map beyond the map.

    Returns it and its precision matrix (2, 2) in float64.
    """
    size = torch.tensor([shape[1], shape[0]])
    center = (torch.rand(2) * 3 - 1) * size
    if on_a_key:
        center = (torch.rand(2) * size).floor()
    scales = torch.randn(3) * 10**power
    x, y, slant = {
        "fixed": (1.0, 1.0, 0.0),
        "single": (scales[0], scales[0], 0.0),
        "independent": (scales[0], scales[1], 0.0),
        "oriented": scales,
    }[kind]
    lower = torch.tensor([[x, 0.0], [slant, y]])
    matrix = lower @ lower.T
    numbers = torch.stack((matrix[0, 0], matrix[1, 1], matrix[0, 1]))
    gaussians = Gaussians(
        center=center.expand(1, 1, 1, 1, 2),
        precision=numbers.expand(1, 1, 1, 1, 3),
        rate=torch.tensor([1 / 16]),
    )
    return gaussians, matrix.double()


def cells(shape):
    """(L, 2), x before y."""
    y, x = torch.meshgrid(torch.arange(shape[0]), torch.arange(shape[1]), indexing="ij")
    return torch.stack((x, y), dim=-1).flatten(0, 1).float()


maps = st.tuples(st.integers(1, 100), st.integers(1, 168))


@settings(max_examples=400)
@given(kinds, maps, st.floats(-4, 4), dtypes, st.booleans(), seeds)
@example("independent", (1, 1), 4.0, torch.float16, False, 0)
@example("oriented", (100, 168), 4.0, torch.float16, False, 0)
@example("single", (100, 168), -4.0, torch.bfloat16, True, 0)
def test_log_g_is_at_most_zero_and_largest_at_the_key_nearest_to_the_centre(
    kind, shape, power, dtype, on_a_key, seed
):
    torch.manual_seed(seed)
    gaussians, matrix = drawn_gaussians(kind, shape, power, on_a_key=on_a_key)
    grid = cells(shape)
    difference = grid.double() - gaussians.center[0, 0, 0, 0].double()
    exact = -torch.einsum("li,ij,lj->l", difference, matrix, difference) / 16
    log_g = gaussians.log_density(0, grid)[0, 0, 0]
    rounding = 1e-6 * (1 + exact.abs().max() / 16)
    assert log_g.isfinite().all() and (log_g <= rounding).all()
    if kind != "oriented":
        assert (log_g <= 0).all()
    if on_a_key:
        assert log_g.max() == 0 and (grid[log_g.argmax()] == gaussians.center[0, 0, 0, 0]).all()

    like = gaussians.center
    (bias,) = gaussians.biases(
        Grid.of([shape], oriented=kind == "oriented", dtype=dtype, like=like)
    )
    query, key = bias.query, bias.key
    assert query.isfinite().all() and key.isfinite().all()
    bias = query[0, 0, 0].float() @ key[0, 0].float().T
    assert bias.isfinite().all()
    # Where the kernel finds the largest one, the exact one is the largest but for the rounding of
    # the terms; those of the sharpest Gaussians are made smaller by a factor.
    terms = (query[0, 0, 0].double().abs() @ key[0, 0].double().abs().T).max()
    factor = max(1.0, matrix.abs().max().item() * sum(shape) / 4 / 2**15)
    assert exact[bias.argmax()] >= exact.max() - factor * terms * 2.0**-20 - 1e-3


@settings(max_examples=150)
@given(kinds, st.booleans(), image_sizes, st.floats(-4, 4), dtypes, seeds)
@example("oriented", True, [(100, 100), (1, 1)], 4.0, torch.float16, 0)
@example("independent", True, [(100, 30), (20, 90)], 4.0, torch.float32, 0)
def test_a_decoder_with_extreme_scales_stays_finite(kind, per_head, sizes, power, dtype, seed):
    """Offsets and scales up to 1e4, under autocast; padding is read by none of them."""
    torch.manual_seed(seed)
    options = {"num_layers": 2, "num_queries": N, "num_scales": 2, "dim": C, "num_heads": H}
    decoder = SMCADecoder(ffn_dim=8, scale_kind=kind, per_head=per_head, **options).eval()
    for layer in decoder.layers:
        for part in (layer.prior.offsets, layer.prior.scales):
            if part is not None:
                torch.nn.init.uniform_(part.bias, -(10**power), 10**power)
    memory = drawn_memory(sizes)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        assert_padding_is_not_read(lambda memory: decoder(memory)[0], memory)
        hidden, _ = decoder.train()(memory)
    for gradient in torch.autograd.grad(
        (hidden.float() ** 2).sum(), list(decoder.parameters())[1:]
    ):
        assert gradient.isfinite().all()


def checked(function, *leaves):
    leaves = [leaf.detach().double().requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(function, leaves, atol=1e-5, rtol=1e-4, fast_mode=True)


@settings(max_examples=40)
@given(kinds, st.booleans(), image_sizes, seeds)
def test_gradients_of_modulated_attention_are_those_of_finite_differences(
    kind, per_head, sizes, seed
):
    """From what a layer observes, through its prior and the fused kernel, in float64."""
    torch.manual_seed(seed)
    prior = SpatialPrior(dim=C, num_heads=H, num_scales=2, per_head=per_head, kind=kind).double()
    if prior.scales is not None:
        torch.nn.init.normal_(prior.scales.weight, std=0.2)
    memory = drawn_memory(sizes, torch.float64)
    batch, length = memory.padding.shape
    query, key = torch.randn(batch, H, 2, 4), torch.randn(batch, H, length, 4)
    value = torch.randn(batch, H, length, 4).double()
    observed, reference = torch.randn(batch, 2, C), torch.randn(batch, 2, 2)

    def attended(observed, reference, query, key):
        places = Places.of(reference, memory, oriented=kind == "oriented")
        found, start = prior(observed, torch.zeros_like(observed), places), 0
        outs = []
        for bias in found.biases:
            scale = slice(start, start + bias.key.shape[2])
            outs.append(attend(query, key[:, :, scale], value[:, :, scale], biases=[bias]))
            start = scale.stop
        weights = 1.0 if found.selection is None else found.selection.permute(2, 0, 1)[..., None]
        return (torch.stack(outs) * weights[:, :, None]).sum((-1, -2))

    checked(attended, observed, reference, query, key)


@settings(max_examples=40)
@given(st.sampled_from([2, 4]), image_sizes, seeds)
def test_gradients_of_deformable_attention_are_those_of_finite_differences(numbers, sizes, seed):
    torch.manual_seed(seed)
    decoder = DeformableDecoder(
        num_layers=1, num_queries=N, num_scales=2, dim=8, num_heads=2, ffn_dim=4, num_points=2
    )
    attention = decoder.layers[0].co_attention.double()
    torch.nn.init.normal_(attention.sampling_offsets.weight, std=0.3)
    torch.nn.init.normal_(attention.attention_weights.weight, std=0.3)
    memory = drawn_memory(sizes, torch.float64)
    batch, length = memory.padding.shape
    tokens, target = torch.randn(batch, length, 8), torch.randn(batch, N, 8)
    reference = torch.rand(batch, N, numbers) * 0.7 + 0.1

    def read(tokens, target, reference):
        prior = reference, memory.map_sizes
        return attention(target, 0.0, memory.with_tokens(tokens), prior).sum(-1)

    checked(read, tokens, target, reference)
