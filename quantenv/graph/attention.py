"""Attention as plain layers: projections that are quantizable Linear layers, everything between them in the open.

torch's and torchvision's attention hand the weights of their projections to one fused function, where a quantizer
cannot reach them. These modules compute the same, and share the parameters.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from quantenv.core.copies import copy_of
from quantenv.core.errors import UnsupportedLayerError


@fx.wrap
def _masked(
    scores: torch.Tensor, attn_mask: torch.Tensor | None, key_padding_mask: torch.Tensor | None
) -> torch.Tensor:
    """Masks scores (B, heads, L, S): minus infinity where a mask is true, or what it holds is added.

    Args:
        scores: What a softmax will read.
        attn_mask: Shape (L, S) or (B * heads, L, S), or None.
        key_padding_mask: Shape (B, S), or None.
    """
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask.unflatten(0, scores.shape[:2])
    if key_padding_mask is not None:
        key_padding_mask = key_padding_mask[:, None, None, :]
    for mask in (attn_mask, key_padding_mask):
        if mask is not None:
            scores = scores.masked_fill(mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    return scores


class ProjectedAttention(nn.Module):
    """`nn.MultiheadAttention` with one Linear layer for each of its four projections.

    Args:
        attention: The attention to express; its parameters are copied.
        name: Its path inside the network, for messages.

    Raises:
        UnsupportedLayerError: If it appends a learned bias or zeros to keys and values.
    """

    def __init__(self, attention: nn.MultiheadAttention, name: str) -> None:
        super().__init__()
        self.name = name
        if attention.bias_k is not None or attention.add_zero_attn:
            raise UnsupportedLayerError(
                f"Attention {name!r}: add_bias_kv and add_zero_attn are not supported; leave them out."
            )
        self.heads, self.batch_first, self.dropout = attention.num_heads, attention.batch_first, attention.dropout
        embedding = attention.embed_dim
        if attention.in_proj_weight is not None:
            weights: tuple[torch.Tensor, ...] = attention.in_proj_weight.detach().split(embedding)
        else:
            weights = tuple(
                weight.detach()
                for weight in (attention.q_proj_weight, attention.k_proj_weight, attention.v_proj_weight)
            )
        biases = (None,) * 3 if attention.in_proj_bias is None else attention.in_proj_bias.detach().split(embedding)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(attention.out_proj.weight.detach(), attention.out_proj.bias)

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Computes what `nn.MultiheadAttention` does, for batches of sequences.

        Raises:
            UnsupportedLayerError: If it is to be causal and has no mask that says so.
        """
        if is_causal and attn_mask is None:
            raise UnsupportedLayerError(
                f"Attention {self.name!r} is called with is_causal and no attn_mask; torch needs both. Give the mask."
            )
        if not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self._split(self.q_proj(query)), self._split(self.k_proj(key)), self._split(self.v_proj(value))
        # The scale behind the product, where integer hardware rescales the sums.
        scores = torch.matmul(q, k.transpose(-2, -1)) * (self.q_proj.out_features // self.heads) ** -0.5
        if attn_mask is not None or key_padding_mask is not None:
            scores = _masked(scores, attn_mask, key_padding_mask)
        shares = F.dropout(torch.softmax(scores, -1), self.dropout, self.training)  # (B, heads, L, S)
        mixed = self.out_proj(torch.matmul(shares, v).transpose(1, 2).flatten(2))
        if not self.batch_first:
            mixed = mixed.transpose(0, 1)
        if not need_weights:
            return mixed, None
        return mixed, shares.mean(1) if average_attn_weights else shares

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, L, E) to (B, heads, L, E / heads)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class WindowAttention(nn.Module):
    """torchvision's `ShiftedWindowAttention` (Liu et al. 2021, "Swin Transformer") with its layers called as layers.

    Of its second version (Liu et al. 2022, "Swin Transformer V2", section 3.2), which compares queries and keys by
    their cosine, the small network that makes the table of biases is replaced by that table, and a scale by its
    value: neither depends on an input.

    Args:
        attention: The attention to express; its layers are shared, and its table where it has one.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        window, shift = attention.window_size, attention.shift_size
        self.heads: int = attention.num_heads
        self.dropouts: tuple[float, float] = (attention.attention_dropout, attention.dropout)
        self.qkv: nn.Linear = attention.qkv
        self.proj: nn.Linear = attention.proj
        self.partition = WindowPartition(window, shift)
        self.reverse = WindowReverse(window, shift)
        self.scale: nn.Parameter | None = None
        if _is_cosine(attention):
            with torch.no_grad():
                self.scale = nn.Parameter(attention.logit_scale.clamp(max=math.log(100.0)).exp())  # (heads, 1, 1)
                logits = attention.cpb_mlp(attention.relative_coords_table).flatten(0, -2)
                table = nn.Parameter(16 * torch.sigmoid(logits))
                if self.qkv.bias is not None:
                    self.qkv.bias[self.proj.in_features : 2 * self.proj.in_features] = 0  # keys have none
        else:
            table = attention.relative_position_bias_table
        self.bias = WindowBias(table, attention.relative_position_index, window, shift)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, H, W, C) to the same shape."""
        height, width = x.shape[1], x.shape[2]
        windows = self.partition(x)  # (B * windows, tokens, C)
        qkv = self.qkv(windows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]  # each (B * windows, heads, tokens, C / heads)
        if self.scale is None:
            scores = torch.matmul(q, k.transpose(-2, -1)) * (self.proj.in_features // self.heads) ** -0.5
        else:
            scores = torch.matmul(F.normalize(q, dim=-1), F.normalize(k, dim=-1).transpose(-2, -1)) * self.scale
        shares = torch.softmax(self.bias(scores, height, width), -1)
        shares = F.dropout(shares, self.dropouts[0], self.training)
        mixed = self.proj(torch.matmul(shares, v).transpose(1, 2).flatten(2))
        return self.reverse(F.dropout(mixed, self.dropouts[1], self.training), height, width)


class _Windows(nn.Module):
    """The geometry of windows on a map that is padded to whole windows and shifted."""

    def __init__(self, window: list[int], shift: list[int]) -> None:
        super().__init__()
        self.window, self.shift = tuple(window), tuple(shift)

    def _geometry(self, height: int, width: int) -> tuple[list[int], list[int], list[int]]:
        """Returns the padded size, the windows along each axis, and the shift, none where one window covers it."""
        counts = [math.ceil(size / window) for size, window in zip((height, width), self.window, strict=True)]
        padded = [count * window for count, window in zip(counts, self.window, strict=True)]
        shift = [0 if count == 1 else shift for count, shift in zip(counts, self.shift, strict=True)]
        return padded, counts, shift

    def _cut(self, x: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Maps (B, H, W, C), whole windows, to (B * windows, tokens, C)."""
        x = x.unflatten(2, (counts[1], self.window[1])).unflatten(1, (counts[0], self.window[0]))
        return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)  # from (B, rows, h, columns, w, C)


class WindowPartition(_Windows):
    """Pads with zeros, shifts and cuts a map into windows: values are only moved."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, H, W, C) to (B * windows, tokens, C)."""
        height, width = x.shape[1:3]
        padded, counts, shift = self._geometry(height, width)
        x = F.pad(x, (0, 0, 0, padded[1] - width, 0, padded[0] - height))
        if any(shift):
            x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
        return self._cut(x, counts)


class WindowReverse(_Windows):
    """Puts windows back into a map: values are only moved."""

    def forward(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Maps (B * windows, tokens, C) to (B, height, width, C)."""
        _, counts, shift = self._geometry(height, width)
        x = x.unflatten(0, (-1, *counts)).unflatten(3, self.window).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if any(shift):
            x = torch.roll(x, tuple(shift), (1, 2))
        return x[:, :height, :width].contiguous()


class WindowBias(_Windows):
    """Adds the learned bias of relative positions, and -100 between tokens that only the shift made neighbours."""

    index: torch.Tensor

    def __init__(self, table: nn.Parameter, index: torch.Tensor, window: list[int], shift: list[int]) -> None:
        super().__init__(window, shift)
        self.table = table  # (relative positions, heads)
        self.register_buffer("index", index)

    def forward(self, scores: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Maps scores (B * windows, heads, tokens, tokens) to the same shape."""
        tokens = scores.shape[-1]
        scores = scores + self.table[self.index].view(tokens, tokens, -1).permute(2, 0, 1)
        padded, counts, shift = self._geometry(height, width)
        if not any(shift):
            return scores
        regions = scores.new_zeros(1, *padded, 1)
        for axis in (0, 1):  # a region is what lies between the last window's start, the shift and the end
            position = torch.arange(padded[axis])
            last = (position >= padded[axis] - self.window[axis]).long()
            beyond = (position >= padded[axis] - shift[axis]).long() if shift[axis] else torch.zeros_like(last)
            region = (last + beyond).to(scores) * (3 if axis == 0 else 1)
            regions += region.view(1, -1, 1, 1) if axis == 0 else region.view(1, 1, -1, 1)
        regions = self._cut(regions, counts)[..., 0]  # (windows, tokens)
        apart = regions[:, None, :] != regions[:, :, None]
        mask = torch.zeros_like(apart, dtype=scores.dtype).masked_fill_(apart, -100.0)
        return (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)


def with_plain_attention(network: nn.Module) -> nn.Module:
    """Expresses every attention that quantenv knows by its projections.

    Args:
        network: Any network; not changed.

    Returns:
        The network itself if there is nothing to express; otherwise a copy, in the same mode.

    Raises:
        UnsupportedLayerError: If an attention has a setting that is not supported; its module is named.
    """
    names = [name for name, module in network.named_modules() if _known_attention(module)]
    if not names:
        return network
    result = copy_of(network)
    for name in names:
        attention = result.get_submodule(name)
        plain: nn.Module = (
            ProjectedAttention(attention, name)
            if isinstance(attention, nn.MultiheadAttention)
            else WindowAttention(attention)
        )
        plain.train(attention.training)
        if not name:
            return plain
        result.set_submodule(name, plain)
    return result


def _known_attention(module: nn.Module) -> bool:
    # By name: torchvision takes a second to import, and whoever has such a module has imported it.
    kind = type(module)
    windows = kind.__module__ == "torchvision.models.swin_transformer" and kind.__name__ == "ShiftedWindowAttention"
    return kind is nn.MultiheadAttention or windows or _is_cosine(module)


def _is_cosine(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__ == "torchvision.models.swin_transformer" and kind.__name__ == "ShiftedWindowAttentionV2"


def _linear(weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """Makes a Linear layer of given parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
