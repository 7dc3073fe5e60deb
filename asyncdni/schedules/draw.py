"""Draws that every process agrees on, without a generator's state: a number in, a number out."""

from __future__ import annotations

__all__ = ["draw"]

_MASK = 2**64 - 1


def draw(key: int, batch: int) -> float:
    """Uniform in [0, 1), for each key and batch another (SplitMix64: Steele et al. 2014)."""
    state = (key + (batch + 1) * 0x9E3779B97F4A7C15) & _MASK
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
    return (state ^ (state >> 31)) / 2.0**64
