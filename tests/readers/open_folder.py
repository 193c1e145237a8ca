#!/usr/bin/env python3
"""A quantized Hugging Face folder opens in transformers and answers as the original does.

    open_folder.py MCOMPRESS

The original is tiny-lm of MCOMPRESS_TEST_DATA; exits with 77 (skipped) without it.
"""
import subprocess
import sys
import tempfile

import torch
from running import test_data
from transformers import AutoModelForCausalLM


def logits(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(ids).logits


def main():
    data = test_data()
    source = data + "/tiny-lm"
    ids = torch.arange(1, 200)[None]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.argv[1], "quantize", source, "-o", folder + "/q", "-q"], check=True)
        exact, got = logits(source, ids), logits(folder + "/q", ids)
    error = ((got - exact).norm() / exact.norm()).item()
    print(f"relative error of the logits {error:.4f}")
    # Weights and activations each lose at most half of 1/127 of their range.
    assert error < 0.03, error


if __name__ == "__main__":
    main()
