import math

import pytest
import torch
from torch import nn

from quantenv.core.errors import UnsupportedLayerError
from quantenv.graph.attention import with_plain_attention
from quantenv.tasks.networks.vision import torchvision
from tests.networks import branched


def sequences(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "settings", [{"batch_first": True}, {"batch_first": False}, {"bias": False}, {"kdim": 6, "vdim": 4}]
)
@pytest.mark.parametrize("need_weights", [True, False])
def test_projected_attention_is_torchs(settings, need_weights):
    attention = nn.MultiheadAttention(12, 3, **settings).eval()
    if settings.get("bias", True):
        nn.init.normal_(attention.in_proj_bias)
    query = sequences(5, 2, 12)
    key, value = (sequences(5, 2, settings.get(name, 12)) for name in ("kdim", "vdim"))
    expected, expected_weights = attention(query, key, value, need_weights=need_weights)
    mixed, weights = with_plain_attention(attention)(query, key, value, need_weights=need_weights)
    torch.testing.assert_close(mixed, expected)
    torch.testing.assert_close(weights, expected_weights)


@pytest.mark.parametrize("size", [(4, 4), (7, 7), (8, 8), (8, 5), (15, 7), (14, 14)])
@pytest.mark.parametrize("shift", [0, 3])
def test_window_attention_is_torchvisions(size, shift):
    kind = torchvision().models.swin_transformer.ShiftedWindowAttention
    attention = kind(12, [7, 7], [shift, shift], 3).eval()
    nn.init.normal_(attention.relative_position_bias_table)
    x = sequences(2, *size, 12)
    torch.testing.assert_close(with_plain_attention(attention)(x), attention(x))


@pytest.mark.parametrize("size", [(4, 4), (8, 5), (15, 7)])
@pytest.mark.parametrize("settings", [{"shift_size": [0, 0]}, {"shift_size": [3, 3]}, {"qkv_bias": False}])
def test_cosine_window_attention_is_torchvisions(size, settings):
    kind = torchvision().models.swin_transformer.ShiftedWindowAttentionV2
    attention = kind(**{"dim": 12, "window_size": [7, 7], "shift_size": [3, 3], "num_heads": 3, **settings}).eval()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    attention.logit_scale.data[0] = 9.0  # beyond what is clipped
    x = sequences(2, *size, 12)
    expected = attention(x)
    torch.testing.assert_close(with_plain_attention(attention)(x), expected)
    torch.testing.assert_close(attention(x), expected)


def test_a_network_without_attention_is_left_as_it_is():
    network = branched()
    assert with_plain_attention(network) is network


def test_the_original_is_not_changed():
    network = nn.Sequential(nn.Identity(), nn.MultiheadAttention(4, 2))
    plain = with_plain_attention(network)
    plain[1].q_proj.weight.data.zero_()
    assert isinstance(network[1], nn.MultiheadAttention)
    assert network[1].in_proj_weight.abs().min() > 0
    assert with_plain_attention(plain) is plain


def test_what_is_not_supported_is_named():
    with pytest.raises(UnsupportedLayerError, match="Attention '0': add_bias_kv"):
        with_plain_attention(nn.Sequential(nn.MultiheadAttention(4, 2, add_bias_kv=True)))
    x = sequences(3, 1, 4)
    plain = with_plain_attention(nn.ModuleDict({"mixer": nn.MultiheadAttention(4, 2)}))
    with pytest.raises(UnsupportedLayerError, match="Attention 'mixer' is called with is_causal and no attn_mask"):
        plain["mixer"](x, x, x, is_causal=True)


@pytest.mark.parametrize("kind", ["true where masked", "added"])
def test_masks_are_those_of_torch(kind):
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = sequences(3, 5, 8)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    of_heads = torch.rand(6, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.3
    of_heads[:, :, 0] = False
    for masks in (
        {"attn_mask": causal},
        {"key_padding_mask": padding},
        {"attn_mask": of_heads},
        {"attn_mask": causal, "key_padding_mask": padding},
    ):
        if kind == "added":
            masks = {key: torch.zeros(mask.shape).masked_fill(mask, -math.inf) for key, mask in masks.items()}
        expected, _ = attention(x, x, x, **masks)
        mixed, _ = with_plain_attention(attention)(x, x, x, **masks)
        torch.testing.assert_close(mixed, expected)
