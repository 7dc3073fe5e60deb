"""Cutting a model of PyTorch: parts that compute what the whole does, and cuts that are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from each import each

torch = pytest.importorskip("torch")

import torch_models as models  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from asyncdni.errors import ConfigError  # noqa: E402
from asyncdni.nn.torch import balance  # noqa: E402
from asyncdni.nn.torch.cut import Trace, trace  # noqa: E402
from asyncdni.nn.torch.model import check_parts, part_maker  # noqa: E402
from asyncdni.nn.torch.recurrent import OneStep  # noqa: E402

SAMPLES = 4
Make = Callable[[], Any]


def traced(make: Make, shape: tuple[int, ...], begins: Sequence[str] | None = None) -> Trace:
    with torch.device("meta"):
        return trace(make(), shape, begins)


def real(make: Make) -> Any:
    torch.manual_seed(1)
    return make().train()


def inputs(shape: tuple[int, ...], integers: bool) -> Any:
    generator = torch.Generator().manual_seed(2)
    if integers:
        return torch.randint(0, 12, (SAMPLES, *shape), generator=generator)
    return torch.randn(SAMPLES, *shape, generator=generator)


def main(output: Any) -> Any:
    if isinstance(output, dict):
        return output["logits"]
    return output[0] if isinstance(output, tuple) else output


def assert_computes_the_same(make: Make, shape: tuple[int, ...], begins: list[str]) -> None:
    """The parts one after the other, with a cut of the graph of autograd between them, give the
    model's outputs, gradients and buffers to the last bit."""
    cut = traced(make, shape, begins)
    cut.check(begins)
    x = inputs(shape, cut.takes_integers)
    whole = real(make)
    torch.manual_seed(3)
    expected = main(whole(x))
    seed = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    expected.backward(seed)
    parted = real(make)
    ends = zip(["", *begins], [*begins, ""], strict=True)
    parts = [torch.fx.GraphModule(parted, cut.part(*end).graph) for end in ends]
    torch.manual_seed(3)
    given, made = [], []
    for part in parts:
        given.append(x.detach().clone())
        if given[-1].is_floating_point():
            given[-1].requires_grad_()
        made.append(part(given[-1].clone()))
        x = made[-1]
    assert torch.equal(x, expected)
    for source, y in reversed(list(zip(given, made, strict=True))):
        y.backward(seed)
        seed = source.grad
    for (name, own), other in zip(whole.named_parameters(), parted.parameters(), strict=True):
        assert (own.grad is None) == (other.grad is None), name
        assert own.grad is None or torch.equal(own.grad, other.grad), name
    for (name, own), other in zip(whole.named_buffers(), parted.buffers(), strict=True):
        assert torch.equal(own, other), name
    owned = [
        {name for name, _ in cut.part(*end).named_parameters()}
        for end in zip(["", *begins], [*begins, ""], strict=True)
    ]
    assert sum(map(len, owned)) == len(set().union(*owned))  # each weight is in one part


IDS, ROW = (8,), (6,)

CASES: list[tuple[Make, tuple[int, ...], list[str]]] = [
    (models.mlp, (784,), ["3", "6", "9"]),
    (models.mlp, (784,), ["1", "2", "8"]),  # before modules that change their input in place
    (models.autoencoder, (784,), ["1"]),
    (models.autoencoder, (784,), ["0.2", "1.1"]),
    (lambda: models.resnet18(4), (3, 32, 32), ["layer2", "layer3", "fc"]),
    # inside residual blocks: the skip connection crosses too
    (lambda: models.resnet18(4), (3, 32, 32), ["layer1.0.conv2", "layer3.0.bn1"]),
    (models.gpt, IDS, ["h.1", "h.2", "h.3"]),
    (models.gpt, IDS, ["h.0.mlp", "h.2.attention.out", "norm"]),
    (models.attention_gpt, IDS, ["h.0", "h.1", "head"]),
    (models.positions_gpt, IDS, ["h.0", "h.1"]),
    (models.lstm, IDS, ["1", "2", "3"]),
    (models.masked, ROW, ["blocks.0", "blocks.2", "last"]),
    (models.branching, ROW, ["block", "last"]),
    (models.training_reader, ROW, ["1", "2"]),
    (lambda: models.several_outputs("dict"), ROW, ["last"]),
    (lambda: models.several_outputs("tuple"), ROW, ["last"]),
    (models.tied, IDS, ["body", "head"]),
    (models.frozen_below, (784,), ["3", "6"]),
    (models.dropped, (784,), ["3", "6"]),
]  # fmt: skip


@each("make, shape, begins", CASES)
def test_parts_compute_what_the_whole_model_does(
    make: Make, shape: tuple[int, ...], begins: list[str]
) -> None:
    assert_computes_the_same(make, shape, begins)


@each(
    "make, shape",
    [(models.mlp, (784,)), (lambda: models.resnet18(2), (3, 32, 32)), (models.gpt, IDS)],
)
def test_every_listed_name_can_be_cut_at(make: Make, shape: tuple[int, ...]) -> None:
    for name in traced(make, shape).names():
        assert_computes_the_same(make, shape, [name])


def test_a_block_that_reads_training_stays_as_it_is() -> None:
    """Cut elsewhere, it is no part of the trace; a trace would follow one of its ways only."""
    cut = traced(models.training_reader, ROW, ["1"])
    model = real(models.training_reader)
    part = torch.fx.GraphModule(model, cut.part("1", "").graph)
    x = inputs((8,), integers=False)
    assert torch.equal(part.train()(x), model[1:].train()(x))
    assert torch.equal(part.eval()(x), model[1:].eval()(x))


# --- names ---------------------------------------------------------------------------------------


def test_names_never_lie_inside_a_residual_block() -> None:
    names = traced(lambda: models.resnet18(2), (3, 32, 32)).names()
    assert not [name for name in names if name.count(".") > 1]
    assert {"layer1", "layer1.1", "layer2", "layer4.1", "fc"} <= set(names)
    names = traced(models.gpt, IDS).names()
    # Each half of a block has a skip connection of its own.
    assert [name for name in names if "norm2" not in name] == [
        *("h.0", "h.1", "h.2", "h.3", "norm", "head")
    ]


def test_names_leave_out_cuts_that_several_tensors_would_cross() -> None:
    assert traced(models.masked, ROW).names() == ["last"]
    assert traced(models.tied, IDS).parting() == ["body", "head"]
    assert traced(models.mlp, (784,)).parting() == []


# --- refusals ------------------------------------------------------------------------------------


def refusal(make: Make, shape: tuple[int, ...], begins: list[str]) -> str:
    with pytest.raises(ConfigError) as caught:
        traced(make, shape, begins).check(begins)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_unknown_name_is_refused_with_the_nearest_and_those_that_are_cuts() -> None:
    text = refusal(models.gpt, IDS, ["h.9"])
    assert "'h.9' is no submodule" in text and "did you mean" in text
    assert "a stage may begin at h.0, h.1" in text
    text = refusal(lambda: models.resnet18(2), (3, 32, 32), ["layer1.1.conv"])
    assert "layer1.1.conv1" in text


def test_a_list_in_another_order_than_the_calls_is_refused() -> None:
    text = refusal(models.gpt, IDS, ["h.2", "h.1"])
    assert "'h.1' is not called after what comes before it" in text


def test_the_first_submodule_begins_the_first_stage_already() -> None:
    assert "'wte' begins the first stage already" in refusal(models.gpt, IDS, ["wte"])


def test_tied_weights_on_both_sides_are_refused_by_name() -> None:
    text = refusal(models.tied, IDS, ["body"])
    assert "head.weight" in text and "wte.weight" in text and "untie" in text


def test_inputs_that_the_forward_does_not_take_are_refused_by_name() -> None:
    def given(*names: str) -> list[Any]:
        return [[name, "float" if name == "x" else "int", [37] if name == "x" else []]
                for name in names]  # fmt: skip

    def refused(*names: str) -> str:
        with pytest.raises(ConfigError) as caught:
            traced(models.of_kinds, given(*names))
        return str(caught.value)

    assert "a tensor age, which the model's forward does not take: it takes x, kind" in refused(
        "x", "kind", "age"
    )
    assert "a tensor number 3, which" in refused("", "", "")
    assert "forward needs kind, and the samples have x" in refused("x")


def test_a_submodule_that_is_never_called_is_refused() -> None:
    class Unused(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)

        def forward(self, x: Any) -> Any:
            return self.used(x)

    text = refusal(Unused, ROW, ["unused"])
    assert "'unused' is never called" in text and "can't be cut" in text


def test_whole_numbers_do_not_cross() -> None:
    text = refusal(models.IntegersBetween, ROW, ["second"])
    assert "int64" in text and "before 'second'" in text and "choose" in text


def test_tensors_without_a_row_a_sample_do_not_cross() -> None:
    text = refusal(models.WithoutRows, ROW, ["last"])
    assert "no row a sample" in text and "before 'last'" in text


def test_a_tuple_does_not_cross() -> None:
    text = refusal(models.returns_tuple, IDS, ["2"])
    assert "tuple" in text and "before '2'" in text


def test_a_forward_of_its_own_that_depends_on_numbers_is_refused_with_the_cure() -> None:
    text = refusal(lambda: models.branching(itself=True), ROW, ["last"])
    assert (
        "can't be traced" in text and "own forward, that of " in text and "into a submodule" in text
    )


def test_a_cut_inside_a_block_that_reads_training_is_refused() -> None:
    text = refusal(models.training_reader, ROW, ["1.after"])
    assert "self.training" in text


def test_a_model_that_takes_other_samples_is_refused_with_their_shape() -> None:
    assert "samples of shape (5,)" in refusal(models.mlp, (5,), ["3"])


# --- balance -------------------------------------------------------------------------------------


@each(
    "seconds, count, expected",
    [
        ([1, 1, 1, 1], 2, [2]),
        ([1, 1, 1, 1], 4, [1, 2, 3]),
        ([4, 1, 1, 1, 1], 2, [1]),
        ([1, 1, 1, 1, 4], 2, [4]),
        ([3, 1, 1, 1, 3], 3, [1, 4]),
        ([5, 1, 1, 1, 1, 1], 3, [1, 3]),
        ([1], 1, []),
    ],
)
def test_stages_take_equally_long(seconds: list[float], count: int, expected: list[int]) -> None:
    places = balance._divided(seconds, [0.0] * (len(seconds) + 1), count)
    costs = [sum(seconds[a:b]) for a, b in zip([0, *places], [*places, len(seconds)], strict=True)]
    known = [
        sum(seconds[a:b]) for a, b in zip([0, *expected], [*expected, len(seconds)], strict=True)
    ]
    assert sorted(costs) == sorted(known)


def test_a_cut_that_many_bytes_cross_is_dear() -> None:
    cuts = [0.0, 0.0, 9.0, 1.0, 0.0]
    assert balance._divided([1, 1, 1, 1], cuts, 2) == [1]


def test_cuts_are_chosen_by_measured_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts between the names of an LSTM, of which the first layer is slow here."""
    whole = traced(models.lstm, IDS)
    monkeypatch.setattr(balance, "_measured", lambda *_: [1e-3, 3e-3, 1e-3, 1e-3])
    model = real(models.lstm)
    assert whole.names() == ["1", "2", "3"]
    assert balance.choose_cuts(model, whole, IDS, 3, 4) == ["1", "2"]
    assert balance.choose_cuts(model, whole, IDS, 1, 4) == []
    assert balance.choose_cuts(model, whole, IDS, 99, 4) == whole.names()


def test_measuring_leaves_weights_buffers_and_random_numbers_as_they_are() -> None:
    model = real(models.mlp)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    drawn = torch.get_rng_state()
    names = balance.choose_cuts(model, traced(models.mlp, (784,)), (784,), 3, 8)
    assert len(names) == 2
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)


def test_a_model_that_gets_a_table_is_refused_with_the_cure() -> None:
    class OfTable(models.nn.Module):
        """Reads one tensor of a table."""

        def forward(self, x: Any) -> Any:
            return x["input_ids"].tanh()

    with pytest.raises(
        ConfigError, match=r"samples of shape \(6,\): .* wrap the model in a module"
    ):
        trace(OfTable().to("meta"), (6,), [])


def test_a_model_whose_own_backward_fails_is_refused_in_one_line() -> None:
    message = r"modified by an inplace operation"
    part = {"build": "torch_models:fails_backward", "input": [6]}
    parts = [part | {"end": "last"}, part | {"begin": "last"}]
    with pytest.raises(ConfigError, match=message):
        check_parts(real(models.fails_backward), parts, allow_import=True)
    whole = traced(models.fails_backward, (6,))
    with pytest.raises(ConfigError, match=message):
        balance.choose_cuts(real(models.fails_backward), whole, (6,), 2, 4)


def test_a_part_that_changes_its_input_is_tried_without_a_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """torch.fx would print a stack."""
    part = part_maker(True)("torch_models:fails_backward", [6], begin="last")
    assert part.output_shape((6,)) == (3,)
    assert capsys.readouterr() == ("", "")


def test_a_change_in_place_across_a_cut_is_refused() -> None:
    for in_place in (False, True):
        arguments = {"in_place": in_place}
        parts = [
            {"build": "torch_models:changes_in_place", "input": [6], "arguments": arguments, **end}
            for end in ({"end": "second"}, {"begin": "second"})
        ]
        model = models.changes_in_place(in_place)
        if in_place:
            with pytest.raises(ConfigError, match="changes in place what others still use"):
                check_parts(model, parts, allow_import=True)
        else:
            check_parts(model, parts, allow_import=True)
        assert model.training


RECURRENT: list[tuple[Any, dict[str, Any]]] = [
    (torch.nn.LSTM, {"proj_size": 2, "bidirectional": True}),
    (torch.nn.GRU, {"num_layers": 2, "dropout": 0.1}),
    (torch.nn.RNN, {"nonlinearity": "relu", "bias": False}),
    (torch.nn.RNN, {"nonlinearity": "tanh"}),
]


@each("kind, options", RECURRENT)
def test_one_step_of_a_recurrent_module_tells_the_shapes_of_all(
    kind: Any, options: dict[str, Any]
) -> None:
    for batch_first in (True, False):
        module = kind(5, 3, batch_first=batch_first, device="meta", **options)
        x = torch.zeros(7, 6, 5, device="meta")
        (expected, states), (y, found) = module(x), in_one_step(module, x)
        assert (y.shape, y.stride()) == (expected.shape, expected.stride())
        assert [one.shape for one in found] == [one.shape for one in states]


def test_packed_sequences_have_no_steps_to_leave_out() -> None:
    lstm = torch.nn.LSTM(5, 3)
    packed = torch.nn.utils.rnn.pack_padded_sequence(torch.randn(4, 3, 5), [4, 2, 1])
    assert torch.equal(in_one_step(lstm, packed)[0].data, lstm(packed)[0].data)


def in_one_step(module: Any, x: Any) -> Any:
    with OneStep():
        return module(x)


def test_a_model_is_cut_with_as_many_operations_for_long_sequences_as_for_short_ones() -> None:
    class Count(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            counts[-1] += 1
            return func(*args, **(kwargs or {}))

    counts: list[int] = []
    for steps in (2, 50):
        counts.append(0)
        with Count():
            assert traced(models.lstm, (steps,), ["2"]).names() == ["1", "2", "3"]
    assert counts[0] == counts[1] > 0
