"""One line for each thing that has come between in a run, and for what was done about it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["line", "undone"]


def line(kind: str, values: Mapping[str, Any]) -> str | None:
    """What a record says of a mishap, or of the user's stop; None for all others."""
    match kind:
        case "lost" | "stuck":
            return f"{kind}: {values['text']}"
        case "accused":
            return f"{values['by']} accuses {values['stage']}: {values['text']}"
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
            return f"going on at batch {values['start']:,}, {_from(values['restore'])}"
        case "changed":
            old, new = json.dumps(values["old"]), json.dumps(values["new"])
            return f"{values['place']} is {new} from here on, and was {old}"
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
    """What is gone back behind is said here, of all workers, where they go back together."""
    updates = sum(values.get("lost_updates", {}).values())
    told = values["restore"] == "keep"  # when one of them comes back
    words = [f"of all workers together {undone(updates, values)}"] * (updates > 0 and not told)
    if values["incarnation"] > 1:  # otherwise all join for the first time
        start = f"all join again at batch {values['start']:,}"
        words.insert(0, f"{start}, {_from(values['restore'])}")
    return "; ".join(words) or None


def undone(updates: int, values: Mapping[str, Any]) -> str:
    """So many updates, behind which a record `back` or `round` says that workers have gone back."""
    noun = "update" if updates == 1 else "updates"
    return f"{updates:,} {noun} {'to be done again' if values.get('again') else 'lost'}"


def _from(restore: str) -> str:
    """Where the state comes from: see `messages.Rejoin`."""
    match restore:
        case "keep":
            return "each with the state that it has"
        case "initial":
            return "from the initial weights"
        case "snapshots":
            return "each from its last snapshot"
        case _:
            return f"from {restore}"
