#!/usr/bin/env python3
"""Quantize programs with fixed grids (--mode static) and run the results in Python's torch.jit.load.

    check_static.py MCOMPRESS

Each model is made here, scripted and traced. Checked: the output loads, runs close to the original, can be
saved again after a run; batch normalizations are gone where they can be; a layer's output is the method's
arithmetic in float64, computed from what the file holds; every runtime and every instruction set of oneDNN
gives the same numbers; codes of 2 to 8 bits are what was asked for, packed.
"""
import io
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from running import report_of

warnings.filterwarnings("ignore")
FLOATS = torch.Generator().manual_seed(3)
torch.manual_seed(3)  # what layers begin with


def settle(model):
    """Batch statistics that are not those of a new layer."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5),
                                      (module.running_mean, -0.5, 0.5), (module.running_var, 0.5, 2)):
                if tensor is not None:
                    with torch.no_grad():
                        tensor.copy_(torch.rand(tensor.shape, generator=FLOATS) * (high - low) + low)
    return model.eval()


class Convolutions(nn.Module):
    """Every way to slide that nn.Conv2d knows."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(16)
        self.dilated = nn.Conv2d(16, 16, 3, padding=2, dilation=2)
        self.reflect = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.replicate = nn.Conv2d(16, 16, (3, 1), padding=(1, 0), padding_mode="replicate")
        self.circular = nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")
        self.same = nn.Conv2d(16, 16, 4, padding="same")
        self.valid = nn.Conv2d(16, 24, 3, stride=(2, 1), padding="valid")
        self.relu = nn.ReLU()
        self.out = nn.Linear(24, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.plain(x)))
        x = self.relu(self.grouped(x))
        x = torch.relu_(self.depthwise_norm(self.depthwise(x)))
        x = self.dilated(x)
        x = self.reflect(x) + x
        x = self.circular(self.replicate(x))
        x = self.same(x)
        return self.out(self.valid(x).mean([2, 3]))


class Sequence(nn.Module):
    """Conv1d, and a Linear before a BatchNorm1d."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(4, 12, 5, padding=2), nn.BatchNorm1d(12), nn.ReLU(),
                                      nn.Conv1d(12, 12, 3, stride=2, groups=2, bias=False))
        self.head = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32, affine=False), nn.ReLU(), nn.Linear(32, 3))

    def forward(self, x):
        return self.head(self.features(x).amax(2))


class OneChannel(nn.Module):
    """A first layer of one channel, whose sums CPUs without VNNI would saturate."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 24, 3, padding=1)
        self.out = nn.Linear(24, 4)

    def forward(self, x):
        return self.out(self.first(x).relu().mean([2, 3]))


class Loose(nn.Module):
    """Batch normalizations that belong to no layer alone, and a layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.before = nn.BatchNorm2d(3)
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.seen = nn.Conv2d(3, 6, 1)
        self.after = nn.BatchNorm2d(6)
        self.out = nn.Linear(6, 4)

    def forward(self, x):
        x = self.twice(torch.relu(self.twice(self.before(x))))
        y = self.seen(x)
        return self.out((self.after(y) + y).mean([2, 3]))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 16)
        self.mix = nn.Linear(16, 24)
        self.out = nn.Linear(24, 40, bias=False)

    def forward(self, x):
        return self.out(torch.relu(self.mix(self.embed(x))))


def floats(*shape):
    return torch.randn(*shape, generator=FLOATS)


# name, model, calibration data, batch normalizations that go and that stay
CASES = [
    ("convolutions", settle(Convolutions()), floats(32, 3, 12, 12), {"norm", "depthwise_norm"}, set()),
    ("sequence", settle(Sequence()), floats(32, 4, 24), {"features.1", "head.1"}, set()),
    ("one channel", settle(OneChannel()), floats(32, 1, 10, 10), set(), set()),
    ("loose", settle(Loose()), floats(32, 3, 9, 9), set(), {"before", "after"}),
    ("tokens", settle(Tokens()), torch.randint(0, 40, (32, 6)), set(), set()),
]


def quantize(binary, source, target, calibration, *flags):
    return report_of(binary, "quantize", source, "-o", target, "--mode", "static", "--calib-data", calibration, *flags)


def sqnr(exact, got):
    return (10 * torch.log10(exact.square().sum() / (got - exact).square().sum())).item()


def module_at(model, path):
    for name in path.split("."):
        model = getattr(model, name)
    return model


def plain_output(folder, x, isa=None):
    """What Python gives for the file, in a process of its own where an instruction set is asked for."""
    code = ("import sys, torch, warnings; warnings.filterwarnings('ignore');"
            "m = torch.jit.load(sys.argv[1]); torch.save(m(torch.load(sys.argv[2])), sys.argv[3])")
    torch.save(x, folder / "x.pt")
    env = dict(os.environ, **({"ONEDNN_MAX_CPU_ISA": isa} if isa else {}))
    subprocess.run([sys.executable, "-W", "ignore", "-c", code, folder / "out.pt", folder / "x.pt", folder / "y.pt"],
                   check=True, env=env)
    return torch.load(folder / "y.pt")


def check_case(binary, folder, name, model, data, folded, kept):
    calibration = str(folder / "calib.npy")
    np.save(calibration, data.numpy())
    x = data[:8]
    with torch.no_grad():
        exact = model(x)
    for form, program in (("script", torch.jit.script(model)), ("trace", torch.jit.trace(model, x, check_trace=False))):
        source, target = str(folder / "model.pt"), str(folder / "out.pt")
        program.save(source)
        what = f"{name}, {form}"
        report = quantize(binary, source, target, calibration)
        layers = {layer["name"]: layer for layer in report["layers"]}
        for layer in layers.values():
            wanted = "int8" if layer["kind"] != "batch_norm" else "fold" if layer["name"] in folded else "keep"
            assert layer["decision"] == wanted, (what, layer)
            assert (layer["reason"] is None) == (wanted != "keep"), (what, layer)
        assert {l["name"] for l in layers.values() if l["kind"] == "batch_norm"} == folded | kept, (what, layers)
        assert report["quantization"]["folded_norms"] == len(folded), what
        assert report["quantization"]["folding_error"] < 1e-5, (what, report["quantization"])
        loaded = torch.jit.load(target)
        names = {n for n, _ in loaded.named_modules()}
        assert not names & folded and kept <= names, (what, names)
        got = loaded(x)
        assert sqnr(exact, got) > 25, (what, sqnr(exact, got))
        assert loaded(x[:0]).shape == model(x[:0]).shape, what
        again = io.BytesIO()
        torch.jit.save(loaded, again)
        again.seek(0)
        assert torch.equal(torch.jit.load(again)(x), got), what
        for isa in ("AVX2", "AVX512_CORE"):
            other = plain_output(folder, x, isa)
            # Kernels add floats in their own order: a value between two codes may get either.
            assert sqnr(got, other) > 60, (what, isa, sqnr(got, other))
        quantize(binary, source, target, calibration, "--activation-bits", "none")
        assert sqnr(exact, torch.jit.load(target)(x)) > 35, what
        quantize(binary, source, target, calibration, "--per-tensor", "--bias-correction", "--observer", "minmax")
        assert sqnr(exact, torch.jit.load(target)(x)) > 20, what
        for bits in range(2, 9) if form == "script" else ():  # codes of all widths, by kernels and without
            flags = ["--weight-bits", str(bits), "--activation-bits", "7"]
            report = quantize(binary, source, target, calibration, *flags)
            loaded = torch.jit.load(target)
            got = loaded(x)
            for layer in report["layers"]:
                if layer["kind"] == "batch_norm":
                    continue
                assert layer["decision"] == f"int{bits}", (what, layer)
                module = module_at(loaded, layer["name"])
                count = module.weight.numel()
                codes = module.weight if bits == 8 else module.codes
                assert codes.numel() == (count if bits == 8 else (count + 7) // 8 * bits), (what, layer)
                assert layer["bytes_after"] == (count * bits + 7) // 8 + 4 * module.scale.numel(), (what, layer)
                low = -127 if bits == 8 else -(2 ** (bits - 1))
                assert low <= module.weight.min().item() and module.weight.max().item() < 2 ** (bits - 1), (what, layer)
            quantize(binary, source, target, calibration, *flags, "--runtime", "portable")
            assert sqnr(got, torch.jit.load(target)(x)) > 45, (what, bits, sqnr(got, torch.jit.load(target)(x)))


def check_arithmetic(binary, folder):
    """A convolution and a linear layer from the buffers of the file, in float64."""
    model = settle(nn.Sequential(nn.Conv2d(5, 16, 3, padding=1, stride=2), nn.BatchNorm2d(16), nn.ReLU(),
                                 nn.Flatten(1), nn.Linear(16 * 36, 7)))
    data = floats(64, 5, 12, 12) + 0.5
    np.save(folder / "calib.npy", data.numpy())
    torch.jit.script(model).save(str(folder / "model.pt"))
    report = quantize(binary, str(folder / "model.pt"), str(folder / "out.pt"), str(folder / "calib.npy"))
    loaded = torch.jit.load(str(folder / "out.pt"))
    grids = {layer["name"]: layer["input"] for layer in report["layers"]}

    def weight_of(module):
        return module.weight.double() * module.scale.double().view(-1, *[1] * (module.weight.dim() - 1))

    def rounded(x, grid):
        codes = (x / grid["scale"] + grid["zero_point"] + 0.5).floor().clamp(0, 255)
        return (codes - grid["zero_point"]) * grid["scale"]

    first, last = module_at(loaded, "0"), module_at(loaded, "4")
    x = data[:8]
    hidden = F.conv2d(rounded(x.double(), grids["0"]), weight_of(first), first.bias.double(), 2, 1).relu()
    assert (first(x) - hidden).abs().max() < 1e-4 * hidden.max()
    y = F.linear(rounded(first(x).flatten(1).double(), grids["4"]), weight_of(last), last.bias.double())
    assert (loaded(x) - y).abs().max() < 1e-4 * y.abs().max()
    folded = F.batch_norm(torch.eye(16).view(16, 16, 1, 1), model[1].running_mean * 0, model[1].running_var,
                          model[1].weight, None).diagonal(0, 0, 1).view(-1)
    exact = model[0].weight * folded.view(-1, 1, 1, 1)
    assert ((weight_of(first) - exact).abs() <= first.scale.view(-1, 1, 1, 1) * 0.501).all()


def check_kept(binary, folder):
    """Convolutions of three dimensions stay, scripted and traced."""
    model, data = nn.Sequential(nn.Conv3d(1, 4, 3), nn.Flatten(1), nn.Linear(4 * 72, 5)).eval(), floats(16, 1, 4, 8, 8)
    np.save(folder / "calib.npy", data.numpy())
    for program in (torch.jit.script(model), torch.jit.trace(model, data[:2])):
        program.save(str(folder / "model.pt"))
        report = quantize(binary, str(folder / "model.pt"), str(folder / "out.pt"), str(folder / "calib.npy"))
        made = {layer["name"]: layer["decision"] for layer in report["layers"]}
        assert made["2"] == "int8" and "int8" not in [d for n, d in made.items() if n != "2"], made
        assert sqnr(model(data), torch.jit.load(str(folder / "out.pt"))(data)) > 25


def main():
    binary = sys.argv[1]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check_arithmetic(binary, folder)
        check_kept(binary, folder)
        for case in CASES:
            check_case(binary, folder, *case)
    print(f"{len(CASES)} models x 2 forms")


if __name__ == "__main__":
    main()
