"""A Hugging Face model built from a config, saved, loaded, and fine-tuned with frozen lower layers.

    pip install transformers
    python launch/torch/finetune.py [--epochs 3]

A small GPT-2 learns whether a sequence begins with one of the lower half of all tokens. Its
embeddings and first block are frozen: their weights are saved, and never move.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset
from transformers import GPT2Config, GPT2Model

import asyncdni

VOCABULARY, STEPS, WIDTH = 50, 12, 32


class Classifier(nn.Module):
    """Two answers from the last hidden state of a GPT-2."""

    def __init__(self, body: GPT2Model) -> None:
        super().__init__()
        self.tokens, self.positions = body.wte, body.wpe
        self.blocks = nn.ModuleList(Block(one) for one in body.h)
        self.norm, self.answer = body.ln_f, nn.Linear(WIDTH, 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.tokens(ids) + self.positions.weight
        for block in self.blocks:
            x = block(x)
        return self.answer(self.norm(x)[:, -1])


class Block(nn.Module):
    """A block of GPT-2 that returns one tensor."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.block(x)
        return found[0] if isinstance(found, tuple) else found


def main(arguments: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--schedule", default="synthetic")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        chosen = GPT2Config(
            vocab_size=VOCABULARY, n_positions=STEPS, n_embd=WIDTH, n_layer=3, n_head=4
        )
        GPT2Model(chosen).save_pretrained(folder)
        model = Classifier(GPT2Model.from_pretrained(folder))
    for part in (model.tokens, model.positions, model.blocks[0]):
        part.requires_grad_(False)
    result = asyncdni.train(
        model,
        data=(data(args.samples, 1), data(1000, 2)),
        stages=["blocks.1", "blocks.2"],
        schedule=args.schedule,
        optimizer={"name": "adam", "learning_rate": 1e-3},
        epochs=args.epochs,
        batch_size=100,
    )
    result.load_into(model)
    print(f"test accuracy {result.test_accuracy:.2%}")
    return result


def data(samples: int, seed: int) -> TensorDataset:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (samples, STEPS), generator=random)
    return TensorDataset(ids, (ids[:, 0] < VOCABULARY // 2).long())


if __name__ == "__main__":
    main()
