"""Random crops and mirror images of whole batches, without a loop over images."""

import torch
import torch.nn.functional as F

from quantenv.core.errors import QuantenvError

ALL = slice(None)


def augment(
    images: torch.Tensor,
    crop: int,
    flip: bool,
    generator: torch.Generator,
    share: slice = ALL,
    whole: int | None = None,
) -> torch.Tensor:
    """Draws a window of each padded image, and mirrors half of the images.

    Args:
        images: Shape (B, C, H, W).
        crop: Zero pixels put around each image before a window of its old size is drawn.
        flip: Whether to mirror, each image with probability 1/2.
        generator: Draws.
        share: Which images of a batch these are,
        whole: and how many the batch has, for all of which is drawn; by default these are all.

    Returns:
        New images of the same shape.

    Raises:
        QuantenvError: If the inputs are no images.
    """
    if images.dim() != 4:
        raise QuantenvError(
            f"Crop and flip are for images (B, C, H, W); the inputs are {tuple(images.shape)}: leave both out."
        )
    count, _, height, width = images.shape
    top, left = torch.randint(0, 2 * crop + 1, (2, whole or count), generator=generator)[:, share]
    rows = top[:, None] + torch.arange(height)  # (B, H)
    columns = left[:, None] + torch.arange(width)  # (B, W)
    if flip:
        mirrored = torch.rand(whole or count, generator=generator)[share] < 0.5
        columns = torch.where(mirrored[:, None], columns.flip(1), columns)
    padded = F.pad(images, (crop, crop, crop, crop)).permute(0, 2, 3, 1)  # (B, H + 2 crop, W + 2 crop, C)
    chosen = padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return chosen.permute(0, 3, 1, 2).contiguous()
