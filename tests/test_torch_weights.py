"""Weights by the names of PyTorch: out of a run, and into one."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.numpy import load_file, save_file  # noqa: E402
from torch import nn  # noqa: E402

import asyncdni  # noqa: E402
from asyncdni.errors import CheckpointError, ConfigError  # noqa: E402
from asyncdni.experiment import change, load  # noqa: E402
from asyncdni.launch.train import design_of  # noqa: E402
from asyncdni.store.given import begin_with  # noqa: E402

NETS = '''
import torch
from torch import nn
from torch.utils.data import TensorDataset

class Tied(nn.Module):
    """Two layers of one weight, a frozen one, and a buffer that is not saved."""

    def __init__(self, width=6):
        super().__init__()
        self.first = nn.Linear(6, width)
        self.norm = nn.BatchNorm1d(width)
        self.up = nn.Linear(width, width)
        self.down = nn.Linear(width, width)
        self.down.weight = self.up.weight
        self.head = nn.Linear(width, 3)
        self.head.bias.requires_grad_(False)
        self.register_buffer("scale", torch.full((width,), 0.5), persistent=False)

    def forward(self, x):
        x = self.norm(self.first(x)).tanh()
        return self.head(self.down(self.up(x).tanh()).tanh() * self.scale)

def sets():
    y = torch.arange(90) % 3
    x = torch.eye(6)[y] + 0.1 * torch.arange(540.0).sin().reshape(90, 6)
    return TensorDataset(x, y), TensorDataset(x[:30], y[:30])

def nothing():
    return 5
'''
TABLES: dict[str, Any] = {
    "model": {"build": "netsoftest:Tied", "stages": ["up"]},
    "data": {"name": "torch", "build": "netsoftest:sets", "batch_size": 30},
    "schedule": {"name": "locked"},
    "run": {"epochs": 1},
}


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import importlib

    folder = tmp_path_factory.mktemp("nets")
    (folder / "netsoftest.py").write_text(NETS)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("netsoftest")
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def run(nets: Any, tmp_path_factory: pytest.TempPathFactory) -> asyncdni.Result:
    folder = tmp_path_factory.mktemp("run")
    return asyncdni.train(TABLES, out=folder / "run", allow_import=True)


def begun(tables: dict[str, Any]) -> Any:
    from asyncdni.imports import allowing

    with allowing(True):
        return begin_with(design_of(change(tables), allow_import=True))


# --- out -----------------------------------------------------------------------------------------


def test_a_run_leaves_one_file_that_the_module_takes(nets: Any, run: asyncdni.Result) -> None:
    assert run.folder is not None
    arrays = load_file(run.folder / "model.safetensors")
    model = nets.Tied()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    assert set(arrays) == set(model.state_dict())  # both names of the tied weight, no scale
    assert arrays["norm.num_batches_tracked"] == 3
    x, y = nets.sets()[1].tensors
    right = (model.eval()(x).argmax(1) == y).double().mean().item()
    assert right == pytest.approx(run.test_accuracy)


def test_a_run_read_from_its_folder_has_the_same_names(
    nets: Any, run: asyncdni.Result, tmp_path: Path
) -> None:
    assert run.folder is not None
    again = asyncdni.open_run(run.folder)
    again.save_model(tmp_path / "again.safetensors")
    whole = (run.folder / "model.safetensors").read_bytes()
    assert (tmp_path / "again.safetensors").read_bytes() == whole
    model = nets.Tied()
    again.load_into(model)
    assert torch.equal(model.down.weight, again.state_dict()["up.weight"])


def test_another_module_is_refused(run: asyncdni.Result) -> None:
    with pytest.raises(ConfigError, match="do not fit the model: it has no"):
        run.load_into(nn.Linear(6, 3))


def test_numpy_layers_have_the_names_of_a_sequential(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.normal(size=(60, 1, 6, 6)).astype(np.float32),
        "y_train": np.arange(60) % 3,
        "x_test": rng.normal(size=(20, 1, 6, 6)).astype(np.float32),
        "y_test": np.arange(20) % 3,
    }
    stages = [
        {"name": "low", "layers": [{"conv2d": {"channels": 2, "kernel": 3}}, "batch_norm", "relu"]},
        {"name": "middle", "layers": ["flatten", {"dense": 5}, "tanh", "batch_norm"]},
        {"name": "top", "layers": [{"dense": 3}], "loss": "cross_entropy"},
    ]
    tables = {"stages": stages, "schedule": {"name": "locked"}, "run": {"epochs": 2}}
    tables["data"] = {"name": "digits", "batch_size": 20}
    result = asyncdni.train(tables, data=arrays)
    result.save_model(tmp_path / "numpy.safetensors")
    found = load_file(tmp_path / "numpy.safetensors")
    width = found["4.weight"].shape[1]
    equal = nn.Sequential(
        *(nn.Conv2d(1, 2, 3, padding=0), nn.BatchNorm2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(width, 5), nn.Tanh(), nn.BatchNorm1d(5)),
        nn.Linear(5, 3),
    )
    if width == 72:
        equal[0] = nn.Conv2d(1, 2, 3, padding=1)
    equal.load_state_dict({name: torch.from_numpy(array) for name, array in found.items()})
    assert equal[1].num_batches_tracked == equal[6].num_batches_tracked == 6
    x = arrays["x_test"]
    (outputs,) = asyncdni.predict(result, x).values()
    assert np.allclose(outputs, equal.eval()(torch.from_numpy(x)).detach().numpy(), atol=1e-5)


def test_a_graph_that_is_no_chain_has_no_such_names(tmp_path: Path) -> None:
    stages = [
        {"name": "a", "layers": [{"dense": 4}]},
        {"name": "b", "inputs": ["data"], "layers": [{"dense": 4}]},
        {"name": "top", "inputs": ["a", "b"], "layers": [{"dense": 10}], "loss": "cross_entropy"},
    ]
    chosen = change({"data": {"name": "digits"}, "stages": stages})
    result = asyncdni.Result({}, {}, chosen, None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="stage b reads data: only a chain"):
        result.save_model(tmp_path / "none.safetensors")


# --- in ------------------------------------------------------------------------------------------


@pytest.fixture
def start(nets: Any, tmp_path: Path) -> dict[str, Any]:
    """The arrays of a model with other weights than the seed's."""
    torch.manual_seed(99)
    return {name: t.numpy().copy() for name, t in nets.Tied().state_dict().items()}


def with_weights(path: Path, arrays: dict[str, Any], **options: Any) -> dict[str, Any]:
    save_file(arrays, path)
    tables = copy.deepcopy(TABLES)
    tables["model"] |= {"weights": str(path), **options}
    return tables


def test_a_run_begins_with_a_file_of_the_modules_own_names(
    start: dict[str, Any], tmp_path: Path
) -> None:
    tables = with_weights(tmp_path / "start.safetensors", start)
    tables["run"] = {"epochs": 0}
    notes: list[str] = []

    def note(design: Any, recorder: Any, kind: str, values: Any) -> None:
        notes.extend([values["text"]] if kind == "note" else [])

    result = asyncdni.train(tables, out=tmp_path / "run", allow_import=True, observers=[note])
    named = result.named_weights()
    assert all(np.array_equal(named[name], array) for name, array in start.items())
    assert f"the model begins with the weights of {tmp_path / 'start.safetensors'}" in notes


def test_one_name_of_tied_weights_is_enough(start: dict[str, Any], tmp_path: Path) -> None:
    del start["down.weight"], start["norm.num_batches_tracked"]
    design = begun(with_weights(tmp_path / "start.safetensors", start))
    (stage,) = (name for name in design.init if name == "up")
    assert np.array_equal(design.init[stage]["0.up.weight"], start["up.weight"])


def test_missing_names_may_begin_from_the_seed(
    nets: Any, start: dict[str, Any], tmp_path: Path
) -> None:
    del start["head.weight"]
    start["other"] = np.zeros(3)
    path = tmp_path / "start.safetensors"
    with pytest.raises(ConfigError) as caught:
        begun(with_weights(path, start))
    text = str(caught.value)
    assert text.startswith(f"model.weights: {path}: not the weights of this model: ")
    assert "head.weight is missing, expected (3, 6)" in text
    assert "other is not expected" in text and "model.strict = false" in text
    design = begun(with_weights(path, start, strict=False))
    seeded = begun(TABLES)
    assert np.array_equal(design.init["up"]["0.head.weight"], seeded.init["up"]["0.head.weight"])
    assert np.array_equal(design.init["first"]["0.first.weight"], start["first.weight"])
    assert design.begun.endswith("from the seed: head.weight; not used: other")


def test_wrong_shapes_are_refused_in_any_case(start: dict[str, Any], tmp_path: Path) -> None:
    start["head.weight"] = np.zeros((4, 6), np.float32)
    start["first.bias"] = np.full(6, np.nan, np.float32)
    for strict in (True, False):
        with pytest.raises(ConfigError) as caught:
            begun(with_weights(tmp_path / "start.safetensors", start, strict=strict))
        text = str(caught.value)
        assert "head.weight is (4, 6), expected (3, 6)" in text
        assert "first.bias holds NaN or infinity" in text


def test_of_many_names_five_are_told(start: dict[str, Any], tmp_path: Path) -> None:
    many = {f"more{i}": np.zeros(2) for i in range(9)}
    with pytest.raises(ConfigError, match=r"(more\d is not expected; ){5}… \(9 in all\)$"):
        begun(with_weights(tmp_path / "start.safetensors", {**start, **many}))


def test_a_file_that_can_not_be_read_is_refused(nets: Any, tmp_path: Path) -> None:
    tables = copy.deepcopy(TABLES)
    tables["model"]["weights"] = str(tmp_path / "none.safetensors")
    with pytest.raises(ConfigError, match="can't be read: No such file"):
        begun(tables)
    (tmp_path / "none.safetensors").write_bytes(b"nonsense")
    with pytest.raises((ConfigError, CheckpointError), match="not a whole safetensors file"):
        begun(tables)


def test_the_file_is_beside_the_experiment(tmp_path: Path) -> None:
    text = '[data]\nname = "digits"\n[model]\nbuild = "a:b"\nweights = "start.safetensors"\n'
    (tmp_path / "e.toml").write_text(text)
    chosen = load(tmp_path / "e.toml")
    assert chosen.model is not None
    assert chosen.model.weights == str(tmp_path / "start.safetensors")


# --- what an experiment with a model gets wrong --------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["model.build=netsoftest:nothing"], "returned a int, expected an nn.Module"),
        (["model.build=netsoftest:missing"], "has no 'missing'"),
        (["model.arguments.depth=3"], "can't be built: TypeError"),
        (['model.stages=["upp"]'], "'upp' is no submodule"),
        (["model.loss=mse"], "mse does not fit the data set, whose targets are 3 classes"),
        (["data.classes=4"], "expects the stage to end in shape (4,), got (3,)"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_one_line(
    nets: Any, changes: list[str], words: str
) -> None:
    from asyncdni.imports import allowing

    with pytest.raises(ConfigError) as caught, allowing(True):
        design_of(change(TABLES, changes), allow_import=True)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_network_is_a_model_or_stages() -> None:
    stage = {"layers": [{"dense": 3}], "loss": "cross_entropy"}
    with pytest.raises(ConfigError, match=r"^model: a network is \[model\] or \[\[stages\]\], not"):
        change({**TABLES, "stages": [stage]})
    none = {name: table for name, table in TABLES.items() if name != "model"}
    with pytest.raises(ConfigError, match=r"^stages: missing; expected a list of"):
        change(none)
    with pytest.raises(ConfigError, match=r"^stages: expected a list of at least one"):
        change({**none, "stages": []})


def test_without_torch_a_model_says_how_to_get_it(
    nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = {**TABLES, "data": {"name": "digits"}}
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match=r"needs PyTorch .*pip install 'asyncdni\[torch\]'"):
        design_of(change(digits), allow_import=True)
