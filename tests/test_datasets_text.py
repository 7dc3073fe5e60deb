"""A text as windows of characters, and which texts are refused."""

from __future__ import annotations

import gzip
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from each import each
from hypothesis import given
from hypothesis import strategies as st

from asyncdni import data as datasets
from asyncdni.config import Text
from asyncdni.data import text as texts
from asyncdni.errors import DataError

WORDS = "".join(chr(97 + i * i % 23) for i in range(1000))


def written(folder: Path, text: str = WORDS, name: str = "text.txt") -> str:
    path = folder / name
    path.write_bytes(text.encode())
    return str(path)


def read_epoch(data: Text, epoch: int | None, *, seed: int = 0) -> list[dict[str, Any]]:
    opened, size = datasets.open_batches(data, seed), data.batch_size
    if epoch is None:
        count = opened.test_batches(size)
        return [opened.read_test(index, size, np.float32) for index in range(count)]
    count = opened.batches_per_epoch(size)
    return [opened.read(epoch, index, size, seed, np.float32) for index in range(count)]


def streams_of(windows: list[dict[str, Any]], vocabulary: str, name: str = "h") -> list[str]:
    """What each stream reads, as text."""
    joined = np.concatenate([window[name] for window in windows], axis=1)
    ids = joined.argmax(axis=2) if joined.ndim == 3 else joined.astype(int)
    return [texts.decode(row, vocabulary) for row in ids]


@pytest.mark.parametrize("encoding", ["one_hot", "ids"])
def test_streams_read_the_text_one_piece_behind_another(tmp_path: Path, encoding: Any) -> None:
    data = Text(path=written(tmp_path), batch_size=4, window=7, encoding=encoding)
    meta = datasets.describe(data)
    windows = read_epoch(data, 0)
    read = "".join(streams_of(windows, meta.vocabulary))
    assert len(read) == meta.train_samples * 7 > 850
    start = WORDS.index(read)
    assert start < 900 - len(read)
    targets = "".join(streams_of(windows, meta.vocabulary, "y"))
    assert [part[-1] for part in streams_of(windows, meta.vocabulary, "y")] == [
        WORDS[start + len(read) * (b + 1) // 4] for b in range(4)
    ]
    assert targets[:-1].startswith(read[1 : len(read) // 4])


def test_the_test_part_is_the_end_of_the_text(tmp_path: Path) -> None:
    data = Text(path=written(tmp_path), batch_size=2, window=5, test_part=0.2)
    meta = datasets.describe(data)
    read = "".join(streams_of(read_epoch(data, None), meta.vocabulary))
    assert read == WORDS[800 : 800 + len(read)] and len(read) > 185


def test_held_out_characters_come_before_the_test_part(tmp_path: Path) -> None:
    data = Text(path=written(tmp_path), batch_size=2, window=5, test_part=0.2, validation=100)
    meta = datasets.describe(data)
    held = "".join(streams_of(read_epoch(data, None), meta.vocabulary))
    assert held == WORDS[700 : 700 + len(held)] and len(held) >= 90
    trained = "".join(streams_of(read_epoch(data, 0), meta.vocabulary))
    assert WORDS.index(trained) + len(trained) < 700


def test_epochs_start_at_characters_of_their_own_that_the_seed_draws(tmp_path: Path) -> None:
    data = Text(path=written(tmp_path), batch_size=4, window=20)
    meta = datasets.describe(data)

    def starts(seed: int) -> list[int]:
        epochs = [read_epoch(data, epoch, seed=seed) for epoch in range(6)]
        return [WORDS.index("".join(streams_of(one, meta.vocabulary))) for one in epochs]

    assert len(set(starts(0))) > 2 and starts(0) == starts(0) != starts(1)


def test_a_text_is_one_sequence_an_epoch(tmp_path: Path) -> None:
    windows = read_epoch(Text(path=written(tmp_path), batch_size=3, window=10), 0)
    assert [w["first"].all() for w in windows] == [True] + [False] * (len(windows) - 1)
    assert [w["last"].any() for w in windows] == [False] * (len(windows) - 1) + [True]
    assert "mask" not in windows[0] and "coming" not in windows[0]


def test_what_is_coming_are_the_next_targets_as_one_hot_vectors(tmp_path: Path) -> None:
    data = Text(path=written(tmp_path), batch_size=3, window=4, ahead=2)
    classes = datasets.describe(data).outputs
    windows = read_epoch(data, 1)
    for now, then in itertools.pairwise(windows):
        coming = now["coming"].reshape(3, 2, classes)
        assert (coming.argmax(axis=2) == then["y"][:, :2]).all() and (coming.sum(axis=2) == 1).all()
    assert not windows[-1]["coming"].any()


def test_a_text_is_described_as_it_is(tmp_path: Path) -> None:
    data = Text(path=written(tmp_path, "añb\n日" * 100), batch_size=2, window=5)
    meta = datasets.describe(data)
    assert meta.vocabulary == "\nabñ日" and meta.outputs == 5
    assert meta.input_shape == (5, 5) and meta.output_shape == (5, 5)
    assert datasets.open_batches(data, 0).meta == meta
    ids = datasets.describe(Text(path=data.path, batch_size=2, window=5, encoding="ids"))
    assert ids.input_shape == (5,)


@each("length", [400, 1 << 20, (1 << 20) + 400])
def test_long_and_short_texts_are_encoded_alike(length: int) -> None:
    text = ("xyzzy" * (length // 5 + 1))[:length]
    ids = texts.encode(text, "xyz")
    assert ids.dtype == np.uint8 and len(ids) == length
    assert (ids == np.resize([0, 1, 2, 2, 1], length)).all()


@given(st.text(min_size=1))
def test_decoding_undoes_encoding(text: str) -> None:
    vocabulary = "".join(sorted(set(text)))
    assert texts.decode(texts.encode(text, vocabulary), vocabulary) == text


def test_a_character_that_was_not_trained_on_is_refused() -> None:
    with pytest.raises(DataError, match=r"'c' is not among the 2 characters"):
        texts.encode("abc", "ab")


def test_gzip_and_a_byte_order_mark_are_seen_through(tmp_path: Path) -> None:
    plain = datasets.describe(Text(path=written(tmp_path), batch_size=2, window=5))
    packed = tmp_path / "text.gz"
    packed.write_bytes(gzip.compress(b"\xef\xbb\xbf" + WORDS.encode()))
    assert datasets.describe(Text(path=str(packed), batch_size=2, window=5)) == plain


def test_a_text_is_read_in_pieces_that_may_end_within_a_character(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "\ufeff" + "añb\n日€" * 40)
    packed = tmp_path / "text.gz"
    packed.write_bytes(gzip.compress(Path(path).read_bytes()))
    for encoding in ("one_hot", "ids"):
        plain, other = (
            Text(path=str(p), batch_size=2, window=5, encoding=encoding) for p in (path, packed)
        )
        meta, sums = datasets.describe(plain), datasets.checksums(plain)
        whole = [{k: v.tolist() for k, v in one.items()} for one in read_epoch(plain, 3)]
        with monkeypatch.context() as patched:
            patched.setattr(texts, "_CHUNK", 2)
            for data in (plain, other):
                assert (datasets.describe(data), datasets.checksums(data)) == (meta, sums)
                read = [{k: v.tolist() for k, v in one.items()} for one in read_epoch(data, 3)]
                assert read == whole


@each("limit, fits", [(20, True), (19, False)])
@each("pack", [bytes, gzip.compress])
def test_a_text_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Any, limit: int, fits: bool
) -> None:
    path = tmp_path / "t"
    path.write_bytes(pack(b"ab" * 10))
    monkeypatch.setattr(texts, "BYTES_MAX", limit)
    data = Text(path=str(path), batch_size=1, window=1, test_part=0.5)
    if fits:
        assert datasets.describe(data).outputs == 2 and datasets.checksums(data)
        return
    for use in (datasets.describe, datasets.checksums):
        with pytest.raises(DataError, match=f"^{path}: longer than the 19 bytes"):
            use(data)


@pytest.mark.parametrize("name", texts.FILES)
@pytest.mark.parametrize("where", ["data", "data/text", "cache/asyncdni/text"])
def test_without_a_path_the_plays_are_looked_for_in_the_data_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, name: str
) -> None:
    monkeypatch.setenv("ASYNCDNI_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(DataError) as caught:
        datasets.describe(Text())
    words = str(caught.value)
    assert str(tmp_path / where) in words and "`asyncdni data shakespeare`" in words
    (tmp_path / where).mkdir(parents=True)
    content = WORDS.encode()
    (tmp_path / where / name).write_bytes(gzip.compress(content) if "gz" in name else content)
    assert datasets.describe(Text(batch_size=2, window=5)).outputs == len(set(WORDS))


# --- what is refused -----------------------------------------------------------------------------

REFUSED = [
    (b"", "is empty; expected a text"),
    (b"\xef\xbb\xbf", "is empty; expected a text"),
    (b"abc\xff\xfedef", "byte 3 is 0xff, no UTF-8; expected a text file in UTF-8"),
    ("é".encode("latin-1"), "byte 0 is 0xe9, no UTF-8"),
    (gzip.compress(b"abc" * 100)[:-9], "damaged gzip file ("),
    (b"ab" * 10, "too short: 20 characters leave 18 to train on; expected at least 660 for 32"),
]


@each("content, words", REFUSED)
def test_a_text_that_cannot_be_learned_is_refused_in_one_line(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "t"
    path.write_bytes(content)
    for use in (datasets.describe, lambda data: datasets.open_batches(data, 0)):
        with pytest.raises(DataError) as caught:
            use(Text(path=str(path)))
        assert str(caught.value).startswith(f"{path}: ") and words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_text_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match=f"^{path}: can't be read"):
            datasets.describe(Text(path=str(path)))


def test_a_test_part_too_short_for_its_windows_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    with pytest.raises(DataError, match=r"100 to test on; .*at least 105.*data.test_part"):
        datasets.describe(Text(path=path, batch_size=20, window=5))
    with pytest.raises(DataError, match=r"20 to test on; .*data.validation"):
        datasets.describe(Text(path=path, batch_size=4, window=5, validation=20))
    with pytest.raises(DataError, match=r"leave 0 to train on"):
        datasets.describe(Text(path=path, batch_size=4, window=5, validation=2000))


@pytest.mark.parametrize("spare", [0, 4])
def test_the_shortest_text_has_one_window(tmp_path: Path, spare: int) -> None:
    """(B + 1) T characters to train on, and as many to test on."""
    path = written(tmp_path, WORDS[: 2 * (15 + spare)])
    data = Text(path=path, batch_size=2, window=5, test_part=0.5)
    for epoch in (*range(10), None):
        assert len(read_epoch(data, epoch)) == 1
