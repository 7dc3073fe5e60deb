"""Language models of Hugging Face as a chain of their own submodules.

Their forward takes masks, caches and tables, and can't be traced. But their submodules follow each
other, in an order that the class says (`base_model_pp_plan`), or that one forward shows:

```
    ids ──► embed_tokens ──► layers.0 ──► layers.1 ──► … ──► norm ──► lm_head ──► logits
                                 ▲ the mask, and positions from the number of tokens
    ids ──► wte ──► + wpe ──► drop ──► h.0 ──► h.1 ──► … ──► ln_f ──► lm_head ──► logits
```

`Chain` calls them in this order, with causal attention and without a cache, as in training on whole
windows. Where positions are counted in the mask (OPT), or attention is biased by distance (ALiBi,
BLOOM), each module makes its own from the mask. Names of weights stay those of the model.
`check_chain` holds it against the model's own forward, so that a model which does more is refused.
"""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from torch import fx, nn

from asyncdni.errors import ConfigError
from asyncdni.nn.torch.compiler import without_compiler
from asyncdni.nn.torch.layer import empty_copy, first_line

__all__ = ["Chain", "as_chain", "check_chain"]

#: How many sequences, and tokens in each, the chain and the model are compared on.
_TRIED = (2, 8)
#: What models call the submodule that turns positions into rotations.
_ROTARY = "rotary_emb"


class Chain(nn.Module):
    """The submodules of a model for causal language modelling, one after the other: ids (B, T), and
    where sequences are padded a mask (B, T) of their tokens, to logits (B, T, V)."""

    def __init__(self, model: Any, order: list[str], blocks: str) -> None:
        """`order`: the paths of the submodules that follow each other; `blocks` is that of the list
        of blocks among them."""
        super().__init__()
        for name, child in model.named_children():
            self.add_module(name, child)
        base = model.get_submodule(blocks.rpartition(".")[0])
        tokens = model.get_input_embeddings()
        self._order, self._blocks = order, blocks
        self._tokens = next(name for name in order if model.get_submodule(name) is tokens)
        self._rotary: Any = getattr(base, _ROTARY, None)
        self._needs_mask = base.config._attn_implementation != "sdpa"
        self.causal_mask = _CausalMask(base.config)
        self.bias = _Alibi(base) if hasattr(base, "build_alibi_tensor") else None
        self._masked = {
            name
            for name in order
            if isinstance(one := model.get_submodule(name), nn.Embedding)
            and "attention_mask" in inspect.signature(one.forward).parameters
        }

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        x = input_ids
        for name in self._order:
            module = self.get_submodule(name)
            if name == self._blocks:
                for block in module.children():
                    x = self._block(block, x, attention_mask)
            elif name in self._masked:
                x = x + module(_mask_of(x, attention_mask))
            elif isinstance(module, nn.Embedding) and name != self._tokens:
                x = x + module(_positions(x))
            else:
                x = module(x)
        return x

    def _block(
        self, block: nn.Module, x: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        positions = _positions(x)
        options: dict[str, Any] = {"attention_mask": None, "position_ids": positions}
        if attention_mask is not None or self._needs_mask:
            options["attention_mask"] = self.causal_mask(x, attention_mask, positions)
        if self._rotary is not None:
            options["position_embeddings"] = self._rotary(x, positions)
        if self.bias is not None:
            options["alibi"] = self.bias(x, attention_mask)
        return _hidden(block(x, **options))


class _CausalMask(nn.Module):
    """The mask of attention that a model of Hugging Face makes for its blocks: None where that of
    its attention alone does."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self._config = config

    def forward(
        self, x: torch.Tensor, attention_mask: torch.Tensor | None, positions: torch.Tensor
    ) -> Any:
        if x.is_meta:  # without numbers, as the mask's maker looks at some
            return _any_mask(x)
        make = sys.modules["transformers"].masking_utils.create_causal_mask
        known = inspect.signature(make).parameters
        # Names of arguments differ from release to release.
        given = {"inputs_embeds": x, "input_embeds": x, "cache": None, "past_key_values": None}
        given["cache_position"] = positions[0]
        chosen = {name: value for name, value in given.items() if name in known}
        return make(config=self._config, attention_mask=attention_mask, **chosen)


class _Alibi(nn.Module):
    """What attention adds for the distance of two tokens, as the model makes it of a mask (B, T) of
    its tokens (Press et al. 2021, arXiv 2108.12409)."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self._make: Any = type(base).build_alibi_tensor
        self._heads: int = base.num_heads

    def forward(self, x: torch.Tensor, attention_mask: torch.Tensor | None) -> Any:
        return self._make(self, _mask_of(x, attention_mask), self._heads, dtype=x.dtype)


def _mask_of(x: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """The mask (B, T) of the tokens in x (B, T, D): all are there if none is given."""
    if attention_mask is None:
        return torch.ones(x.shape[:2], dtype=torch.int64, device=x.device)
    return attention_mask


def _any_mask(x: torch.Tensor) -> torch.Tensor:
    """A mask in the form that blocks take, for x (B, T, …)."""
    return x.new_zeros((len(x), 1, x.shape[1], x.shape[1]))


def _positions(x: torch.Tensor) -> torch.Tensor:
    """The positions (1, T) of the tokens in x (B, T, D)."""
    return torch.arange(x.shape[1], device=x.device)[None]


def _hidden(result: Any) -> torch.Tensor:
    """The hidden states that a layer returns, alone or as the first of several values."""
    found: torch.Tensor = result[0] if isinstance(result, tuple | list) else result
    return found


# All are single calls of a trace, as what they do depends on values.
fx.wrap("_positions")
fx.wrap("_mask_of")
fx.wrap("_hidden")


def as_chain(model: nn.Module) -> nn.Module:
    """The chain of a model of Hugging Face whose submodules follow each other; any other model as
    it is."""
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return model
    found = _declared(model) or _observed(model)
    return model if found is None else Chain(model, *found)


def _declared(model: Any) -> tuple[list[str], str] | None:
    """The paths of submodules and of their list of blocks, as the class says them; None where it
    does not."""
    prefix = str(model.base_model_prefix)
    base = getattr(model, prefix, None)
    plan = getattr(getattr(base, "config", None), "base_model_pp_plan", None)
    if not plan or base is None or base is model:
        return None
    order = [f"{prefix}.{name}" for name in plan]
    order += [name for name, _ in model.named_children() if name != prefix]
    lists = [name for name in order if isinstance(model.get_submodule(name), nn.ModuleList)]
    return (order, lists[0]) if len(lists) == 1 else None


@without_compiler()
def _observed(model: Any) -> tuple[list[str], str] | None:
    """The same, as one forward without weights calls them: a list of blocks, and the modules beside
    it and around it. None where there is no such list, or the forward fails."""
    if "CausalLM" not in type(model).__name__ and "LMHead" not in type(model).__name__:
        return None
    lists = [name for name, one in model.named_modules() if isinstance(one, nn.ModuleList)]
    if not lists:
        return None
    blocks = min(lists, key=lambda name: name.count("."))
    beside = _beside(model, blocks)
    called: list[str] = []
    copied: Any = empty_copy(model, "meta").eval()
    for name in beside:
        if name.endswith(_ROTARY):
            continue  # each block gets what it returns: see `Chain`
        module = copied.get_submodule(name)
        first = module[0] if name == blocks else module
        first.register_forward_pre_hook(lambda *_, name=name: called.append(name))
    # Some models make their masks by looking at numbers, which there are none of, unless they get
    # such a mask; others take no such mask.
    for mask in (_any_mask(torch.zeros(_TRIED, device="meta")), None):
        called.clear()
        try:
            with torch.no_grad(), torch.device("meta"):
                ids = torch.zeros(_TRIED, dtype=torch.int64)
                copied(input_ids=ids, attention_mask=mask, use_cache=False)
        except Exception:  # a model may fail in any way
            continue
        break
    else:
        return None
    tokens = model.get_input_embeddings()
    has_tokens = any(model.get_submodule(name) is tokens for name in called)
    return (called, blocks) if has_tokens and called.count(blocks) == 1 else None


def _beside(model: nn.Module, blocks: str) -> list[str]:
    """The paths of the list of blocks, and of all submodules that stand beside it or beside a
    module around it."""
    found, path = [blocks], blocks
    while path:
        around, _, own = path.rpartition(".")
        children = model.get_submodule(around).named_children()
        found += [f"{around}.{name}".lstrip(".") for name, _ in children if name != own]
        path = around
    return found


def check_chain(model: nn.Module, chain: nn.Module) -> None:
    """Compare the two, which have weights, on a few tokens. Raises `ConfigError` where the model's
    own forward does more than its chain, so that something would be lost."""
    if chain is model:
        return
    drop = float(getattr(getattr(model, "config", None), "layerdrop", 0.0) or 0.0)
    if drop:
        raise ConfigError(
            f"{type(model).__name__} leaves out blocks at random in training (layerdrop = {drop:g} "
            "in its config), so it can't be cut before its blocks; set layerdrop = 0"
        )
    was = model.training
    ids = torch.arange(_TRIED[0] * _TRIED[1]).reshape(_TRIED) % 2
    try:
        with torch.no_grad():
            model.eval()
            chain.eval()
            masks = None, (torch.arange(_TRIED[1]) < _TRIED[1] - 2).long().expand(_TRIED)
            same = True
            for mask in masks:
                expected = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
                same = same and torch.equal(chain(ids, mask), expected)
        why = "gives other logits than its submodules one after the other"
    except Exception as error:  # the model may fail in any way
        same, why = False, f"can't be run as its submodules: {first_line(error)}"
    finally:
        model.train(was)
        chain.train(was)
    if not same:
        raise ConfigError(
            f"{type(model).__name__} {why}, so it can't be cut before its blocks; give a "
            "module whose forward calls them one by one, as launch/torch/finetune.py does"
        )
