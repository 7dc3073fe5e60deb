"""ResNet-18 on MNIST's images, or on CIFAR-10 where its files are given, over four workers.

    python launch/torch/resnet18.py [--cifar10 FOLDER] [--schedule synthetic] [--epochs 1]

The model is an object of this program: its structure is handed to the workers, its trained weights
come back into it.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from models import resnet18
from torch.utils.data import TensorDataset

import asyncdni
from asyncdni import config
from asyncdni.data import load


def main(arguments: list[str] | None = None) -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar10", metavar="FOLDER", help="the binary version's files")
    parser.add_argument("--schedule", default="synthetic")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--width", type=int, default=16, help="channels of the first layer")
    parser.add_argument("--samples", type=int, help="train on so many samples only")
    args = parser.parse_args(arguments)
    train_set, test_set = data(args)
    model = resnet18(width=args.width, channels=3)
    result = asyncdni.train(
        model,
        data=(train_set, test_set),
        loss="cross_entropy",
        stages=args.stages,
        schedule=args.schedule,
        optimizer={"name": "sgd", "learning_rate": 0.05, "momentum": 0.9},
        epochs=args.epochs,
        batch_size=64,
    )
    result.load_into(model)
    rate = result.summary["samples_per_s"]
    print(f"test accuracy {result.test_accuracy:.2%}, {rate:,.0f} samples/s")
    return result


def data(args: argparse.Namespace) -> tuple[TensorDataset, TensorDataset]:
    """Training and test images (3, H, W): the ten thousand digits of the package, in three equal
    channels and enlarged to 32 x 32, or CIFAR-10."""
    if args.cifar10:
        found = load(config.Cifar10(path=args.cifar10), 0)
    else:
        found = load(config.Digits(planes=True), 0)
    count = args.samples
    train = images(found.x_train[:count]), torch.from_numpy(found.y_train[:count]).long()
    test = images(found.x_test[:count]), torch.from_numpy(found.y_test[:count]).long()
    return TensorDataset(*train), TensorDataset(*test)


def images(array: Any) -> torch.Tensor:
    x = torch.from_numpy(array).float() / 255
    if x.shape[1] == 1:
        x = torch.nn.functional.pad(x, (2, 2, 2, 2)).expand(-1, 3, -1, -1)
    return x.contiguous()


if __name__ == "__main__":
    main()
