"""Feature maps turned from channels first to channels last, and what that costs the caches.

The turn reads one number of each channel in turn, a plane apart. Where planes lie a large power of
two bytes apart, all of these reads compete for a few sets of the cache, and each line is fetched
again for every number in it: planes of 32 x 32 took five times as long as planes of 28 x 28. Such
planes are first moved apart by one line more.
"""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import as_strided

from asyncdni.nn.base import Array, Slot
from asyncdni.nn.layers.slots import rows

__all__ = ["apart"]

#: Planes that lie a multiple of this apart meet in a few sets of the cache.
_CLASH_BYTES = 1024
#: Of a cache, at least.
_LINE_BYTES = 64
#: With fewer, one line of each fits into a set.
_CHANNELS = 8


def apart(x: Array, scratch: Slot) -> Array:
    """x (n, C, H, W), or a copy in `scratch` whose planes do not clash, until the next call."""
    samples, channels, height, width = x.shape
    clashing = x.strides[1] % _CLASH_BYTES == 0 and channels > _CHANNELS and height * width > 1
    if not (clashing and x.flags.c_contiguous):
        return x
    size = height * width
    stride = size + _LINE_BYTES // x.itemsize
    kept = rows(scratch, "apart", (samples, channels, stride), x.dtype)
    np.copyto(kept[:, :, :size], x.reshape(samples, channels, size))
    by_sample, by_channel, each = kept.strides
    return as_strided(kept, x.shape, (by_sample, by_channel, width * each, each), writeable=False)
