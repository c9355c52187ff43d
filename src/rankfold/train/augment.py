"""Random crops and mirror images, drawn for every sample of a batch by itself."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rankfold.train.recipe import Augment


def augment(batch: Tensor, how: Augment, generator: torch.Generator) -> Tensor:
    """A shifted and mirrored copy of `batch` (B, C, H, W), any dtype, same device; one draw per sample.

    Each image is padded by `crop_padding` zeros on every side and cut back to H × W at a uniformly drawn
    place (He et al. 2016, section 4.2), then mirrored left to right with probability one half. One gather,
    O(B·C·H·W). Draws come from the CPU `generator`. Raises ValueError for a batch that is not 4-dimensional.
    """
    if batch.ndim != 4:
        raise ValueError(
            f"augment shifts images (B, C, H, W), and a batch has the shape {tuple(batch.shape)}: use augment=None"
        )
    count, _, height, width = batch.shape
    reach = 2 * how.crop_padding + 1
    down = torch.randint(reach, (count, 1), generator=generator)
    right = torch.randint(reach, (count, 1), generator=generator)
    columns = torch.arange(width).expand(count, width)
    if how.flip:
        mirrored = torch.rand(count, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    rows = (down + torch.arange(height)).to(batch.device)
    columns = (right + columns).to(batch.device)
    padded = F.pad(batch, (how.crop_padding,) * 4)
    sample = torch.arange(count, device=batch.device)
    cropped = padded.permute(0, 2, 3, 1)[sample[:, None, None], rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)
