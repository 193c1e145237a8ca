#!/usr/bin/env python3
"""Makes tests/data/decoders: tiny random language models, and the logits that transformers computes with them.

    make_decoders.py            (transformers 5.24.0, torch 2.13.0, of .venv-readers)

NAME/ is a Hugging Face folder; NAME.safetensors holds ids [2, length] and the logits of the last 12 of them,
[2, 12, vocabulary] in float32.
Weights are large enough that every part of a block changes the logits.
"""
import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import (Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, GemmaConfig, GemmaForCausalLM, GPT2Config,
                          GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, OPTConfig, OPTForCausalLM,
                          Phi3Config, Phi3ForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM, SmolLM3Config,
                          SmolLM3ForCausalLM)

OUT = Path(__file__).parent / "decoders"
SMALL = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=96,
             max_position_embeddings=128, bos_token_id=0, eos_token_id=1, pad_token_id=None)
LENGTH = 96
GEMMA = dict(head_dim=8, tie_word_embeddings=True)
LONGROPE = dict(short_factor=[1.0, 1.1, 1.3], long_factor=[1.0, 2.0, 4.0], partial_rotary_factor=0.75)


def rope(kind, **values):
    return dict(rope_parameters={"rope_type": kind, "rope_theta": 100.0, **values})


MODELS = {
    # The vocabulary of tokenizers/gpt2.json fits.
    "llama": (LlamaConfig, LlamaForCausalLM, dict(vocab_size=448, tie_word_embeddings=True)),
    "llama_biased": (LlamaConfig, LlamaForCausalLM, dict(attention_bias=True, mlp_bias=True, head_dim=6, num_key_value_heads=1)),
    "llama_linear": (LlamaConfig, LlamaForCausalLM, rope("linear", factor=3.0)),
    "llama_llama3": (LlamaConfig, LlamaForCausalLM, dict(head_dim=16, **rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                                         original_max_position_embeddings=32))),
    "llama_yarn": (LlamaConfig, LlamaForCausalLM, dict(head_dim=16, **rope("yarn", factor=4.0, original_max_position_embeddings=32))),
    "llama_v4": (LlamaConfig, LlamaForCausalLM, dict(head_dim=16, **rope("llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=2.0,
                                                                     original_max_position_embeddings=32))),
    "mistral": (MistralConfig, MistralForCausalLM, dict(sliding_window=20, head_dim=8)),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, dict(tie_word_embeddings=True)),
    "qwen2_window": (Qwen2Config, Qwen2ForCausalLM, dict(use_sliding_window=True, sliding_window=70, max_window_layers=1)),
    "gemma": (GemmaConfig, GemmaForCausalLM, GEMMA),
    "gemma2_window": (Gemma2Config, Gemma2ForCausalLM, dict(sliding_window=20, query_pre_attn_scalar=8, attn_logit_softcapping=2.0,
                                                            final_logit_softcapping=5.0, **GEMMA)),
    "gemma3_window": (Gemma3TextConfig, Gemma3ForCausalLM, dict(
        sliding_window=20, query_pre_attn_scalar=12, num_hidden_layers=3, layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}, **GEMMA)),
    "gemma3_v4": (Gemma3TextConfig, Gemma3ForCausalLM, dict(
        sliding_window=20, num_hidden_layers=6, query_pre_attn_scalar=8,
        rope_parameters={"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 50.0}}, **GEMMA)),
    "gpt2": (GPT2Config, GPT2LMHeadModel, {}),
    "opt": (OPTConfig, OPTForCausalLM, dict(ffn_dim=24)),
    "phi3": (Phi3Config, Phi3ForCausalLM, dict(sliding_window=20, **rope("default"))),
    "phi3_short": (Phi3Config, Phi3ForCausalLM, dict(hidden_size=32, original_max_position_embeddings=64,
                                                     **rope("longrope", original_max_position_embeddings=64, **LONGROPE))),
    "phi3_long_window": (Phi3Config, Phi3ForCausalLM, dict(hidden_size=32, original_max_position_embeddings=64, sliding_window=90,
                                                           **rope("longrope", original_max_position_embeddings=64, **LONGROPE))),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, dict(head_dim=8)),
    # Without layer_types, as transformers 4 wrote them.
    "qwen3_window": (Qwen3Config, Qwen3ForCausalLM, dict(head_dim=8, use_sliding_window=True, sliding_window=20, max_window_layers=1)),
    "smollm3_window": (SmolLM3Config, SmolLM3ForCausalLM, dict(use_sliding_window=True, sliding_window=70, no_rope_layers=[0, 1])),
    "smollm3": (SmolLM3Config, SmolLM3ForCausalLM, dict(num_hidden_layers=4, tie_word_embeddings=True)),
}


def randomize(model, name, size):
    """Norms about what leaves values as they are, all else of this deviation about 0."""
    with torch.no_grad():
        for key, value in model.named_parameters():
            if ("norm" in key or "ln_" in key) and key.endswith("weight"):
                value.copy_((0 if "gemma" in name else 1) + 0.3 * torch.randn_like(value))
            else:
                value.normal_(0, size)


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    for name, (config_type, model_type, changes) in MODELS.items():
        torch.manual_seed(len(name))
        model = model_type(config_type(**{**SMALL, **changes})).eval()
        randomize(model, name, 0.35)
        folder = OUT / name
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        if name == "llama_v4":  # as transformers 4 wrote it
            config = json.loads((folder / "config.json").read_text())
            scaling = config.pop("rope_parameters")
            config["rope_theta"] = scaling.pop("rope_theta")
            config["rope_scaling"] = scaling
            config["torch_dtype"] = config.pop("dtype")
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if name in ("qwen3_window", "smollm3_window"):
            config = json.loads((folder / "config.json").read_text())
            config.pop("layer_types")
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if name == "gemma3_v4":
            config = json.loads((folder / "config.json").read_text())
            both = config.pop("rope_parameters")
            config.pop("layer_types")
            config |= dict(rope_theta=1000.0, rope_local_base_freq=50.0, sliding_window_pattern=6,
                           rope_scaling={"rope_type": "linear", "factor": both["full_attention"]["factor"]})
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        if name == "gpt2":  # as the first files have it, without the name of the body
            tensors = load_file(folder / "model.safetensors")
            tensors = {key.removeprefix("transformer."): value for key, value in tensors.items()}
            tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
            save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        ids = torch.randint(0, model.config.vocab_size, (2, LENGTH if "window" in name or name in ("mistral", "llama_yarn") else 40))
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits
        save_file({"ids": ids, "logits": logits[:, -12:].contiguous()}, OUT / f"{name}.safetensors")
    for path in OUT.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
