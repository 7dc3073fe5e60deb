"""What happens to a run beside training, in words: for displays, pages and logs.

Incidents are deaths, restarts, stops by the user, and what was done about them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from asyncdni.logs import COORDINATOR, DISPLAYED

__all__ = ["guard_line", "incident_line", "log_incident", "restored", "undone"]

#: Kinds of records that somebody should look into.
_WARNINGS = frozenset({"lost", "stuck", "accused", "numbers", "passed_over", "waiting"})


def log_incident(kind: str, values: Mapping[str, Any]) -> None:
    """Log a record of an incident; do nothing for any other."""
    line = incident_line(kind, values)
    if line is not None:
        level = logging.WARNING if kind in _WARNINGS else logging.INFO
        COORDINATOR.log(level, "%s", line, extra=DISPLAYED)


def guard_line(values: Mapping[str, Any]) -> str:
    """Describe the decision of a stage's guard: `hidden1 waits for true gradients: …`."""
    cosine = "" if values.get("cosine") is None else f" (cosine {values['cosine']:.2f})"
    if values["waiting"]:
        return f"{values['stage']} waits for true gradients: its generator disagrees{cosine}"
    return f"{values['stage']} goes on with synthetic gradients: its generator agrees{cosine}"


def incident_line(kind: str, values: Mapping[str, Any]) -> str | None:
    """Describe a record of an incident in one line; None for all other records.

    Incidents are deaths, restarts, stops by the user, and what was done about them.
    """
    match kind:
        case "lost" | "stuck":
            return f"{kind}: {values['text']}"
        case "accused":
            return f"{values['by']} reports a fault of {values['stage']}: {values['text']}"
        case "launch":
            more = f", attempt {values['attempt']}" if values["attempt"] > 1 else ""
            return f"starting {values['stage']} again{more}"
        case "waiting":
            return f"waiting for {values['stage']}; start it: {values['command']}"
        case "round":
            return _round(values)
        case "back":
            away = f"{values['stage']} is back after {values['down_s']:.2f} s"
            return f"{away}, {undone(values['lost_updates'], values)}"
        case "numbers":
            return f"back to the last checkpoint: {values['text']}"
        case "resumed":
            return f"going on at batch {values['start']:,}, {restored(values['restore'])}"
        case "changed":
            old, new = json.dumps(values["old"]), json.dumps(values["new"])
            return f"{values['place']} is {new} from here on; before, it was {old}"
        case "passed_over":
            return f"passed over: {values['text']}"
        case "stopping":
            what = values["phase"]
            if what == "training":
                count = values["batches"]
                what = f"{count:,} batch{'' if count == 1 else 'es'} in flight"
            return f"stopping: {what}; Ctrl-C again ends it at once"
        case "note":
            return f"{values['stage']}: {values['text']}"
    return None


def _round(values: Mapping[str, Any]) -> str | None:
    """Describe a round, in which all workers join again, and how many updates are lost if they go
    back."""
    updates = sum(values.get("lost_updates", {}).values())
    words = []
    if updates > 0 and values["restore"] != "keep":  # with "keep" the record `back` says it
        words.append(f"all workers together: {undone(updates, values)}")
    if values["incarnation"] > 1:  # otherwise all join for the first time
        start = f"all workers go on at batch {values['start']:,}"
        words.insert(0, f"{start}, {restored(values['restore'])}")
    return "; ".join(words) or None


def undone(updates: int, values: Mapping[str, Any]) -> str:
    """Return `300 updates lost` or `300 updates to be done again`, for a record `back` or
    `round`."""
    noun = "update" if updates == 1 else "updates"
    return f"{updates:,} {noun} {'to be done again' if values.get('again') else 'lost'}"


def restored(restore: str) -> str:
    """Describe where the workers' state comes from: see `messages.Rejoin`."""
    match restore:
        case "keep":
            return "each with its present state"
        case "initial":
            return "from the initial weights"
        case "snapshots":
            return "each from its last snapshot"
        case _:
            return f"from {restore}"
