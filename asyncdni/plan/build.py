"""Build the parts that run an experiment: its design, and each worker's logic, stage and data.

Coordinator and workers call the same functions on the same experiment, so a worker needs only the
experiment's tables and the shapes of the data.

Models that predict what has not arrived yet (generators, local heads, input models) are built from
the experiment's seed and the name of a declared stage, so they are the same in every process and
under every split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from asyncdni import config, experiment, software
from asyncdni.core.counts import Counts
from asyncdni.core.events import Prepared
from asyncdni.core.members import Roster
from asyncdni.core.worker import Worker
from asyncdni.data import checksums, open_batches
from asyncdni.data.base import Source
from asyncdni.data.meta import Meta, other_parts
from asyncdni.data.stored import Stored, chunks
from asyncdni.encodings import Compressor
from asyncdni.errors import ConfigError, DataError
from asyncdni.imports import Allowed, allowing
from asyncdni.messages import DATA
from asyncdni.network import Network, Node, make_network
from asyncdni.nn.generators import MAP_GENERATORS, make_generator
from asyncdni.nn.generators.base import Generator
from asyncdni.nn.generators.error import LocalHead
from asyncdni.nn.input_model import InputModel
from asyncdni.nn.layers import is_module
from asyncdni.nn.losses import is_own, make_loss
from asyncdni.nn.metrics import Metric, make_metrics, metric_names
from asyncdni.nn.streams import layer_streams
from asyncdni.plan.checks import check_rules
from asyncdni.plan.conditions import check_conditions, link_encodings, neighbours
from asyncdni.plan.model import (
    check_fields,
    check_lengths,
    check_losses,
    check_steps,
    check_torch,
    check_torch_options,
    with_stages,
)
from asyncdni.plan.plan import (
    Group,
    Plan,
    cut_every_s,
    make_plan,
    read_by,
    shared_with,
    snapshot_every_s,
)
from asyncdni.plan.readout import Forms, make_readout_generator, readout_stage
from asyncdni.plan.readout import readout_forms as _readout_forms
from asyncdni.plan.rules import late_gradients, learns_alone
from asyncdni.plan.rules import make_worker as _make_worker
from asyncdni.plan.sizes import check_messages, takes_loops
from asyncdni.schedules.base import Groups
from asyncdni.stages.base import Stage
from asyncdni.stages.numpy.block import Block, Pace, make_rate_scale
from asyncdni.stages.numpy.exit import AGREEMENT_EVERY
from asyncdni.stages.numpy.stage import NumpyStage, Sharing

if TYPE_CHECKING:
    from asyncdni.nn.torch.generator import ModuleGenerator

__all__ = [
    "Design",
    "begins_from",
    "check_targets",
    "find_exits",
    "find_metrics",
    "find_shares",
    "lent_readout",
    "make_compressor",
    "make_design",
    "make_exit_generator",
    "make_input_models",
    "make_roster",
    "make_source",
    "make_stage",
    "make_whole_stage",
    "make_worker",
    "prepared",
    "readout_forms",
    "worker_libraries",
]


def make_exit_generator(design: Design, group: Group, *, empty: bool = False) -> Generator | None:
    """Make the generator or local head that predicts the gradient at the group's exit; None if the
    group waits for the gradient, or has no consumers. Raises `ConfigError` for a module that can't
    be one.

    `empty`: a copy of weights of another stage may be left at zero, as it is not used."""
    network, run, options = design.network, design.experiment.run, group.schedule.predictor
    if group.exit is None or options is None:
        return None
    node = network.node(group.exit)
    row = network.row_shape(node.output_shape)
    loss, outputs = network.target_of(node)
    build = partial(
        _build,
        width=_size(row),
        outputs=outputs,
        loss=loss,
        dtype=np.dtype(run.dtype),
        streams=layer_streams(run.seed, f"{node.name}.generator"),
    )
    values = msgspec.structs.asdict(options)
    if isinstance(options, config.LocalHead):
        return build(LocalHead(**values))
    if isinstance(options, config.ReadoutGenerator):
        return make_readout_generator(
            network,
            design.plan,
            run,
            options,
            node,
            weights={} if empty else (design.init or {}).get(readout_stage(design.plan.groups)),
            allow_import=design.allow_import,
        )
    if isinstance(options, config.ModuleGenerator):
        generator = _module_generator(design, options)
        build(generator, shape=node.output_shape, steps=network.steps)
        if group.schedule.greedy and not generator.has_loss:
            raise ConfigError(
                f"schedule.generator: {options.module} has no loss(h, y) to learn from, and under "
                f"{group.schedule.tag} no gradient comes back"
            )
        return generator
    if len(row) == 3 and options.tag in MAP_GENERATORS:
        return build(MAP_GENERATORS[options.tag](**values), shape=row)
    values.pop("cells", None)  # an option for feature maps only
    return build(make_generator(options.tag, **values))


def _module_generator(design: Design, options: config.ModuleGenerator) -> ModuleGenerator:
    """Raises `ConfigError` without PyTorch, and for a module that can't be made."""
    check_torch('schedule.generator: kind = "module"')
    from asyncdni.nn.torch.generator import module_generator

    return module_generator(
        options.module,
        options.arguments,
        learning_rate=options.learning_rate,
        allow_import=design.allow_import,
    )


def _build(generator: Generator, **options: Any) -> Generator:
    generator.build(**options)
    return generator


def make_input_models(
    network: Network, group: Group, meta: Meta, run: config.Run
) -> dict[str, InputModel]:
    """Make the models that predict the inputs of `group`, by declared producer in another group;
    empty if the group waits for its inputs."""
    options = group.schedule.input_predictor
    if options is None or not group.synthetic_inputs:
        return {}
    members = {node.name for node in group.members}
    found: dict[str, InputModel] = {}
    for node in group.members:
        for name in node.inputs:
            if name != DATA and name not in members and name not in found:
                found[name] = _input_model(options, network, node, name, meta, run)
    return found


def _input_model(
    options: config.InputModel,
    network: Network,
    reader: Node,
    producer: str,
    meta: Meta,
    run: config.Run,
) -> InputModel:
    loss, outputs = network.target_of(reader)
    model = InputModel(
        hidden=options.hidden, labels=options.labels, learning_rate=options.learning_rate
    )
    model.build(
        inputs=_size(meta.input_shape),
        outputs=outputs,
        width=_size(network.node(producer).output_shape),
        loss=loss,
        dtype=np.dtype(run.dtype),
        streams=layer_streams(run.seed, f"{reader.name}.input.{producer}"),
    )
    return model


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


@dataclass(frozen=True)
class Design:
    """An experiment that has been checked, with its network and plan."""

    experiment: config.Experiment
    meta: Meta
    network: Network
    plan: Plan
    allow_import: Allowed = False
    #: Initial weights in place of the seed's: for each stage, arrays by "0.weight"; see `given`.
    init: Mapping[str, Mapping[str, NDArray[Any]]] | None = None
    #: The experiment as it was given, with the `[model]` that its stages are parts of.
    given: config.Experiment | None = None
    #: For the user: with which weights its `[model]` begins.
    begun: str = ""


def make_design(
    tables: Mapping[str, Any] | config.Experiment, meta: Meta, *, allow_import: Allowed = False
) -> Design:
    """Check an experiment and lay it out over workers. Raises `ConfigError` for anything that does
    not fit together."""
    given = tables if isinstance(tables, config.Experiment) else experiment.parse(tables)
    parsed = with_stages(given, meta, allow_import=allow_import)
    check_torch_options(parsed, allow_import=allow_import)
    network = make_network(parsed, meta, allow_import=allow_import)
    check_fields(network, meta)
    check_losses(parsed, network, allow_import=allow_import)
    plan = make_plan(parsed, network, meta)
    check_steps(network, plan)
    check_conditions(parsed, plan)
    check_rules(parsed, plan)
    check_lengths(parsed, network, plan, meta)
    check_messages(parsed, network, plan, meta, allow_import=allow_import)
    for every in (cut_every_s, snapshot_every_s):
        every(parsed.checkpoint)
    design = Design(parsed, meta, network, plan, allow_import, given=given)
    for group in plan.groups:
        if group.schedule.predictor is not None and group.schedule.predictor.in_torch:
            make_exit_generator(design, group, empty=True)  # the user's code: it may not fit
    return design


def make_worker(design: Design, group: Group, counts: Counts | None = None) -> Worker:
    """Make the logic of a group's worker for one round; `counts` continue those of earlier
    rounds."""
    return _make_worker(design.experiment, design.plan, group, counts)


def make_stage(design: Design, group: Group) -> NumpyStage:
    """Build layers, optimizers and generator of one worker from the experiment's seed, then load
    the initial weights of the design, if it has any."""
    stage = _seeded_stage(design, group)
    if design.init is not None:
        own = stage.state()
        stage.load({name: design.init.get(name, arrays) for name, arrays in own.items()})
    return stage


def _pace(plan: Plan) -> Pace:
    return Pace(plan.updates_per_epoch, plan.updates, plan.per_update, plan.batches_per_epoch)


def _rate(design: Design, batch: int) -> float:
    """The learning rate of `[optimizer]` for a training batch, or microbatch, of this id."""
    optimizer, pace = design.experiment.optimizer, _pace(design.plan)
    return optimizer.learning_rate * make_rate_scale(optimizer.decay, pace)(pace.update_of(batch))


def _seeded_stage(design: Design, group: Group) -> NumpyStage:
    run, plan = design.experiment.run, design.plan
    by_name = {stage.name: stage for stage in design.experiment.stages}
    delayed = late_gradients(design.experiment, plan, group)
    pace = _pace(plan)
    blocks = [
        Block(
            node,
            experiment.stage_optimizer(design.experiment, by_name[node.owner]),
            dtype=np.dtype(run.dtype),
            seed=run.seed,
            pace=pace,
            delayed=delayed,
            numbers=design.experiment.numbers,
            allow_import=design.allow_import,
            streams=design.experiment.data.batch_size if "first" in design.meta.context else None,
            empty=design.init is not None and node.name in design.init,
            computing={
                "autocast": run.autocast is not None,
                "compile": run.compile,
                "device": run.device,
                "number": group.index,
            },
            metrics=find_metrics(design) if node is design.network.judged else (),
        )
        for node in group.members
    ]
    sharing = Sharing(blocks, [design.network.sharers(node.name) for node in group.members])
    return NumpyStage(
        blocks,
        group.exit,
        make_exit_generator(design, group),
        sharing=sharing,
        mix=group.schedule.mix,
        input_models=make_input_models(design.network, group, design.meta, run),
        agreement_every=AGREEMENT_EVERY if group.schedule.guard is None else 1,
        steps=design.meta.steps,
        remainders=_remainders(design, group),
    )


def _remainders(design: Design, group: Group) -> dict[str, dict[str, NDArray[Any]]]:
    """Make the remainders of the gradients that `group` sends (see `encodings`), by stage and by
    producer, for links whose encoding keeps one."""
    plan, found = design.plan, dict[str, dict[str, NDArray[Any]]]()
    encodings = link_encodings(design.experiment, plan)
    for node in group.members:
        for producer in node.inputs:
            encoding = None
            if producer != DATA:
                encoding = encodings.get((group.name, plan.group_of(producer).name))
            if encoding is not None and encoding.keeps_remainder:
                shape = design.network.node(producer).output_shape
                rows = design.experiment.data.batch_size + encoding.further_rows
                array = np.zeros((rows, *shape), np.float32)
                found.setdefault(node.name, {})[producer] = array
    return found


def make_compressor(design: Design, group: Group, stage: Stage | None) -> Compressor:
    """Make what encodes the tensors that the worker of `group` sends: see `[links] compress`. None
    stands for a stage without arithmetic."""
    encodings = link_encodings(design.experiment, design.plan)
    return Compressor(
        {receiver: one for (sender, receiver), one in encodings.items() if sender == group.name},
        {
            (design.plan.group_of(producer).name, consumer): array
            for consumer, arrays in (stage.remainders if stage is not None else {}).items()
            for producer, array in arrays.items()
        },
    )


def find_metrics(design: Design) -> list[Metric]:
    """Make the metrics of `run.metrics`. Raises `ConfigError`, also for functions that can't be
    imported."""
    meta = design.meta
    classes = meta.outputs if meta.targets == "classes" else 0
    texts = design.experiment.run.metrics
    return make_metrics(texts, classes=classes, allow_import=design.allow_import)


def make_whole_stage(design: Design, metrics: Sequence[str] = ()) -> NumpyStage:
    """Build all declared stages as one, without generators, to use a trained network.

    `metrics` are those of `run.metrics` that it computes of a test set."""
    chosen = design.experiment
    run = config.Run(
        seed=chosen.run.seed,
        dtype=chosen.run.dtype,
        split=[len(chosen.stages)],
        epochs=0,
        metrics=list(metrics),
    )
    stages = [msgspec.structs.replace(stage, schedule={}) for stage in chosen.stages]
    # Tables about single workers and the links between them are left out: there is one worker.
    whole = config.Experiment(
        data=chosen.data,
        stages=stages,
        schedule=config.Locked(),
        optimizer=chosen.optimizer,
        run=run,
        limits=chosen.limits,
    )
    alone = make_design(whole, design.meta, allow_import=design.allow_import)
    return make_stage(alone, alone.plan.groups[0])


def make_source(design: Design, group: Group) -> Source | None:
    """Load the data if `group` hosts them, and check that every loss can learn the targets.

    None if another group hosts them. Raises `DataError`, also if the files on this host differ from
    the coordinator's.
    """
    if group.index != design.plan.host:
        return None
    run, data = design.experiment.run, design.experiment.data
    others = other_parts(design.meta.checksums, checksums(data))
    if others:
        raise DataError(
            f"{getattr(data, 'path', 'the data set')} on this host has other contents in "
            f"{', '.join(others)} than the coordinator's; expected the same files on both"
        )
    with allowing(design.allow_import):
        dataset = open_batches(data, run.seed)
    check_targets(design, dataset.targets())
    return Source(
        dataset,
        batch_size=design.plan.batch_size,
        test_batch_size=data.batch_size,
        seed=run.seed,
        dtype=np.dtype(run.dtype),
    )


def check_targets(design: Design, found: Mapping[str, NDArray[Any] | Stored]) -> None:
    """Check the arrays of targets in `found`. Raises `DataError`, with the name of the array, for
    targets that a loss can't learn."""
    losses = [
        (make_loss(node.loss), node.output_shape[-1:])
        for node in design.network.nodes
        if node.loss and not is_own(node.loss)
    ]
    for name, targets in found.items():
        # A loss counts samples from the first that it is given, so messages name the part.
        parts = chunks(targets) if isinstance(targets, Stored) else [(0, targets)]
        for start, part in parts:
            for loss, shape in losses:
                try:
                    loss.check(shape, _flat(part, design.meta))
                except DataError as error:
                    place = f"{name}[{start}:]" if start else name
                    raise DataError(f"{place}: {error}") from error


def _flat(targets: NDArray[Any], meta: Meta) -> NDArray[Any]:
    """Return targets with one row for each step, if each step of a window has targets of its
    own."""
    return targets.reshape(-1, *targets.shape[2:]) if meta.steps else targets


def find_exits(design: Design) -> dict[str, str]:
    """Map each worker to the declared stage whose activation it sends."""
    return {g.name: g.exit for g in design.plan.groups if g.exit is not None}


def find_shares(design: Design, group: Group) -> dict[str, tuple[str, ...]]:
    """Map other workers to the stages of `group` whose weights they also use."""
    return shared_with(design.plan.groups, group)


def readout_forms(design: Design) -> Forms:
    """Return what a copy of the readout consists of: see `plan.readout`."""
    dtype = np.dtype(design.experiment.run.dtype)
    return _readout_forms(design.plan, dtype, allow_import=design.allow_import)


def lent_readout(design: Design, group: Group) -> tuple[str, tuple[str, ...]] | None:
    """Return the stage of `group` that others read out through, and the names of those weights;
    None if there is none."""
    if group.name != design.plan.groups[-1].name or not read_by(design.plan.groups):
        return None
    return group.members[-1].name, tuple(readout_forms(design))


def begins_from(design: Design, group: Group) -> list[str]:
    """Return the stages whose initial weights `group` begins with: its own, and the one that it
    reads out through."""
    own = [node.name for node in group.members]
    reads = group.name in read_by(design.plan.groups)
    return [*own, readout_stage(design.plan.groups)] if reads else own


def prepared(design: Design, group: Group, roster: Roster) -> Prepared:
    """Tell the process of `group` what it must know of the experiment."""
    return Prepared(
        roll_back=roster.rolls_back,
        learns_alone=roster.learns_alone,
        snapshot_every_s=snapshot_every_s(design.experiment.checkpoint),
        stages=[node.name for node in group.members],
        sources=roster.sources,
    )


def make_roster(
    design: Design,
    *,
    folder: str = "",
    term: int = 0,
    trace: bool = False,
    launched: bool = True,
    consults: bool = False,
    resume: str = "",
    succeeds: bool = False,
) -> Roster:
    """Make what the coordinator knows about the run; for `launched`, `consults` and `resume` see
    `Roster`. `succeeds`: another one has had the same run before."""
    plan, limits, chosen = design.plan, design.experiment.limits, design.experiment
    return Roster(
        workers=tuple(group.name for group in plan.groups),
        members={group.name: tuple(n.name for n in group.members) for group in plan.groups},
        neighbours={group.name: neighbours(plan, group) for group in plan.groups},
        losses=tuple(node.name for node in design.network.nodes if node.scored),
        experiment=experiment.tables(design.experiment),
        meta=msgspec.to_builtins(design.meta),
        folder=folder,
        term=term,
        trace=trace,
        has_tests=plan.test_batches > 0,
        launched=launched,
        startup_s=limits.startup_s,
        silence_s=limits.silence_s,
        stuck_s=limits.stuck_s,
        restarts=chosen.recovery.restarts,
        takes_back=succeeds and chosen.recovery.coordinator_s > 0,
        learns_alone=learns_alone(plan),
        rolls_back=chosen.numbers.policy == "roll_back",
        cut_every_s=cut_every_s(chosen.checkpoint),
        cut_positions=frozenset(plan.cuts),
        batches=plan.batches,
        barriers=tuple(plan.barriers),
        groups=Groups(plan.per_update, plan.batches_per_epoch),
        rate=partial(_rate, design),
        consults=consults,
        resume=resume,
        versions=_compared_versions(chosen),
        sources=software.source_digests(experiment.tables(chosen)["stages"]),
        metrics=metric_names(chosen.run.metrics),
    )


def _compared_versions(chosen: config.Experiment) -> dict[str, str]:
    """Return the versions that all workers must have: PyTorch's only where it computes."""
    found = software.versions()
    in_torch = _computes_in_torch(chosen)
    return found if in_torch else {name: found[name] for name in found if name != "torch"}


def _computes_in_torch(chosen: config.Experiment) -> bool:
    optimizers = [experiment.stage_optimizer(chosen, stage) for stage in chosen.stages]
    layers = [layer for stage in chosen.stages for layer in stage.layers]
    return any(isinstance(one, config.TorchOptimizer) for one in optimizers) or any(
        is_module(layer) for layer in layers
    )


def worker_libraries(design: Design) -> list[str]:
    """Return which of `launch.forkserver.LIBRARIES` the workers of a design will load."""
    found = []
    if _computes_in_torch(design.experiment):
        found.append("torch")
    if any(takes_loops(node, design.allow_import) for node in design.network.nodes):
        found.append("numba")
    return found
