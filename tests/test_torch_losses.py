"""Losses of the user's own, for networks written in PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from each import each

torch = pytest.importorskip("torch")

import torch_models  # noqa: E402
from test_torch_equality import made, simulated  # noqa: E402
from torch_plain import batches_of, one_thread  # noqa: E402

import asyncdni  # noqa: E402
from asyncdni import config, experiment  # noqa: E402
from asyncdni.data import describe  # noqa: E402
from asyncdni.errors import ConfigError  # noqa: E402
from asyncdni.imports import allowing  # noqa: E402
from asyncdni.plan.build import make_design  # noqa: E402

LOCKED = {"name": "locked"}


def with_loss(model: str, loss: str, schedule: dict[str, Any] = LOCKED) -> config.Experiment:
    tables = experiment.tables(made(model, ["3"] if model == "mlp" else ["h.2"], schedule))
    tables["model"]["loss"] = loss
    return experiment.parse(tables)


def plain(chosen: config.Experiment) -> Any:
    """A plain loop with the mean that the loss returns."""
    assert chosen.model is not None
    torch.manual_seed(chosen.run.seed)
    name = chosen.model.build.partition(":")[2]
    model = getattr(torch_models, name)(**chosen.model.arguments)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, fused=True)
    with one_thread():
        for x, y in batches_of(chosen, model):
            optimizer.zero_grad()
            torch_models.smoothed(model(x), y).backward()
            optimizer.step()
    return model


def test_it_is_a_mean_over_samples_as_in_a_plain_loop() -> None:
    chosen = with_loss("mlp", "torch_models:smoothed")
    weights, model = simulated(chosen), plain(chosen)
    own = dict(model.named_parameters())
    for name, array in weights.items():
        if name.split(".", 2)[2] in own:
            expected = own[name.split(".", 2)[2]].detach().numpy()
            np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-5, err_msg=name)


@each("schedule", [{"name": "synthetic"}, {"name": "local_loss"}, {"name": "delayed"}])
def test_it_trains_under_all_kinds_of_schedules(schedule: dict[str, Any]) -> None:
    chosen = with_loss("mlp", "torch_models:smoothed", schedule)
    weights = simulated(chosen)
    assert all(np.isfinite(array).all() for array in weights.values())
    assert not np.array_equal(weights["layer3.0.3.weight"], simulated_start(chosen))


def simulated_start(chosen: config.Experiment) -> Any:
    torch.manual_seed(chosen.run.seed)
    assert chosen.model is not None
    return torch_models.mlp(**chosen.model.arguments)[3].weight.detach().numpy()


def test_steps_of_windows_are_its_rows() -> None:
    usual, own = (
        simulated(with_loss("gpt", loss)) for loss in ("cross_entropy", "torch.nn:CrossEntropyLoss")
    )
    for name, array in usual.items():
        np.testing.assert_allclose(own[name], array, rtol=1e-3, atol=1e-4, err_msg=name)


def test_an_object_is_handed_to_the_workers() -> None:
    weight = torch.tensor([1.0, 2.0, 1.0, 1.0, 3.0])

    def weighted(outputs: Any, targets: Any) -> Any:
        return torch.nn.functional.cross_entropy(outputs, targets, weight=weight)

    pytest.importorskip("cloudpickle")
    data, options = torch_models.points(), {"epochs": 1, "batch_size": 16, "schedule": "locked"}
    model = torch_models.mlp(width=9, inputs=37, outputs=5)
    results = [
        asyncdni.train(model, data=data, stages=["3"], loss=loss, **options)
        for loss in (weighted, "cross_entropy")
    ]
    first, second = (result.state_dict()["0.weight"] for result in results)
    assert not torch.equal(first, second)
    assert results[0].history[-1]["accuracy"] is not None


@each(
    "loss, words",
    [
        ("torch_models:unreduced", r"returns \(2,\), expected a tensor of one number"),
        ("torch_models:of_values", r"does not take outputs \(2, 5\) and targets \(2,\) of"),
        ("torch_models:missing", "torch_models:missing"),
        ("torch_models.smoothed", "loss: unknown loss 'torch_models.smoothed'"),
    ],
)
def test_what_is_no_loss_is_refused(loss: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        chosen = with_loss("mlp", loss)
        with allowing(True):
            make_design(chosen, describe(chosen.data), allow_import=True)
    assert "\n" not in str(caught.value)


def test_it_is_imported_only_where_that_is_allowed() -> None:
    chosen = with_loss("mlp", "torch_models:smoothed")
    with allowing(True):
        meta = describe(chosen.data)
    tables = {
        "data": {"name": "digits"},
        "stages": [{"layers": [{"module": "torch.nn:Flatten"}], "loss": "os:system"}],
    }
    with pytest.raises(ConfigError, match=r"os:system"):
        make_design(tables, meta, allow_import=("torch",))


def test_layers_of_this_package_have_the_losses_of_this_package() -> None:
    tables = {
        "data": {"name": "digits"},
        "stages": [{"layers": [{"dense": 10}], "loss": "torch_models:smoothed"}],
    }
    meta = describe(experiment.parse(tables).data)
    with pytest.raises(ConfigError, match="is for stages written in PyTorch; expected one of"):
        make_design(tables, meta, allow_import=True)
