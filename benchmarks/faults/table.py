"""The same list of faults against each schedule: what happens, how long it takes, what is lost.

    python benchmarks/faults/table.py            # some two minutes
    python benchmarks/faults/table.py --readme

Simulated runs with real maths of one network of four stages, one fault each, beside the same run in
peace; all times are virtual. The second command puts the tables into README.md.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))

from sweep import fill_in
from threadpoolctl import threadpool_limits

from asyncdni import experiment
from asyncdni.data import describe
from asyncdni.drivers.virtual.costs import Costs
from asyncdni.drivers.virtual.faults import Faults
from asyncdni.drivers.virtual.simulation import Result, simulate
from asyncdni.plan.build import Design, make_design
from asyncdni.store.tensors import write_atomically

HERE = Path(__file__).parent
RESULTS, README = HERE / "results" / "table.json", HERE / "README.md"
SCHEDULES = ("locked", "gpipe", "1f1b", "delayed", "local_loss", "synthetic")
STAGES = ("hidden1", "hidden2", "hidden3", "top")
#: What is done, and the moment: between two cuts.
WHEN_S = 4.3
#: Of ops 50 times what the simulator takes by itself; a process starts in half a second.
COSTS = Costs(
    forward_us=5000.0,
    predict_us=1500.0,
    backward_us=10_000.0,
    relay_us=5000.0,
    learn_us=5000.0,
    update_us=2500.0,
    fit_us=2500.0,
    evaluate_us=5000.0,
    save_us=20_000.0,
    startup_us=500_000.0,
)
FAULTS: dict[str, Faults] = {
    "kill -9 of a hidden stage": Faults(script=(f"crash hidden2 at {WHEN_S}s",)),
    "kill -9 of the stage that reads the data": Faults(script=(f"crash hidden1 at {WHEN_S}s",)),
    "kill -9 of the stage with the loss": Faults(script=(f"crash top at {WHEN_S}s",)),
    "the same stage killed three times, every 0.9 s": Faults(
        script=tuple(f"crash hidden2 at {WHEN_S + 0.9 * k:.1f}s" for k in range(3))
    ),
    "a stage pauses for 0.5 s": Faults(script=(f"pause hidden2 at {WHEN_S}s for 0.5s",)),
    "a stage pauses for 3 s": Faults(script=(f"pause hidden2 at {WHEN_S}s for 3s",)),
    "a stage is 5 times as slow for 1 s": Faults(
        script=(f"slow hidden2 by 5 at {WHEN_S}s for 1s",)
    ),
    "no way between two stages for 0.5 s": Faults(
        script=(f"partition hidden1|hidden2 at {WHEN_S}s for 0.5s",)
    ),
    "a stage cut off from all for 3 s": Faults(
        script=(f"partition hidden2|hidden1&hidden3&top&coordinator at {WHEN_S}s for 3s",)
    ),
    "a connection breaks and loses what was on its way": Faults(
        script=tuple(f"break hidden1>hidden2 at {WHEN_S + k / 10_000:.4f}s" for k in range(1000))
    ),
    "the coordinator pauses for 2 s": Faults(script=(f"pause coordinator at {WHEN_S}s for 2s",)),
    "kill -9 of the coordinator, resumed after 4 s": Faults(
        script=(f"crash coordinator at {WHEN_S}s for 4s",)
    ),
    "each save takes up to 1 s longer": Faults(slow_saves=1.0, slow_save_s=0.5, most=1000),
    "a worker dies while it saves (three times)": Faults(torn_saves=0.2, most=3),
    "the disk is full": Faults(failed_saves=1.0, most=1000),
}


def design(schedule: str) -> Design:
    """480 batches; a cut and an evaluation about every two seconds."""
    hidden = [{"name": name, "layers": [{"dense": 24}, "relu"]} for name in STAGES[:-1]]
    top = {"name": "top", "layers": [{"dense": 6}], "loss": "sigmoid_cross_entropy"}
    microbatches = {"microbatches": 2} if schedule in ("gpipe", "1f1b") else {}
    chosen = experiment.parse(
        {
            "data": {"name": "addition", "bits": 6, "batch_size": 32, "examples": 1280},
            "stages": [*hidden, top],
            "schedule": {"name": schedule, **microbatches},
            "optimizer": {"name": "adam", "learning_rate": 0.003},
            "run": {"epochs": 12},
            "checkpoint": {"every": "2s", "snapshot_every": "1s"},
            "limits": {"stuck_s": 10.0},
        }
    )
    return make_design(chosen, describe(chosen.data))


def do(schedule: str, fault: str) -> dict[str, Any]:
    """One cell, in a process of its own."""
    with threadpool_limits(1):
        chosen = design(schedule)
        faults = FAULTS.get(fault)
        result = simulate(chosen, seed=1, costs=COSTS, maths=True, faults=faults)
        return _facts(result)


def _facts(result: Result) -> dict[str, Any]:
    found = [kind for kind, _ in result.records]
    rounds = [values["restore"] for kind, values in result.records if kind == "round"]
    backs = [values for kind, values in result.records if kind == "back"]
    weights = [a.tobytes().hex() for own in result.weights.values() for a in own.values()]
    return {
        "end": None if result.failure is None else result.failure.kind,
        "faults": result.fault_counts,
        "lost": found.count("lost"),
        "stuck": found.count("stuck"),
        "rounds": rounds,
        "down_s": max((values["down_s"] for values in backs), default=0.0),
        "lost_updates": sum(one["lost_updates"] for one in backs if not one["again"]),
        "missed": {name: int(own["missed"] or 0) for name, own in result.counters.items()},
        "virtual_s": result.virtual_s,
        "accuracy": result.history[-1]["accuracy"] if result.history else None,
        "weights": hash_of(weights),
    }


def hash_of(weights: list[str]) -> str:
    import hashlib

    return hashlib.sha256("".join(weights).encode()).hexdigest()


# --- the tables ----------------------------------------------------------------------------------


def tables_of(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What happens; how much longer the run takes; what is lost."""
    plain = {name: found[f"{name}/"] for name in SCHEDULES}

    def rows(cell: Any) -> str:
        lines = [["fault", *SCHEDULES], ["---"] * (1 + len(SCHEDULES))]
        for fault in FAULTS:
            cells = [cell(found[f"{name}/{fault}"], plain[name]) for name in SCHEDULES]
            lines.append([fault, *cells])
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)

    return {"happens": rows(_happens), "takes": rows(_takes), "loses": rows(_loses)}


def _happens(one: Mapping[str, Any], _: Mapping[str, Any]) -> str:
    if one["end"] is not None:
        return f"the run ends: {one['end']}"
    words = []
    if one["stuck"]:
        words.append("standstill noticed")
    if any("coordinator crash" in kind for kind in one["faults"]):
        words.append("resumed")
    if not one["rounds"]:
        return "; ".join([*words, "waits"]) if not one["lost"] else "never back"
    kept = set(one["rounds"]) == {"keep"}
    words.append("others go on" if kept and one["lost"] else _from(one["rounds"][-1]))
    return "; ".join(words)


def _from(restore: str) -> str:
    if restore.startswith("checkpoints/"):
        return f"all back to cut {int(restore.partition('/')[2])}"
    return {"keep": "all join anew", "initial": "all begin anew"}.get(restore, f"from {restore}")


def _takes(one: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    if one["end"] is not None:
        return "-"
    longer = f"{one['virtual_s'] - plain['virtual_s']:+.1f} s"
    return f"{longer}, away {one['down_s']:.1f} s" if one["down_s"] else longer


def _loses(one: Mapping[str, Any], plain: Mapping[str, Any]) -> str:
    if one["end"] is not None:
        return "what came after the last cut"
    if one["weights"] == plain["weights"]:
        return "nothing: same weights"
    missed = max(one["missed"].values())
    words = [f"{one['lost_updates']} updates"] * bool(one["lost_updates"])
    words += [f"{missed} of 480 batches"] * bool(missed)
    accuracy = 100 * (one["accuracy"] - plain["accuracy"])
    return ", ".join([*words, f"accuracy {accuracy:+.1f}"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE.json")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--readme", action="store_true", help="fill in README.md, run nothing")
    args = parser.parse_args()
    if args.readme:
        fill_in(README, tables_of(json.loads(args.results.read_text())))
        return
    cells = [(name, fault) for fault in ("", *FAULTS) for name in SCHEDULES]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        facts = pool.map(do, *zip(*cells, strict=True))
        found = {f"{name}/{fault}": one for (name, fault), one in zip(cells, facts, strict=True)}
    args.results.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(args.results, (json.dumps(found, indent=1) + "\n").encode())
    for text in tables_of(found).values():
        print(text, end="\n\n")


if __name__ == "__main__":
    main()
