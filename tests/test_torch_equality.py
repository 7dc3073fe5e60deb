"""Models of PyTorch over several workers against a plain PyTorch loop, to the last bit.

The loop is what a user would write (`torch_plain`): gradient accumulation over the microbatches of
a batch, in order, of a loss that is summed over samples, and one step on the gradients divided by
their number. Every combination runs in the simulator, which does the same maths in one process; a
few of them, and with the marker `long` all, run over real worker processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from each import each

torch = pytest.importorskip("torch")

from torch_plain import differences, one_thread, trained  # noqa: E402

import asyncdni  # noqa: E402
from asyncdni import config, experiment  # noqa: E402
from asyncdni.data import describe  # noqa: E402
from asyncdni.drivers.real.inspection import Inspection  # noqa: E402
from asyncdni.drivers.virtual.simulation import simulate  # noqa: E402
from asyncdni.errors import AsyncDNIError, ConfigError  # noqa: E402
from asyncdni.imports import allowing  # noqa: E402
from asyncdni.messages import Activation, Gradient, Message  # noqa: E402
from asyncdni.plan.build import make_design  # noqa: E402
from asyncdni.plan.conditions import link_encodings  # noqa: E402
from asyncdni.store.given import begin_with  # noqa: E402

SGD = {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9}
ADAM = {"name": "adam", "learning_rate": 0.01}
#: By model: [model] without its stages, [data] and [optimizer]. Widths are odd where they can be,
#: so that weights lie at all kinds of places in a stage's vector, and the last batch is smaller.
MODELS: dict[str, dict[str, Any]] = {
    "mlp": {
        "model": {
            "build": "torch_models:mlp",
            "arguments": {"width": 33, "inputs": 37, "outputs": 5, "depth": 4},
        },
        "data": {"build": "torch_models:points", "batch_size": 16},
        "optimizer": SGD,
    },
    "resnet": {
        "model": {"build": "torch_models:resnet18", "arguments": {"width": 3}},
        "data": {"build": "torch_models:pictures", "batch_size": 8, "arguments": {"samples": 22}},
        "optimizer": SGD,
    },
    "gpt": {
        "model": {"build": "torch_models:gpt"},
        "data": {"build": "torch_models:text_windows", "batch_size": 16},
        "optimizer": ADAM,
    },
    "lstm": {
        "model": {"build": "torch_models:lstm", "arguments": {"width": 13}},
        "data": {"build": "torch_models:text_windows", "batch_size": 16},
        "optimizer": SGD,
    },
}
#: Where stages begin, by model and number of workers.
CUTS = {
    "mlp": {2: ["6"], 3: ["3", "9"], 4: ["3", "6", "12"]},
    "resnet": {2: ["layer3"], 3: ["layer1.1", "layer3"], 4: ["layer2", "layer3", "fc"]},
    "gpt": {2: ["h.2"], 3: ["h.1", "h.3"], 4: ["h.0", "h.2", "head"]},
    "lstm": {2: ["2"], 3: ["1", "2"], 4: ["1", "2", "3"]},
}
#: Models with a tied embedding and head, each of which is a stage of its own; and models with
#: inputs of several tensors.
OTHERS: dict[str, dict[str, Any]] = {
    "tied": {
        "model": {"build": "torch_models:tied"},
        "data": {"build": "torch_models:text_windows", "batch_size": 16},
        "optimizer": ADAM,
    },
    "albert": {
        "model": {"build": "torch_models:albert"},
        "data": {"build": "torch_models:text_windows", "batch_size": 16},
        "optimizer": SGD,
    },
    "gpt2": {
        "model": {"build": "torch_models:gpt2"},
        "data": {"build": "torch_models:padded_sentences", "batch_size": 8},
        "optimizer": SGD,
    },
    "lengths": {
        "model": {"build": "torch_models:gpt2"},
        "data": {"build": "torch_models:padding_loaders", "batch_size": 8},
        "optimizer": SGD,
    },
    "lengths_of_ids": {
        "model": {"build": "torch_models:gpt"},
        "data": {"build": "torch_models:sentences", "batch_size": 8, "max_length": 8},
        "optimizer": ADAM,
    },
    "judge": {
        "model": {"build": "torch_models:judge"},
        "data": {"build": "torch_models:sentences_of_kinds", "batch_size": 8},
        "optimizer": SGD,
    },
    "of_kinds": {
        "model": {"build": "torch_models:of_kinds"},
        "data": {"build": "torch_models:points_of_kinds", "batch_size": 16},
        "optimizer": SGD,
    },
}
OTHER_CUTS = {
    "tied": ["body", "head"],
    "albert": ["h.0", "h.1", "h.2", "head"],
    "gpt2": ["transformer.wpe", "lm_head"],
    "of_kinds": ["second", "last"],
    "lengths": ["transformer.wpe", "lm_head"],
    "lengths_of_ids": ["h.1", "h.3"],
    "judge": ["last", "head"],
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "locked": {"name": "locked"},
    "gpipe": {"name": "gpipe", "microbatches": 4},
    "1f1b": {"name": "1f1b", "microbatches": 4},
}
ALL = [(model, workers, way) for model in MODELS for workers in (2, 3, 4) for way in SCHEDULES]
ALL += [("tied", 3, way) for way in SCHEDULES]


def made(model: str, begins: list[str], schedule: dict[str, Any], **run: Any) -> config.Experiment:
    tables = {name: dict(table) for name, table in (MODELS | OTHERS)[model].items()}
    tables["model"]["stages"] = begins
    tables["data"]["name"] = "torch"
    return experiment.parse(
        {
            **tables,
            "schedule": schedule,
            "run": {"epochs": 2, "seed": 3, "evaluate_every": 9, **run},
        }
    )


def reference(model: str, schedule: dict[str, Any]) -> Any:
    chosen = made(model, CUTS[model][2], schedule)
    return trained(chosen, schedule.get("microbatches", 1))


def simulated(chosen: config.Experiment) -> dict[str, Any]:
    with allowing(True), one_thread():
        design = begin_with(make_design(chosen, describe(chosen.data), allow_import=True))
        weights = simulate(design, seed=0, maths=True).weights
    return {f"{stage}.{name}": one for stage, own in weights.items() for name, one in own.items()}


@each("model, way", [(model, way) for model in MODELS for way in SCHEDULES])
def test_simulated_workers_have_the_bits_of_a_plain_loop(model: str, way: str) -> None:
    expected = reference(model, SCHEDULES[way])
    for begins in CUTS[model].values():
        weights = simulated(made(model, begins, SCHEDULES[way]))
        assert not differences(weights, expected), begins


@each(
    "model, workers, way",
    [("mlp", 4, "1f1b"), ("lengths_of_ids", 3, "locked")],
)
def test_worker_processes_have_the_bits_of_a_plain_loop(model: str, workers: int, way: str) -> None:
    assert_equal_over_processes(model, workers, way)


@each("model", list(OTHERS))
def test_tied_weights_and_several_inputs_have_the_bits_of_a_plain_loop(model: str) -> None:
    if model in ("gpt2", "lengths"):
        pytest.importorskip("transformers")
    chosen = made(model, OTHER_CUTS[model], SCHEDULES["locked"])
    assert not differences(simulated(chosen), trained(chosen))


#: Models with tied weights: how many stages each worker has, and the schedule.
TIED = [
    *(("tied", [1, 1, 1], "gpipe"), ("tied", [1, 2], "1f1b"), ("tied", [3], "1f1b")),
    *(("albert", [1, 1, 1, 1, 1], "1f1b"), ("albert", [1, 2, 2], "gpipe")),
    *(("gpt2", [1, 1, 1], "1f1b"), ("gpt2", [2, 1], "gpipe")),
]


@each("model, split, way", TIED)
def test_tied_weights_over_microbatches_have_the_bits_of_a_plain_loop(
    model: str, split: list[int], way: str
) -> None:
    """Each worker sums the gradients of all microbatches in the order in which autograd does."""
    if model == "gpt2":
        pytest.importorskip("transformers")
    chosen = made(model, OTHER_CUTS[model], SCHEDULES[way], split=split)
    assert not differences(simulated(chosen), trained(chosen, 4))


def test_tied_weights_in_one_worker_accumulate_over_batches_as_in_a_plain_loop() -> None:
    """Two batches of 8 make the update of one of 16."""
    expected = trained(made("tied", OTHER_CUTS["tied"], SCHEDULES["locked"]), 2)
    tables = experiment.tables(
        made("tied", OTHER_CUTS["tied"], {"name": "delayed", "accumulate": 2}, split=[3])
    )
    tables["data"]["batch_size"] = 8
    assert not differences(simulated(experiment.parse(tables)), expected)


@each(
    "schedule",
    [
        {"name": "1f1b", "microbatches": 4},
        {"name": "delayed", "weights": "stash"},
        {"name": "local_loss"},
        {"name": "synthetic", "generator": {"kind": "error"}},
        {"name": "synthetic", "generator": {"kind": "linear"}},
        {"name": "synthetic", "generator": {"kind": "readout"}},
    ],
)
def test_batches_of_different_lengths_go_through_every_schedule(schedule: dict[str, Any]) -> None:
    chosen = made("lengths_of_ids", ["h.1", "h.3"], schedule)
    weights = simulated(chosen)
    assert all(np.isfinite(array).all() for array in weights.values())
    same = not differences(weights, trained(chosen, schedule.get("microbatches", 1)))
    assert same == (schedule["name"] == "1f1b")


def test_messages_have_at_most_the_longest_sample_and_one_length() -> None:
    """The stages of `judge` send words and masks (T, 8 + 1), then one row a sentence."""
    pytest.importorskip("transformers")

    def accusations(model: str, index: int, sent: list[Message]) -> list[str]:
        chosen = made(model, OTHER_CUTS[model], SCHEDULES["locked"])
        with allowing(True):
            design = make_design(chosen, describe(chosen.data), allow_import=True)
        groups = design.plan.groups
        found = []
        for message in sent:
            inspection = Inspection(design, groups[index], {one.name: 0 for one in groups})
            accused = inspection.accusation(message)
            found.append("" if accused is None else accused.text.partition(" fit: ")[2])
        return found

    def activation(sender: str, steps: int, **context: Any) -> Activation:
        h = np.zeros((8, steps, 17 if sender == "transformer_wte" else 9), np.float32)
        y = np.zeros(8, np.int64)
        return Activation(sender, 0, 0, 8, {"h": h, "y": y, **context})

    def steps(y: int, mask: int) -> dict[str, Any]:
        return {"y": np.zeros((8, y), np.int64), "mask": np.ones((8, mask), bool)}

    first, second, *_ = ("embed", "last", "head")
    words = [activation(first, 4), activation(first, 8), activation(first, 9)]
    assert accusations("judge", 1, words) == [
        *("", "", "its h is float32 (8, 9, 9), expected float32 (8, 8, 9), or fewer steps")
    ]
    back = [Gradient(second, 0, 0, {second: np.zeros((8, n, 9), np.float32)}) for n in (3, 9, 0)]
    right, long, none = accusations("judge", 0, back)
    assert not right and "or fewer steps" in long and "or fewer steps" in none

    wte = "transformer_wte"
    alike = [activation(wte, 5, **steps(5, 5)), activation(wte, 5, **steps(4, 5))]
    alike += [activation(wte, 5, **steps(5, 6))]
    assert accusations("lengths", 1, alike) == [
        "",
        "its y is int64 (8, 4), expected int64 (8, 5)",
        "its mask is bool (8, 6), expected bool (8, 5)",
    ]


@each(
    "model, changes, told",
    [
        ("judge", {"schedule": {"name": "local_loss"}}, "takes all steps of a sample at once"),
        ("lengths_of_ids", {"links": {"compress": "int8"}}, "keeps what it has left out"),
        ("lengths_of_ids", {"data": {"max_length": 5}}, "8 steps, more than data.max_length = 5"),
    ],
)
def test_what_is_made_for_one_length_is_refused(
    model: str, changes: dict[str, Any], told: str
) -> None:
    tables = experiment.tables(made(model, OTHER_CUTS[model], SCHEDULES["locked"]))
    tables = {**tables, **changes, "data": {**tables["data"], **changes.get("data", {})}}
    with pytest.raises(AsyncDNIError, match=told):
        simulated(experiment.parse(tables))


def test_no_generator_predicts_step_by_step_what_a_mask_travels_with() -> None:
    pytest.importorskip("transformers")
    chosen = made("gpt2", OTHER_CUTS["gpt2"], {"name": "local_loss"})
    with allowing(True), pytest.raises(ConfigError, match="as one row without steps"):
        make_design(chosen, describe(chosen.data), allow_import=True)


@pytest.mark.long
def test_two_processes_train_a_model_of_hugging_face_as_a_plain_loop_does() -> None:
    pytest.importorskip("transformers")
    chosen = made("gpt2", OTHER_CUTS["gpt2"], SCHEDULES["locked"], split=[2, 1])
    result = asyncdni.train(chosen, allow_import=True)
    assert len(result.summary["stages"]) == 2
    model = trained(chosen)
    assert not differences(result.weights, model)
    ids = torch.arange(8).expand(3, 8)
    table = {"input_ids": ids.numpy(), "attention_mask": np.ones((3, 8))}
    outputs = asyncdni.predict(result, table, allow_import=True)["lm_head"]
    with torch.no_grad():
        np.testing.assert_allclose(outputs, model.eval()(input_ids=ids).logits, atol=1e-5)


def test_bfloat16_products_have_the_bits_of_a_plain_loop() -> None:
    locked = {"name": "locked"}
    expected = trained(made("mlp", ["6"], locked, autocast="bfloat16"))
    weights = simulated(made("mlp", CUTS["mlp"][3], locked, autocast="bfloat16"))
    assert not differences(weights, expected)
    assert differences(weights, reference("mlp", locked))
    assert {array.dtype for array in weights.values()} <= {np.dtype("f4"), np.dtype("i8")}


def test_an_activation_of_several_tensors_is_not_compressed() -> None:
    """Whole numbers cross the first cut beside the activation, and nothing the second."""
    plain = made("of_kinds", ["second", "last"], SCHEDULES["locked"])
    tables = {**experiment.tables(plain), "links": {"compress": "int8"}}
    chosen = experiment.parse(tables)
    with allowing(True):
        design = make_design(chosen, describe(chosen.data), allow_import=True)
    first, second, last = (group.name for group in design.plan.groups)
    assert set(link_encodings(design.experiment, design.plan)) == {
        *((second, first), (second, last), (last, second)),
    }
    assert not any(np.isnan(array).any() for array in simulated(chosen).values())


@pytest.mark.long
def test_compiled_modules_learn_what_others_do() -> None:
    schedule = SCHEDULES["1f1b"]
    compiled = asyncdni.train(made("mlp", ["6"], schedule, compile=True), allow_import=True)
    plain = simulated(made("mlp", ["6"], schedule))
    for name, array in compiled.weights.items():
        np.testing.assert_allclose(array, plain[name], rtol=1e-3, atol=1e-4)


@each("option", [{"autocast": "bfloat16"}, {"compile": True}])
def test_ways_of_computing_are_for_modules(option: dict[str, Any]) -> None:
    tables = {"data": {"name": "digits"}, "stages": [{"layers": [{"dense": 10}]}], "run": option}
    with pytest.raises(ConfigError, match=f"run.{next(iter(option))} is for stages written in"):
        make_design(tables, describe(experiment.parse(tables).data))


@pytest.mark.long
@each("model, workers, way", ALL)
def test_all_combinations_over_worker_processes(model: str, workers: int, way: str) -> None:
    assert_equal_over_processes(model, workers, way)


@pytest.mark.parametrize("way", ["gpipe", "1f1b"])
def test_windows_of_a_text_are_cut_into_microbatches_of_streams(way: str, tmp_path: Path) -> None:
    """Each stream's window is a sample of its own where no state is carried to the next one."""
    (tmp_path / "text.txt").write_text("she sells sea shells by the sea shore; " * 8)
    data = {"name": "text", "path": str(tmp_path / "text.txt"), "encoding": "ids"}
    chosen = experiment.parse(
        {
            "data": {**data, "window": 8, "batch_size": 4, "test_part": 0.3},
            "model": {
                "build": "torch_models:gpt",
                "stages": ["h.1", "h.3"],
            },
            "optimizer": ADAM,
            "schedule": {"name": way, "microbatches": 2},
            "run": {"epochs": 2, "seed": 3},
        }
    )
    expected = trained(chosen, 2)
    assert not differences(simulated(chosen), expected)
    if way == "1f1b":
        result = asyncdni.train(chosen, allow_import=True)
        assert not differences(result.weights, expected)
        assert result.test_accuracy is not None


def test_sequences_of_different_lengths_have_the_bits_of_a_loop_that_ignores_padding() -> None:
    chosen = experiment.parse(
        {
            "data": {"name": "torch", "build": "torch_models:sentences", "batch_size": 8},
            "model": {"build": "torch_models:gpt", "stages": ["h.2"]},
            "optimizer": ADAM,
            "schedule": {"name": "gpipe", "microbatches": 2},
            "run": {"epochs": 2, "seed": 3},
        }
    )
    assert not differences(simulated(chosen), trained(chosen, 2))


def assert_equal_over_processes(model: str, workers: int, way: str) -> None:
    begins = CUTS[model][workers] if model in CUTS else OTHER_CUTS[model]
    chosen = made(model, begins, SCHEDULES[way])
    result = asyncdni.train(chosen, allow_import=True)
    assert len(result.summary["stages"]) == workers
    assert not differences(result.weights, trained(chosen, SCHEDULES[way].get("microbatches", 1)))
