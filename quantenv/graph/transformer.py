"""torch's transformer encoders with their layers called as layers: the fast path of inference hides them."""

import torch
from torch import nn


class OpenEncoderLayer(nn.TransformerEncoderLayer):
    """`nn.TransformerEncoderLayer` by its slow path alone, which computes the same."""

    def forward(
        self,
        src: torch.Tensor,
        src_mask: torch.Tensor | None = None,
        src_key_padding_mask: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        """Maps (B, L, E), or (L, B, E), to the same shape."""
        if self.norm_first:
            x = src + self._mixed(self.norm1(src), src_mask, src_key_padding_mask)
            return x + self._ff_block(self.norm2(x))
        x = self.norm1(src + self._mixed(src, src_mask, src_key_padding_mask))
        return self.norm2(x + self._ff_block(x))

    def _mixed(self, x: torch.Tensor, mask: torch.Tensor | None, padding: torch.Tensor | None) -> torch.Tensor:
        return self.dropout1(self.self_attn(x, x, x, attn_mask=mask, key_padding_mask=padding, need_weights=False)[0])


class OpenEncoder(nn.TransformerEncoder):
    """`nn.TransformerEncoder` without nested tensors."""

    def forward(
        self,
        src: torch.Tensor,
        mask: torch.Tensor | None = None,
        src_key_padding_mask: torch.Tensor | None = None,
        is_causal: bool | None = None,
    ) -> torch.Tensor:
        """Maps (B, L, E), or (L, B, E), to the same shape."""
        for layer in self.layers:
            src = layer(src, src_mask=mask, src_key_padding_mask=src_key_padding_mask)
        return src if self.norm is None else self.norm(src)


_OPEN: dict[type[nn.Module], type[nn.Module]] = {
    nn.TransformerEncoderLayer: OpenEncoderLayer,
    nn.TransformerEncoder: OpenEncoder,
}


def open_class(kind: type[nn.Module]) -> type[nn.Module] | None:
    """Returns what computes the same as a class of torch, openly, or None if it is no such class."""
    return _OPEN.get(kind)
