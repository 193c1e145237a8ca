#!/usr/bin/env python3
"""GGUF files that are written open in the gguf package and in transformers, and so do the folders that are made of them.

    check_gguf.py MCOMPRESS

Tiny random models are written in every type. The gguf package unpacks the values that mcompress reads back, bit for bit;
transformers reads the file (gguf_file=) and the folder, and has the logits of both. Files of all architectures, and the
folders that are made of them again, have the perplexity of the folder that they come from, in transformers too where it
knows the files, and in llama.cpp, which rounds the inputs of quantized layers to 8 bits.
"""
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import numpy as np
import torch
import llama_cpp
from gguf import GGMLQuantizationType, GGUFReader, dequantize, quantize
from random_models import make_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

BINARY = str(Path(sys.argv[1]).resolve())
KINDS = {"llama": {}, "qwen2": {}, "qwen3": dict(head_dim=128)}
# What transformers' GGUF reader makes of a value is float32.
TYPES = ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"]
# llama.cpp has no windows of phi3, of which convert warns.
WITHOUT_WINDOW = "llama.cpp lets tokens of phi3 models attend to all before them"
# Whether transformers reads all of the file, or has its own idea of windows, caps and rotations.
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}
OTHERS = [("gpt2", dict(max_position_embeddings=1024), True), ("gemma", {}, False), ("gemma2_window", {}, False),
          ("gemma2_window", dict(head_dim=256, query_pre_attn_scalar=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0), True),
          ("gemma3_v4", {}, False),
          ("gemma3_v4", dict(head_dim=256, query_pre_attn_scalar=256, rope_parameters={"full_attention": {**PLAIN, "rope_theta": 1e6}, "sliding_attention": PLAIN}), True),
          ("phi3", {}, False), ("phi3", dict(sliding_window=None), True), ("phi3_short", dict(hidden_size=32), False),
          ("phi3_long_window", dict(hidden_size=32), False), ("llama_yarn", {}, False), ("llama_linear", {}, False), ("smollm3", dict(num_hidden_layers=5), False)]
WINDOWS, LENGTH = 8, 96
TEXT = "The quick brown fox, 1234 of them: jumps!\n\n  over it's dogs"


def run(*words):
    result = subprocess.run([BINARY, *map(str, words)], capture_output=True, text=True)
    assert result.returncode == 0, (words, result.stderr)
    return result.stdout


def logits(folder, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        return model(torch.arange(2, 42)[None]).logits


def perplexity(path, ids):
    report = json.loads(run("evaluate", path, "--eval-data", ids, "--seqlen", LENGTH, "--report", "-", "-q"))
    return report["metrics"]["before"]["perplexity"]["value"]


def their_perplexity(folder, ids, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    windows = torch.from_numpy(np.load(ids).astype(np.int64)).view(-1, LENGTH)
    with torch.no_grad():
        scores = model(windows).logits[:, :-1]
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1), windows[:, 1:].flatten()).exp().item()


def check_others(scratch):
    ids = scratch / "ids.npy"
    for number, (kind, sizes, known) in enumerate(OTHERS):
        folder = scratch / f"other{number}"
        vocabulary = make_model(kind, folder, **sizes)
        np.save(ids, np.random.default_rng(3).integers(2, vocabulary, WINDOWS * LENGTH).astype(np.int32))
        exact = perplexity(folder, ids)
        for type_name, most in (("F32", 1e-5), ("Q8_0", 0.05)):
            report = json.loads(run("convert", folder, "--format", "gguf", "--type", type_name, "-o", scratch / "other.gguf", "--force", "-q", "--report", "-"))
            ours = perplexity(scratch / "other.gguf", ids)
            theirs = their_perplexity(scratch, ids, gguf_file="other.gguf", pad_token_id=0) if known else ours
            print(f"{kind} {type_name}: perplexity {exact:.4f}, of the file {ours:.4f}" + (f", in transformers {theirs:.4f}" if known else ""), flush=True)
            assert abs(ours / exact - 1) < most and abs(theirs / ours - 1) < 1e-4, (exact, ours, theirs)
            theirs = llama_cpp.perplexity(llama_cpp.open_model(scratch / "other.gguf"), np.load(ids).reshape(-1, LENGTH))
            print(f"{kind} {type_name}: in llama.cpp {theirs:.4f}, {theirs / ours - 1:.1e} off", flush=True)
            windowed = kind.startswith("phi3") and bool(json.loads((folder / "config.json").read_text())["sliding_window"])
            assert any(WITHOUT_WINDOW in warning for warning in report["warnings"]) == windowed, report["warnings"]
            assert windowed or abs(theirs / ours - 1) < {"F32": 1e-4, "Q8_0": 3e-3}[type_name], (ours, theirs)
            run("convert", scratch / "other.gguf", "--format", "dequantized", "-o", scratch / "folder", "--force", "-q")
            again, theirs = perplexity(scratch / "folder", ids), their_perplexity(scratch / "folder", ids)
            print(f"{kind} {type_name}: perplexity of the folder {again:.4f}, in transformers {theirs:.4f}", flush=True)
            assert abs(again / ours - 1) < 1e-5 and abs(theirs / ours - 1) < 1e-4, (ours, again, theirs)


def interleaved(values, heads):
    """Rows of q and k of a llama in the order of a GGUF file."""
    rows = values.shape[0]
    return values.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(values.shape)


def check_values(file, folder, kind, config, only=None):
    """Every tensor of the file, or those of one type, unpacked by the gguf package, beside that of the folder."""
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
             "ffn_down": "mlp.down_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
    ours, found = load_file(folder / "model.safetensors"), set()
    for tensor in GGUFReader(file).tensors:
        if only and tensor.tensor_type.name != only:
            continue
        stem, end = tensor.name.rsplit(".", 1)
        if stem.startswith("blk."):
            _, block, part = stem.split(".")
            name = f"model.layers.{block}.{parts[part]}.{end}"
        else:
            name = f"{names[stem]}.{end}"
        values = ours[name].numpy()
        if kind == "llama" and stem.endswith(("attn_q", "attn_k")):
            values = interleaved(values, config.num_attention_heads if stem.endswith("q") else config.num_key_value_heads)
        theirs = dequantize(tensor.data, tensor.tensor_type).reshape(values.shape).astype(np.float32)
        assert np.array_equal(theirs, values), (tensor.name, np.abs(theirs - values).max())
        found.add(name)
    assert only or found == set(ours), set(ours) ^ found
    return len(found)


def check_rounding(file, floats):
    """Blocks beside those that the gguf package makes of the same values, which has no K types; it multiplies in other steps."""
    checked = 0
    for tensor in GGUFReader(file).tensors:
        if tensor.tensor_type.name in ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1"):
            theirs = quantize(floats[tensor.name], GGMLQuantizationType(tensor.tensor_type)).flatten().view(np.uint8)
            off = np.mean(theirs != tensor.data.flatten().view(np.uint8))
            assert off < 1e-4, (tensor.name, off)
            checked += 1
    return checked


def check_codes(scratch, config):
    """Codes that were packed before stay as they are."""
    for grid, type_name in (("--sym", "Q4_0"), ("--sym", "Q8_0"), ("--asym", "Q8_0")):
        run("quantize", scratch / "llama", "--mode", "weight-only", "--group-size", 64, grid, "-o", scratch / "packed", "--force", "-q")
        run("convert", scratch / "packed", "--format", "dequantized", "-o", scratch / "dense", "--force", "-q")
        run("convert", scratch / "packed", "--format", "gguf", "--type", type_name, "-o", scratch / "packed.gguf", "--force", "-q")
        if type_name == "Q8_0":  # as the embedding, which is floating
            run("convert", scratch / "packed.gguf", "--format", "dequantized", "-o", scratch / "back", "--force", "-q")
            embedding = load_file(scratch / "back/model.safetensors")["model.embed_tokens.weight"]
            ours = load_file(scratch / "dense/model.safetensors") | {"model.embed_tokens.weight": embedding}
            save_file(ours, scratch / "dense/model.safetensors")
        count = check_values(scratch / "packed.gguf", scratch / "dense", "llama", config, type_name)
        print(f"llama {grid} packed, then {type_name}: {count} tensors with the values of their codes", flush=True)
        assert count >= 14, count


def main():
    from transformers import AutoConfig

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        check_others(scratch)
        for kind, sizes in KINDS.items():
            # Rows of 256 are whole blocks of the K types.
            make_model(kind, scratch / kind, **{"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 8, **sizes})
            config = AutoConfig.from_pretrained(scratch / kind)
            exact = logits(scratch / kind)
            for type_name in TYPES:
                run("convert", scratch / kind, "--format", "gguf", "--type", type_name, "-o", scratch / "model.gguf", "--force", "-q")
                run("convert", scratch / "model.gguf", "--format", "dequantized", "-o", scratch / "back", "--force", "-q")
                if type_name == "F32":
                    floats = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(scratch / "model.gguf").tensors}
                elif type_name not in ("Q4_K", "Q6_K"):
                    assert check_rounding(scratch / "model.gguf", floats) >= 14
                count = check_values(scratch / "model.gguf", scratch / "back", kind, config)
                ours = logits(scratch / "back")
                theirs = logits(scratch, gguf_file="model.gguf")
                error = ((theirs - ours).norm() / ours.norm()).item()
                lost = ((ours - exact).norm() / exact.norm()).item()
                print(f"{kind} {type_name}: {count} tensors as they were written, logits to {error:.1e}, {lost:.1e} from the model's", flush=True)
                assert error < 1e-4, error
                assert lost < {"F32": 1e-6, "F16": 2e-3, "BF16": 2e-2, "Q8_0": 6e-2}.get(type_name, 0.5), lost
            if kind != "llama":  # others have a class of tokenizers of their own
                continue
            check_codes(scratch, config)
            tokens = AutoTokenizer.from_pretrained(scratch / kind)(TEXT).input_ids
            assert AutoTokenizer.from_pretrained(scratch / "back")(TEXT).input_ids == tokens
            assert AutoTokenizer.from_pretrained(scratch, gguf_file="model.gguf")(TEXT).input_ids == tokens
            assert llama_cpp.tokens(llama_cpp.open_model(scratch / "model.gguf"), TEXT) == tokens


if __name__ == "__main__":
    main()
