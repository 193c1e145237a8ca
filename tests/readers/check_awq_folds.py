#!/usr/bin/env python3
"""Scales that AWQ moves cancel out in every architecture: transformers computes nearly the logits of the float model.

    check_awq_folds.py MCOMPRESS

Rounded to 8 bits about as little is lost as by rounding to nearest, so that a scale which is moved wrongly is seen at once.
Norms of the random models are uneven, so that scales are moved.
"""
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import numpy as np
import torch
from random_models import make_model
from running import report_of
from transformers import AutoModelForCausalLM

BINARY = sys.argv[1]
NORMS, UP, VALUE = 2, 1, 1  # folds of a block
HEADS = dict(num_key_value_heads=4)  # each with its own v, from which o takes scales
ARCHITECTURES = {
    "llama": ({}, NORMS + UP), "llama_biased": ({}, NORMS + UP), "mistral": ({}, NORMS + UP), "qwen2": (HEADS, NORMS + UP + VALUE),
    "qwen3": (dict(head_dim=16), NORMS + UP), "gemma": (dict(head_dim=16, **HEADS), NORMS + UP + VALUE),
    "gemma2_window": (dict(head_dim=16), NORMS + UP), "gemma3_window": (dict(head_dim=16), NORMS + UP),
    "phi3": ({}, NORMS + UP), "phi3_heads": (HEADS, NORMS + UP + VALUE), "smollm3": ({}, NORMS + UP),
    # Behind GELU nothing makes up for a scale; behind ReLU fc1 does.
    "gpt2": ({}, NORMS + VALUE), "opt": (dict(ffn_dim=128), NORMS + UP + VALUE),
}
MOST = 1.5  # times the error of rounding to nearest


def logits(folder, ids):
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits


def error_of(folder, ids, expected):
    return ((logits(folder, ids) - expected).norm() / expected.norm()).item()


def main():
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for kind, (sizes, folds_of_block) in ARCHITECTURES.items():
            source = scratch / kind
            vocabulary = make_model(kind.removesuffix("_heads"), source, **{"intermediate_size": 128, **sizes})
            np.save(scratch / "ids.npy", np.random.default_rng(1).integers(0, vocabulary, 16 * 32).astype(np.int32))
            settings = [source, "-o", scratch / "out", "--bits", 8, "--group-size", 32, "--no-mse", "--format", "dequantized"]
            ids = torch.arange(2, 2 + 40)[None] % vocabulary
            expected = logits(source, ids)
            report_of(BINARY, "quantize", "--mode", "weight-only", *settings)
            nearest = error_of(scratch / "out", ids, expected)
            report = report_of(BINARY, "awq", *settings, "--calib-data", scratch / "ids.npy", "--seqlen", 32, "--nsamples", 16)
            error = error_of(scratch / "out", ids, expected)
            made = [fold for fold in report["folds"] if fold["made"]]
            blocks = len(report["folds"]) // folds_of_block
            print(f"{kind}: {len(made)} of {len(report['folds'])} folds made, logits to {error:.1e}, rounded to nearest {nearest:.1e}", flush=True)
            assert len(report["folds"]) == blocks * folds_of_block and blocks >= 2, [fold["from"] for fold in report["folds"]]
            assert all(fold["made"] == (fold["loss"] < fold["plain_loss"]) for fold in report["folds"]), report["folds"]
            assert len(made) >= blocks, report["folds"]
            assert error < MOST * nearest < 0.1, (error, nearest)


if __name__ == "__main__":
    main()
