"""Small causal LMs of many kinds, built from their configs, in float64, with weights that make gradients worth
comparing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

VOCAB = 64
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts_per_tok": 2, "experts_implementation": "eager"}


def configs() -> dict[str, PretrainedConfig]:
    """A config per architecture."""
    plain = {k: v for k, v in COMMON.items() if k != "num_key_value_heads"}
    return {
        "llama": LlamaConfig(**COMMON, tie_word_embeddings=False),
        "llama-tied": LlamaConfig(**COMMON, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
        "qwen2": Qwen2Config(**COMMON),
        "qwen3": Qwen3Config(**COMMON, head_dim=6),
        "gemma3": Gemma3TextConfig(
            **COMMON, head_dim=6, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
        "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=24, n_layer=2, n_head=4, n_positions=64, initializer_range=0.15),
        "gpt-neox": GPTNeoXConfig(**plain),
        "opt": OPTConfig(**plain, ffn_dim=40, word_embed_proj_dim=24, init_std=0.15),
        "phi3": Phi3Config(**COMMON),
        "mixtral": MixtralConfig(**COMMON, **EXPERTS, num_local_experts=4),
        "qwen3-moe": Qwen3MoeConfig(**COMMON, **EXPERTS, num_experts=4, moe_intermediate_size=16, head_dim=6),
    }


def build(
    name: str,
    *,
    vocabulary: int = VOCAB,
    context: int = 64,
    change: Mapping[str, object] = MappingProxyType({}),
    **settings: object,
) -> PreTrainedModel:
    """The model of a name, seeded; one-dimensional parameters are moved off their initial ones and zeros. `change` is
    of its config."""
    config = configs()[name]
    config.update(change)
    config.vocab_size, config.max_position_embeddings = vocabulary, context
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, **settings).double().eval()
        with torch.no_grad():
            for p in model.parameters():
                if p.dim() == 1:
                    p.add_(0.1 * torch.randn_like(p))
    return model


def with_lora(model: PreTrainedModel) -> PreTrainedModel:
    """LoRA on two projections, the head trained whole; A and B away from zero."""
    from peft import LoraConfig, get_peft_model

    with torch.random.fork_rng():
        torch.manual_seed(1)
        wrapped = (
            get_peft_model(
                model,
                LoraConfig(r=3, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"], lora_dropout=0.3),
            )
            .double()
            .eval()
        )
        with torch.no_grad():
            for n, p in wrapped.named_parameters():
                if "lora_" in n:
                    p.normal_(std=0.2)
    return wrapped
