"""A module of PyTorch given to `train` as an object: from scripts, cells and tests."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import Site, make_site

torch = pytest.importorskip("torch")
pytest.importorskip("cloudpickle")

from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import asyncdni  # noqa: E402
from asyncdni.errors import AsyncDNIError, ConfigError, DataError  # noqa: E402

#: Importing PyTorch takes seconds in each process.
_PATIENCE_S = 120.0
#: A module in a file of its own, and data of three classes that a network learns at once.
NETS = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.b = nn.Linear(8, 3)

    def forward(self, x):
        return self.b(self.norm(self.a(x)).relu())

def sets():
    y = torch.arange(90) % 3
    x = torch.eye(6)[y] + 0.1 * torch.arange(540.0).sin().reshape(90, 6)
    return TensorDataset(x, y), TensorDataset(x[:30], y[:30])
"""
CALL = """
result = asyncdni.train(Net(), data=sets(), stages=["b"], schedule="locked", epochs=8,
                        batch_size=30, optimizer={"name": "sgd", "learning_rate": 0.5})
model = Net()
result.load_into(model)
x, y = sets()[1].tensors
right = (model.eval()(x).argmax(1) == y).double().mean()
assert abs(right - result.test_accuracy) < 1e-9 and right > 0.9, (right, result)
print("trained")
"""

#: As in a notebook: the class belongs to no module that another process could import.
made: dict[str, Any] = {"__name__": "__main__"}
exec(NETS, made)
Net, sets = made["Net"], made["sets"]
OPTIONS: dict[str, Any] = {
    "stages": ["b"],
    "schedule": "locked",
    "epochs": 2,
    "batch_size": 30,
    "optimizer": {"name": "sgd", "learning_rate": 0.5, "momentum": 0.9},
}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as site:
        yield site


@pytest.mark.parametrize(
    "script",
    [
        "import asyncdni\n" + NETS + CALL,
        "import asyncdni\nfrom nets import Net, sets\n" + CALL,
        f"import asyncdni\nscope = globals()\nexec({NETS!r}, scope)\n" + CALL,
    ],
    ids=["without-guard", "module-beside-it", "cell"],
)
def test_a_script_trains_a_module_of_its_own(site: Site, script: str) -> None:
    site.write("nets.py", NETS)
    cache = str(site.folder / "cache")  # which PyTorch leaves behind
    command = site.execute(
        [sys.executable, str(site.write("script.py", script))], TORCHINDUCTOR_CACHE_DIR=cache
    )
    finished = command.finished(_PATIENCE_S)
    assert finished.code == 0, finished.err
    assert "trained" in finished.out


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Any, asyncdni.Result]:
    """A model with a frozen weight, a copy of it as it was, and what a run has made of it."""
    torch.manual_seed(3)
    model = Net()
    model.a.bias.requires_grad_(False)
    model.a.bias.data += 0.25
    before = copy.deepcopy(model)
    return model, before, asyncdni.train(model, data=sets(), **OPTIONS)


def test_the_module_itself_stays_as_it_was(trained: Any) -> None:
    model, before, _ = trained
    assert all(torch.equal(a, before.state_dict()[n]) for n, a in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [
        p.requires_grad for p in before.parameters()
    ]


def test_the_state_has_the_names_of_the_module(trained: Any) -> None:
    model, before, result = trained
    state = result.state_dict()
    assert set(state) == set(model.state_dict())
    other = Net()
    other.load_state_dict(state)
    assert torch.equal(state["a.bias"], before.a.bias)  # frozen
    assert state["norm.num_batches_tracked"] == 6
    assert not torch.equal(state["norm.running_mean"], before.norm.running_mean)


def test_it_has_the_bits_of_a_plain_loop(trained: Any) -> None:
    from asyncdni.data import open_batches

    _, before, result = trained
    model = copy.deepcopy(before)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker: more sum up in another order
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], 0.5, 0.9, fused=True
    )
    data = open_batches(result.experiment.data, 0)
    for epoch in range(2):
        for index in range(3):
            batch = data.read(epoch, index, 30, 0, np.float32)
            optimizer.zero_grad()
            x, y = torch.from_numpy(batch["h"]), torch.from_numpy(batch["y"])
            nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
            for p in model.parameters():
                if p.grad is not None:
                    p.grad.div_(len(x))
            optimizer.step()
    torch.set_num_threads(threads)
    state = result.state_dict()
    assert all(torch.equal(array, state[name]) for name, array in model.state_dict().items())


def test_the_program_goes_on_with_the_network(trained: Any) -> None:
    _, _, result = trained
    found = asyncdni.evaluate(result)
    assert found["accuracy"] == result.test_accuracy
    x, _ = sets()[1].tensors
    (outputs,) = asyncdni.predict(result, x.numpy()).values()
    model = Net().eval()
    result.load_into(model)
    assert np.allclose(outputs, model(x).detach().numpy(), atol=1e-6)


def test_two_networks_of_one_program_are_told_apart(trained: Any) -> None:
    _, _, first = trained
    accuracy = first.test_accuracy
    wide = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    second = asyncdni.train(wide, data=sets(), **{**OPTIONS, "stages": ["2"]})
    assert second.state_dict()["0.weight"].shape == (5, 6)
    assert asyncdni.evaluate(first)["accuracy"] == accuracy
    with pytest.raises(ConfigError, match="do not fit the model"):
        second.load_into(Net())


def test_arrays_and_loaders_give_what_data_sets_give(trained: Any) -> None:
    _, before, result = trained
    train, test = sets()
    options = {name: value for name, value in OPTIONS.items() if name != "batch_size"}
    loaders = (DataLoader(train, batch_size=30), test)
    second = asyncdni.train(before, data=loaders, **options)
    names = ("x_train", "y_train", "x_test", "y_test")
    tensors = (*train.tensors, *test.tensors)
    arrays = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    third = asyncdni.train(before, data=arrays, **OPTIONS)
    for other in (second, third):
        state = other.state_dict()
        assert all(torch.equal(one, state[name]) for name, one in result.state_dict().items())


class Wrong:
    """A data set whose samples are wrong from number 40 on."""

    def __init__(self, change: Any) -> None:
        self.change = change

    def __len__(self) -> int:
        return 90

    def __getitem__(self, index: int) -> Any:
        x, y = sets()[0][index]
        return self.change(x, y) if index >= 40 else (x, y)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda x, y: (x, y + 3), ["training sample", "is of class", "expected 0 to 2"]),
        (lambda x, y: (x[:5], y), ["training sample", "((5,), ())", "((6,), ())"]),
        (lambda x, y: ("a cat", y), ["input is a str, expected numbers"]),
        (lambda x, y: 1 / 0, ["ZeroDivisionError: division by zero"]),
    ],
    ids=["label", "shape", "text", "error"],
)
def test_a_bad_sample_ends_the_run_with_one_line(change: Any, words: list[str]) -> None:
    with pytest.raises(AsyncDNIError) as caught:
        asyncdni.train(Net(), data=(Wrong(change), sets()[1]), **OPTIONS)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (None, ConfigError, "expected (training set, test set)"),
        (sets()[0], ConfigError, "expected (training set, test set)"),
        ((sets()[0], []), DataError, "test set is empty"),
        (([], sets()[1]), DataError, "training set is empty"),
        (
            (TensorDataset(torch.zeros(9, 5), torch.zeros(9).long()),) * 2,
            ConfigError,
            "does not take samples of shape (5,)",
        ),
        (
            (TensorDataset(torch.zeros(9, 6), torch.zeros(9)),) * 2,
            ConfigError,
            "cross_entropy does not fit the data set",
        ),
        ({"x_train": np.zeros((3, 6))}, ConfigError, "expected ['x_test'"),
    ],
    ids=["none", "one", "no-test", "no-training", "shape", "floats", "arrays"],
)
def test_data_that_can_not_be_used_are_refused(data: Any, kind: type, words: str) -> None:
    with pytest.raises(kind) as caught:
        asyncdni.train(Net(), data=data, **OPTIONS)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_an_object_that_can_not_be_sent_is_refused() -> None:
    model = Net()
    model.lock = threading.Lock()
    with pytest.raises((ConfigError, TypeError), match="lock"):
        asyncdni.train(model, data=sets(), **OPTIONS)
    with pytest.raises(ConfigError, match="can't be handed to worker processes"):
        bad = Wrong(threading.Lock())
        bad.change = threading.Lock()
        asyncdni.train(Net(), data=(bad, sets()[1]), **OPTIONS)


def test_options_of_a_module_are_for_a_module_alone() -> None:
    with pytest.raises(ConfigError, match="loss, epochs: only for a module"):
        asyncdni.train({}, loss="mse", epochs=3)
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        asyncdni.train(Net(), data=sets(), batchsize=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'batchsize'"):
        asyncdni.train({}, batchsize=3)  # type: ignore[call-arg]
