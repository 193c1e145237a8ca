#!/usr/bin/env python3
"""Folders in the formats of AWQ and compressed-tensors open in the programs that they are for.

    check_packed.py MCOMPRESS

Tiny random models are rounded to nearest, by GPTQ and by AWQ, and opened: the weights that each reader unpacks are ours
bit for bit in its type, and logits are those of our own forward pass over the same folder, whose perplexity on the
same ids is compared with the reader's.
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
from random_models import make_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

BINARY = str(Path(sys.argv[1]).resolve())
TYPES = {"llama": {}, "qwen2": {}, "qwen3": dict(head_dim=16), "gemma": dict(head_dim=16), "opt": dict(ffn_dim=128)}
WINDOWS, LENGTH = 16, 32


def run(*words):
    result = subprocess.run([BINARY, *map(str, words)], capture_output=True, text=True)
    assert result.returncode == 0, (words, result.stderr)
    return result.stdout


def our_perplexity(folder, ids):
    report = json.loads(run("evaluate", folder, "--eval-data", ids, "--seqlen", LENGTH, "--report", "-", "-q"))
    return report["metrics"]["before"]["perplexity"]["value"]


def their_perplexity(model, ids):
    windows = torch.from_numpy(np.load(ids).astype(np.int64)).view(-1, LENGTH)
    with torch.no_grad():
        logits = model(windows).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).exp().item()


def float_model(dense, layers):
    """The float model of the dequantized folder, what is not packed being float16 as the packed folder has it."""
    model = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not any(name.endswith(layer + ".weight") for layer in layers):
                value.copy_(value.half().float())
    return model


def check_logits(model, dense, layers, vocabulary, most):
    ids = torch.arange(2, 2 + 40)[None] % vocabulary
    with torch.no_grad():
        expected, got = float_model(dense, layers)(ids).logits, model(ids).logits.float()
    error = ((got - expected).norm() / expected.norm()).item()
    assert error < most, error
    return error


def packed_layers(folder, suffix):
    return [name.removesuffix(suffix) for name in load_file(folder / "model.safetensors") if name.endswith(suffix)]


def check_awq(folder, dense, vocabulary):
    """GPTQModel's unpacking, and the logits of its model: in float16, which it computes in, and with products in float32."""
    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear, dequantize_gemm

    layers = packed_layers(folder, ".qweight")
    model = GPTQModel.load(str(folder), device="cpu", dtype=torch.float16, backend=BACKEND.AWQ_TORCH).model
    ours, found = load_file(dense / "model.safetensors"), 0
    error = check_logits(model, dense, layers, vocabulary, 5e-3)
    for name, module in list(model.named_modules()):
        if not isinstance(module, AwqTorchLinear):
            continue
        key = next(layer for layer in layers if name.endswith(layer)) + ".weight"
        theirs = dequantize_gemm(qweight=module.qweight, qzeros=module.qzeros, scales=module.scales, bits=module.bits, group_size=module.group_size)
        assert torch.equal(theirs.t().to(torch.float16), ours[key].to(torch.float16)), name
        found += 1
        exact = torch.nn.Linear(*theirs.shape, bias=module.bias is not None)
        exact.weight.data, parent = theirs.t().float(), name.rpartition(".")[0]
        if module.bias is not None:
            exact.bias.data = module.bias.data
        setattr(model.get_submodule(parent), name.rpartition(".")[2], exact)
    assert found == len(layers) >= 4, (found, len(layers))
    return found, error, check_logits(model.float(), dense, layers, vocabulary, 1e-3)


def check_plain_codes(folder, dense):
    """(code - zero point) * scale of its group, by NumPy alone."""
    stored, ours = load_file(folder / "model.safetensors"), load_file(dense / "model.safetensors")
    layers = packed_layers(folder, ".weight_scale")
    for layer in layers:
        codes, scales = stored[layer + ".weight"].numpy(), stored[layer + ".weight_scale"].numpy().astype(np.float32)
        zeros = stored[layer + ".weight_zero_point"].numpy() if layer + ".weight_zero_point" in stored else np.zeros(scales.shape, np.int8)
        size = codes.shape[1] // scales.shape[1]
        values = (codes.astype(np.float32) - zeros.astype(np.float32).repeat(size, 1)) * scales.repeat(size, 1)
        assert codes.dtype == np.int8 and np.array_equal(values, ours[layer + ".weight"].numpy()), layer
    assert len(layers) >= 4, layers
    return layers


def check_compressed_tensors(folder, dense, vocabulary, ids, suffix=".weight_packed"):
    from transformers import CompressedTensorsConfig

    layers = packed_layers(folder, suffix)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=CompressedTensorsConfig(run_compressed=False)).eval()
    ours, found = load_file(dense / "model.safetensors"), 0
    state = model.state_dict()
    for layer in layers:
        theirs = next(value for name, value in state.items() if name.endswith(layer + ".weight"))
        assert torch.equal(theirs.to(torch.float16), ours[layer + ".weight"].to(torch.float16)), layer
        found += 1
    assert found >= 4, found
    error = check_logits(model, dense, layers, vocabulary, 1e-3)
    ratio = their_perplexity(model, ids) / our_perplexity(folder, ids)
    assert abs(ratio - 1) < 1e-3, ratio
    return found, error


def check_as_loaded(folder, dense, vocabulary, *embeddings):
    """As transformers loads it by default: dequantize=True has one scheme for all layers, whatever their groups say."""
    layers = [*packed_layers(folder, ".weight_packed"), *embeddings]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    error = check_logits(model, dense, layers, vocabulary, 1e-3)
    ours, state = load_file(dense / "model.safetensors"), model.state_dict()
    for layer in layers:
        assert torch.equal(state[layer + ".weight"].half(), ours[layer + ".weight"].half()), layer
    return error


def check_mixed(scratch, vocabulary, ids):
    """Layers of other bits and groups, and layers that stay."""
    calibration = ["--calib-data", ids, "--seqlen", LENGTH, "--nsamples", WINDOWS]
    settings = ["--group-size", "32", "--force", "-q", "-o"]
    layers = ["--format", "compressed-tensors", "--layer-config", "down_proj=bits:8,group:64", "--layer-config", "o_proj=group:16", "--ignore", "k_proj"]
    for words in (["quantize", scratch / "llama", "--mode", "weight-only"], ["awq", scratch / "llama", *calibration], ["gptq", scratch / "llama", *calibration]):
        run(*words, *settings, "ct", *layers)
        run("convert", "ct", "--format", "dequantized", "-o", "dense", "--force", "-q")
        print(f"llama {words[0]} of several widths: logits to {check_as_loaded(scratch / 'ct', scratch / 'dense', vocabulary):.1e}", flush=True)


def main():
    try:
        import gptqmodel  # noqa: F401
    except ImportError:
        print("gptqmodel is not installed")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.chdir(scratch)  # GPTQModel leaves logs where it runs
        ids = scratch / "ids.npy"
        for kind in TYPES:
            vocabulary = make_model(kind, scratch / kind, **{"intermediate_size": 128, **TYPES[kind]})
            np.save(ids, np.random.default_rng(1).integers(0, vocabulary, WINDOWS * LENGTH).astype(np.int32))
            calibration = ["--calib-data", ids, "--seqlen", LENGTH, "--nsamples", WINDOWS]
            methods = {"weight-only": ["quantize", "--mode", "weight-only"], "gptq": ["gptq", *calibration], "awq": ["awq", *calibration]}
            for method, words in methods.items():
                for grid in ("--sym", "--asym"):
                    settings = [scratch / kind, "--group-size", "32", grid, "--force", "-q"]
                    run(*words, *settings, "--format", "awq", "-o", "awq")
                    run(*words, *settings, "--format", "compressed-tensors", "-o", "ct")
                    run("convert", "ct", "--format", "dequantized", "-o", "dense", "--force", "-q")
                    layers, half, error = check_awq(scratch / "awq", scratch / "dense", vocabulary)
                    print(f"{kind} {method} {grid}: awq, {layers} layers as they were written, logits to {half:.1e}, in float32 {error:.1e}", flush=True)
                    layers, error = check_compressed_tensors(scratch / "ct", scratch / "dense", vocabulary, ids)
                    print(f"{kind} {method} {grid}: compressed-tensors, {layers} layers, logits to {error:.1e}", flush=True)
        for bits, group in (("8", "32"), ("8", "-1"), ("4", "-1"), ("2", "32"), ("3", "32"), ("5", "32"), ("6", "-1"), ("7", "32")):
            for grid in ("--sym", "--asym"):
                run("quantize", scratch / "llama", "--mode", "weight-only", "--bits", bits, "--group-size", group, grid, "--force", "-q", "--format", "compressed-tensors", "-o", "ct")
                run("convert", "ct", "--format", "dequantized", "-o", "dense", "--force", "-q")
                run("convert", "ct", "--format", "safetensors", "-o", "plain", "--force", "-q")
                check_plain_codes(scratch / "plain", scratch / "dense")
                error = check_compressed_tensors(scratch / "plain", scratch / "dense", vocabulary, ids, ".weight_scale")[1]
                print(f"llama {bits} bits, groups of {group} {grid}: codes in bytes, logits to {error:.1e}", flush=True)
                print(f"llama {bits} bits, groups of {group} {grid}: logits to {check_compressed_tensors(scratch / 'ct', scratch / 'dense', vocabulary, ids)[1]:.1e}", flush=True)
        check_mixed(scratch, vocabulary, ids)
        make_model("llama", scratch / "untied", intermediate_size=128, tie_word_embeddings=False)
        for bits in ("4", "8"):
            run("quantize", scratch / "untied", "--mode", "weight-only", "--bits", bits, "--embeddings", "8", "--group-size", "32", "--force", "-q", "--format", "compressed-tensors", "-o", "ct")
            run("convert", "ct", "--format", "dequantized", "-o", "dense", "--force", "-q")
            print(f"llama of {bits} bits with an 8-bit embedding: logits to {check_as_loaded(scratch / 'ct', scratch / 'dense', vocabulary, 'model.embed_tokens'):.1e}", flush=True)


if __name__ == "__main__":
    main()
