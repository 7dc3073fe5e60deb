"""Samples as images to look at, whatever shape a network takes them in."""

from __future__ import annotations

import math

from asyncdni.datasets.meta import Array

__all__ = ["as_images", "image_shape"]


def image_shape(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """(H, W), or (H, W, 3) of colours, of one sample of `shape`; None where it is no image.

    Images come as planes (1 or 3, H, W), or as the pixels (H W,) of a square; of those that come
    once for each of several time stamps, (T, H W), one is shown."""
    if len(shape) == 3 and shape[0] in (1, 3):
        return (*shape[1:], 3) if shape[0] == 3 else shape[1:]
    if len(shape) in (1, 2):
        side = math.isqrt(shape[-1])
        return (side, side) if side * side == shape[-1] and side > 1 else None
    return None


def as_images(x: Array, shape: tuple[int, ...]) -> Array:
    """Samples x (N, …) of `shape`, or as rows of all their numbers, as (N, H, W) or (N, H, W, 3).

    Raises `ValueError` for a shape that is no image's."""
    wanted = image_shape(shape)
    if wanted is None:
        raise ValueError(f"{shape} is no shape of an image")
    if len(wanted) == 3:
        return x.reshape(len(x), *shape).transpose(0, 2, 3, 1)
    pixels = wanted[0] * wanted[1]
    return x.reshape(len(x), -1)[:, :pixels].reshape(len(x), *wanted)
