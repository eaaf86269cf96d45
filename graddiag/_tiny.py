"""The built-in model `tiny`: a small Llama with random weights, made in code, the same on every machine."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from jaxtyping import Float
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

NAME = "tiny"
SEED = 20_240_601
CONTEXT = 2048  # tokens
DEFAULT_LENGTH = 1024  # tokens of a row unless more are asked for: smoke tests are to be quick
HIDDEN = 32
LAYERS = 4
PAD, TURN, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
EMBEDDING_STD = 0.1  # with a tied head and normed states of length sqrt(32), logits of standard deviation about 0.6


def build_tiny() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A Llama of 4 layers and about 58,000 float32 parameters, embedding and head tied, and its byte-level tokenizer.

    The weights are a function of fixed bits, not of torch's or NumPy's distributions, whose streams may change with
    their versions. Untrained, its loss is near ln(259) nats/token, that of a guess. Making it moves torch's generator.
    """
    tokenizer = _build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=3 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.device("cpu"):
        model = LlamaForCausalLM(config)
    nn.Module.to(model, torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                drawn = draw_uniform(name, tuple(parameter.shape), _standard_deviation(name, parameter.shape[1]))
                parameter.copy_(torch.from_numpy(drawn))
            else:
                parameter.fill_(1.0)  # the gain of a norm
    return model, tokenizer


def draw_uniform(name: str, shape: tuple[int, ...], std: float) -> Float[np.ndarray, " *shape"]:
    """Float32 values, uniform around 0, that depend on the name, the shape and this standard deviation alone.

    Made from the raw bits of Philox by exact arithmetic, so that they are equal to the last bit everywhere.
    """
    bits = np.random.Philox(key=[SEED, zlib.crc32(name.encode())]).random_raw(math.prod(shape))
    unit = (bits >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0  # [-1, 1), 24 bits
    return (unit * (std * math.sqrt(3.0))).astype(np.float32).reshape(shape)


def _standard_deviation(name: str, fan_in: int) -> float:
    if "embed_tokens" in name:
        return EMBEDDING_STD
    into_stream = name.endswith(("o_proj.weight", "down_proj.weight"))
    return (0.5 if into_stream else 1.0) / math.sqrt(fan_in)  # halved: 8 additions keep the stream from growing


def _build_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())  # one character for each of the 256 bytes
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (PAD, TURN, END)])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
