"""Random crops and horizontal flips."""

import torch
from torch import Tensor

from runner.augment import Augment, Draw, of_images
from runner.core.schema import Natural


class CropFlip(Augment):
    """Flips an image left to right half of the time, pads it with black, and crops its own size at a random place.

    The border is the low end of the raw inputs' range, or 0 where the data set declares none: black, as in the CIFAR
    recipe of He et al. 2016 (arXiv:1512.03385, section 4.2). All (2 padding + 1)^2 places are equally likely.

    Parameters
    ----------
    padding : pixels on every side. Default 4; 0: flips only.
    flip : whether to flip. Default True.
    views : those that it acts on. Default null: all.
    shape, bounds : of an input and its range, from the data set.

    Raises
    ------
    ValueError
        Inputs that are no images.
    """

    def __init__(
        self,
        padding: Natural = 4,
        flip: bool = True,
        views: list[str] | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        bounds: tuple[float, float] | None = None,
    ):
        super().__init__(views)
        of_images(shape)
        self.padding, self.flip, self.black = padding, flip, 0 if bounds is None else bounds[0]

    def pixels(self, x: Tensor, draw: Draw) -> Tensor:
        """(B, C, H, W), of any dtype -> the same shape; the result may be a strided view."""
        samples, channels, height, width = x.shape
        p = self.padding
        u = draw.uniform("crop_flip", 3)
        numbers = torch.arange(samples, device=x.device)
        if self.flip:
            flipped = u[:, 0] < 0.5
            x = torch.cat([x, x.flip(-1)]).index_select(0, numbers.add(flipped, alpha=samples))
        if p == 0:
            return x
        # The padded batch as one row of pixels: a crop begins at its first pixel and keeps the padded width, so that a
        # sample is one contiguous copy, as long as a padded image, which a view then cuts to size.
        h, w = height + 2 * p, width + 2 * p
        size = channels * h * w
        end = 2 * p * (w + 1)  # the last sample's copy runs over the end of its image
        row = x.new_full((samples * size + end,), self.black)
        row[: samples * size].view(samples, channels, h, w)[..., p:-p, p:-p] = x
        places = (u[:, 1:] * (2 * p + 1)).long()
        begin = numbers * size + places[:, 0] * w + places[:, 1]
        crops = row.unfold(0, size, 1).index_select(0, begin)
        return crops.view(samples, channels, h, w)[..., :height, :width]
