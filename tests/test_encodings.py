"""Tensors in fewer bytes: what encodings keep, what is never encoded, and that runs repeat."""

from __future__ import annotations

import copy
from typing import Any

import msgpack
import networks
import numpy as np
import pytest
from each import each
from hypothesis import given, settings
from hypothesis import strategies as st

import asyncdni
from asyncdni import experiment
from asyncdni.config import Limits
from asyncdni.core.events import Finish
from asyncdni.drivers.real.inspection import Inspection
from asyncdni.drivers.virtual.faults import Faults
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.encodings import ENCODINGS, Compressor, Encoded, encode_with_remainder
from asyncdni.errors import ConfigError, NumericalError, RemoteProtocolError
from asyncdni.messages import Activation, Gradient, Shared, Weights
from asyncdni.plan.build import Design, make_compressor, make_design, make_stage
from asyncdni.plan.conditions import automatic_words, link_encodings
from asyncdni.plan.describe import describe_links
from asyncdni.report.columns import COLUMNS
from asyncdni.wire.codec import decode, encode

F32 = np.float32
#: Those that round each element; the others leave something out of a gradient.
LEAVING_OUT = ["top_k", "low_rank"]
ROUNDING = [name for name in ENCODINGS if name not in LEAVING_OUT]
SHAPES = [(), (3,), (4, 5), (2, 3, 4), (0, 3), (3, 0), (1, 1)]


def drawn(shape: tuple[int, ...], seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(F32)


def through(name: str, array: Any) -> Any:
    encoding = ENCODINGS[name]
    frame = encoding.encode(array)
    assert frame.dtype == np.uint8 and frame.shape == (encoding.frame_bytes(array.shape),)
    found = encoding.decode(frame, array.shape)
    assert found.dtype == F32 and found.shape == array.shape
    return found


# --- encodings -----------------------------------------------------------------------------------


@each("name", ROUNDING)
@each("shape", SHAPES)
def test_what_is_lost_is_at_most_half_a_step(name: str, shape: tuple[int, ...]) -> None:
    x = drawn(shape)
    lost = np.abs(through(name, x) - x)
    if name == "int8":
        rows = np.abs(x.reshape(x.shape[0], -1) if x.ndim > 1 and x.size else x.reshape(1, -1))
        step = rows.max(axis=1, keepdims=True, initial=0.0) / 127
        assert (lost.reshape(rows.shape) <= 0.5001 * step).all()
    else:
        bits = {"bfloat16": 8, "float16": 11}[name]  # of the fraction, with the one not written
        assert (lost <= np.abs(x) * 2.0**-bits).all()


def test_encodings_are_as_small_as_they_say() -> None:
    sizes = {name: one.frame_bytes((256, 1024)) for name, one in ENCODINGS.items()}
    halves = {"bfloat16": 2 << 18, "float16": 2 << 18}
    assert sizes == {**halves, "int8": 256 * 1028, "top_k": 256 * 64 * 6, "low_rank": 16 * 1280}
    assert ENCODINGS["top_k"].frame_bytes((2, 1 << 17)) == 2 * (1 << 13) * 8
    assert ENCODINGS["low_rank"].frame_bytes((3, 10, 10)) == 3 * 103 * 4
    assert ENCODINGS["low_rank"].sample_bytes((1024,), 64) == 16 * 1088 // 64


@each("shape", [(4, 64), (3, 5, 7), (2, 70_000)])
def test_top_k_keeps_the_largest_of_each_row_as_they_are(shape: tuple[int, ...]) -> None:
    x = drawn(shape)
    found = through("top_k", x).reshape(len(x), -1)
    for row, whole in zip(found, x.reshape(len(x), -1), strict=True):
        kept = np.flatnonzero(row)
        assert len(kept) == -(-len(row) // 16) and (row[kept] == whole[kept]).all()
        assert np.abs(row[kept]).min() >= np.abs(np.delete(whole, kept)).max()


def test_of_equal_elements_top_k_keeps_the_first() -> None:
    x = np.array([[0.0, -2.0, 2.0, *[1.0] * 30, -2.0]], F32)
    assert np.flatnonzero(through("top_k", x)).tolist() == [1, 2, 33]
    assert not through("top_k", np.zeros((2, 40), F32)).any()


def test_rows_of_int8_do_not_depend_on_each_other() -> None:
    x = drawn((3, 8))
    alone = through("int8", x[1:2])
    x[0] *= 1e6
    assert through("int8", x)[1:2].tobytes() == alone.tobytes()


def test_a_row_of_zeros_or_of_numbers_too_small_to_scale_is_zero() -> None:
    x = np.zeros((3, 4), F32)
    x[1] = np.finfo(F32).smallest_subnormal
    x[2, 0] = 40 * np.finfo(F32).smallest_subnormal  # a scale of 0
    assert not through("int8", x).any()


def test_low_rank_keeps_a_matrix_of_its_rank_and_finds_the_largest_directions_of_others() -> None:
    for rank in (0, 1, 4):
        x = (drawn((9, rank), 1) @ drawn((rank, 50), 2)).reshape(9, 5, 10)
        np.testing.assert_allclose(through("low_rank", x), x, rtol=0, atol=1e-5)
    u, v = np.linalg.qr(drawn((9, 9)))[0], np.linalg.qr(drawn((50, 9)))[0]
    sizes = np.array([9, 8, 7, 6, 3, 2, 1, 1, 1], F32)
    x, known = u * sizes @ v.T, np.zeros((4, 50), F32)
    encoding = ENCODINGS["low_rank"]
    assert encoding.encode_on is not None
    frames = [encoding.encode_on(x, known) for _ in range(20)]
    lost = [np.linalg.norm(encoding.decode(one, x.shape) - x) for one in frames]
    assert lost[0] > 1.05 * lost[-1]  # it begins where the batch before has ended
    assert lost[-1] == pytest.approx(np.linalg.norm(sizes[4:]), rel=1e-3)  # the least possible


def test_one_number_that_is_not_finite_makes_all_of_low_rank_nan_and_is_forgotten() -> None:
    encoding, remainder = ENCODINGS["low_rank"], np.zeros((3 + 4, 6), F32)
    encode_with_remainder(encoding, drawn((3, 6)), remainder)
    before = remainder[3:].copy()
    x = drawn((3, 6), 1)
    x[1, 2] = np.inf
    assert np.isnan(encode_with_remainder(encoding, x, remainder).decode()).all()
    assert before[:3].any() and (remainder[3:] == before).all() and not remainder[:3].any()


@each("name", [name for name in ENCODINGS if name != "low_rank"])
@each("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so_and_spoils_no_other_row(name: str, value: float) -> None:
    x = drawn((3, 4))
    x[1, 2] = value
    x.view(np.uint32)[2, 0] = x.view(np.uint32)[2, 0] & 0xFFFF0000
    found = through(name, x)
    assert not np.isfinite(found[1, 2])
    assert np.isfinite(found[[0, 2]]).all()


def test_a_nan_whose_bits_are_all_set_does_not_become_a_number() -> None:
    x = np.full((1, 2), 0xFFFFFFFF, np.uint32).view(F32)
    assert np.isnan(through("bfloat16", x)).all()


def test_numbers_above_float16_become_its_largest() -> None:
    found = through("float16", np.array([[7e4, -1e30, 65504.0]], F32))
    assert found.tolist() == [[65504.0, -65504.0, 65504.0]]


@pytest.mark.long
def test_bfloat16_is_that_of_pytorch() -> None:
    """Of any bits: ties, numbers below the normal ones, infinity and NaN among them."""
    torch = pytest.importorskip("torch")
    patterns = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    patterns[::3] &= 0xFFFF8000
    patterns[::5] |= 0x7F800000
    x = patterns.view(F32)
    expected = torch.from_numpy(x).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(through("bfloat16", x), expected)


# --- remainders ----------------------------------------------------------------------------------


@each("name", LEAVING_OUT)
def test_what_is_left_out_comes_later(name: str) -> None:
    encoding = ENCODINGS[name]
    x, remainder = drawn((8, 32)), np.zeros((8 + encoding.further_rows, 32), F32)
    sent = [encode_with_remainder(encoding, x, remainder).decode() for _ in range(400)]
    assert np.abs(np.mean(sent, axis=0) - x).max() < 0.1


def test_sums_over_batches_are_right_to_one_rounding() -> None:
    encoding, remainder = ENCODINGS["int8"], np.zeros((4, 6), F32)
    batches = [drawn((4, 6), seed) + 0.01 for seed in range(200)]
    sent = [encode_with_remainder(encoding, one, remainder).decode() for one in batches]
    plain = [through("int8", one) for one in batches]
    wanted = np.sum(batches, axis=0, dtype=np.float64)
    step = max(np.abs(one).max() for one in batches) / 127
    assert np.abs(np.sum(sent, axis=0, dtype=np.float64) - wanted).max() < step
    assert np.abs(np.sum(plain, axis=0, dtype=np.float64) - wanted).max() > step


def test_what_is_always_rounded_away_gets_through_in_time() -> None:
    encoding, remainder = ENCODINGS["int8"], np.zeros((1, 2), F32)
    x = np.array([[1.0, 0.001]], F32)  # a step is 1/127
    assert through("int8", x)[0, 1] == 0.0
    total = sum(encode_with_remainder(encoding, x, remainder).decode() for _ in range(100))
    assert total[0, 1] == pytest.approx(0.1, abs=1 / 127)


def test_a_smaller_batch_uses_the_first_rows_and_nan_is_not_remembered() -> None:
    encoding, remainder = ENCODINGS["int8"], np.full((3, 2), 0.25, F32)
    encode_with_remainder(encoding, np.array([[1.0, 0.3], [np.nan, 1.0]], F32), remainder)
    assert remainder[2].tolist() == [0.25, 0.25] and not remainder[1].any()
    assert np.isfinite(remainder).all() and remainder[0].any()


# --- which tensors -------------------------------------------------------------------------------


def test_only_activations_and_gradients_of_training_are_encoded() -> None:
    remainder = np.zeros((5, 6), F32)
    compressor = Compressor({"b": ENCODINGS["int8"]}, {("b", "top"): remainder})
    h, y = drawn((5, 6)), np.arange(5)
    tensors = {"h": h, "y": y}
    untouched = [
        Activation("data", 0, 0, 5, tensors),
        Activation("a", 0, 0, 5, tensors, evaluate=True),
        Shared("a", 0, 0, {"s": h}),
        Weights("a", 0, 0, {"0.weight": h}),
        Activation("a", 0, 0, 5, {"h": np.zeros(1, np.uint8), "y": y}),
    ]
    for message in untouched:
        assert compressor.compress("b", message) is message
    activation, gradient = Activation("a", 0, 0, 5, tensors), Gradient("a", 0, 0, {"top": h})
    assert compressor.compress("c", activation) is activation
    sent = compressor.compress("b", activation)
    assert isinstance(sent, Activation) and isinstance(sent.tensors["h"], Encoded)
    assert sent.tensors["y"] is y and not remainder.any()
    back = compressor.compress("b", gradient)
    assert isinstance(back, Gradient) and isinstance(back.tensors["top"], Encoded)
    assert remainder.any()


#: Batches in which low_rank is smaller than float32, and a smaller one at the end.
LARGER = {"name": "addition", "bits": networks.BITS, "batch_size": 20, "examples": 55}


def design(stages: Any = None, schedule: Any = None, **sections: Any) -> Design:
    schedule = schedule or {"name": "locked"}
    plain = networks.design(stages or networks.chain(3), schedule, data=sections.get("data"))
    tables = {**experiment.tables(plain.experiment), **sections}
    return make_design(copy.deepcopy(tables), plain.meta)


def chosen(made: Design) -> dict[str, str]:
    found = link_encodings(made.experiment, made.plan)
    return {f"{sender}->{to}": encoding.name for (sender, to), encoding in found.items()}


def test_each_link_has_the_encoding_of_its_own_table() -> None:
    links = {"compress": "int8", "between": {"s0->s1": {"compress": "bfloat16"}, "top->s1": {}}}
    assert chosen(design(links=links)) == {
        **{"s0->s1": "bfloat16", "s1->s0": "int8", "s1->top": "int8"},
    }


@each("name", LEAVING_OUT)
def test_gradients_that_only_train_generators_may_leave_most_out(name: str) -> None:
    links = {"compress": "int8", "compress_fits": name}
    stages = networks.chain(3)
    stages[0]["schedule"] = {"name": "locked"}
    assert chosen(design(stages, {"name": "synthetic"}, links=links, data=LARGER)) == {
        **{"s0->s1": "int8", "s1->s0": "int8", "s1->top": "int8", "top->s1": name},
    }
    learned = ({"name": "locked"}, {"name": "synthetic", "mix": 0.5})
    for schedule in (*learned, {"name": "synthetic", "correct": True}):
        assert set(chosen(design(schedule=schedule, links=links)).values()) == {"int8"}
    made = design(
        networks.fork(), {"name": "synthetic"}, links={"compress_fits": name}, data=LARGER
    )
    one = simulate(made, seed=0, maths=True)
    assert bits(one) == bits(simulate(made, seed=0, maths=True, codec=True))
    exact = design(networks.fork(), {"name": "synthetic"}, data=LARGER)
    assert bits(one) != bits(simulate(exact, seed=0, maths=True))


@each(
    "bandwidth, expected",
    [
        *[("", None), ("1Gbit/s", None), ("999Mbit/s", "bfloat16"), ("250Mbit/s", "bfloat16")],
        *[("249Mbit/s", "int8"), ("8kbit/s", "int8")],
    ],
)
def test_auto_goes_by_the_bandwidth_and_says_so(bandwidth: str, expected: str | None) -> None:
    made = design(networks.chain(2), links={"compress": "auto", "bandwidth": bandwidth})
    links = {} if expected is None else {"s0->top": expected, "top->s0": expected}
    assert chosen(made) == links
    why = bandwidth or "no bandwidth given"
    said = f'compress = "auto" is {expected or "none"} ({why}) for s0->top, top->s0'
    assert automatic_words(made.experiment, made.plan) == said
    assert automatic_words(design().experiment, design().plan) == ""


def test_a_stage_that_only_passes_ids_on_sends_them_as_they_are() -> None:
    stages = networks.chain(3)
    stages[0]["layers"] = ["flatten"]
    made = design(stages, links={"compress": "int8"})
    assert chosen(made) == {"s1->s0": "int8", "s1->top": "int8", "top->s1": "int8"}


def test_a_tensor_that_would_not_get_smaller_is_left_alone() -> None:
    stages = networks.chain(3)
    stages[0]["layers"] = [{"dense": 1}]
    assert "s0->s1" not in chosen(design(stages, links={"compress": "int8"}))
    assert "s0->s1" in chosen(design(stages, links={"compress": "float16"}))


@each(
    "links, place",
    [
        ({"compress": "auto"}, "links"),
        ({"between": {"s0->s1": {"compress": "int8"}}}, 'links.between."s0->s1"'),
    ],
)
def test_float64_is_not_compressed(links: Any, place: str) -> None:
    run = {"epochs": 1, "dtype": "float64"}
    with pytest.raises(ConfigError, match="is for tensors of float32") as caught:
        design(links=links, run=run)
    assert str(caught.value).startswith(f"{place}.compress: ")


def test_the_graph_shows_what_each_link_carries() -> None:
    """5 values of 4 bits: y is 16 bytes beside each activation."""
    made = design(schedule={"name": "synthetic", "fit_every": 4}, links={"compress": "int8"})
    assert describe_links(made) == (
        "link     tensors      travel as  bytes a sample\n"
        "s0->s1   activations  int8                   26\n"
        "s1->s0   gradients    int8                    2\n"
        "s1->top  activations  int8                   26\n"
        "top->s1  gradients    int8                    2\n"
    )
    assert describe_links(design(run={"split": [3]})) == ""
    greedy = design(schedule={"name": "local_loss"})
    assert "gradients" not in describe_links(greedy)


def test_a_report_has_the_bytes_of_a_sample_over_all_links() -> None:
    stages = [
        {"bytes_by_link": {"b": 600, "c": 400}, "samples": 100},
        {"bytes_by_link": {"a": 500}, "samples": 50},
        {"bytes_by_link": {}, "samples": 50},
    ]
    column = COLUMNS["bytes_per_sample"]
    assert column.of_run({"stages": stages}) == 20.0
    assert column.of_run({"stages": [{"samples": 5}]}) is None


# --- the wire ------------------------------------------------------------------------------------


@each("name", ENCODINGS)
@each("shape", SHAPES)
def test_an_encoded_tensor_survives_the_wire(name: str, shape: tuple[int, ...]) -> None:
    x, encoding = drawn(shape), ENCODINGS[name]
    message = Gradient("b", 0, 1, {"b": Encoded(encoding, shape, encoding.encode(x)), "c": x})
    frames = [bytes(np.asarray(f)) if not isinstance(f, bytes) else f for f in encode(message)]
    found = decode([frames[0], memoryview(b"." + frames[1])[1:], frames[2]], Limits())
    assert isinstance(found, Gradient)
    assert found.tensors["b"].tobytes() == through(name, x).tobytes()
    assert not found.tensors["b"].flags.writeable and found.tensors["b"].shape == shape
    assert found.tensors["c"].tobytes() == x.tobytes()


@each(
    "spec",
    [
        ["float32", [2, 4], "int8"],  # 16 bytes are needed, with the scales
        ["float32", [2, 2], "bfloat16"],
        ["float32", [2, 2], "float32"],
        ["float32", [2, 2], "none"],
        ["float32", [2, 2], ["int8"]],
        ["float32", [2, 2], None],
        ["float32", [2, 2], "int8", 0],
        ["float64", [1, 8], "int8"],
        ["int64", [1, 8], "int8"],
        [["float32"], [1, 8], "int8"],
        ["float32", "12", "int8"],
        ["float32", [-1, -8], "int8"],
        ["float32", [True, 8], "int8"],
        ["float32", [1.0, 8], "int8"],
        ["float32", [2**63, 2**63, 4], "bfloat16"],
        ["float32", [0, 2**62, 2**62], "int8"],
        ["float32", [1] * 9, "int8"],
        ["float32", [2, 2], "x" * 5000],
        ["float32", [2, 2], "low_rank"],  # of rank 2: 32 bytes
        ["float32", [1, 3], "low_rank"],  # 16 bytes
        ["float32", [0, 3], "low_rank"],
    ],
)
def test_a_wrong_description_of_an_encoded_tensor_is_refused(spec: object) -> None:
    header = msgpack.packb(["Gradient", "b", 0, 1, {"b": spec}])
    with pytest.raises(RemoteProtocolError) as caught:
        decode([header, bytes(12)], Limits())
    assert len(str(caught.value)) < 300


def test_a_message_may_not_be_over_the_limit_when_it_is_decoded() -> None:
    specs = {name: ["float32", [4, 100], "int8"] for name in "bc"}
    frames = [msgpack.packb(["Gradient", "b", 0, 1, specs]), bytes(416), bytes(416)]
    decode(frames, Limits(message_bytes=3200))
    with pytest.raises(RemoteProtocolError, match="3200 bytes when decoded, at most 3199"):
        decode(frames, Limits(message_bytes=3199))


@given(st.sampled_from(ROUNDING), st.binary(min_size=12, max_size=48))
@settings(max_examples=200, deadline=None)
def test_any_bytes_in_a_frame_are_some_tensor(name: str, content: bytes) -> None:
    width = {"int8": len(content) - 4}.get(name, len(content) // 2)
    content = content[: len(content) if name == "int8" else 2 * width]
    header = msgpack.packb(["Gradient", "b", 0, 1, {"b": ["float32", [1, width], name]}])
    with np.errstate(all="ignore"):
        found = decode([header, content], Limits())
    assert isinstance(found, Gradient) and found.tensors["b"].shape == (1, width)


@each("scale", [np.nan, np.inf, -np.inf])
def test_a_scale_that_is_not_finite_is_the_fault_of_the_stage_that_sent_it(scale: float) -> None:
    made = design(links={"compress": "int8"})
    inspection = Inspection(made, made.plan.groups[0], {"s0": 0, "s1": 0, "top": 0})
    header = msgpack.packb(["Gradient", "s1", 0, 0, {"s1": ["float32", [5, 6], "int8"]}])
    scales = np.array([1.0, 1.0, scale, 1.0, 1.0], "<f4")
    with np.errstate(all="ignore"):
        found = decode([header, scales.tobytes() + bytes(30)], Limits())
        with pytest.raises(NumericalError, match="stage s1 has sent the gradient of batch 0"):
            inspection.accusation(found)


@each("places", [[32, 33], [5, 5], [9, 8], [0, 65535]])
def test_places_of_top_k_that_no_sender_writes_are_refused(places: list[int]) -> None:
    header = msgpack.packb(["Gradient", "b", 0, 1, {"b": ["float32", [1, 32], "top_k"]}])
    content = np.ones(2, "<f4").tobytes() + np.array(places, "<u2").tobytes()
    with pytest.raises(RemoteProtocolError, match="places of elements must rise"):
        decode([header, content], Limits())


# --- runs ----------------------------------------------------------------------------------------


def bits(result: Result) -> dict[str, bytes]:
    assert isinstance(result.end, Finish)
    return {
        f"{stage}.{name}": array.tobytes()
        for stage, arrays in result.weights.items()
        for name, array in arrays.items()
    }


@each("name", ROUNDING)
def test_synchronous_runs_repeat_to_the_bit_and_differ_from_float32(name: str) -> None:
    """Also where every message is written as for the wire, and arrives at other times."""
    schedule = {"name": "gpipe", "microbatches": 5} if name == "float16" else {"name": "locked"}
    run, short = {"epochs": 1}, networks.diamond()
    plain = bits(simulate(design(short, schedule, run=run), seed=0, maths=True))
    made = design(short, schedule, run=run, links={"compress": name})
    one = bits(simulate(made, seed=0, maths=True))
    assert one == bits(simulate(made, seed=5, maths=True, codec=True)) != plain


def test_a_run_that_goes_back_to_a_cut_ends_with_the_same_bits() -> None:
    """What rounding has left out is part of the cut."""
    often = {"every": 0.4, "snapshot_every": "never"}
    made = design(links={"compress": "int8"}, checkpoint=often)
    plain = simulate(made, seed=0, maths=True)
    crash = Faults(script=("crash s1 at 108ms",))
    result = simulate(made, seed=0, maths=True, faults=crash)
    rounds = [values for kind, values in result.records if kind == "round"]
    assert result.fault_counts == {"crash": 1}
    assert any(one["restore"].startswith("checkpoints/") for one in rounds)
    assert bits(result) == bits(plain)


@each("name", ["int8", "low_rank"])
def test_remainders_are_part_of_a_stage_and_start_at_zero_where_a_file_has_none(name: str) -> None:
    links = {"compress": "int8", **({} if name == "int8" else {"compress_fits": name})}
    made = design(schedule={"name": "synthetic"}, links=links, data=LARGER)
    stage = make_stage(made, made.plan.groups[1])
    compressor = make_compressor(made, made.plan.groups[1], stage)
    compressor.compress("s0", Gradient("s1", 0, 0, {"s1": drawn((5, networks.WIDTH))}))
    state = stage.snapshot()
    kept = state["s1"]["remainder.s0.gradient"]
    assert kept.any()
    other = make_stage(made, made.plan.groups[1])
    assert other.restore(state) == []
    assert other.remainders["s1"]["s0"].tobytes() == kept.tobytes()
    assert len(kept) == made.experiment.data.batch_size + ENCODINGS[name].further_rows
    without = {name: array for name, array in state["s1"].items() if "remainder" not in name}
    assert other.restore({"s1": without}) == [] and not other.remainders["s1"]["s0"].any()
    links = {"compress": "int8", "compress_fits": "top_k" if name == "low_rank" else "low_rank"}
    changed = design(schedule={"name": "synthetic"}, links=links, data=LARGER)
    another = make_stage(changed, changed.plan.groups[1])
    assert another.restore(state) == [] and not another.remainders["s1"]["s0"].any()
    plain = design(schedule={"name": "synthetic"})
    exact = make_stage(plain, plain.plan.groups[1])
    assert exact.restore(state) == [] and not exact.remainders


@each("stages", [networks.fork(), networks.several_readers()])
def test_sizes_are_the_same_with_and_without_arithmetic(stages: Any) -> None:
    links = {"bandwidth": "1MB/s", "compress": "int8"}
    made = design(stages, {"name": "synthetic"}, run={"epochs": 1}, links=links)
    assert simulate(made, seed=0, maths=False).ops == simulate(made, seed=0, maths=True).ops


@pytest.mark.long
def test_real_processes_end_with_the_bits_of_the_simulator() -> None:
    links = {"compress": "int8", "between": {"root->top": {"compress": "bfloat16"}}}
    made = design(networks.diamond(), links=links)
    simulated = bits(simulate(made, seed=0, maths=True))
    result = asyncdni.train(made.experiment, progress=False)
    assert {name: array.tobytes() for name, array in result.weights.items()} == simulated
    carried = {stage["name"]: stage["bytes_by_link"] for stage in result.summary["stages"]}
    assert {sender: set(links) for sender, links in carried.items()} == {
        **{"root": {"long", "top", "aside"}, "long": {"root", "top"}},
        **{"top": {"long", "root"}, "aside": {"root"}},
    }
    assert min(min(links.values()) for links in carried.values()) > 2 * 23 * networks.WIDTH
