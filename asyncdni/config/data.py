"""[data]: what is trained on. First samples that stand by themselves, then sequences.

Sequences are read in windows of T steps of B parallel streams: `window` is T, `batch_size` is B,
and one window of one stream is what counts as a sample.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from asyncdni.config.base import Count, Positive, Table, Whole

__all__ = [
    "Addition",
    "Cifar10",
    "Copy",
    "Data",
    "DigitPairs",
    "Digits",
    "HeldOut",
    "Mnist",
    "Npz",
    "NpzTargets",
    "RepeatCopy",
    "Samples",
    "Text",
    "Trigonometry",
    "Windows",
]

#: How many training samples are held out to choose options by. They are the same ones for every
#: seed, and take the place of the test set: all that is called test_… is then measured on them.
HeldOut = Whole

#: Steps whose targets the generators of recurrent layers see coming: "coming" in the context.
Ahead = Whole

#: What is to be told of a sample: its label, or itself (by an autoencoder).
Targets = Literal["labels", "inputs"]

#: What the numbers y of an .npz file are: whole numbers that name classes, or values. "auto": what
#: the losses of the network learn; where they learn both or none, values if y is floating.
NpzTargets = Literal["auto", "classes", "values", "inputs"]


# --- samples -------------------------------------------------------------------------------------


class Digits(Table, frozen=True, kw_only=True, tag_field="name", tag="digits"):
    """10,000 + 2,000 images of MNIST, embedded in the package."""

    batch_size: Count = 256  # the DNI paper's
    validation: HeldOut = 0
    planes: bool = False  # images (1, 28, 28) in place of pixels (784,)
    targets: Targets = "labels"


class Mnist(Table, frozen=True, kw_only=True, tag_field="name", tag="mnist"):
    """60,000 + 10,000 images, from the data folder."""

    batch_size: Count = 256
    validation: HeldOut = 0
    path: str = ""  # folder of the files, no other is tried; empty: $ASYNCDNI_DATA, then the cache
    planes: bool = False  # images (1, 28, 28) in place of pixels (784,)
    targets: Targets = "labels"


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
    targets: NpzTargets = "auto"


class DigitPairs(Table, frozen=True, kw_only=True, tag_field="name", tag="digit_pairs"):
    """Two kinds of digits to tell apart (Seo 2018): the first is 0, the second 1."""

    batch_size: Count = 1
    validation: HeldOut = 0
    source: Literal["digits", "mnist"] = "digits"
    path: str = ""  # of mnist, as there
    first: Annotated[int, Meta(ge=0, le=9)] = 0
    second: Annotated[int, Meta(ge=0, le=9)] = 1
    examples: Count = 100
    test_examples: Count = 20
    steps: Count = 1  # above 1: the same image at so many time stamps, (steps, 784)


class Cifar10(Table, frozen=True, kw_only=True, tag_field="name", tag="cifar10"):
    """50,000 + 10,000 colour images (3, 32, 32), the binary version, from the data folder."""

    batch_size: Count = 256
    validation: HeldOut = 0
    path: str = ""  # folder of the files, as with mnist


# --- sequences -----------------------------------------------------------------------------------


class Copy(Table, frozen=True, kw_only=True, tag_field="name", tag="copy"):
    """Bits are shown, then to be recalled (Graves 2014, Jaderberg 2017)."""

    batch_size: Count = 32
    validation: HeldOut = 0  # sequences of each stream, in place of test_sequences
    window: Count = 5
    length: Count = 10  # bits
    # 0: sequences have the full length; k: they begin with 1 and are one longer every k epochs
    grow: Whole = 0
    sequences: Count = 50  # of the full length, that an epoch takes; shorter ones are more
    test_sequences: Count = 10  # of each stream, of the full length
    ahead: Ahead = 0


class RepeatCopy(Table, frozen=True, kw_only=True, tag_field="name", tag="repeat_copy"):
    """Bits are shown, then to be recalled several times over (Graves 2014, Jaderberg 2017)."""

    batch_size: Count = 32
    validation: HeldOut = 0  # sequences of each stream, in place of test_sequences
    window: Count = 5
    length: Count = 5  # bits
    repeats: Count = 5
    # 0: sequences have the full size; k: they begin with 1 bit once, and every k epochs have one
    # repeat more or, where these are as many as the bits, one bit more
    grow: Whole = 0
    sequences: Count = 50  # of the full size, that an epoch takes; smaller ones are more
    test_sequences: Count = 10  # of each stream, of the full size
    ahead: Ahead = 0


class Text(Table, frozen=True, kw_only=True, tag_field="name", tag="text"):
    """The next character of a text, UTF-8, at every step."""

    path: str = ""  # of the file, which may be gzip; empty: Shakespeare's plays in the data folder
    batch_size: Count = 32
    validation: HeldOut = 0  # characters at the end of the training part, in place of the test part
    window: Count = 20
    encoding: Literal["one_hot", "ids"] = "one_hot"  # ids are for an embedding layer
    test_part: Annotated[float, Meta(gt=0, lt=1)] = 0.1  # of the text, its end
    ahead: Ahead = 0


class Trigonometry(Table, frozen=True, kw_only=True, tag_field="name", tag="trigonometry"):
    """The next point (cos, sin) of a circle at every step; streams differ in their start."""

    batch_size: Count = 1
    validation: HeldOut = 0  # windows between the points of training and test, in place of the test
    window: Count = 5
    period: Positive = 20.0  # steps
    points: Count = 500  # of one stream in an epoch
    test_points: Count = 100
    ahead: Ahead = 0


Samples = Digits | Mnist | Addition | Npz | DigitPairs | Cifar10
Windows = Copy | RepeatCopy | Text | Trigonometry
Data = Samples | Windows
