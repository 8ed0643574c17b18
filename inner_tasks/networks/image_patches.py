"""Images as sequences of patches."""

from __future__ import annotations

import jax


def image_patches(images: jax.Array, shape: tuple[int, int, int], side: int) -> jax.Array:
    """The square patches of images, row by row, ``[batch, patches, side * side * channels]``.

    Args:
      images: ``[batch, height * width * channels]``.
      shape: height, width and channels.
      side: side of a patch, a divisor of height and width.
    """
    height, width, channels = shape
    x = images.reshape(-1, height // side, side, width // side, side, channels)
    return x.swapaxes(2, 3).reshape(x.shape[0], -1, side * side * channels)
