"""Random streams, keyed by what they are for and never by the process that draws from them.

A stream of the same key (seed, name, purpose, numbers) gives the same random numbers under every
split, schedule and number of workers, so a network starts from the same weights everywhere.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np

from asyncdni.nn.base import Rng, Streams

__all__ = ["layer_streams", "stream"]


def stream(seed: int, name: str, purpose: str, *numbers: int) -> Rng:
    """Return a generator for one purpose, such as `stream(0, "data", "shuffle", epoch)`.

    Two keys that differ anywhere give independent streams.
    """
    # JSON keeps the parts apart ("a", "bc" is not "ab", "c") and its text is the same everywhere.
    key = json.dumps([int(seed), name, purpose, *map(int, numbers)]).encode()
    entropy = int.from_bytes(hashlib.blake2b(key, digest_size=32).digest(), "little")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def layer_streams(seed: int, layer_name: str) -> Streams:
    """Return the streams of one layer, by purpose: `layer_streams(0, "stage1.0")("init")`."""
    return lambda purpose: stream(seed, layer_name, purpose)
