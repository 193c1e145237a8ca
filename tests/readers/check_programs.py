#!/usr/bin/env python3
"""Quantize programs of many shapes and run the results in Python's torch.jit.load.

    check_programs.py MCOMPRESS SHIPPED_MLP.pt

Each model is made here, scripted and traced. Checked: the output loads, runs close to the original,
can be saved again after a run, and the report names the decision that the model calls for. For the
shipped MLP the output is compared with the arithmetic of the method, computed from the buffers.
"""
import io
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Tuple

import torch
from torch import nn
from torch.nn import functional as F

from running import report_of

warnings.filterwarnings("ignore")


WIDE = 192  # a layer of WIDE x WIDE is large enough for int8 kernels; smaller ones dequantize


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(WIDE, WIDE), nn.ReLU()) for _ in range(3)])
        self.head = nn.Linear(WIDE, 5, bias=False)

    def forward(self, x):
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class UsedTwice(nn.Module):
    """One layer object called twice, and held under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(WIDE, WIDE)
        self.second = self.first
        self.out = nn.Linear(WIDE, 3)

    def forward(self, x):
        return self.out(self.first(torch.relu(self.second(self.first(x)))))


class TiedHead(nn.Module):
    """An embedding whose weight is also the output layer's."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.mix = nn.Linear(16, 16)
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(torch.tanh(self.mix(self.embed(x))))


class Attention(nn.Module):
    """nn.MultiheadAttention reads its projections' weights itself."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        return self.out(self.attention(x, x, x, need_weights=False)[0])


class ReadsWeight(nn.Module):
    """A parent that looks at its child's weight."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        return self.out(self.inner(x) * self.inner.weight.mean())


class Conv(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.out = nn.Linear(8 * 36, 4)

    def forward(self, x):
        return self.out(torch.relu(self.conv(x)).flatten(1))


class Parent(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.out = nn.Linear(16, 16)

    def forward(self, x):
        return self.out(self.inner(x))


class ScalesInput(nn.Linear):
    def forward(self, x):
        return F.linear(x * 2, self.weight, self.bias)


class ScalesBias(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias * 3 + 1)


class SwapsOperands(nn.Linear):
    def forward(self, x):
        return F.linear(self.weight, x)


class IgnoresBias(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight)


class HasNorm(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight, self.bias)

    @torch.jit.export
    def norm(self) -> torch.Tensor:
        return self.weight.norm()


class ReadsAttribute(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.inner.alpha = 2.0
        self.out = nn.Linear(16, 16)

    def forward(self, x):
        return self.out(self.inner(x)) * self.inner.alpha


class Autoencoder(nn.Module):
    """Two layers over the same memory that are not the same weight."""

    def __init__(self, view):
        super().__init__()
        self.inner = nn.Linear(16, 16)
        self.out = nn.Linear(16, 16)
        self.out.weight = nn.Parameter(view(self.inner.weight.detach()))
        self.out.bias = nn.Parameter(torch.zeros(self.out.weight.shape[0]))

    def forward(self, x):
        return self.out(torch.relu(self.inner(x)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(16, 16, batch_first=True)
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        return self.out(self.lstm(x)[0])


class EmptyLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 0)
        self.back = nn.Linear(0, 16)
        self.out = nn.Linear(16, 4)

    def forward(self, x):
        return self.out(self.back(self.inner(x)))


def times_ten(self, input: Tuple[torch.Tensor], output: torch.Tensor):
    return output * 10


def hooked(on):
    model = Parent(nn.Linear(16, 16))
    getattr(model, on, model).register_forward_hook(times_ten)
    return model


def hooked_twice():
    model = Parent(nn.Linear(16, 16))
    model.register_forward_hook(times_ten)
    model.register_forward_hook(times_ten)
    return model


FLOATS = torch.Generator().manual_seed(1)


def floats(*shape):
    return torch.randn(*shape, generator=FLOATS)


# name, model, input, what the report must say of some layers
CASES = [
    ("nested", Nested(), floats(4, WIDE), {"blocks.0.0": "int8", "head": "int8"}),
    ("three dimensions", Nested(), floats(2, 7, WIDE), {"head": "int8"}),
    ("one row", Nested(), floats(1, WIDE), {"head": "int8"}),
    ("used twice", UsedTwice(), floats(4, WIDE), {"out": "int8"}),
    ("tied head", TiedHead(), torch.randint(0, 50, (3, 6)), {"embed": "keep", "mix": "int8", "head": "keep"}),
    ("attention", Attention(), floats(2, 5, 16), {"out": "int8"}),
    ("reads weight", ReadsWeight(), floats(4, 16), {"inner": "keep", "out": "int8"}),
    ("scales its input", Parent(ScalesInput(16, 16)), floats(4, 16), {"inner": "keep", "out": "int8"}),
    ("scales its bias", Parent(ScalesBias(16, 16)), floats(4, 16), {"inner": "keep", "out": "int8"}),
    ("swaps its operands", Parent(SwapsOperands(16, 16)), floats(16, 16), {"inner.weight": "keep", "out": "int8"}),
    ("ignores its bias", Parent(IgnoresBias(16, 16)), floats(4, 16), {"inner": "int8", "out": "int8"}),
    ("further method", Parent(HasNorm(16, 16)), floats(4, 16), {"out": "int8"}),
    ("reads attribute", ReadsAttribute(), floats(4, 16), {"out": "int8"}),
    ("transposed tie", Autoencoder(torch.t), floats(4, 16), {"inner": "int8", "out": "int8"}),
    ("cut tie", Autoencoder(lambda w: w[:4]), floats(4, 16), {"inner": "int8", "out": "int8"}),
    ("recurrent", Recurrent(), floats(2, 5, 16), {"lstm.weight_ih_l0": "keep", "out": "int8"}),
    ("empty layers", EmptyLayers(), floats(4, 16), {"inner": "keep", "back": "keep", "out": "int8"}),
    ("hook on the whole", hooked("whole"), floats(4, 16), {"inner": "int8", "out": "int8"}),
    ("hook on a layer", hooked("inner"), floats(4, 16), {"out": "int8"}),
    ("hook inside", Parent(hooked("whole")), floats(4, 16), {"out": "int8"}),
    ("hook set twice", hooked_twice(), floats(4, 16), {"inner": "int8", "out": "int8"}),
    ("many small layers", nn.Sequential(*[nn.Linear(16, 16) for _ in range(12)]), 10 * floats(4, 16), {"11": "int8"}),
    ("convolution", Conv(), floats(2, 3, 8, 8), {"conv": "keep", "out": "int8"}),
]
SETTINGS = [
    ([], "int8", 0.1),
    (["--runtime", "portable"], "int8", 0.1),
    (["--runtime", "fbgemm"], "int8", 0.2),
    (["--per-tensor"], "int8", 0.2),
    (["--dtype", "float16"], "float16", 0.01),
    (["--dtype", "bfloat16"], "bfloat16", 0.05),
]


def quantize(binary, source, target, flags):
    return report_of(binary, "quantize", source, "-o", target, *flags)


def relative_error(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def check_case(binary, folder, name, model, x, decisions):
    model.eval()
    for form, program in (("script", torch.jit.script(model)), ("trace", torch.jit.trace(model, x, check_trace=False))):
        source = str(folder / "model.pt")
        program.save(source)
        for flags, decision, bound in SETTINGS:
            what = f"{name}, {form}, {flags}"
            report = quantize(binary, source, str(folder / "out.pt"), flags)
            made = {layer["name"]: layer for layer in report["layers"]}
            for layer, wanted in decisions.items():
                wanted = decision if wanted == "int8" else wanted
                assert made[layer]["decision"] == wanted, (what, made[layer])
                assert (made[layer]["reason"] is None) == (wanted != "keep"), (what, made[layer])
            size = report["size"]["predicted_bytes"] / report["output"]["bytes"]
            assert abs(size - 1) < 0.02, (what, size)
            loaded = torch.jit.load(str(folder / "out.pt"))
            got = loaded(x)
            assert got.dtype == torch.float32 and got.shape == model(x).shape, what
            error = relative_error(got, model(x))
            assert error < bound, (what, error)
            again = io.BytesIO()
            torch.jit.save(loaded, again)
            again.seek(0)
            assert torch.equal(torch.jit.load(again)(x), got), what


def int8_linear(layer, x):
    low, high = x.aminmax(dim=-1, keepdim=True)
    scale = (high - low) / 255
    codes = ((x - low) / scale + 0.5).floor().double()
    weight = layer.weight.double() * layer.scale.double()[:, None]
    return (scale * (codes @ weight.t()) + low * weight.sum(1) + layer.bias).float()


def check_arithmetic(binary, folder, source):
    x = torch.rand(64, 1, 28, 28, generator=FLOATS)
    quantize(binary, source, str(folder / "mlp.pt"), [])
    model = torch.jit.load(str(folder / "mlp.pt"))
    hidden = torch.relu(int8_linear(model.fc1, x.flatten(1)))
    expected = F.linear(hidden, model.fc2.weight * model.fc2.scale[:, None], model.fc2.bias)
    # A code that lies on a rounding edge may fall either way: one step of one input.
    error = (model(x) - expected).abs().max().item()
    assert error < 0.02, error
    return error


def main():
    binary, source = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in CASES:
            check_case(binary, folder, *case)
        error = check_arithmetic(binary, folder, source)
    print(f"{len(CASES)} models x 2 forms x {len(SETTINGS)} settings; difference to the arithmetic {error:.2e}")


if __name__ == "__main__":
    main()
