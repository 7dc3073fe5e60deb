"""Language models of Hugging Face: cut by what their class says, equal to the uncut model."""

from __future__ import annotations

from typing import Any

import pytest
from each import each

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from asyncdni.errors import ConfigError  # noqa: E402
from asyncdni.nn.torch.cut import trace  # noqa: E402
from asyncdni.nn.torch.huggingface import Chain, as_chain, check_chain  # noqa: E402
from asyncdni.nn.torch.layer import empty_copy  # noqa: E402

VOCABULARY, STEPS = 50, 12


def model(kind: str = "Llama", *, tied: bool = False) -> Any:
    options = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{kind}ForCausalLM")(options)


def ids() -> Any:
    return torch.randint(VOCABULARY, (3, STEPS), generator=torch.Generator().manual_seed(1))


@each("kind", ["Llama", "Qwen2", "Mistral"])
def test_the_parts_give_the_models_own_logits_and_gradients_to_the_last_bit(kind: str) -> None:
    whole = model(kind)
    chain = as_chain(whole)
    check_chain(whole, chain)
    begins = ["model.layers.1", "lm_head"]
    cut = trace(as_chain(empty_copy(whole, "meta")), (STEPS,), begins)
    x = ids()
    for begin, end in zip(["", *begins], [*begins, ""], strict=True):
        x = torch.fx.GraphModule(whole, cut.part(begin, end).graph)(x)
    logits = whole(ids()).logits
    assert torch.equal(x, logits)
    own = torch.autograd.grad(logits.sum(), list(whole.parameters()))
    cut_up = torch.autograd.grad(x.sum(), list(whole.parameters()))
    assert all(map(torch.equal, own, cut_up))


def test_every_block_may_begin_a_stage_and_names_are_the_models_own() -> None:
    whole = model()
    cut = trace(as_chain(empty_copy(whole, "meta")), (STEPS,))
    blocks = ["model.layers.0", "model.layers.1", "model.layers.2"]
    assert [name for name in cut.names() if name.count(".") < 3] == [
        *blocks,
        "model.norm",
        "lm_head",
    ]
    part = cut.part("model.layers.1", "model.layers.2")
    assert set(dict(part.named_parameters())) == {
        name for name, _ in whole.named_parameters() if name.startswith("model.layers.1.")
    }


def test_tied_embeddings_become_stages_of_their_own() -> None:
    cut = trace(as_chain(empty_copy(model(tied=True), "meta")), (STEPS,))
    assert cut.parting() == ["model.layers.0", "lm_head"]
    begins = ["model.layers.0", "model.layers.1", "lm_head"]
    cut.check(begins)
    assert cut.sharers(begins) == {3: 0}
    with pytest.raises(
        ConfigError, match=r"cut before model\.layers\.0 and lm_head too"
    ) as refused:
        cut.check(["model.layers.1"])
    assert "lm_head.weight are also those of model.embed_tokens" in str(refused.value)


def of_opt(**options: Any) -> Any:
    given = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    given |= {"vocab_size": VOCABULARY, "max_position_embeddings": 32, "dropout": 0.0}
    given |= {"word_embed_proj_dim": 16, **options}
    torch.manual_seed(0)
    return transformers.OPTForCausalLM(transformers.OPTConfig(**given))


def of_bloom(**options: Any) -> Any:
    given = {"hidden_size": 16, "n_layer": 2, "n_head": 2, "vocab_size": VOCABULARY, **options}
    torch.manual_seed(0)
    return transformers.BloomForCausalLM(transformers.BloomConfig(**given))


@each(
    "make, begins",
    [
        (of_opt, ["model.decoder.embed_positions", "model.decoder.layers.1", "lm_head"]),
        (of_bloom, ["transformer.word_embeddings_layernorm", "transformer.h.1", "lm_head"]),
    ],
)
def test_positions_and_biases_that_are_made_of_the_mask_cross_a_cut(
    make: Any, begins: list[str]
) -> None:
    whole, padded = make(), torch.ones(3, STEPS, dtype=torch.int64)
    padded[1, 7:] = 0
    chain = as_chain(whole)
    check_chain(whole, chain)
    form = [[name, "int", [-STEPS]] for name in ("input_ids", "attention_mask")]
    cut = trace(as_chain(empty_copy(whole, "meta")), form, begins)
    cut.check(begins)
    for steps in (STEPS, STEPS - 4):
        x = torch.stack([ids()[:, :steps], padded[:, :steps]], 2).float()
        for begin, end in zip(["", *begins], [*begins, ""], strict=True):
            x = torch.fx.GraphModule(chain, cut.part(begin, end).graph)(x)
        given = {"input_ids": ids()[:, :steps], "attention_mask": padded[:, :steps]}
        assert torch.equal(x, whole(**given).logits)


def test_blocks_that_are_left_out_at_random_are_refused() -> None:
    whole = of_opt(layerdrop=0.1)
    with pytest.raises(ConfigError, match=r"layerdrop = 0\.1 in its config.*set layerdrop = 0"):
        check_chain(whole, as_chain(whole))


@each("attention", ["sdpa", "eager"])
def test_a_class_without_a_plan_is_seen_at_work(attention: str) -> None:
    options = transformers.GPT2Config(
        **{"vocab_size": VOCABULARY, "n_positions": STEPS, "n_embd": 8, "n_layer": 1, "n_head": 2},
        **{"bos_token_id": 0, "eos_token_id": 0, "attn_implementation": attention},
    )
    whole = transformers.GPT2LMHeadModel(options)
    chain = as_chain(whole)
    assert isinstance(chain, Chain)
    check_chain(whole, chain)
    cut = trace(as_chain(empty_copy(whole, "meta")), (STEPS,))
    assert cut.parting() == ["transformer.wpe", "lm_head"]
    named = [name for name in cut.names() if name.count(".") < 3]
    assert named == ["transformer.wpe", "transformer.h.0", "transformer.ln_f", "lm_head"]


def test_a_list_of_blocks_without_a_plan_is_enough() -> None:
    whole = model()
    whole.model.config.base_model_pp_plan = None
    chain = as_chain(whole)
    assert isinstance(chain, Chain)
    check_chain(whole, chain)


def test_other_models_stay_as_they_are() -> None:
    plain = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert as_chain(plain) is plain
    options = transformers.GPT2Config(vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    body = transformers.GPT2Model(options)  # no model for causal language modelling
    assert as_chain(body) is body


def test_a_model_that_does_more_than_its_blocks_is_refused() -> None:
    whole = model()
    chain = as_chain(whole)
    assert isinstance(chain, Chain)
    whole.register_forward_hook(lambda module, given, found: type(found)(logits=found.logits * 2))
    with pytest.raises(ConfigError, match="gives other logits than its submodules"):
        check_chain(whole, chain)
