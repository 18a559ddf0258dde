"""A tiny Llama as a GGUF file, written as llama.cpp's converter writes one."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel

VOCABULARY = [*sorted(ByteLevel.alphabet()), "th", "<|end|>"]
"""One token per byte, one merge, and a control token."""

_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(file: Path, network: PreTrainedModel, stored: str = "F32") -> Path:
    """Write a Llama with a vocabulary of ``len(VOCABULARY)``; its matrices become ``stored``."""
    writer = gguf.GGUFWriter(file, "llama")
    config = network.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer)
    for name, parameter in network.named_parameters():
        values = parameter.detach().numpy()
        if "q_proj" in name or "k_proj" in name:
            values = _interleaved(values, config.head_dim)
        as_type = gguf.GGMLQuantizationType[stored if values.ndim == 2 else "F32"]
        if as_type != gguf.GGMLQuantizationType.F32:
            values = gguf.quants.quantize(values, as_type)
        writer.add_tensor(_gguf_name(name), values, raw_dtype=as_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(VOCABULARY)
    control = VOCABULARY.index("<|end|>")
    writer.add_token_types([3 if index == control else 1 for index in range(len(VOCABULARY))])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(control)
    writer.add_eos_token_id(control)
    writer.add_add_bos_token(False)


def _gguf_name(name: str) -> str:
    outside = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in outside:
        return outside[name]
    _, _, index, rest = name.split(".", 3)
    return f"blk.{index}.{_LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def _interleaved(weight: NDArray[np.float32], head: int) -> NDArray[np.float32]:
    """Rows as llama.cpp's rotary embedding pairs them: side by side, not half a head apart."""
    rows, columns = weight.shape
    halves = weight.reshape(rows // head, 2, head // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))
