"""The codec: every message survives the wire, and no bytes do harm."""

from __future__ import annotations

import msgpack
import msgspec
import numpy as np
import pytest
from each import each
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from asyncdni import messages
from asyncdni.config import Limits
from asyncdni.errors import LocalProtocolError, RemoteProtocolError
from asyncdni.messages import Activation, Beat, Credit, Gradient, Message, Report, Start, Welcome
from asyncdni.wire import codec
from asyncdni.wire.codec import decode, encode

LIMITS = Limits()
KINDS = sorted(
    (k for k in vars(messages).values() if isinstance(k, type) and issubclass(k, Message)),
    key=lambda kind: kind.__name__,
)
KINDS.remove(Message)

DTYPES = st.sampled_from(["float16", "float32", "float64", "int32", "int64", "uint8", "bool"])
TENSORS = st.dictionaries(
    st.text("hy_0123", min_size=1, max_size=8),
    hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)),
    max_size=3,
)
# What JSON could say, as experiments and shapes are.
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = {
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(),
    str: st.text(),
    bool: st.booleans(),
    bytes: st.binary(max_size=64),
    int | None: st.none() | st.integers(0, 2**63),
    list[str]: st.lists(st.text(), max_size=3),
    list[list[int]]: st.lists(st.lists(st.integers(-(2**63), 2**64 - 1), max_size=8), max_size=3),
    dict[str, float]: st.dictionaries(st.text(), st.floats(allow_nan=False), max_size=3),
    dict[str, str]: st.dictionaries(st.text(), st.text(), max_size=3),
    dict[str, int]: st.dictionaries(st.text(), st.integers(0, 2**63), max_size=3),
    dict[str, float | None]: st.dictionaries(
        st.text(), st.floats(allow_nan=False) | st.none(), max_size=3
    ),
    dict[str, float | int | None]: st.dictionaries(
        st.text(), st.none() | st.floats() | st.integers(0, 2**63), max_size=3
    ),
}


def messages_of(kind: type[Message]) -> st.SearchStrategy[Message]:
    fields = {}
    for field in msgspec.structs.fields(kind):
        if field.name == "tensors":
            fields[field.name] = TENSORS
        elif field.name in ("experiment", "meta"):
            fields[field.name] = st.dictionaries(st.text(), PLAIN, max_size=3)
        else:
            fields[field.name] = FIELDS[field.type]
    return st.builds(kind, **fields)


ANY_MESSAGE = st.sampled_from(KINDS).flatmap(messages_of)


def on_the_wire(message: Message) -> list[memoryview]:
    """The frames as a peer gets them."""
    return [
        memoryview(np.asarray(f).tobytes() if not isinstance(f, bytes) else f)
        for f in encode(message)
    ]


def plain(message: Message) -> object:
    """Comparable values, bit for bit: NaN and -0.0 included."""
    fields = msgspec.structs.asdict(message)
    tensors = fields.pop("tensors", {})
    arrays = {k: (a.dtype.name, a.shape, a.tobytes()) for k, a in tensors.items()}
    return type(message).__name__, repr(fields), arrays


@pytest.fixture
def activation() -> Activation:
    h = np.arange(24, dtype=np.float32).reshape(4, 6)
    return Activation("stage1", 2, 17, 4, {"h": h, "y": np.arange(4)}, waited=True)


@each("kind", KINDS)
def test_every_message_survives_a_round_trip(kind: type[Message]) -> None:
    @given(messages_of(kind))
    @settings(max_examples=40, deadline=None)
    def check(message: Message) -> None:
        assert plain(decode(on_the_wire(message), LIMITS)) == plain(message)

    check()


def test_every_message_is_allowed_in_some_direction() -> None:
    workers = codec.FROM_WORKER | codec.FROM_COORDINATOR | codec.BETWEEN_WORKERS
    assert set(KINDS) == workers | codec.FROM_AGENT | codec.TO_AGENT


def test_encoded_tensors_are_the_arrays_themselves(activation: Activation) -> None:
    frames = encode(activation)
    assert frames[1] is activation.tensors["h"]
    assert frames[2] is activation.tensors["y"]


def test_decoded_tensors_are_read_only_views_of_their_frames(activation: Activation) -> None:
    frames = on_the_wire(activation)
    decoded = decode(frames, LIMITS)
    assert isinstance(decoded, Activation)
    for name, frame in zip(("h", "y"), frames[1:], strict=True):
        tensor = decoded.tensors[name]
        assert np.shares_memory(tensor, np.frombuffer(frame, np.uint8))
        assert tensor.base is frame.obj
        assert not tensor.flags.writeable


def test_a_tensor_from_writable_memory_is_read_only_too(activation: Activation) -> None:
    frames = [memoryview(bytearray(frame)) for frame in on_the_wire(activation)]
    decoded = decode(frames, LIMITS)
    assert isinstance(decoded, Activation)
    assert not decoded.tensors["h"].flags.writeable


def test_a_tensor_at_an_odd_address_is_aligned() -> None:
    array = np.arange(6, dtype=np.float64)
    header, data = on_the_wire(Gradient("b", 0, 1, {"b": array}))
    shifted = memoryview(b"." + bytes(data))[1:]
    decoded = decode([header, shifted], LIMITS)
    assert isinstance(decoded, Gradient)
    assert decoded.tensors["b"].flags.aligned
    np.testing.assert_array_equal(decoded.tensors["b"], array)


def test_unknown_fields_at_the_end_are_ignored() -> None:
    header = msgpack.packb(["Credit", "b", 1, "a", 5, 9, False, "of a later version"])
    assert decode([header], LIMITS) == Credit("b", 1, "a", 5, 9)


# --- bytes from a peer ---------------------------------------------------------------------------


def harmless(frames: list[bytes]) -> None:
    """Either a message or `RemoteProtocolError`; anything else fails the test."""
    try:
        assert isinstance(decode(frames, LIMITS), Message)
    except RemoteProtocolError as error:
        assert len(str(error)) < 300


@given(st.lists(st.binary(max_size=64), max_size=4))
@settings(max_examples=300, deadline=None)
def test_random_bytes_do_no_harm(frames: list[bytes]) -> None:
    harmless(frames)


@given(st.lists(PLAIN, max_size=8), st.sampled_from(KINDS), st.lists(st.binary(), max_size=3))
@settings(max_examples=300, deadline=None)
def test_random_fields_under_a_valid_tag_do_no_harm(
    fields: list[object], kind: type[Message], frames: list[bytes]
) -> None:
    harmless([msgpack.packb([kind.__name__, *fields]), *frames])


@given(ANY_MESSAGE, st.data())
@settings(max_examples=300, deadline=None)
def test_flipped_bits_do_no_harm(message: Message, data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in on_the_wire(message)]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = data.draw(st.sampled_from([f for f in frames if f]))
        frame[data.draw(st.integers(0, len(frame) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    harmless([bytes(frame) for frame in frames])


@given(ANY_MESSAGE, st.data())
@settings(max_examples=100, deadline=None)
def test_a_truncated_header_is_refused(message: Message, data: st.DataObject) -> None:
    header, *rest = on_the_wire(message)
    cut = data.draw(st.integers(0, len(header) - 1))
    with pytest.raises(RemoteProtocolError):
        decode([header[:cut], *rest], LIMITS)


def test_swapped_frames_are_refused(activation: Activation) -> None:
    header, h, y = on_the_wire(activation)
    for frames in ([header, y, h], [h, header, y]):
        with pytest.raises(RemoteProtocolError):
            decode(frames, LIMITS)


@pytest.mark.parametrize("change", [lambda f: f[:-1], lambda f: [*f, b""], lambda f: f[:1]])
def test_a_wrong_number_of_frames_is_refused(activation: Activation, change) -> None:
    with pytest.raises(RemoteProtocolError, match="2 tensors need 3 frames"):
        decode(change(on_the_wire(activation)), LIMITS)


def test_a_message_without_tensors_takes_no_further_frame() -> None:
    with pytest.raises(RemoteProtocolError, match="carries no tensors"):
        decode([*encode(Start()), b"abc"], LIMITS)


@each(
    "spec",
    [
        ["float32", [3]],
        ["float32", [2, 2]],
        ["float32", [-1, -2]],
        ["float32", [2.0]],
        ["float32", [True, 2]],
        ["float32", [2**63, 2**63, 2**2]],  # 2**128 elements: 0 in 64-bit arithmetic
        ["float32", [2**62, 0, 2**62]],
        ["float32", [2**64 - 1] * 4000],
        ["float32", [1, 1, 1, 1, 1, 1, 1, 1, 2]],
        ["float32", "22"],
        ["float32", None],
        ["float32"],
        ["O", [1]],
        ["object", [1]],
        [">f4", [2]],
        ["float32,float32", [1]],
        [["float32"], [2]],
        ["f" * 5000, [2]],
        "float32",
        7,
        None,
    ],
)
def test_a_wrong_tensor_spec_is_refused(spec: object) -> None:
    header = msgpack.packb(["Gradient", "b", 0, 1, {"b": spec}])
    with pytest.raises(RemoteProtocolError) as caught:
        decode([header, bytes(8)], LIMITS)
    assert len(str(caught.value)) < 300


def test_an_empty_tensor_of_absurd_shape_is_refused() -> None:
    header = msgpack.packb(["Gradient", "b", 0, 1, {"b": ["float32", [0, 2**62, 2**62]]}])
    with pytest.raises(RemoteProtocolError):
        decode([header, b""], LIMITS)


@each("tensors", [None, 3, [], [["b", 1]], {"x" * 300: ["float32", [2]]}])
def test_tensors_that_are_no_map_of_short_names_are_refused(tensors: object) -> None:
    header = msgpack.packb(["Gradient", "b", 0, 1, tensors])
    with pytest.raises(RemoteProtocolError):
        decode([header, bytes(8)], LIMITS)


def test_too_many_tensors_are_refused() -> None:
    specs = {str(i): ["uint8", [1]] for i in range(300)}
    header = msgpack.packb(["Gradient", "b", 0, 1, specs])
    with pytest.raises(RemoteProtocolError, match="256"):
        decode([header, *[b"x"] * 300], LIMITS)


@each(
    "header",
    [
        b"\x91" * 100_000,  # arrays within arrays
        b"\x81\xa1a" * 100_000,  # maps within maps
        b"\xdd\xff\xff\xff\xff",  # an array of 2**32 - 1
        b"\xdf\xff\xff\xff\xff",  # a map of as many
        b"\xdb\xff\xff\xff\xff",  # a string of as many bytes
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xdd\x00\x00\x0f\xff" * 1000,  # lists of 4095, each within the other
        b"\x91\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x91\xc4\x04Beat",  # a tag as binary
        b"\x91\x91\xa4Beat",  # a tag within an array
        b"\x92\xa4Beat\x81\x91\x01\x02",  # a map with an array for a key
        b"\x91\xa4\xff\xfe\xfd\xfc",  # no UTF-8
        b"\x90",
        b"\x80",
        b"\xc1",
        b"\xc0",
        b"",
        msgpack.packb(["Message"]),
        msgpack.packb(["beat"]),
        msgpack.packb(["Credit", "b", 1, "a", 5]),
        msgpack.packb(["Credit", "b", 1, "a", 5, float("nan")]),
        msgpack.packb(["Credit", "b", 1, "a", 5, float("inf")]),
        msgpack.packb(["Credit", "b", 1, "a", 5, 1e300]),
        msgpack.packb(["Credit", "b", 1, "a", 5, True]),
        msgpack.packb(["Credit", "b", 1, "a", "5", 6]),
        msgpack.packb(["Connect", {1: "a"}, {}]),
        msgpack.packb(["Save", "x" * codec.HEADER_BYTES_MAX]),
        msgpack.packb(["Start"]) + b"\x00",
    ],
)
def test_a_bad_header_is_refused(header: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode([header], LIMITS)


def test_no_frames_at_all_are_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="no frames"):
        decode([], LIMITS)


def test_a_message_over_the_limit_is_refused(activation: Activation) -> None:
    frames = on_the_wire(activation)
    total = codec.size(frames)
    decode(frames, Limits(message_bytes=total))
    with pytest.raises(RemoteProtocolError, match=f"{total} bytes"):
        decode(frames, Limits(message_bytes=total - 1))


# --- messages of our own -------------------------------------------------------------------------


@each(
    "tensor",
    [
        np.array([object()]),
        np.array(["text"]),
        np.zeros(2, ">f4"),
        np.zeros(2, "complex64"),
        np.zeros((4, 4), np.float32).T[:2],
        np.zeros(8, np.float32)[::2],
        np.zeros((1,) * 9, np.float32),
        [1.0, 2.0],
        np.float32(1.0),
        None,
    ],
)
def test_a_tensor_that_no_peer_would_take_is_refused_before_it_leaves(tensor: object) -> None:
    with pytest.raises(LocalProtocolError, match="Gradient can't be sent"):
        encode(Gradient("b", 0, 1, {"b": tensor}))


@each(
    "message",
    [
        Credit("b", 1, "a", 5, 2**64),
        Credit("b", 1, "a", 5, "9"),  # type: ignore[arg-type]
        Credit("b", 1, "a", 5, np.int64(9)),  # type: ignore[arg-type]
        Report({"updates": object()}),  # type: ignore[dict-item]
        Gradient("b", 1, 1, [np.zeros(2)]),  # type: ignore[arg-type]
        Gradient("b", 1, 1, {3: np.zeros(2)}),  # type: ignore[dict-item]
        Gradient("b", 1, 1, {"x" * 300: np.zeros(2)}),
        Welcome("a", 0, {"nested": {1: 2}}, {}, "", "initial"),
        messages.Save("\ud800"),
        messages.Save("x" * codec.HEADER_BYTES_MAX),
        Message(),
    ],
)
def test_a_message_that_no_peer_would_take_is_refused_before_it_leaves(message: Message) -> None:
    with pytest.raises(LocalProtocolError):
        encode(message)


def test_endless_nesting_is_refused_before_it_leaves() -> None:
    loop: dict[str, object] = {}
    loop["loop"] = loop
    with pytest.raises(LocalProtocolError):
        encode(Welcome("a", 0, loop, {}, "", "initial"))


def test_a_message_without_fields_is_its_tag() -> None:
    assert encode(Beat()) == [msgpack.packb(["Beat"])]


# --- texts of others -----------------------------------------------------------------------------


def test_texts_of_a_peer_are_made_legible_and_cut_at_the_door() -> None:
    escape = "\x1b]0;owned\x07\u202e\n"
    kinds = frozenset({messages.Hello, messages.Failed, messages.Built, Report})
    hostile = messages.Hello(4, escape, "tcp://h:1", 5, escape + "h" * 900_000)
    found = codec.decode_from(encode(hostile), kinds, LIMITS)
    assert isinstance(found, messages.Hello)
    assert found.stage == "?]0;owned?? "
    assert found.host.startswith("?]0;owned?? hhh")
    assert found.host.endswith("… (899,756 characters more)")
    assert len(found.host) < 300
    for message in (
        messages.Failed("ConfigError", "so Grün ist Größe", "line 1\n\tline 2\n"),
        messages.Built(1, 2, 3, 4, 5, ["a note"]),
        Report({"samples": 3}),
    ):
        assert codec.decode_from(encode(message), kinds, LIMITS) == message
    many = messages.Built(1, 2, 3, 4, 5, [escape] * 100)
    built = codec.decode_from(encode(many), kinds, LIMITS)
    assert isinstance(built, messages.Built)
    assert built.notes == ["?]0;owned?? "] * 64
    report = codec.decode_from(encode(Report({escape: 1})), kinds, LIMITS)
    assert isinstance(report, Report)
    assert report.counters == {"?]0;owned?? ": 1}


def test_what_is_wrong_with_a_message_is_told_legibly() -> None:
    header = msgpack.packb(["Activation", "\x1b[2J", 0, 0, 0, {"\x1b[2J": ["\x1b[2J", [1]]}])
    with pytest.raises(RemoteProtocolError) as refused:
        decode([header, b"1234"], LIMITS)
    assert str(refused.value).isprintable()
