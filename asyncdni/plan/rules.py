"""From an experiment's tables to the rules that each worker goes by: schedule, lag, guard, replay.

The coordinator, the workers and the simulator all get them from here, so that none of them knows
what a schedule's options mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import get_args

import msgspec

from asyncdni import config
from asyncdni.core.counts import Counts
from asyncdni.core.flights import Guard, Lag
from asyncdni.core.inputs import Replay
from asyncdni.core.position import Position
from asyncdni.core.post import PATIENCE_S
from asyncdni.core.shares import Shares
from asyncdni.core.worker import Worker
from asyncdni.errors import ConfigError
from asyncdni.experiment.schema import stage_place
from asyncdni.messages import DATA
from asyncdni.network import Node
from asyncdni.plan.conditions import find_link
from asyncdni.plan.plan import Group, Plan, own_schedule, shared_with
from asyncdni.schedules.base import ALWAYS, NEVER, Asked, Groups, Schedule, draw
from asyncdni.schedules.delayed import Delayed
from asyncdni.schedules.gpipe import Gpipe
from asyncdni.schedules.local_loss import LocalLoss
from asyncdni.schedules.locked import Locked
from asyncdni.schedules.one_f_one_b import OneF1B
from asyncdni.schedules.synthetic import Synthetic

__all__ = [
    "SHARED_LAG",
    "SYNTHETIC_LAG",
    "check_lag",
    "check_rules",
    "check_sharing_rules",
    "check_windows",
    "goes_on",
    "hears_synthetic",
    "is_locked_to_consumers",
    "is_repeatable",
    "lag_bounds",
    "late_gradients",
    "learns_alone",
    "make_position",
    "make_schedule",
    "make_worker",
    "own_schedule",
    "repeatable_words",
    "sends_at_once",
    "sharing_bounds",
]

# --- own -----------------------------------------------------------------------------------------
#
# The schedule of each worker: the run's, or its own where a stage has one.


def is_locked_to_consumers(chosen: config.Experiment, group: Group) -> bool:
    """In a decoupled run it waits for the gradient that its consumers send."""
    decoupled = isinstance(chosen.schedule, config.Synthetic | config.LocalLoss)
    return decoupled and isinstance(own_schedule(chosen, group), config.Locked)


def learns_alone(schedule: config.Schedule) -> bool:
    """A stage of this schedule goes on learning while no gradient comes."""
    if isinstance(schedule, config.Synthetic):
        return schedule.mix < 1
    return isinstance(schedule, config.LocalLoss)


def sends_at_once(chosen: config.Experiment, plan: Plan, group: Group) -> bool:
    """Some producer is locked to it, and learns from whatever gradient it learns from."""
    return any(
        is_locked_to_consumers(chosen, one) and bool(one.consumers)
        for one in plan.groups
        if one.name in group.producers
    )


def hears_synthetic(chosen: config.Experiment, plan: Plan, group: Group) -> bool:
    """What comes back to it is itself synthetic, at least in part."""
    return any(
        _sends_synthetic(chosen, plan, one) for one in plan.groups if one.name in group.consumers
    )


def _sends_synthetic(chosen: config.Experiment, plan: Plan, group: Group) -> bool:
    own = own_schedule(chosen, group)
    if not group.consumers:
        return False  # it has the true loss
    if isinstance(own, config.Synthetic):
        return own.target != "true" or sends_at_once(chosen, plan, group)
    return hears_synthetic(chosen, plan, group)


# --- schedule ------------------------------------------------------------------------------------
#
# The schedule that a worker goes by, made from its options and its place in the plan.


def is_repeatable(experiment: config.Experiment, plan: Plan) -> bool:
    """Another run of the experiment ends with the same weights, to the last bit; so does any with
    one worker, which waits for nobody."""
    own = [own_schedule(experiment, group) for group in plan.groups]
    if len(own) == 1:
        return True
    if any(shared_with(plan.groups, group) for group in plan.groups):
        return all(isinstance(one, config.Locked | config.Gpipe | config.OneF1B) for one in own)
    return all(
        one.repeatable and not getattr(one, "replay", 0) and getattr(one, "on_full", "") != "skip"
        for one in (experiment.schedule, *own)
    )


def repeatable_words() -> str:
    """Which schedules repeat a run by its seed, for the user."""
    by_answer: dict[bool, list[str]] = {True: [], False: []}
    for kind in get_args(config.Schedule):
        by_answer[kind.repeatable].append(str(kind.__struct_config__.tag))
    always, never = (", ".join(by_answer[answer]) for answer in (True, False))
    return (
        f"the same seed repeats a run to the last bit under {always} (this one while no worker "
        f"dies, without replay and skipping), and in one worker; {never} are not repeatable: their "
        "weights depend on when messages arrive; `asyncdni simulate` repeats any run"
    )


def make_schedule(experiment: config.Experiment, plan: Plan, group: Group) -> Schedule:
    """Of the worker of `group`."""
    options = own_schedule(experiment, group)
    at_once = sends_at_once(experiment, plan, group)
    match options:
        case config.Locked():
            asked = ALWAYS if at_once else _asked(experiment.schedule)
            return Locked(split_backward=options.split_backward, asked=asked)
        case config.Gpipe():
            return Gpipe(_groups(plan), split_backward=options.split_backward)
        case config.OneF1B():
            split = options.split_backward
            return OneF1B(_groups(plan), warmup=group.depth, split_backward=split)
        case config.Delayed():
            return Delayed(split_backward=options.split_backward)
        case config.LocalLoss():
            return LocalLoss(send_at_once=at_once)
        case config.Synthetic():
            return Synthetic(
                bootstrap=options.target == "bootstrap",
                half=options.target == "half",
                asked=_asked(options),
                correct=options.correct,
                mix=options.mix,
                draws=_draws(options, experiment.run.seed, group),
                send_at_once=at_once,
                hears_synthetic=options.target != "true"
                or hears_synthetic(experiment, plan, group),
            )


def _groups(plan: Plan) -> Groups:
    return Groups(plan.microbatches, plan.batches_per_epoch)


def _asked(schedule: config.Schedule) -> Asked:
    """Which batches a decoupled run sends gradients up for."""
    match schedule:
        case config.Synthetic():
            return Asked(schedule.fit_every, schedule.fit_first)
        case config.LocalLoss():
            return NEVER
    return ALWAYS


def _draws(options: config.Synthetic, seed: int, group: Group) -> Callable[[int], bool] | None:
    """Whether the stage learns from a batch; keyed by its name, so that no two agree."""
    if options.update_probability == 1:
        return None
    name = group.members[-1].name
    digest = hashlib.sha256(f"{seed}/{name}/update".encode()).digest()
    key = int.from_bytes(digest[:8], "little")
    return partial(_below, key, options.update_probability)


def _below(key: int, probability: float, batch: int) -> bool:
    return draw(key, batch) < probability


# --- lag -----------------------------------------------------------------------------------------
#
# The bounds on lag that a worker keeps: what the user has set, or what the schedule needs.

#: Batches whose gradient a synthetic stage awaits before it gives the oldest up.
SYNTHETIC_LAG = 256


def lag_bounds(
    experiment: config.Experiment, plan: Plan, group: Group
) -> tuple[dict[str, int], bool]:
    """(batches by consumer, whether the oldest is given up at the bound). Nothing comes back to a
    stage with a local loss, so it has no bounds."""
    options, staleness = own_schedule(experiment, group), experiment.staleness
    if isinstance(options, config.LocalLoss):
        return {}, False
    usual = _usual(options, plan, group)
    if not is_locked_to_consumers(experiment, group) and staleness.lag is not None:
        usual = staleness.lag
    named = {find_link(plan, key, "staleness.links"): n for key, n in staleness.links.items()}
    bounds = {to: named.get((group.name, to), usual) for to in group.consumers}
    return bounds, _drops(options, staleness)


def check_lag(experiment: config.Experiment, plan: Plan) -> None:
    """Raises `ConfigError` for bounds that the schedule can't keep, or has no use for."""
    schedule, staleness = experiment.schedule, experiment.staleness
    name = schedule.__struct_config__.tag
    if isinstance(schedule, config.LocalLoss) and staleness != config.Staleness():
        raise ConfigError(
            "staleness: nothing comes back under local_loss, so there is no lag to bound; limit "
            "how far a stage is ahead of its consumers with limits.window"
        )
    if staleness.at_bound == "drop" and not _may_drop(schedule):
        raise ConfigError(
            f"staleness.at_bound: under {name} every gradient is waited for, so none can be "
            "dropped; expected 'wait'"
        )
    for group in plan.groups:
        needed = _needed(own_schedule(experiment, group), plan, group)
        for to, bound in lag_bounds(experiment, plan, group)[0].items():
            if bound < needed:
                raise ConfigError(
                    f"staleness: a lag of {bound} on the link {group.name}->{to} is below what "
                    f"{name} needs there: {needed} batches; raise it or choose fewer microbatches"
                )


def _usual(options: config.Schedule, plan: Plan, group: Group) -> int:
    """The bound where nothing is said."""
    match options:
        case config.Synthetic() if options.mix < 1:
            return SYNTHETIC_LAG
        case config.Synthetic() | config.Delayed():
            return group.depth
    return _needed(options, plan, group)


def _needed(options: config.Schedule, plan: Plan, group: Group) -> int:
    """The least lag that the schedule runs with."""
    match options:
        case config.Gpipe():
            return plan.microbatches - 1
        case config.OneF1B():
            return min(plan.microbatches - 1, group.depth)
    return 0


def _may_drop(options: config.Schedule) -> bool:
    return isinstance(options, config.Synthetic) and options.mix < 1


def _drops(options: config.Schedule, staleness: config.Staleness) -> bool:
    return _may_drop(options) and staleness.at_bound != "wait"


# --- sharing -------------------------------------------------------------------------------------
#
# What weights that stages of several workers share ask of a schedule.
#
# An update needs one gradient of each batch from every sharer, in the same order everywhere.

#: Batches that a stage which learns at once is ahead of the oldest update that it shares.
SHARED_LAG = 16

#: Under these options a stage learns from some batches not at all, more than once, or later, or its
#: step depends on more than the gradient; with what they must be.
_ONE_BY_ONE: dict[str, object] = {
    "on_full": "wait",
    "update_probability": 1,
    "correct": False,
    "mix": 0,
    "guard": None,
    "replay": 0,
    "anneal_epochs": 0,
}


def check_sharing_rules(experiment: config.Experiment, plan: Plan) -> None:
    """Raises `ConfigError` for an option that shared weights rule out. Within one worker any will
    do: its stages learn from the same batches at the same time."""
    for group in plan.groups:
        for stages in shared_with(plan.groups, group).values():
            _check_options(own_schedule(experiment, group), stages[0])
            _check_options(experiment.schedule, stages[0])


def _check_options(options: config.Schedule, stage: str) -> None:
    for key, wanted in _ONE_BY_ONE.items():
        given = getattr(options, key, wanted)
        if given != wanted:
            what = f"{key} = {given!r}" if isinstance(given, str | int | float) else f"a {key}"
            raise ConfigError(
                f"schedule.{key}: stage {stage} shares its weights with a stage of another worker, "
                f"so each batch must give one gradient and one update, which {what} rules out; "
                "leave it out, or put both into one worker with run.split"
            )


def goes_on(experiment: config.Experiment, plan: Plan) -> bool:
    """While a worker is dead the others learn on: none waits for a gradient of another."""
    return all(
        learns_alone(own_schedule(experiment, group)) and not shared_with(plan.groups, group)
        for group in plan.groups
    )


def sharing_bounds(experiment: config.Experiment, plan: Plan, group: Group) -> tuple[int, int]:
    """(how many batches it may forward beyond the oldest update that it shares, the most that any
    of its sharers may)."""
    sharers = shared_with(plan.groups, group)
    if not sharers:
        return 0, 0
    usual = _usual_of_sharing(experiment, plan)
    others = [one for one in plan.groups if one.name in sharers]
    bounds = [_bound(experiment, one, usual) for one in (group, *others)]
    return bounds[0], max(bounds)


def _bound(experiment: config.Experiment, group: Group, usual: int) -> int:
    """A stage that is locked to its consumers keeps the weights of a batch until its update."""
    return 0 if isinstance(own_schedule(experiment, group), config.Locked) else usual


def _usual_of_sharing(experiment: config.Experiment, plan: Plan) -> int:
    """Of the run: no less than the lag that its links may have."""
    match experiment.schedule:
        case config.Locked() | config.Gpipe() | config.OneF1B():
            return 0
        case config.Delayed():
            bounds = [lag_bounds(experiment, plan, group)[0] for group in plan.groups]
            return max((n for one in bounds for n in one.values()), default=0)
    lag = experiment.staleness.lag
    return SHARED_LAG if lag is None else lag


# --- windows -------------------------------------------------------------------------------------
#
# What sequences ask of a schedule, and feature maps of a generator.

_RECURRENT = ("rnn", "lstm")
_MAPS = "(C, H, W)"


def check_windows(experiment: config.Experiment, plan: Plan) -> None:
    """Raises `ConfigError` where windows of sequences would be torn apart or come twice, and where
    a generator can't make rows of its stage's activation."""
    schedule, data = experiment.schedule, experiment.data
    if isinstance(data, config.Windows):
        _check_streams(schedule)
    nodes = [node for group in plan.groups for node in group.members]
    found = next((node for node in nodes if any(map(_is_recurrent, node.layers))), None)
    if found is not None:
        _check_recurrent(experiment, found)
    for group in plan.groups:
        if group.exit is not None:
            exit_ = next(node for node in group.members if node.name == group.exit)
            _check_map_exit(experiment, group, exit_)


def _is_recurrent(spec: object) -> bool:
    name = next(iter(spec)) if isinstance(spec, dict) else spec
    return name in _RECURRENT


def _check_streams(schedule: config.Schedule) -> None:
    count = getattr(schedule, "microbatches", 1)
    if count > 1:
        raise ConfigError(
            f"schedule.microbatches: {count} would tear the streams of a window apart, whose state "
            "goes on in the next one; expected 1"
        )
    if getattr(schedule, "synthetic_inputs", False):
        raise ConfigError(
            "schedule.synthetic_inputs: an input model knows no steps; expected false for windows "
            "of sequences"
        )


def _check_recurrent(experiment: config.Experiment, node: Node) -> None:
    schedule = experiment.schedule
    why = f"stage {node.name} is recurrent and takes every batch once, in order"
    if getattr(schedule, "replay", 0):
        raise ConfigError(f"schedule.replay: {why}; expected 0")
    if not isinstance(experiment.data, config.Windows):
        return  # each sample is a whole sequence
    if getattr(schedule, "on_full", "wait") == "skip":
        raise ConfigError(f"schedule.on_full: {why}, without gaps; expected 'wait', got 'skip'")
    if experiment.staleness.at_bound == "drop":
        raise ConfigError(f"staleness.at_bound: {why}, without gaps; expected 'wait', got 'drop'")


def _check_map_exit(experiment: config.Experiment, group: Group, node: Node) -> None:
    """A stage whose gradient is predicted."""
    own = own_schedule(experiment, group)
    synthetic = isinstance(own, config.Synthetic) and own.mix < 1
    if not (synthetic or isinstance(own, config.LocalLoss)):
        return
    shape, data = node.output_shape, experiment.data
    if isinstance(data, config.Windows):
        if len(shape) < 2 or shape[0] != data.window:
            raise ConfigError(
                f"{node.place}: it ends in shape {shape}, but its generator needs the "
                f"{data.window} steps of a window apart, as each has targets of its own; keep "
                f"({data.window}, …) to the stage's end"
            )
        shape = shape[1:]
    generator = own.generator if isinstance(own, config.Synthetic) else None
    if isinstance(generator, config.ConvolutionalGenerator) and len(shape) != 3:
        raise ConfigError(
            f"{node.place}: it ends in shape {shape}, and a convolutional generator expects "
            f"feature maps {_MAPS}; give the stage one of its own, as in "
            'schedule = { generator = { kind = "error" } }'
        )


# --- checks --------------------------------------------------------------------------------------
#
# What options can't go together, each with its reason. Raised before anything starts.

#: All stages must agree on these: they say which gradients travel.
_RUN_WIDE = (
    "target",
    "fit_every",
    "fit_first",
    "mix",
    "update_probability",
    "synthetic_inputs",
    "on_full",
)


def check_rules(experiment: config.Experiment, plan: Plan) -> None:
    """Raises `ConfigError` for a schedule whose options contradict each other, or the network."""
    if isinstance(experiment.schedule, config.Synthetic):
        _check_synthetic(experiment.schedule)
    _check_own(experiment, plan)
    for group in plan.groups:
        own = own_schedule(experiment, group)
        if isinstance(own, config.Synthetic):
            _check_synthetic(own)
            _refuse(
                own.guard is not None and hears_synthetic(experiment, plan, group),
                f"schedule.guard: what comes back to stage {group.exit} is synthetic: a consumer "
                "sends it at once, as stages are locked to it; a guard needs true gradients",
            )
    check_windows(experiment, plan)
    check_lag(experiment, plan)
    check_sharing_rules(experiment, plan)


def _check_synthetic(options: config.Synthetic) -> None:
    true = options.target == "true"
    _refuse(
        options.mix > 0 and not true,
        f"schedule.mix: a share of the true gradient needs target = 'true', got {options.target!r}",
    )
    _refuse(
        options.mix > 0 and options.fit_every > 1,
        f"schedule.mix: with fit_every = {options.fit_every} most batches get no true gradient to "
        "take a share of; expected fit_every = 1",
    )
    _refuse(
        options.mix > 0 and options.correct,
        "schedule.mix: a correction replaces the synthetic gradient already; expected one of mix "
        "and correct",
    )
    _refuse(
        options.mix == 1 and options.update_probability < 1,
        "schedule.mix: with mix = 1 nothing is synthetic, and update_probability belongs to what "
        "is; expected mix below 1",
    )
    guard = options.guard
    _refuse(
        options.mix == 1 and guard is not None,
        "schedule.guard: with mix = 1 no generator is asked, so there is none to guard; expected "
        "mix below 1",
    )
    _refuse(
        guard is not None and not true,
        "schedule.guard: it compares with true gradients, so it needs target = 'true', got "
        f"{options.target!r}",
    )
    _refuse(
        guard is not None and guard.above < guard.below,
        "schedule.guard: above must not be less than below, or a stage would go back and forth",
    )


def _check_own(experiment: config.Experiment, plan: Plan) -> None:
    """Schedules of single stages."""
    base = experiment.schedule
    name = str(base.__struct_config__.tag)
    decoupled = isinstance(base, config.Synthetic | config.LocalLoss)
    for index, stage in enumerate(experiment.stages):
        place = f"{stage_place(index, stage.name)}.schedule"
        _refuse(
            bool(stage.schedule) and not decoupled,
            f"{place}: under {name} all stages go by one schedule; a stage may have its own under "
            "synthetic and local_loss",
        )
    for group in plan.groups:
        own = own_schedule(experiment, group)
        place = f"stage {group.exit or group.members[-1].name}, schedule"
        if own is not base and not isinstance(own, config.Locked):
            _check_same(base, own, place)
    for group in plan.groups:
        if is_locked_to_consumers(experiment, group):
            _check_with_locked(base, group)
        if sends_at_once(experiment, plan, group):
            _check_exit(own_schedule(experiment, group), group.name)


def _check_same(base: config.Schedule, own: config.Schedule, place: str) -> None:
    name, other = base.__struct_config__.tag, own.__struct_config__.tag
    _refuse(
        name != other,
        f"{place}: {other} can't stand beside {name}; expected {name} or locked",
    )
    for field in msgspec.structs.fields(base):
        key = field.encode_name
        _refuse(
            key in _RUN_WIDE and getattr(base, key) != getattr(own, key),
            f"{place}.{key}: it is the same for all stages; set it in [schedule]",
        )


def _check_with_locked(base: config.Schedule, group: Group) -> None:
    """A stage that waits for its consumers' gradients must get one of each batch."""
    _refuse(
        bool(getattr(base, "synthetic_inputs", False)),
        f"schedule.synthetic_inputs: stage {group.name} is locked, which rules it out",
    )
    if not group.consumers:
        return
    for key in ("replay", "mix"):
        _refuse(
            bool(getattr(base, key, False)),
            f"schedule.{key}: stage {group.name} is locked to its consumers, which rules it out",
        )
    _refuse(
        getattr(base, "update_probability", 1) < 1,
        f"schedule.update_probability: stage {group.name} is locked to its consumers and needs a "
        "gradient of each batch; expected 1",
    )


def _check_exit(own: config.Schedule, stage: str) -> None:
    _refuse(
        isinstance(own, config.Synthetic) and own.guard is not None and own.fit_every > 1,
        f"schedule.guard: stages locked to {stage} need a gradient of each batch, also while it "
        "waits; expected fit_every = 1",
    )


def _refuse(wrong: bool, text: str) -> None:
    if wrong:
        raise ConfigError(text)


#: A short `startup_s` must not be over before anybody has said why.
_PATIENCES_OF_STARTUP = 4


def make_position(plan: Plan, group: Group) -> Position:
    """Where the worker of `group` stands."""
    hosts = group.index == plan.host
    train_feeds = tuple(name for name in plan.feeds if name not in plan.test_feeds)
    ahead = any(one.synthetic_inputs for one in plan.groups if one.name in group.consumers)
    return Position(
        name=group.name,
        inputs=group.producers,
        consumers=group.consumers,
        sharers=tuple(shared_with(plan.groups, group)),
        host=plan.groups[plan.host].name,
        feeds=plan.test_feeds if hosts else (),
        train_feeds=train_feeds if hosts else (),
        synthetic_inputs=group.synthetic_inputs,
        consumers_ahead=ahead,
        reads_data=group.reads_data,
        barriers=plan.barriers if hosts else (),
        cuts=plan.cut_barriers if hosts else (),
        microbatches=plan.microbatches if hosts else 1,
        per_epoch=plan.batches_per_epoch if hosts else 0,
        test_batches=plan.test_batches if hosts else 0,
        rows=plan.rows,
    )


def make_worker(
    experiment: config.Experiment, plan: Plan, group: Group, counts: Counts | None = None
) -> Worker:
    """The logic of one worker for one round; `counts` go on from earlier ones."""
    options = own_schedule(experiment, group)
    limits = experiment.limits
    bounds, drop = lag_bounds(experiment, plan, group)
    position = make_position(plan, group)
    bound, ahead = sharing_bounds(experiment, plan, group)
    return Worker(
        position,
        make_schedule(experiment, plan, group),
        window=limits.window,
        window_max=limits.window_max,
        lag=Lag(bounds, drop=drop),
        skips=getattr(options, "on_full", "wait") == "skip",
        replay=_make_replay(options, plan, group),
        guard=_make_guard(options, group),
        shares=Shares(position.sharers, bound=bound, ahead=ahead),
        counts=counts,
        patience_s=min(PATIENCE_S, limits.startup_s / _PATIENCES_OF_STARTUP),
    )


def late_gradients(
    experiment: config.Experiment, plan: Plan, group: Group
) -> config.Delayed | None:
    """What the maths of a stage must know of gradients that come late; None where none does."""
    options = own_schedule(experiment, group)
    if not isinstance(options, config.Delayed):
        return None
    bounds, _ = lag_bounds(experiment, plan, group)
    if not any(bounds.values()):  # weights are kept for nobody
        return msgspec.structs.replace(options, weights="current")
    return options


def _make_replay(options: config.Schedule, plan: Plan, group: Group) -> Replay | None:
    """For inputs that come from other workers; the host of the data has new ones at any time, and
    its buffers are used again."""
    fed = DATA not in group.producers or group.index != plan.host
    if isinstance(options, config.LocalLoss) and options.replay and fed:
        return Replay(options.replay, options.uses_max)
    return None


def _make_guard(options: config.Schedule, group: Group) -> Guard | None:
    if not isinstance(options, config.Synthetic) or options.guard is None or group.exit is None:
        return None
    return Guard(options.guard.window, options.guard.below, options.guard.above)
