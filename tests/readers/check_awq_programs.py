#!/usr/bin/env python3
"""Round programs by AWQ, whose scales go into layer normalizations, and to nearest; run the results in Python's torch.jit.load.

    check_awq_programs.py MCOMPRESS

Each model is made here, scripted and traced. Checked: scales are moved where linear layers alone take what a norm gives,
into whichever module that is handed, and nowhere else; at 8 bits the program computes what it did, so that scales cancel
out; at 3 bits, with few large channels, they lose less. Without data the program computes nearly the same at 8 bits too.
"""
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from running import report_of

warnings.filterwarnings("ignore")
WIDTH, LENGTH, SAMPLES = 64, 8, 64
torch.manual_seed(5)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x):
        heads = (x.size(0), x.size(1), 4, WIDTH // 4)
        q, k, v = (layer(x).view(heads).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 4, -1) @ v
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class ScriptedAttention(Attention):
    """Without a generator, which TorchScript does not know."""

    def forward(self, x):
        n, length = x.size(0), x.size(1)
        q = self.query(x).view(n, length, 4, 16).transpose(1, 2)
        k = self.key(x).view(n, length, 4, 16).transpose(1, 2)
        v = self.value(x).view(n, length, 4, 16).transpose(1, 2)
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 4, -1) @ v
        return self.out(mixed.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH, bias=False)
        self.attention = attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, x):
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class Mixed(nn.Module):
    """Norms whose output goes elsewhere too, or which are used twice, or whose weight is read; and one that may be scaled."""

    def __init__(self):
        super().__init__()
        self.kept, self.twice, self.read, self.free = (nn.LayerNorm(WIDTH) for _ in range(4))
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(WIDTH, WIDTH) for _ in range(5))

    def forward(self, x):
        y = self.kept(x)
        x = y + self.a(y)
        x = x + self.b(self.twice(x)) + self.c(self.twice(x * 2))
        x = x + self.d(self.read(x)) * self.read.weight.mean()
        return x + self.e(self.free(x))


def spread(model):
    """Norms with a few channels that are much larger than the others, as language models have them."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            with torch.no_grad():
                module.weight.copy_(torch.rand(WIDTH) + 0.5)
                module.weight[::32] *= 16
    return model.eval()


def rounded(binary, folder, model, inputs, *words):
    path, output = folder / "model.pt", folder / "out.pt"
    model.save(str(path))
    report = report_of(binary, words[0], path, "-o", output, "--group-size", -1, "--format", "torchscript", *words[1:])
    with torch.no_grad():
        exact, got = model(inputs), torch.jit.load(str(output))(inputs)
    return report, ((got - exact).norm() / exact.norm()).item()


def main():
    binary = str(Path(sys.argv[1]).resolve())
    inputs = torch.randn(SAMPLES, LENGTH, WIDTH)
    expected = {
        "Block": {"first": ["attention.query", "attention.key", "attention.value"], "second": ["mlp.0"]},
        "Mixed": {"free": ["e"]},
    }
    models = {
        "Block, scripted": torch.jit.script(spread(Block(ScriptedAttention))),
        "Block, traced": torch.jit.trace(spread(Block(Attention)), inputs[:2]),
        "Mixed, scripted": torch.jit.script(spread(Mixed())),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "x.npy", inputs.numpy())
        data = ("--calib-data", folder / "x.npy")
        for label, model in models.items():
            _, nearest = rounded(binary, folder, model, inputs, "quantize", "--mode", "weight-only", "--bits", 8)
            assert 0 < nearest < 0.03, (label, nearest)
            report, eight = rounded(binary, folder, model, inputs, "awq", *data, "--bits", 8)
            folds = {fold["from"]: fold["layers"] for fold in report["folds"]}
            assert {key: sorted(value) for key, value in folds.items()} == {
                key: sorted(value) for key, value in expected[label.split(",")[0]].items()}, (label, folds)
            assert eight < 0.03, (label, eight)
            report, three = rounded(binary, folder, model, inputs, "awq", *data, "--bits", 3)
            made = [fold for fold in report["folds"] if fold["made"]]
            assert made and all(fold["loss"] < fold["plain_loss"] for fold in made), (label, report["folds"])
            rounding = {layer["name"]: layer["rounding"] for layer in report["layers"] if layer.get("rounding")}
            for name in (name for fold in made for name in fold["layers"]):
                assert rounding[name]["loss"] < rounding[name]["rounded_loss"], (label, name, rounding[name])
            print(f"{label}: error at 8 bits {eight:.4f}, at 3 bits {three:.3f}; folds {[(fold['plain_loss'], fold['loss']) for fold in made]}", flush=True)


if __name__ == "__main__":
    main()
