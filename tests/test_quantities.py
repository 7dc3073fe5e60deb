"""Times and rates with units: what is read, and what is refused in which words."""

from __future__ import annotations

import pytest
from each import each
from hypothesis import given
from hypothesis import strategies as st

from asyncdni.errors import ConfigError
from asyncdni.experiment.schema import bytes_per_second, seconds


@each(
    "text, value",
    [
        ("0ms", 0.0),
        ("250us", 250e-6),
        ("10ms", 0.01),
        ("10 ms", 0.01),
        ("0.5s", 0.5),
        ("60s", 60.0),
        ("1min", 60.0),
    ],
)
def test_a_time_is_read_in_seconds(text: str, value: float) -> None:
    assert seconds(text, "links.latency") == pytest.approx(value, rel=1e-12)


@each(
    "text, value",
    [
        ("8kbit/s", 1e3),
        ("100Mbit/s", 12.5e6),
        ("1Gbit/s", 125e6),
        ("1kB/s", 1e3),
        ("1.5 MB/s", 1.5e6),
        ("1000GB/s", 1e12),
    ],
)
def test_a_rate_is_read_in_bytes_a_second(text: str, value: float) -> None:
    assert bytes_per_second(text, "links.bandwidth") == pytest.approx(value, rel=1e-12)


@each(
    "text",
    [
        "",
        "5",
        "ms",
        "-1ms",
        "+1ms",
        "1e3ms",
        "inf",
        "nans",
        "1 h",
        "1Ms",
        "61s",
        "1.1min",
        "1ms\n",
        "٣ms",
        "1.ms",
        "0x1ms",
        "9" * 500 + "us",
    ],
)
def test_what_is_no_time_or_an_absurd_one_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        seconds(text, "links.latency")
    shown = text if len(text) <= 40 else text[:37] + "..."
    assert str(caught.value) == (
        "links.latency: expected a time from 0s to 60s, such as 10ms (units: us, ms, s, min), "
        f"got {shown!r}"
    )


@each(
    "text",
    [
        "",
        "100",
        "100Mbit",
        "100mbit/s",
        "0MB/s",
        "999B/s",
        "7kbit/s",
        "0.9kB/s",
        "1001GB/s",
        "-1MB/s",
        "1" * 400 + "MB/s",
    ],
)
def test_what_is_no_rate_or_an_absurd_one_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        bytes_per_second(text, "links.bandwidth")
    error = str(caught.value)
    assert error.startswith("links.bandwidth: expected a rate from 1kB/s to 1000GB/s, such as")
    assert "\n" not in error


@given(st.text(max_size=8))
def test_any_text_is_a_quantity_or_a_config_error(text: str) -> None:
    for read, most in ((seconds, 60.0), (bytes_per_second, 1e12)):
        try:
            assert 0.0 <= read(text, "place") <= most
        except ConfigError as error:
            assert "\n" not in str(error)
