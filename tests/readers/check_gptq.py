#!/usr/bin/env python3
"""Folders in GPTQ's format open in GPTQModel and in transformers, with the weights and logits that they were made with.

    check_gptq.py MCOMPRESS

Tiny random models of every architecture are made here, rounded on random ids, and opened: the weights that GPTQModel
unpacks are ours bit for bit in its type, and the logits of transformers are those of a float model with the same values.
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
from transformers import AutoModelForCausalLM, GPTQConfig

BINARY = str(Path(sys.argv[1]).resolve())
# Which of make_decoders.py's, with other sizes where a layer would not fit GPTQ's format. Not GPT-2: GPTQModel 7.6 and
# transformers 5.24 together fail to make its layers, whoever wrote the folder.
TYPES = {"llama": {}, "mistral": dict(head_dim=16), "qwen2": {}, "qwen3": dict(head_dim=16), "gemma": dict(head_dim=16),
         "gemma2_window": dict(head_dim=16), "gemma3_window": dict(head_dim=16), "opt": dict(ffn_dim=96), "phi3": {}, "smollm3": {}}
# Two ways of each setting that a reader must follow.
SETTINGS = [["--bits", "4"], ["--bits", "4", "--asym"], ["--bits", "8"], ["--bits", "2"], ["--bits", "3"],
            ["--bits", "4", "--no-static-groups"], ["--bits", "4", "--group-size", "-1"], ["--bits", "4", "--layer-config", r"down_proj=bits:8"],
            ["--bits", "4", "--ignore", "mlp"]]


def gptq(source, output, ids, *options):
    command = [BINARY, "gptq", source, "-o", output, "--calib-data", ids, "--seqlen", "32", "--nsamples", "16", *([] if "--group-size" in options else ["--group-size", "32"]), "--force", "-q", *options]
    run = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert run.returncode == 0, (command, run.stderr)


def check_weights(folder, dense):
    """GPTQModel's own unpacking against the values that the program says the codes stand for."""
    from gptqmodel import BACKEND, GPTQModel

    model = GPTQModel.load(str(folder), device="cpu", dtype=torch.float16, backend=BACKEND.GPTQ_TORCH).model
    ours, found = load_file(dense / "model.safetensors"), 0
    for name, module in model.named_modules():
        if not hasattr(module, "dequantize_weight"):
            continue
        theirs = module.dequantize_weight()
        key = next(key for key in ours if key.endswith(name + ".weight") or (name + ".weight").endswith(key))
        exact = ours[key] if theirs.shape == ours[key].shape and type(module).__name__ != "Linear" and "c_" in name else ours[key].t()
        assert torch.equal(theirs.to(torch.float16), exact.to(torch.float16)), name
        found += 1
    return found


def check_logits(folder, dense, vocabulary):
    """In float32, all that is not rounded being float16 as the folder has it."""
    ids = torch.arange(2, 2 + 40)[None] % vocabulary
    exact = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()
    rounded = {name.removesuffix(".qweight") for name in load_file(folder / "model.safetensors") if name.endswith(".qweight")}
    with torch.no_grad():
        for name, value in exact.named_parameters():
            if not any(name == layer + ".weight" or name == "transformer." + layer + ".weight" for layer in rounded):
                value.copy_(value.half().float())
        expected = exact(ids).logits
        # The backend that unpacks in float16; the one that transformers would take on a CPU computes in bfloat16.
        bits = json.loads((folder / "config.json").read_text())["quantization_config"]["bits"]
        config = GPTQConfig(bits=bits, backend="gptq_torch")
        got = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", quantization_config=config).eval()(ids).logits
    error = ((got - expected).norm() / expected.norm()).item()
    assert error < 1e-3, error
    return error


def check_other_ways(scratch, vocabulary):
    """GPTQ's format as other methods write it, and as codes come from other formats."""
    calibration = ["--calib-data", "ids.npy", "--seqlen", "32", "--nsamples", "16"]
    settings = ["--group-size", "32", "--force", "-q", "-o"]

    def run(*words):
        result = subprocess.run([BINARY, *map(str, words)], capture_output=True, text=True)
        assert result.returncode == 0, (words, result.stderr)

    for words in (["quantize", "llama", "--mode", "weight-only"], ["awq", "llama", *calibration]):
        for form in ("gptq", "awq", "compressed-tensors", "safetensors"):
            run(*words, *settings, "first", "--format", form)
            run("convert", "first", "--format", "gptq", "-o", "q", "--force", "-q") if form != "gptq" else run(*words, *settings, "q", "--format", form)
            run("convert", "q", "--format", "dequantized", "-o", "dense", "--force", "-q")
            error, layers = check_logits(scratch / "q", scratch / "dense", vocabulary), check_weights(scratch / "q", scratch / "dense")
            print(f"llama {words[0]}, from {form}: logits to {error:.1e}, {layers} layers as they were written", flush=True)
            assert layers == 14, layers


def check_programs(scratch):
    """torch.jit.load opens rounded programs, whose outputs are near those of the float ones."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 16)).eval()
    inputs = torch.randn(256, 3, 6, 6)
    np.save(scratch / "inputs.npy", inputs.numpy())
    torch.jit.script(model).save(scratch / "script.pt")
    torch.jit.trace(model, inputs[:2]).save(scratch / "trace.pt")
    exact = model(inputs)
    for form in ("script", "trace"):
        for options, most in (("--bits 8", 0.01), ("--bits 4", 0.1), ("--bits 4 --asym --no-static-groups", 0.1), ("--bits 3", 0.2), ("--bits 2 --asym", 0.4)):
            run = subprocess.run([BINARY, "gptq", scratch / f"{form}.pt", "-o", scratch / "rounded.pt", "--calib-data", scratch / "inputs.npy", "--group-size", "36",
                                  "--group-size-fallback", "tail", "--nsamples", "256", "--force", "-q", *options.split()], capture_output=True, text=True)
            assert run.returncode == 0, run.stderr
            with torch.no_grad():
                got = torch.jit.load(scratch / "rounded.pt")(inputs)
            error = ((got - exact).norm() / exact.norm()).item()
            print(f"{form} {options}: outputs to {error:.1e}", flush=True)
            assert error < most, error


def main():
    try:
        import gptqmodel  # noqa: F401
    except ImportError:
        print("gptqmodel is not installed")
        sys.exit(77)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        os.chdir(scratch)  # GPTQModel leaves logs where it runs
        check_programs(scratch)
        for kind in TYPES:
            vocabulary = make_model(kind, scratch / kind, **{"intermediate_size": 96, **TYPES[kind]})
            np.save(scratch / "ids.npy", np.random.default_rng(1).integers(0, vocabulary, 16 * 32).astype(np.int32))
            if kind == "llama":
                check_other_ways(scratch, vocabulary)
            for options in SETTINGS if kind == "llama" else SETTINGS[:2]:
                folder, dense = scratch / "q", scratch / "dense"
                gptq(scratch / kind, folder, scratch / "ids.npy", *options)
                gptq(scratch / kind, dense, scratch / "ids.npy", *options, "--format", "dequantized")
                # transformers knows no overrides of single layers.
                if "--layer-config" not in options:
                    print(f"{kind} {' '.join(options)}: logits to {check_logits(folder, dense, vocabulary):.1e}", flush=True)
                # GPTQModel wants Phi-3's gate and up apart, which transformers stores as one.
                if kind != "phi3":
                    layers = check_weights(folder, dense)
                    print(f"{kind} {' '.join(options)}: {layers} layers as they were written", flush=True)
                    assert layers >= 4, layers


if __name__ == "__main__":
    main()
