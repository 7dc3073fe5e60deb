"""Run the coordinator of one run: its address, folder, records, checkpoints and summary."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from asyncdni.core.coordinator import Coordinator
from asyncdni.core.events import Commit
from asyncdni.core.ledger import Ledger
from asyncdni.core.members import Roster
from asyncdni.drivers.real.coordinator import Launcher, Stops, coordinate
from asyncdni.drivers.real.machine import choose_core, usable_cores
from asyncdni.errors import ConfigError, Interrupted
from asyncdni.files import locked
from asyncdni.imports import check_may_train, import_flags
from asyncdni.launch.callbacks import Callbacks, EarlyStopping
from asyncdni.launch.incidents import log_incident
from asyncdni.launch.local import typed_command
from asyncdni.messages import COORDINATOR
from asyncdni.nn.metrics import metric_names
from asyncdni.plan.build import Design, find_metrics, make_roster
from asyncdni.plan.conditions import automatic_words
from asyncdni.plan.model import state_facts
from asyncdni.plan.rules import is_repeatable
from asyncdni.plan.sizes import check_memory
from asyncdni.report.records import Recorder
from asyncdni.store.checkpoint import commit
from asyncdni.store.claims import Claim, new_term
from asyncdni.store.given import begins_with, save_given
from asyncdni.store.manifest import Manifest, WeightsManifest, identity
from asyncdni.store.mirror import Mirror
from asyncdni.store.resume import Beginning, find_beginning
from asyncdni.store.run import (
    CHECKPOINTS,
    EXPERIMENT,
    create_folder,
    discard_folder,
    reopen_folder,
    write_data,
    write_model,
    write_summary,
)
from asyncdni.store.weights import commit_weights
from asyncdni.wire.address import reachable_as
from asyncdni.wire.coordinator import CoordinatorTransport
from asyncdni.wire.curve import Keys

__all__ = ["Observer", "check_host", "conduct", "make_commit"]


def make_commit(claim: Claim, design: Design) -> Callable[[Commit], None]:
    """Return a function that makes the workers' saved files a checkpoint, or the best or final
    weights.

    It writes the manifest to the run's folder. Raises `CheckpointError` if a manifest can't be
    written, or a file is missing that it names.
    """
    folder = claim.folder
    experiment = sha256((folder / EXPERIMENT).read_bytes()).hexdigest()

    def committed(cut: Commit) -> None:
        claim.check()
        if not cut.whole:
            commit_weights(folder / cut.tag, _weights(cut, design, experiment))
            return
        manifest = _manifest(cut, design, experiment)
        commit(folder / CHECKPOINTS, manifest, design.experiment.checkpoint.keep)

    return committed


def _weights(kept: Commit, design: Design, experiment: str) -> WeightsManifest:
    belongs: dict[str, Any] = {
        "identity": identity(design.experiment, design.meta),
        "experiment": experiment,
    }
    return WeightsManifest(tag=kept.tag, files=dict(kept.files), **kept.state, **belongs)


def _manifest(cut: Commit, design: Design, experiment: str) -> Manifest:
    state = cut.state
    return Manifest(
        number=int(cut.tag.rpartition("/")[2]),
        files=cut.files,
        start=state["start"],
        planned=state["planned"],
        barrier=state["barrier"],
        identity=identity(design.experiment, design.meta),
        coordinator=state,
        experiment=experiment,
    )


#: A function that is called with each record of the coordinator; see `report.records`. One that has
#: a method `steers` is asked by it what workers are to do: see `drivers.real.coordinator.Steering`.
Observer = Callable[[Design, Recorder, str, Mapping[str, Any]], None]

_LINGER_S = 0.3


def conduct(
    design: Design,
    bind: str,
    out: Path | None,
    *,
    launch: Callable[[str], Launcher] | None = None,
    observers: Sequence[Observer] = (),
    callbacks: Sequence[Any] = (),
    trace: bool = False,
    resume: bool = False,
    keys: Keys | None = None,
    flags: Sequence[str] = (),
    advertise: str | None = None,
    keep: bool = True,
    goes_on: str = "",
) -> dict[str, Any]:
    """Run the coordinator of one run at address `bind`, and return the summary.

    Args:
        out: the run's folder, made once the address is bound; None: nothing is written. A run that
            fails before it trains leaves none, unless an unexpected error has left logs there.
        launch: starts the workers once the address is known; without it users start them by hand.
        observers, callbacks: called with each record, or as `launch.callbacks` says; an exception
            of one stops the run, and is then raised.
        resume: continue the run in folder `out`.
        keys, flags: what workers must have, if given; words to add to their command lines.
        advertise: the host in those command lines, where it is another one than in `bind`.
        keep: whether the folder outlives the run.
        goes_on: what to type to go on with the run later, where that is another command than
            `asyncdni train` or `asyncdni coordinator`.

    Raises whatever ends the run, and `Interrupted` after a user's stop.
    """
    check_may_train()
    _check_name(out)
    find_metrics(design)  # raises for those that can't be had
    with ExitStack() as stack:
        transport = CoordinatorTransport(bind, keys)
        stack.callback(transport.close, _LINGER_S)
        address = reachable_as(transport.address, advertise) if advertise else transport.address
        seen, stops = set[str](), Stops()  # the kinds of records so far
        called = _callbacks(callbacks, design, out if keep else None, stops)
        claim = stack.enter_context(_old_folder(out) if resume else _new_folder(out, design, seen))
        folder, term = (claim.folder, claim.order[0]) if claim is not None else (None, 0)
        by_hand = launch is None
        own = ["--bind", bind, *(["--advertise", advertise] if advertise else []), *flags]
        if keep and not goes_on:
            goes_on = _to_resume(folder, own if by_hand else [], design, by_hand=by_hand)
        home: dict[str, Any] = {"folder": str(folder or ""), "term": term, "succeeds": resume}
        home["resume"] = goes_on if keep else ""
        ways: dict[str, Any] = {"trace": trace, "launched": not by_hand, "consults": called.any}
        roster = make_roster(design, **home, **ways)
        recorder = Recorder(roster.workers, _facts(design), folder)
        stack.callback(recorder.close)
        beginning = _beginning(design, folder, recorder) if resume else Beginning(Ledger())
        machine = _coordinator(roster, beginning)
        records = _Records(design, recorder, machine, [*observers, called], seen, stops)
        _begin(records, beginning, design, folder, resume=resume)
        command = partial(_command, design, address, flags)
        records.bound(address, [*map(command, roster.workers)] if by_hand else [])
        mirror = stack.enter_context(_mirrored(records, design, folder, keep=keep, resume=resume))
        commit = _committing(claim, design, mirror)
        with _explained_stops(records, folder if keep else None):
            words: dict[str, Any] = {"commit": commit, "command": command, "stops": stops}
            words["steering"] = [one.steers for one in observers if hasattr(one, "steers")]
            launcher = coordinate(machine, transport, records, launch, folder=folder, **words)
    summary = records.summary() | {"ended_early": stops.ended_early}
    _conclude(claim, design, summary, mirror, launcher)
    if stops.error is not None:
        raise stops.error
    called.ended(design, recorder, summary)
    return summary


def _coordinator(roster: Roster, beginning: Beginning) -> Coordinator:
    """Make the coordinator's pure part. Workers that still run know the experiment as it was, so
    none is taken back where it has changed."""
    takes_back = roster.takes_back and not beginning.changes
    return Coordinator(replace(roster, takes_back=takes_back), beginning.ledger)


def _callbacks(
    given: Sequence[Any], design: Design, folder: Path | None, stops: Stops
) -> Callbacks:
    """The user's callbacks, and early stopping where the experiment asks for it. Raises
    `ConfigError` for a metric that the run does not have."""
    run = design.experiment.run
    early, known = run.early_stopping, ("", "accuracy", "loss", *metric_names(run.metrics))
    if early is not None and early.metric not in known:
        raise ConfigError(
            f"run.early_stopping.metric: {early.metric!r} is not measured; expected one of "
            f"{', '.join(known[1:])}, or another one in run.metrics"
        )
    own = [EarlyStopping(**msgspec.structs.asdict(early))] if early is not None else []
    return Callbacks([*given, *own], folder.resolve() if folder else None, stops.end)


def _committing(
    claim: Claim | None, design: Design, mirror: Mirror | None
) -> Callable[[Commit], None]:
    """Return what `make_commit` does; what has become whole is copied to the mirror, if any."""
    if claim is None:
        return _never_called
    commit = make_commit(claim, design)
    if mirror is None:
        return commit

    def committed(cut: Commit) -> None:
        commit(cut)
        mirror.committed(cut.tag)

    return committed


@contextmanager
def _mirrored(
    records: _Records, design: Design, folder: Path | None, *, keep: bool, resume: bool
) -> Iterator[Mirror | None]:
    """Begin the copy of the run's folder at `run.store`, if there is to be one. Raises as
    `Mirror.begin`, and `ConfigError` for a run that keeps nothing on disk."""
    chosen = design.experiment
    url = chosen.run.store
    if not url:
        yield None
        return
    if folder is None or not keep:
        raise ConfigError(
            f"run.store {url}: a run without a folder can't be copied; name one with --out "
            "(in Python out=…)"
        )
    mirror = Mirror(folder, url, chosen.checkpoint.keep, records.note)
    mirror.begin(resumed=resume)
    try:
        yield mirror
    finally:
        mirror.settle()


def _conclude(
    claim: Claim | None,
    design: Design,
    summary: dict[str, Any],
    mirror: Mirror | None,
    launcher: Launcher | None,
) -> None:
    """Write what the folder of a complete run, if any, holds besides its records, and finish its
    mirror, which has the last lines of all logs."""
    if claim is None:
        return
    claim.check()
    write_summary(claim.folder, summary)
    write_model(claim.folder, design.experiment, summary)
    if mirror is not None:
        if launcher is not None:
            launcher.settle()
        mirror.finish()


def _beginning(design: Design, folder: Path | None, recorder: Recorder) -> Beginning:
    """Find out from where the run in `folder` goes on."""
    assert folder is not None, "a run without a folder can't be resumed"
    recorded = list(recorder.history)
    beginning = find_beginning(folder, design, recorder.history, recorder.trained_s)
    beginning.ledger.updates = recorder.updates
    beginning.ledger.recorded = recorded
    return beginning


def check_host(design: Design) -> None:
    """Raise `ConfigError` if this machine has too few cores or too little memory for all workers of
    the design."""
    groups = design.plan.groups
    for group in groups:
        choose_core(design.experiment, group.index, len(groups), usable_cores())
    parts = design.experiment, design.network, design.plan, design.meta
    check_memory(*parts, allow_import=design.allow_import)


def _begin(
    records: _Records, beginning: Beginning, design: Design, folder: Path | None, *, resume: bool
) -> None:
    """Record how the run begins or goes on, and write which data it uses."""
    if folder is not None:
        write_data(folder, design.experiment, design.meta)
    if picked := automatic_words(design.experiment, design.plan):
        records.note(picked)
    if resume and folder is not None:
        records.resumed(beginning)
        reopen_folder(folder, design.experiment)  # only after the changes are recorded
    elif begun := begins_with(design):
        records.note(begun)


def _command(design: Design, address: str, flags: Sequence[str], stage: str) -> str:
    return typed_command(stage, address, flags, allow_import=design.allow_import)


def _to_resume(folder: Path | None, own: Sequence[str], design: Design, *, by_hand: bool) -> str:
    """Return the command that continues the run from its folder, with flags of its `own`; empty
    without a folder."""
    if folder is None:
        return ""
    words = ["asyncdni", "coordinator" if by_hand else "train", "--resume", str(folder)]
    return shlex.join([*words, *own, *import_flags(design.allow_import)])


class _Records:
    """Passes each record to the recorder, and then to the observers."""

    def __init__(
        self,
        design: Design,
        recorder: Recorder,
        machine: Coordinator,
        observers: Sequence[Observer],
        seen: set[str],
        stops: Stops,
    ) -> None:
        self._design = design
        self._recorder = recorder
        self._machine = machine
        self._observers = list(observers)
        self._seen = seen
        self._stops = stops

    def __call__(self, kind: str, values: Mapping[str, Any]) -> None:
        self._seen.add(kind)
        if kind != "slices":  # they are for whoever watches now
            self._recorder.record(kind, values)
            log_incident(kind, values)
        # The ledger drops evaluations after the checkpoint, and thins out very many.
        if kind in ("round", "resumed", "resume"):
            self._recorder.history[:] = self._machine.ledger.history
        for observer in list(self._observers):
            try:
                observer(self._design, self._recorder, kind, values)
            except BaseException as error:  # an observer must not end the run and lose its weights
                self._observers.remove(observer)
                self._stops.failed(error)

    def summary(self) -> dict[str, Any]:
        """The run in numbers, so far."""
        return self._recorder.summary(self._machine.train_s)

    def bound(self, address: str, commands: list[str]) -> None:
        """Record the address, and the command lines that users must type; none if workers are
        launched."""
        values = {"address": address, "launched": not commands, "commands": commands}
        self("bound", {"time_s": time.monotonic(), **values})

    def note(self, text: str) -> None:
        """Record a text that the user should read."""
        self("note", {"time_s": time.monotonic(), "stage": "coordinator", "text": text})

    def resumed(self, beginning: Beginning) -> None:
        """Record that the run goes on, from where, and with what changes."""
        damaged = self._recorder.damaged
        if damaged:
            lines = "1 line" if damaged == 1 else f"{damaged:,} lines"
            self.note(f"{lines} of metrics.jsonl skipped: damaged")
        for text in beginning.passed_over:
            self("passed_over", {"time_s": time.monotonic(), "text": text})
        ledger = beginning.ledger
        values = {"restore": ledger.restore, "start": ledger.start}
        self("resumed", {"time_s": time.monotonic(), **values})
        for place, old, new in beginning.changes:
            changed = {"place": place, "old": old, "new": new, "batches": ledger.start}
            self("changed", {"time_s": time.monotonic(), **changed})


def _check_name(out: Path | None) -> None:
    """Raise `ConfigError` for a path that can't be sent to workers."""
    try:
        os.fspath(out.resolve() if out is not None else "").encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"--out {out}: its whole path must be UTF-8; choose another folder"
        ) from None


def _claimed(folder: Path) -> Claim:
    """Claim the run's folder for this process. Raises `CheckpointError`."""
    claim = Claim(folder, (COORDINATOR,), (new_term(folder), 0))
    claim.make()
    return claim


def _never_called(_: object) -> None:
    raise AssertionError("a run without a folder takes no checkpoints")


@contextmanager
def _new_folder(out: Path | None, design: Design, seen: Container[str]) -> Iterator[Claim | None]:
    """Make the folder of a run, if any, and remove it if the run fails before it starts to
    train."""
    if out is None:
        yield None
        return
    made = not os.path.exists(out)
    folder = create_folder(out, design.experiment)
    try:
        save_given(folder, design)
        with locked(folder):
            yield _claimed(folder)
    except BaseException as error:
        has_traceback = bool(getattr(error, "__notes__", ()))  # an unexpected error: keep its logs
        if "start" not in seen and not has_traceback:
            discard_folder(folder, made=made)
        raise


@contextmanager
def _old_folder(out: Path | None) -> Iterator[Claim]:
    assert out is not None, "a run without a folder can't be resumed"
    folder = out.resolve()
    with locked(folder):
        yield _claimed(folder)


@contextmanager
def _explained_stops(records: _Records, kept: Path | None) -> Iterator[None]:
    """Add to `Interrupted` the summary so far, and the folder if it is `kept`."""
    try:
        yield
    except Interrupted as stop:
        stop.summary, stop.folder = records.summary(), kept
        raise


def _facts(design: Design) -> dict[str, Any]:
    chosen = design.experiment
    return {
        "schedule": str(chosen.schedule.__struct_config__.tag),
        "seed": chosen.run.seed,
        "repeatable": is_repeatable(chosen, design.plan),
        "batch_size": chosen.data.batch_size,
        "epochs": chosen.run.epochs,
        "max_steps": chosen.run.max_steps,
        "threads": chosen.run.threads,
        "init": begins_with(design) or None,
        "data": msgspec.to_builtins(design.meta),
        **state_facts(chosen, allow_import=design.allow_import),
    }
