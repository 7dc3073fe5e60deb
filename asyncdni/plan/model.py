"""What `[model]` means: the stages into which a network written in PyTorch is cut.

```
[model] build = "mymodels:gpt"            [[stages]] name = "wte"   layers = [{ part = … }]
        stages = ["h.2", "h.4"]    ───►   [[stages]] name = "h_2"   layers = [{ part = … }]
                                          [[stages]] name = "h_4"   layers = [{ part = … }] loss = …
```

Coordinator and workers know the stages alone, which name all that is needed to build them; where a
model is cut is decided once. The run begins with the weights that the model has when it is built
under the run's seed, as in a plain PyTorch program: `torch.manual_seed(seed)`, then the callable.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from numpy.typing import NDArray

from asyncdni import config, experiment, handover
from asyncdni.data.meta import Meta
from asyncdni.errors import ConfigError
from asyncdni.handover import GIVEN
from asyncdni.imports import Allowed
from asyncdni.messages import DATA
from asyncdni.network import Network, Node
from asyncdni.nn.layers import is_module
from asyncdni.nn.losses import LOSSES, is_own
from asyncdni.plan.conditions import link_encodings
from asyncdni.plan.plan import Plan

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "arrays_by_stage",
    "check_cut",
    "check_fields",
    "check_lengths",
    "check_losses",
    "check_steps",
    "check_torch",
    "check_torch_options",
    "initial_model",
    "state_facts",
    "with_cuts",
    "with_stages",
]

#: How many stages `stages = "auto"` makes.
_AUTO = 4


def with_stages(
    chosen: config.Experiment, meta: Meta, *, allow_import: Allowed
) -> config.Experiment:
    """The experiment with the stages of its `[model]` in its place; as it is where it has none.

    Raises `ConfigError` for a model that can't be built or cut as it says."""
    model = chosen.model
    if model is None:
        return chosen
    check_torch("[model]")
    begins, names, sharers = _cuts(chosen, model, meta, allow_import)
    stages = [
        {
            "name": name,
            "layers": [{"part": _part(model, meta, begin, end)}],
            "loss": model.loss if not end else None,
            "weights": names[sharers[index]] if index in sharers else "",
        }
        for index, (name, begin, end) in enumerate(
            zip(names, ["", *begins], [*begins, ""], strict=True)
        )
    ]
    tables = experiment.tables(chosen) | {"stages": stages}
    del tables["model"]
    return experiment.parse(tables)


def with_cuts(chosen: config.Experiment, meta: Meta, *, allow_import: Allowed) -> config.Experiment:
    """The experiment with the names of the submodules at which its `[model]` is cut, in place of a
    number, so that several runs have the same stages. Raises `ConfigError` as `with_stages`."""
    if chosen.model is None or isinstance(chosen.model.stages, list):
        return chosen
    check_torch("[model]")
    begins, *_ = _cuts(chosen, chosen.model, meta, allow_import)
    model = msgspec.structs.replace(chosen.model, stages=begins or 1)
    return msgspec.structs.replace(chosen, model=model)


def check_torch_options(chosen: config.Experiment, *, allow_import: Allowed = False) -> None:
    """Raise `ConfigError` for an optimizer of PyTorch that is unknown, refuses its options, or has
    no PyTorch to come from; and for ways to compute that no stage has."""
    layers = [layer for stage in chosen.stages for layer in stage.layers]
    asked = {"autocast": chosen.run.autocast, "compile": chosen.run.compile}
    asked["device"] = chosen.run.device == "cuda"
    for option, wanted in asked.items():
        if wanted and not any(map(is_module, layers)):
            raise ConfigError(
                f"run.{option} is for stages written in PyTorch, and this network has none; leave "
                "it out"
            )
    for stage in chosen.stages:
        options = experiment.stage_optimizer(chosen, stage)
        if isinstance(options, config.TorchOptimizer):
            check_torch('optimizer.name = "torch"')
            from asyncdni.nn.torch.optimizer import TorchOptimizer, check_class

            TorchOptimizer(options.kind, options.options, (), allow_import=allow_import)
            if ":" in options.kind:
                check_class(options.kind, options.options, allow_import=allow_import)


def check_losses(chosen: config.Experiment, network: Network, *, allow_import: Allowed) -> None:
    """Raise `ConfigError` for a loss of the user's that can't be imported, does not take the
    outputs and targets, or belongs to a stage that is not written in PyTorch."""
    for stage, node in zip(chosen.stages, network.nodes, strict=True):
        if node.loss is None or not is_own(node.loss):
            continue
        if not any(map(is_module, stage.layers)):
            raise ConfigError(
                f"{node.place}.loss: {node.loss!r} is for stages written in PyTorch; expected one "
                f"of {', '.join(LOSSES)}"
            )
        check_torch(f"{node.place}.loss")
        from asyncdni.nn.torch.loss import OwnLoss

        steps = (network.steps,) if network.steps else ()
        classes = network.targets == "classes"
        targets = steps if classes else (*steps, network.outputs)
        OwnLoss(node.loss, allow_import).try_on(node.output_shape, targets, integers=classes)


def check_torch(what: str) -> None:
    """Raise `ConfigError` where `what` the user asks for needs PyTorch, and there is none."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{what} needs PyTorch ({error}): pip install 'asyncdni[torch]'"
        ) from None


def _cuts(
    chosen: config.Experiment, model: config.Model, meta: Meta, allow_import: Allowed
) -> tuple[list[str], list[str], dict[int, int]]:
    """The submodules at which all stages but the first begin, the names of all stages, and which of
    them have the weights of which earlier one."""
    from asyncdni.nn.torch.balance import choose_cuts
    from asyncdni.nn.torch.model import trace_model

    def traced(begins: Sequence[str] | None) -> Any:
        form = _form(meta)
        return trace_model(model.build, model.arguments, form, begins, allow_import=allow_import)

    if isinstance(model.stages, list):
        begins = model.stages
    else:
        count = _AUTO if model.stages == "auto" else model.stages
        whole = traced(None)
        if isinstance(model.stages, int) and count > len(whole.names()) + 1:
            raise ConfigError(
                f"model.stages: {count} stages, but the model can be cut into "
                f"{len(whole.names()) + 1} at most: before {', '.join(whole.names()) or 'nothing'}"
            )
        parting = whole.parting()
        if model.stages != "auto" and 1 < count <= len(parting):
            raise ConfigError(
                f"model.stages: {count} stages, but the model uses the same weights in several "
                f"places, each of which becomes a stage of its own: expected {len(parting) + 1} or "
                "more (run.split puts several into one worker), or untie them"
            )
        real = initial_model(chosen, allow_import=allow_import)
        begins = choose_cuts(real, whole, meta.input_shape, count, _samples(chosen, meta))
    cut = traced(begins)
    cut.check(begins)
    return begins, [_stage_name(name) for name in (cut.first, *begins)], cut.sharers(begins)


def _samples(chosen: config.Experiment, meta: Meta) -> int:
    return min(chosen.data.batch_size // chosen.schedule.microbatches, meta.train_samples)


def _stage_name(submodule: str) -> str:
    """A stage's name after the submodule at which it begins: "h.2" becomes "h_2"."""
    name = re.sub(r"[^A-Za-z0-9_-]", "_", submodule)
    return f"layer{name}" if name[:1].isdigit() else name


def _form(meta: Meta) -> list[Any]:
    """The form of a sample, as a part says it: see `nn.torch.fields.fields_of`."""
    if not meta.fields:
        return _signed(meta.input_shape, meta)
    return [[one.name, one.kind, _signed(one.shape, meta)] for one in meta.fields]


def _signed(shape: tuple[int, ...], meta: Meta) -> list[int]:
    return [-shape[0], *shape[1:]] if meta.varying else list(shape)


def check_fields(network: Network, meta: Meta) -> None:
    """Raise `ConfigError` where samples are made of several tensors, and a stage that reads them is
    no part of a `[model]`."""
    for node in network.nodes:
        if meta.fields and DATA in node.inputs and not _is_part(node):
            names = ", ".join(one.name or "one without a name" for one in meta.fields)
            raise ConfigError(
                f"{node.place}: samples are made of several tensors ({names}), which only a "
                "network of [model] takes apart; return one tensor in the data set"
            )


def check_steps(network: Network, plan: Plan) -> None:
    """Raise `ConfigError` where several tensors leave a part of a model as one row, and a generator
    is to predict its gradient step by step."""
    for group in plan.groups:
        if group.exit is None or group.schedule.predictor is None or not network.steps:
            continue
        node = network.node(group.exit)
        if _is_part(node) and node.output_shape[:1] != (network.steps,):
            raise ConfigError(
                f"{node.place}: several tensors leave the stage, such as a mask or a skip "
                "connection, as one row without steps; no generator or local head takes it where "
                "each step has a target; cut elsewhere, leave the mask out (causal attention needs "
                "none for padding at the end), or take locked, gpipe, 1f1b or delayed"
            )


def check_lengths(chosen: config.Experiment, network: Network, plan: Plan, meta: Meta) -> None:
    """Raise `ConfigError` where batches differ in length, and a stage, a generator or an encoding
    is made for one length."""
    if not meta.varying:
        return
    cure = "or pad all samples to one length in the data set or its collate_fn"
    for node in network.nodes:
        if not _is_part(node):
            raise ConfigError(
                f"{node.place}: batches differ in length, which only a network of [model] takes; "
                f"give the network as [model], {cure}"
            )
    for group in plan.groups:
        if group.synthetic_inputs:
            raise ConfigError(
                f"{group.name}: batches differ in length, and a model of synthetic inputs predicts "
                f"all steps of a sample at once; leave synthetic_inputs out, {cure}"
            )
        model = group.schedule.predictor
        if group.exit is None or model is None or network.steps or model.in_torch:
            continue
        node = network.node(group.exit)
        if node.varying:
            raise ConfigError(
                f"{node.place}: batches differ in length, and a {model.title} takes all steps of "
                "a sample at once, as a sample has one target; take readout or a module of yours, "
                f"{cure}"
            )
    for (sender, receiver), encoding in link_encodings(chosen, plan).items():
        if encoding is not None and encoding.keeps_remainder:
            raise ConfigError(
                f"links from {sender} to {receiver}: batches differ in length, and this encoding "
                "keeps what it has left out of each number for the next batch; take bfloat16 or "
                f"float16, {cure}"
            )


def _is_part(node: Node) -> bool:
    layer = node.layers[0] if node.layers else ""
    return isinstance(layer, dict) and "part" in layer


def _part(model: config.Model, meta: Meta, begin: str, end: str) -> dict[str, Any]:
    options: dict[str, Any] = {"build": model.build, "input": _form(meta)}
    if begin:
        options["begin"] = begin
    if end:
        options["end"] = end
    return options | ({"arguments": model.arguments} if model.arguments else {})


# --- weights -------------------------------------------------------------------------------------


def initial_model(chosen: config.Experiment, *, allow_import: Allowed) -> nn.Module:
    """The whole model with its initial weights: those that it was given with, or those that it has
    when it is built under the run's seed, in the run's precision."""
    import torch

    from asyncdni.nn.torch.model import make_model

    assert chosen.model is not None
    if chosen.model.build.startswith(f"{GIVEN}:"):
        from asyncdni.nn.torch.huggingface import as_chain, check_chain

        name = chosen.model.build.partition(":")[2]
        given: nn.Module = copy.deepcopy(handover.received(f"initial {name}"))
        given = given.to("cpu", getattr(torch, chosen.run.dtype))
        check_chain(given, as_chain(given))
        return given
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(chosen.run.seed)
        model = make_model(
            chosen.model.build, chosen.model.arguments, "cpu", allow_import=allow_import
        )
    return model.to(getattr(torch, chosen.run.dtype))


def check_cut(chosen: config.Experiment, model: nn.Module, *, allow_import: Allowed) -> None:
    """Raise `ConfigError` where the stages of `chosen`, one after the other, do not compute what
    the model does that they are parts of."""
    from asyncdni.nn.torch.model import check_parts

    layers = [layer for stage in chosen.stages for layer in stage.layers]
    parts = [layer["part"] for layer in layers if isinstance(layer, dict) and "part" in layer]
    if len(parts) > 1:
        check_parts(model, parts, allow_import=allow_import)


def arrays_by_stage(
    model: nn.Module, stages: Mapping[str, Mapping[str, NDArray[Any]]]
) -> dict[str, NDArray[Any]]:
    """The model's weights and buffers as "STAGE.0.NAME", for stages with the arrays "0.NAME"."""
    own = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    return {
        f"{stage}.{name}": own[name.removeprefix("0.")].detach().cpu().numpy()
        for stage, arrays in stages.items()
        for name in arrays
    }


def state_facts(chosen: config.Experiment, *, allow_import: Allowed) -> dict[str, Any]:
    """What a run's summary tells of the model that was cut into its stages, so that its weights get
    all names of the model's own `state_dict`: {"model": {"tied": groups of names that mean one
    array, "unsaved": the buffers that are not in there}}. Empty for another network, and where
    there is neither."""
    first = chosen.stages[0].layers[0] if chosen.stages else ""
    if not isinstance(first, dict) or "part" not in first:
        return {}
    from asyncdni.nn.torch.model import make_model

    part = first["part"]
    arguments = part.get("arguments", {})
    model = make_model(part["build"], arguments, "meta", allow_import=allow_import)
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    unsaved = [name for name, buffer in model.named_buffers() if id(buffer) not in names]
    facts = {"tied": [one for one in names.values() if len(one) > 1], "unsaved": unsaved}
    return {"model": facts} if any(facts.values()) else {}
