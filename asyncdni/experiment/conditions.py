"""Checks of [links], [slow] and [staleness] that types can't express: texts with units, link names.

Whether a name is one of the run shows once the stages are laid out over workers: see
`asyncdni.conditions`.
"""

from __future__ import annotations

from collections.abc import Iterable

from asyncdni import config
from asyncdni.errors import ConfigError
from asyncdni.experiment.wording import shown, table_key
from asyncdni.quantities import bytes_per_second, seconds

__all__ = ["check_texts"]


def check_texts(experiment: config.Experiment) -> None:
    """Raises `ConfigError`."""
    links, stuck_s = experiment.links, experiment.limits.stuck_s
    _check_link(links, "links", stuck_s)
    _check_keys(links.between, "links.between")
    for key, link in links.between.items():
        _check_link(link, f"links.between.{table_key(key)}", stuck_s)
    for name, slow in experiment.slow.items():
        _check_slow(slow, f"slow.{table_key(name)}")
    _check_keys(experiment.staleness.links, "staleness.links")


def _check_link(link: config.Link, place: str, stuck_s: float) -> None:
    longest_s = seconds(link.latency, f"{place}.latency") + seconds(link.jitter, f"{place}.jitter")
    if longest_s >= stuck_s:
        raise ConfigError(
            f"{place}: a latency of {link.latency} and a jitter of {link.jitter} reach "
            f"limits.stuck_s = {stuck_s:g}, after which a run that waits is held to stand still; "
            "lower them or raise that"
        )
    if link.bandwidth:
        bytes_per_second(link.bandwidth, f"{place}.bandwidth")


def _check_slow(slow: config.Slow, place: str) -> None:
    pause_s = seconds(slow.pause, f"{place}.pause")
    if bool(pause_s) != bool(slow.chance):
        raise ConfigError(
            f"{place}: a pause of {slow.pause} with chance {slow.chance:g} is none; give both "
            "pause and chance, or neither"
        )


def _check_keys(keys: Iterable[str], place: str) -> None:
    for key in keys:
        sender, arrow, receiver = key.partition("->")
        if not (sender and arrow and receiver):
            raise ConfigError(
                f'{place}: expected names of links, such as "hidden1->hidden2", got {shown(key)}'
            )
