#!/usr/bin/env python3
"""Makes tests/data/gguf: small GGUF files, and what the gguf package reads from them.

    make_gguf.py                (gguf 0.19.0, numpy, safetensors)

blocks.gguf holds one tensor of each type that we read, of random bytes as blocks (fields of scales kept small), and
blocks.safetensors their values by gguf.quants.dequantize. llama.gguf is decoders/llama with q and k in llama.cpp's
row order, all matrices F16 but the embedding, and the tokenizer of tokenizers/gpt2.json. The other files are decoders/NAME as
convert_hf_to_gguf.py of llama.cpp writes them, in F32, by the names of the package's own map; gemma2_window has the
SentencePiece tokenizer of tokenizers/sp_bpe.
"""
import json
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize
from protobuf import fields
from safetensors.numpy import load_file, save_file

HERE = Path(__file__).parent
OUT = HERE / "gguf"
TYPES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def blocks():
    random = np.random.default_rng(5)
    writer = gguf.GGUFWriter(OUT / "blocks.gguf", "none")
    writer.add_uint32("some.count", 7)
    writer.add_float32("some.number", 0.5)
    writer.add_bool("some.flag", True)
    writer.add_array("some.words", ["a", "", "b c"])
    writer.add_array("some.integers", [-1, 2, 3])
    expected = {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        values, size = gguf.GGML_QUANT_SIZES[kind]
        rows, columns = 3, 512
        if name in HALVES:
            data = random.integers(0, 256, (rows, columns // values, size), dtype=np.uint8)
            for at in HALVES[name]:
                data[..., at : at + 2] = random.normal(0, 0.1, (*data.shape[:2], 1)).astype(np.float16).view(np.uint8)
            data = data.reshape(rows, -1)
        else:
            exact = random.normal(0, 1, (rows, columns)).astype(np.float32)
            data = {"F32": exact, "F16": exact.astype(np.float16), "BF16": (exact.view(np.uint32) >> 16).astype(np.uint16)}[name]
            data = data.view(np.uint8).reshape(rows, -1) if name == "BF16" else data
        writer.add_tensor(name, data, raw_dtype=kind)
        expected[name] = dequantize(data, kind).astype(np.float32).reshape(rows, columns)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(expected, OUT / "blocks.safetensors")


def in_llama_order(rows, heads):
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def llama():
    config = json.loads((HERE / "decoders/llama/config.json").read_text())
    tensors = load_file(HERE / "decoders/llama/model.safetensors")
    tokenizer = json.loads((HERE / "tokenizers/gpt2.json").read_text())
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
             "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
             "mlp.down_proj": "ffn_down"}
    writer = gguf.GGUFWriter(OUT / "llama.gguf", "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    special = {token["id"] for token in tokenizer["added_tokens"]}
    tokens = [token for token, _ in vocabulary] + [f"[PAD{i}]" for i in range(len(vocabulary), config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in special else 1 if i < len(vocabulary) else 5 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    for name, value in tensors.items():
        if name == "model.embed_tokens.weight":
            writer.add_tensor("token_embd.weight", value)
        elif name == "model.norm.weight":
            writer.add_tensor("output_norm.weight", value)
        else:
            _, _, block, part = name.split(".", 3)
            part, ending = part.rsplit(".", 1)
            if part in ("self_attn.q_proj", "self_attn.k_proj"):
                value = in_llama_order(value, config["num_attention_heads" if "q_proj" in part else "num_key_value_heads"])
            writer.add_tensor(f"blk.{block}.{names[part]}.{ending}", value if value.ndim == 1 else value.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def sentencepiece_pieces(path):
    """(text, score, type) of each piece: field 1 of the model, whose fields are 1, 2 and 3."""
    for number, value in fields(path.read_bytes()):
        if number == 1:
            piece = dict(fields(value))
            yield piece[1].decode(), float(np.frombuffer(piece.get(2, bytes(4)), "<f4")[0]), piece.get(3, 1)


OTHERS = {"gemma2_window": "gemma2", "gemma3_v4": "gemma3", "gpt2": "gpt2", "phi3_long_window": "phi3", "qwen2": "qwen2", "qwen3": "qwen3",
          "smollm3": "smollm3"}


def other(name, architecture):
    config = json.loads((HERE / f"decoders/{name}/config.json").read_text())
    tensors = load_file(HERE / f"decoders/{name}/model.safetensors")
    def value(*keys):
        return next((config[key] for key in keys if config.get(key) is not None), None)
    blocks = value("num_hidden_layers", "n_layer")
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), blocks)
    writer = gguf.GGUFWriter(OUT / f"{name}.gguf", architecture)
    writer.add_block_count(blocks)
    writer.add_context_length(value("max_position_embeddings", "n_positions"))
    writer.add_embedding_length(value("hidden_size", "n_embd"))
    writer.add_feed_forward_length(4 * config["n_embd"] if architecture == "gpt2" else config["intermediate_size"])
    writer.add_head_count(value("num_attention_heads", "n_head"))
    if architecture == "gpt2":
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    else:
        writer.add_head_count_kv(config["num_key_value_heads"])
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
        writer.add_rope_freq_base(value("rope_theta") or config["rope_parameters"]["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if architecture == "gemma3":
        writer.add_float32("gemma3.rope.freq_base_swa", config["rope_local_base_freq"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config["rope_scaling"]["factor"])
    if architecture == "phi3":
        rope = config["rope_parameters"]
        width = config["hidden_size"] // config["num_attention_heads"]
        writer.add_rope_dimension_count(int(rope["partial_rotary_factor"] * width))
        original = config["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(config["max_position_embeddings"] / original) / np.log(original))))
        for length in ("long", "short"):
            writer.add_tensor(f"rope_factors_{length}.weight", np.array(rope[f"{length}_factor"], np.float32))
    if architecture == "gemma2":
        pieces = list(sentencepiece_pieces(HERE / "tokenizers/sp_bpe/tokenizer.model"))
        writer.add_tokenizer_model("llama")
        writer.add_token_list([text for text, _, _ in pieces])
        writer.add_token_scores([score for _, score, _ in pieces])
        writer.add_token_types([kind for _, _, kind in pieces])
        writer.add_bos_token_id(1)
        writer.add_add_bos_token(True)
        writer.add_add_space_prefix(True)
    for key, data in tensors.items():
        if key.endswith(".attn.bias") or (key == "lm_head.weight" and config.get("tie_word_embeddings")):
            continue
        if architecture.startswith("gemma") and "norm" in key:
            data = data + 1
        if architecture == "smollm3" and (".q_proj" in key or ".k_proj" in key):
            data = in_llama_order(data, config["num_attention_heads" if ".q_proj" in key else "num_key_value_heads"])
        if architecture == "gpt2" and key.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            data = np.ascontiguousarray(data.T)
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    blocks()
    llama()
    for name, architecture in OTHERS.items():
        other(name, architecture)
