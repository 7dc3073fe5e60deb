"""[data]: what is trained on."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from asyncdni.config.base import Count, Table

__all__ = ["Addition", "Data", "Digits", "HeldOut", "Mnist", "Npz"]

#: How many training samples are held out to choose options by. They are the same ones for every
#: seed, and take the place of the test set: all that is called test_… is then measured on them.
HeldOut = Annotated[int, Meta(ge=0)]


class Digits(Table, frozen=True, kw_only=True, tag_field="name", tag="digits"):
    """10,000 + 2,000 images of MNIST, embedded in the package."""

    batch_size: Count = 256  # the DNI paper's
    validation: HeldOut = 0


class Mnist(Table, frozen=True, kw_only=True, tag_field="name", tag="mnist"):
    """60,000 + 10,000 images, from the data folder."""

    batch_size: Count = 256
    validation: HeldOut = 0
    path: str = ""  # folder of the files, no other is tried; empty: $ASYNCDNI_DATA, then the cache


class Addition(Table, frozen=True, kw_only=True, tag_field="name", tag="addition"):
    """Binary addition (Trask 2017): two numbers in, their sum out."""

    batch_size: Count = 10
    validation: HeldOut = 0
    bits: Annotated[int, Meta(ge=2, le=62)] = 8  # of the sum; each summand has one bit less
    examples: Count = 100
    test_examples: Count = 100


class Npz(Table, frozen=True, kw_only=True, tag_field="name", tag="npz"):
    """Arrays x_train, y_train, x_test, y_test of one .npz file."""

    path: Annotated[str, Meta(min_length=1)]
    batch_size: Count = 256
    validation: HeldOut = 0


Data = Digits | Mnist | Addition | Npz
