"""Language models of Hugging Face as a chain of their own submodules.

Their forward takes masks, caches and tables, and can't be traced. But a class that can be run as a
pipeline says which of its submodules follow each other (`base_model_pp_plan`):

```
    ids ──► embed_tokens ──► layers.0 ──► layers.1 ──► … ──► norm ──► lm_head ──► logits
                                 ▲ positions, from the number of tokens
```

`Chain` calls them in this order, with causal attention and without a mask or a cache, as in
training on whole windows. Names of weights stay those of the model.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import fx, nn

from asyncdni.errors import ConfigError
from asyncdni.nn.torch.layer import first_line

__all__ = ["Chain", "as_chain", "check_chain"]

#: How many sequences, and tokens in each, the chain and the model are compared on.
_TRIED = (2, 8)


class Chain(nn.Module):
    """The submodules of a model for causal language modelling, one after the other: ids (B, T) to
    logits (B, T, V)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self._base = str(model.base_model_prefix)
        base = getattr(model, self._base)
        self.add_module(self._base, base)
        self._names = list(base.config.base_model_pp_plan)
        self._heads = [name for name, _ in model.named_children() if name != self._base]
        for name in self._heads:
            self.add_module(name, getattr(model, name))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        base = getattr(self, self._base)
        x = ids
        for name in self._names:
            module = getattr(base, name)
            if isinstance(module, nn.ModuleList):
                for layer in module:
                    x = self._layer(base, layer, x)
            else:
                x = module(x)
        for name in self._heads:
            x = getattr(self, name)(x)
        return x

    def _layer(self, base: nn.Module, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        positions = _positions(x)
        options: dict[str, Any] = {"attention_mask": None, "position_ids": positions}
        if hasattr(base, "rotary_emb"):
            rotary: Any = base.rotary_emb
            options["position_embeddings"] = rotary(x, positions)
        return _hidden(layer(x, **options))


def _positions(x: torch.Tensor) -> torch.Tensor:
    """The positions (1, T) of the tokens in x (B, T, D)."""
    return torch.arange(x.shape[1], device=x.device)[None]


def _hidden(result: Any) -> torch.Tensor:
    """The hidden states that a layer returns, alone or as the first of several values."""
    found: torch.Tensor = result[0] if isinstance(result, tuple | list) else result
    return found


# Both are single calls of a trace, as what they do depends on values.
fx.wrap("_positions")
fx.wrap("_hidden")


def as_chain(model: nn.Module) -> nn.Module:
    """The chain of a model of Hugging Face that says what its chain is; any other as it is."""
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        return model
    base = getattr(model, str(model.base_model_prefix), None)
    plan = getattr(getattr(base, "config", None), "base_model_pp_plan", None)
    return Chain(model) if plan and base is not model else model


def check_chain(model: nn.Module, chain: nn.Module) -> None:
    """Compare the two, which have weights, on a few tokens. Raises `ConfigError` where the model's
    own forward does more than its chain, so that something would be lost."""
    if chain is model:
        return
    was = model.training
    ids = torch.arange(_TRIED[0] * _TRIED[1]).reshape(_TRIED) % 2
    try:
        with torch.no_grad():
            expected = model.eval()(input_ids=ids, use_cache=False).logits
            same = torch.equal(chain.eval()(ids), expected)
        why = "gives other logits than its submodules one after the other"
    except Exception as error:  # the model may fail in any way
        same, why = False, f"can't be run as its submodules: {first_line(error)}"
    finally:
        model.train(was)
        chain.train(was)
    if not same:
        raise ConfigError(
            f"{type(model).__name__} {why}, so it can't be cut by its base_model_pp_plan; give a "
            "module whose forward calls its blocks one by one, as launch/torch/finetune.py does"
        )
