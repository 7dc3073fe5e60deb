"""Windows of a text in tokens of its own: byte-pair encoding trained on that text.

The data set of `gpt-bpe.toml`. Needs the package tokenizers: pip install tokenizers.
"""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import ByteLevelBPETokenizer
from torch.utils.data import TensorDataset

from asyncdni.data import text

__all__ = ["tokenizer", "windows"]


def tokenizer(path: str = "", vocabulary: int = 1024) -> ByteLevelBPETokenizer:
    """Train the tokenizer on the text at `path`; empty: Shakespeare's plays of the data folder.

    The same text gives the same tokens again, so this also decodes what a trained model says.
    """
    found = ByteLevelBPETokenizer()
    lines = text.read(text.find(path)).splitlines(keepends=True)
    found.train_from_iterator(lines, vocab_size=vocabulary, show_progress=False)
    return found


def windows(
    path: str = "", vocabulary: int = 1024, window: int = 64, test_part: float = 0.1
) -> tuple[TensorDataset, TensorDataset]:
    """Training and test set: tokens (window,), and as targets those one further on. The end of the
    text is the test set."""
    content = text.read(text.find(path))
    ids = np.array(tokenizer(path, vocabulary).encode(content).ids)
    count = (len(ids) - 1) // window
    x, y = (
        torch.from_numpy(ids[start : start + count * window].reshape(count, window))
        for start in (0, 1)
    )
    begin = round(count * (1 - test_part))
    return TensorDataset(x[:begin], y[:begin]), TensorDataset(x[begin:], y[begin:])
