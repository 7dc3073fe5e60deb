"""One run: an LSTM and a read-out learn a task window by window, in one process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from tasks import INPUTS, Curriculum, Piece, draw

from asyncdni.nn.base import Slot
from asyncdni.nn.layers.dense import Dense
from asyncdni.nn.layers.recurrent import Lstm
from asyncdni.nn.optimizers import Adam, clip_by_norm, finite_norm, flatten
from asyncdni.nn.streams import layer_streams, stream

__all__ = ["Network", "Settings", "train"]


@dataclass(frozen=True)
class Settings:
    """Of one run."""

    steps: int  # T, of a window
    repeat: bool = False  # Repeat Copy
    future: Mapping[str, Any] | None = None  # None: truncated backpropagation through time
    ahead: int = 0  # targets that the generator sees coming; its labels are twice as many
    seed: int = 0
    units: int = 64
    batch: int = 32
    learning_rate: float = 1e-3
    clip_norm: float = 1.0
    budget: int = 150_000  # LSTM time steps
    lstm: Mapping[str, Any] = field(default_factory=dict)


class Network:
    """x (B, T, INPUTS) -> LSTM -> one logit a step, and their optimizer."""

    def __init__(self, settings: Settings) -> None:
        future = settings.future
        if future is not None and settings.ahead:
            future = {**future, "labels": 2 * settings.ahead}
        self.lstm = Lstm(settings.units, future=future, **settings.lstm)
        self.readout = Dense(1, init="lecun_normal")
        dtype, seed = np.dtype(np.float32), settings.seed
        self.lstm.build((settings.steps, INPUTS), dtype, layer_streams(seed, "lstm"))
        self.readout.build((settings.units,), dtype, layer_streams(seed, "readout"))
        self._vector, self._grads = flatten([self.lstm, self.readout])
        self._optimizer = Adam()
        self._settings = settings
        self._slots: tuple[Slot, Slot] = ({}, {})

    def learn(self, piece: Piece) -> float:
        """One window: forward, backward and update. Returns its loss in bits."""
        own, top = self._slots
        own["context"] = piece.context
        hidden = self.lstm.forward(piece.x, own)
        logits = self.readout.forward(hidden.reshape(-1, hidden.shape[2]), top)
        loss, grad = _loss(logits[:, 0], piece.target.reshape(-1))
        self.lstm.fresh = self.readout.fresh = True
        back = self.readout.backward(grad[:, None], top, learn=True, send=True)
        assert back is not None
        self.lstm.backward(back.reshape(hidden.shape), own, learn=True, send=False)
        self._grads /= len(piece.x)
        clip_by_norm(self._grads, finite_norm(self._grads), self._settings.clip_norm)
        self._optimizer.step(self._vector, self._grads, self._settings.learning_rate)
        return loss


def _loss(logits: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """Logistic loss of targets -1 and 1 in bits, and its gradient in nats; none where 0."""
    asked = target != 0
    margin = target * logits
    loss = float(np.logaddexp(0, -margin[asked]).sum()) / np.log(2)
    grad = -target / (1 + np.exp(np.clip(margin, -60, 60)))
    return loss, grad.astype(np.float32)


def train(settings: Settings) -> Curriculum:
    """Until the budget is spent."""
    network = Network(settings)
    curriculum = Curriculum(settings.repeat)
    rng = stream(settings.seed, "data", "bits")
    spent = 0
    while spent < settings.budget:
        bits, repeats = curriculum.bits, curriculum.repeats
        sequences = draw(rng, settings.batch, bits, repeats, settings.steps)
        total = sum(network.learn(p) for p in sequences.windows(settings.steps, settings.ahead))
        spent += sequences.target.shape[1]
        curriculum.see(total / sequences.asked)
    return curriculum
