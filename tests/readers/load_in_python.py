#!/usr/bin/env python3
"""Quantize the shipped MLP and run the result in Python's torch.jit.load.

    load_in_python.py MCOMPRESS MODEL.pt

Checks that torch loads the file, that it can be saved again after a run, and that its output is the
integer arithmetic of the method, computed here from the buffers.
"""
import io
import subprocess
import sys
import tempfile

import torch


def int8_linear(layer, x):
    low, high = x.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / 255
    codes = ((x - low) / scale + 0.5).floor().double()
    weight = layer.weight.double() * layer.scale.double()[:, None]
    return (scale * (codes @ weight.t()) + low * weight.sum(1) + layer.bias).float()


def main():
    binary, source = sys.argv[1:]
    torch.manual_seed(0)
    x = torch.rand(64, 1, 28, 28)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([binary, "quantize", source, "-o", folder + "/q.pt"], check=True, stdout=subprocess.DEVNULL)
        model = torch.jit.load(folder + "/q.pt").eval()
    got = model(x)
    hidden = torch.relu(int8_linear(model.fc1, x.flatten(1)))
    expected = int8_linear(model.fc2, hidden)
    # A code that lies on a rounding edge may fall either way: one step of one input.
    error = (got - expected).abs().max().item()
    assert error < 0.02, error
    exact = torch.jit.load(source)(x)
    assert (got.argmax(1) == exact.argmax(1)).float().mean() > 0.95
    again = io.BytesIO()
    torch.jit.save(model, again)
    again.seek(0)
    assert torch.equal(torch.jit.load(again)(x), got)
    print(f"largest difference to the arithmetic: {error:.2e}")


if __name__ == "__main__":
    main()
