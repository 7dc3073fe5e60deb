"""Initial weights have the deviation that their name promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
from each import each

from asyncdni.errors import ConfigError
from asyncdni.nn.initialisers import make_initialiser
from asyncdni.nn.streams import stream

INPUTS, OUTPUTS = 300, 200
_HE, _GLOROT, _LECUN = math.sqrt(2 / 300), math.sqrt(2 / 500), math.sqrt(1 / 300)


def filled(spec: str, dtype: str = "float64") -> np.ndarray:
    weight = np.full((OUTPUTS, INPUTS), np.nan, dtype)
    make_initialiser(spec)(weight, stream(0, "layer", "init"))
    return weight


@each(
    "spec, deviation",
    [
        ("he_normal", _HE),
        ("he_uniform", _HE),
        ("glorot_normal", _GLOROT),
        ("glorot_uniform", _GLOROT),
        ("lecun_normal", _LECUN),
        ("lecun_uniform", _LECUN),
        ("normal:0.02", 0.02),
        ("uniform:0.3", 0.3 / math.sqrt(3)),
    ],
)
def test_weights_have_the_deviation_of_their_name(spec: str, deviation: float) -> None:
    weight = filled(spec)
    assert weight.std() == pytest.approx(deviation, rel=0.02)
    assert abs(weight.mean()) < 0.02 * deviation
    if "uniform" in spec:
        assert np.abs(weight).max() <= math.sqrt(3) * deviation * (1 + 1e-12)
    else:
        assert np.abs(weight).max() > 3 * deviation


def test_zeros_are_zeros() -> None:
    assert not filled("zeros").any()


def test_both_types_of_numbers_start_from_the_same_weights() -> None:
    np.testing.assert_array_equal(filled("he_normal", "float32"), filled("he_normal").astype("f4"))


@each(
    "spec, message",
    [
        ("kaiming", "unknown init 'kaiming'.*he_normal.*uniform:<bound>"),
        ("he", "unknown init"),
        ("he_normal:2", "unknown init"),
        ("normal", "unknown init"),
        (3, "unknown init 3"),
        ("normal:wide", 'positive number after the colon, not "wide"'),
        ("uniform:-1", 'not "-1"'),
        ("normal:inf", 'not "inf"'),
        ("normal:", 'not ""'),
    ],
)
def test_what_is_no_initialiser_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_initialiser(spec)
