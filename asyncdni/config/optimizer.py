"""[optimizer]: how weights move."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from asyncdni.config.base import Fraction, NonNegative, Positive, Table

__all__ = ["Adam", "Constant", "Cosine", "Decay", "Optimizer", "Sgd", "Step"]


class Constant(Table, frozen=True, kw_only=True, tag_field="name", tag="constant"):
    """The learning rate as given."""

    warmup_epochs: NonNegative = 0.0  # rises linearly from 0


class Step(Table, frozen=True, kw_only=True, tag_field="name", tag="step"):
    """Multiplied by `factor` after each of `epochs`."""

    epochs: Annotated[list[Positive], Meta(min_length=1)]
    factor: Positive = 0.1
    warmup_epochs: NonNegative = 0.0


class Cosine(Table, frozen=True, kw_only=True, tag_field="name", tag="cosine"):
    """Falls to `final` times the learning rate over the whole run."""

    final: Fraction = 0.0
    warmup_epochs: NonNegative = 0.0


Decay = Constant | Step | Cosine


class Sgd(Table, frozen=True, kw_only=True, tag_field="name", tag="sgd"):
    """Stochastic gradient descent, with momentum and Nesterov's variant on request."""

    learning_rate: Positive = 0.1
    momentum: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    nesterov: bool = False
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = None  # of each stage's own gradient
    decay: Decay = Constant()


class Adam(Table, frozen=True, kw_only=True, tag_field="name", tag="adam"):
    """Adam; with `weight_decay` AdamW (decoupled)."""

    learning_rate: Positive = 1e-3
    beta1: Annotated[float, Meta(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Meta(ge=0, lt=1)] = 0.999
    epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = None
    decay: Decay = Constant()


Optimizer = Sgd | Adam
