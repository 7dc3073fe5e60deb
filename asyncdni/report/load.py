"""How busy the machine was during a run: measured by `watched`, and judged by `disturbance`.

Linux counts in /proc/stat the CPU time of each core since it started. What this process and its
children have used is taken off, and the rest went to others. So that slower clocks and neighbours
that share caches show too, the speed of matrix products is measured before and after each run.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from asyncdni.report.machine import usable

__all__ = [
    "DISTURBED_MAX",
    "REPEATS_MAX",
    "SLOWED_BELOW",
    "TAKEN_MAX",
    "Load",
    "Reading",
    "disturbance",
    "fastest",
    "is_busy",
    "load_from",
    "plain",
    "read_cores",
    "taken",
    "watched",
]

# --- thresholds ----------------------------------------------------------------------------------

#: The greatest share of the cores' CPU time that others may take from an undisturbed run. A quiet
#: desktop takes 1 to 3 %; differences that comparisons are about begin at some 5 %.
TAKEN_MAX = 0.05
#: CPU seconds that never disturb a run: /proc/stat counts in hundredths of a second on each core.
_TAKEN_FREE_S = 0.1
#: Matrix products slower than this share of the fastest ones in the comparison mean a disturbed
#: run. The clock of a quiet processor falls by up to a fifth when all its cores work and get warm.
SLOWED_BELOW = 0.75
#: The greatest share of a row's runs that may be disturbed before there is no verdict on speed: one
#: of five can't move a mean over five seeds far without widening its interval, one of two can.
DISTURBED_MAX = 0.2
#: How many times a disturbed run is repeated. A short burst is over by then; if a run is still
#: disturbed the machine is busy for longer, and later runs are not repeated at all.
REPEATS_MAX = 2

# --- what is measured ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """CPU seconds since the system started, on the cores that this process may use."""

    at_s: float  # time.monotonic()
    busy_s: float  # of all processes and of the system itself
    stolen_s: float  # that the hypervisor gave to other virtual machines
    own_s: float  # of this process, and of those of its children that have ended


@dataclass(frozen=True)
class Load:
    """What else the machine did during one run. None: the system does not tell."""

    others: float | None  # share of the cores' time that other processes took, from 0 to 1
    stolen: float | None  # share that the hypervisor gave to other virtual machines
    before: float | None  # as `others`, right before the run
    cores_s: float  # CPU seconds that the cores had during the run: wall time times cores
    start_gflops: float  # speed of matrix products of one thread before the run, in GFLOP/s
    end_gflops: float  # the same after it
    repeats: int = 0  # how many times the run was made again because it had been disturbed


def load_from(values: Mapping[str, Any] | None) -> Load | None:
    """Return the load in a run of a comparison's document; None if it has none, as documents of
    older versions."""
    return None if values is None else Load(**values)


@contextmanager
def watched(found: list[Load]) -> Iterator[None]:
    """Measure the machine while the block runs, and append the `Load` to `found` if it succeeds.

    All children that the block starts must have ended with it. The products before and after the
    block take a fifth of a second each.
    """
    early = read_cores()
    start_gflops = _product_gflops()
    first = read_cores()
    began_s = time.monotonic()
    yield
    wall_s, last = time.monotonic() - began_s, read_cores()
    others, stolen = taken(first, last, len(usable()))
    before, _ = taken(early, first, len(usable()))
    end_gflops = _product_gflops()
    found.append(Load(others, stolen, before, wall_s * len(usable()), start_gflops, end_gflops))


def taken(
    first: Reading | None, last: Reading | None, cores: int
) -> tuple[float | None, float | None]:
    """Return the shares of the time of `cores` cores, from 0 to 1, that others took between two
    readings and that was stolen; None for what is unknown.

    A system whose counters stand still while this process works, as in some sandboxes, tells
    nothing.
    """
    if first is None or last is None or last.at_s <= first.at_s:
        return None, None
    busy_s, own_s = last.busy_s - first.busy_s, last.own_s - first.own_s
    if busy_s <= 0.0 < own_s - _TAKEN_FREE_S:
        return None, None
    had_s = cores * (last.at_s - first.at_s)
    shares = (busy_s - own_s) / had_s, (last.stolen_s - first.stolen_s) / had_s
    others, stolen = (min(1.0, max(0.0, share)) for share in shares)
    return others, stolen


_STAT = Path("/proc/stat")


def read_cores(stat: Path = _STAT) -> Reading | None:
    """Read the counters of the cores that this process may use (see proc_stat(5)); None where there
    are none."""
    own = os.times()
    try:
        lines = [line.split() for line in stat.read_text().splitlines()]
        tick_s = 1.0 / os.sysconf("SC_CLK_TCK")
        known = {name: [int(one) for one in values] for name, *values in lines if name[:3] == "cpu"}
        counters = [known[f"cpu{core}"] for core in usable()]
    except (OSError, ValueError, KeyError):
        return None
    if not counters or any(len(one) < 8 for one in counters):
        return None
    # user, nice, system, idle, iowait, irq, softirq, steal
    busy = sum(sum(one[:3]) + sum(one[5:7]) for one in counters)
    stolen = sum(one[7] for one in counters)
    own_s = own.user + own.system + own.children_user + own.children_system
    return Reading(time.monotonic(), tick_s * busy, tick_s * stolen, own_s)


#: Rows and columns of the products' matrices: in cache, and a millisecond or two each.
_SIZE = 384
_PRODUCTS_S = 0.2


def _product_gflops() -> float:
    """Return the median speed of float32 matrix products of one thread, in GFLOP/s."""
    a = np.full((_SIZE, _SIZE), 0.5, np.float32)
    out, times = np.empty_like(a), list[float]()
    with threadpool_limits(1):
        np.matmul(a, a, out=out)  # touches the memory, and wakes up the core
        ends_s = time.perf_counter() + _PRODUCTS_S
        while not times or time.perf_counter() < ends_s:
            began_s = time.perf_counter()
            np.matmul(a, a, out=out)
            times.append(time.perf_counter() - began_s)
    return 2.0 * _SIZE**3 / statistics.median(times) / 1e9


# --- what it means -------------------------------------------------------------------------------


def fastest(loads: Iterable[Load | None]) -> float:
    """Return the speed of the fastest products of all loads, in GFLOP/s; 0 without any."""
    return max((max(one.start_gflops, one.end_gflops) for one in loads if one), default=0.0)


def disturbance(load: Load | None, fastest_gflops: float) -> str:
    """Say what disturbed a run; empty for a run that was not disturbed, or not measured.

    `fastest_gflops` is the speed of the fastest products in the whole comparison.
    """
    if load is None:
        return ""
    found = []
    others, stolen = load.others or 0.0, load.stolen or 0.0
    if others + stolen > max(TAKEN_MAX, _TAKEN_FREE_S / load.cores_s):
        found.append(f"others took {100 * others:.0f} % of the cores' time")
        if stolen > TAKEN_MAX / 2:
            found[-1] += f", the hypervisor {100 * stolen:.0f} %"
    slowest = min(load.start_gflops, load.end_gflops)
    if slowest < SLOWED_BELOW * fastest_gflops:
        share = 100 * slowest / fastest_gflops
        found.append(f"matrix products ran at {share:.0f} % of their best speed")
    return " and ".join(found)


def is_busy(disturbed: Sequence[bool]) -> bool:
    """Tell whether so many runs of a row were disturbed that its speed means nothing."""
    return sum(disturbed) > DISTURBED_MAX * len(disturbed)


def plain(load: Load | None) -> dict[str, Any] | None:
    """Return a load as a plain table, fit for JSON: see `load_from`."""
    return None if load is None else asdict(load)
