"""Small networks in which several stages use one set of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from networks import BITS, WIDTH, Tables, chain, fork

__all__ = ["GRAPHS", "assert_alike", "tied_chain", "tied_fork", "tied_losses", "unrolled"]


def tied_chain() -> Tables:
    """Three of five stages have the same weights: s1, s2, s3."""
    stages = chain(5)
    for stage in stages[2:4]:
        stage["weights"] = "s1"
    return stages


def tied_fork() -> Tables:
    """Two of three parallel stages, the first of which names the last."""
    stages = fork()
    stages[1]["weights"] = "c"
    return stages


def tied_losses() -> Tables:
    """Two stages with a loss each, of unequal depth, and two sets of weights."""
    s0, s1, s2, top = chain(4)
    aside = {**top, "name": "aside", "inputs": ["s1"], "weights": "top"}
    return [s0, s1, {**s2, "weights": "s1"}, top, aside]


def unrolled() -> Tables:
    """A recurrence over two time stamps, one in each half of the input."""

    def step(index: int) -> Any:
        layers = [{"reshape": [2, BITS]}, {"step": index}]
        return {"name": f"x{index + 1}", "inputs": ["data"], "layers": layers}

    def stamp(name: str, *inputs: str, **more: Any) -> Any:
        return {"name": name, "inputs": list(inputs), "layers": [{"dense": WIDTH}, "tanh"], **more}

    start = {"name": "start", "inputs": ["data"], "layers": [{"zeros": WIDTH}]}
    first = [step(0), start, stamp("h1", "x1", "start")]
    second = [step(1), stamp("h2", "x2", "h1", weights="h1")]
    top = {"name": "top", "layers": [{"dense": BITS}], "loss": "sigmoid_cross_entropy"}
    return [*first, *second, top]


GRAPHS = (tied_chain, tied_fork, tied_losses, unrolled)


def assert_alike(stages: Tables, weights: Mapping[str, Mapping[str, Any]]) -> None:
    """Every stage that names another has the same weights to the last bit."""
    for stage in stages:
        if "weights" in stage:
            own, there = weights[stage["name"]], weights[stage["weights"]]
            assert own.keys() == there.keys()
            for name, array in there.items():
                assert own[name].tobytes() == array.tobytes(), (stage["name"], name)
