#!/usr/bin/env python3
"""Prune with mcompress and with torch.nn.utils.prune, and open what mcompress stored in other programs.

    .venv-readers/bin/python check_prune.py MCOMPRESS TESTS_DATA
"""
import hashlib
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import torch
from compressed_tensors.utils.helpers import unpack_bitmasks
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune

from running import report_of

warnings.filterwarnings("ignore")


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def torch_masks(weights, amount, scope):
    modules = {}
    for name, weight in weights.items():
        modules[name] = nn.Module()
        modules[name].weight = nn.Parameter(weight.clone())
    if scope == "global":
        prune.global_unstructured([(m, "weight") for m in modules.values()], prune.L1Unstructured, amount=amount)
    else:
        for module in modules.values():
            prune.l1_unstructured(module, "weight", amount)
    return {name: module.weight_mask == 0 for name, module in modules.items()}


def weights_of(program):
    return {n: p.detach() for n, p in program.named_parameters() if n.endswith("weight") and p.dim() >= 2}


def check_program(binary, folder, source):
    """The masks are PyTorch's; all stores hold the same model; expand gives the dense file back."""
    original = torch.jit.load(str(source))
    x = torch.rand(8, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for scope in ("layer", "global"):
        for amount in (0.3, 0.5, 0.9):
            options = ("--sparsity", amount, "--scope", scope, "--types", "all")
            report_of(binary, "prune", source, "-o", folder / "dense.pt", *options)
            dense = torch.jit.load(str(folder / "dense.pt"))
            pruned = weights_of(dense)
            for name, mask in torch_masks(weights_of(original), amount, scope).items():
                expected = weights_of(original)[name].masked_fill(mask, 0)
                assert torch.equal(pruned[name], expected), (source, scope, amount, name)
            report = report_of(binary, "prune", source, "-o", folder / "sparse.pt", "--store", "bitmask", *options)
            sparse = torch.jit.load(str(folder / "sparse.pt"))
            assert torch.equal(sparse(x), dense(x))
            assert [p.requires_grad for p in sparse.parameters()] == [p.requires_grad for p in dense.parameters()]
            sparse.save(str(folder / "again.pt"))
            assert torch.equal(torch.jit.load(str(folder / "again.pt"))(x), dense(x))
            assert report["storage"]["stored_bytes"] == (folder / "sparse.pt").stat().st_size
            report_of(binary, "expand", folder / "sparse.pt", "-o", folder / "back.pt")
            assert sha256(folder / "back.pt") == sha256(folder / "dense.pt")
            report_of(binary, "prune", source, "-o", folder / "sparse.zst", "--store", "bitmask+zstd", *options)
            report_of(binary, "expand", folder / "sparse.zst", "-o", folder / "back.pt")
            assert sha256(folder / "back.pt") == sha256(folder / "dense.pt")


def check_state_dicts(binary, folder, source):
    for path in sorted((source / "state_dicts").glob("*.pt*")):
        if path.name in ("no_tensors.pt", "shared_dicts.pt", "whole_module.pt"):
            continue
        target = folder / path.name
        report_of(binary, "prune", path, "-o", target, "--sparsity", 0.5)
        before, after = torch.load(path), torch.load(target)
        assert str(before.keys()) == str(after.keys()), path
        if path.suffix == ".pt":
            assert zipfile.ZipFile(target).testzip() is None, path
        report = report_of(binary, "prune", path, "-o", folder / "stored", "--sparsity", 0.5, "--store", "auto")
        if report["storage"]["store"] == "dense":  # the smallest
            assert sha256(folder / "stored") == sha256(target), path
            continue
        report_of(binary, "expand", folder / "stored", "-o", folder / "back")
        assert sha256(folder / "back") == sha256(target), path


def check_bitmask_layout(binary, folder):
    """Values of a real reader: compressed-tensors' own unpacking of the bits."""
    generator = torch.Generator().manual_seed(1)
    weights = {"a.weight": torch.randn(64, 129, generator=generator), "b.weight": torch.randn(32, 256, generator=generator).bfloat16(),
               "c.weight": torch.randn(16, 8, 3, 3, generator=generator), "bias": torch.randn(5, generator=generator)}
    save_file(weights, folder / "w.safetensors", {"format": "pt"})
    for store, amount in (("dense", 0.6), ("bitmask", 0.6)):
        report_of(binary, "prune", folder / "w.safetensors", "-o", folder / f"{store}.safetensors", "--types", "all", "--sparsity",
            amount, "--store", store)
    dense, stored = load_file(folder / "dense.safetensors"), load_file(folder / "bitmask.safetensors")
    for name, expected in dense.items():
        if name in stored:
            assert torch.equal(stored[name], expected)
            continue
        shape = stored[f"{name}.shape"].tolist()
        mask = unpack_bitmasks(stored[f"{name}.bitmask"], shape)
        assert torch.equal(stored[f"{name}.row_offsets"], mask.sum(1).cumsum(0) - mask.sum(1))
        matrix = torch.zeros(shape, dtype=expected.dtype)
        matrix[mask] = stored[f"{name}.compressed"]
        assert torch.equal(matrix.view_as(expected), expected), name
    report_of(binary, "expand", folder / "bitmask.safetensors", "-o", folder / "back.safetensors")
    assert sha256(folder / "back.safetensors") == sha256(folder / "dense.safetensors")


class SharedLayers(nn.Module):
    """A layer used twice, a tied head, a grouped convolution, and inputs of several ranks."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(40, 24)
        self.conv = nn.Conv1d(24, 24, 3, padding=1, groups=4)
        self.twice = nn.Linear(24, 24)
        self.again = self.twice
        self.head = nn.Linear(24, 40, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        y = self.conv(self.embed(x).transpose(1, 2)).transpose(1, 2)
        return self.head(torch.tanh(self.again(torch.relu(self.twice(y)))).mean(1))


def input_norms(model, inputs):
    """Square roots of the summed squares of what each layer is given, by hooks."""
    squares = {}

    def hook(name):
        def add(module, args):
            x = args[0].detach().double()
            x = x.transpose(1, -1) if isinstance(module, nn.Conv1d) else x
            squares[name] = squares.get(name, 0) + x.reshape(-1, x.shape[-1]).square().sum(0)
        return add

    handles = [m.register_forward_pre_hook(hook(n)) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv1d))]
    with torch.no_grad():
        model(inputs)
    for handle in handles:
        handle.remove()
    return {name: value.sqrt().float() for name, value in squares.items()}


def check_inputs(binary, folder):
    torch.manual_seed(2)
    model = SharedLayers().eval()
    inputs = torch.randint(0, 40, (50, 9))
    save_file({"inputs": inputs}, folder / "calib.safetensors")
    norms = input_norms(model, inputs)
    for form in ("script", "trace"):
        program = torch.jit.script(model) if form == "script" else torch.jit.trace(model, inputs, check_trace=False)
        program.save(str(folder / "shared.pt"))
        report_of(binary, "prune", folder / "shared.pt", "-o", folder / "w.pt", "--types", "linear,conv", "--criterion", "wanda",
            "--sparsity", 0.5, "--calib-data", folder / "calib.safetensors", "--ignore", "head")
        pruned = torch.jit.load(str(folder / "w.pt"))
        for name, layer in (("twice", model.twice), ("conv", model.conv)):
            norm = norms[name]
            columns = norm.view(1, -1) if name == "twice" else norm.view(4, 6, 1).expand(4, 6, 3).reshape(4, 18).repeat_interleave(6, 0)
            score = layer.weight.flatten(1).abs() * columns
            k = score.shape[1] // 2
            expected = torch.zeros_like(score, dtype=torch.bool).scatter_(1, score.argsort(dim=1, stable=True)[:, :k], True)
            mask = dict(pruned.named_parameters())[f"{name}.weight"].flatten(1) == 0
            # Sums of squares in another order may swap two almost equal scores.
            assert (mask != expected).float().mean() < 0.01, (form, name, (mask != expected).float().mean())


class Odd(nn.Module):
    """A transposed convolution, a weight whose elements share memory, and one that lies over another's."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3)
        self.row = nn.Linear(8, 8)
        self.row.weight = nn.Parameter(torch.randn(1, 8).expand(8, 8))
        base = torch.randn(8, 16)
        self.left = nn.Linear(8, 8)
        self.left.weight = nn.Parameter(base[:, :8])
        self.low = nn.Linear(16, 4)
        self.low.weight = nn.Parameter(base[4:])
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        y = self.left(self.row(self.up(x).mean(1)))
        return self.head(self.low(torch.cat([y, y], -1)))


def check_odd_weights(binary, folder):
    model = Odd().eval()
    torch.jit.trace(model, torch.randn(2, 4, 6, 6)).save(str(folder / "odd.pt"))
    report = report_of(binary, "prune", folder / "odd.pt", "-o", folder / "o.pt", "--types", "all", "--sparsity", 0.5)
    reasons = {layer["name"]: layer["reason"] for layer in report["layers"]}
    assert "up" not in reasons, reasons
    assert reasons["row"] == "its elements share their memory", reasons
    assert reasons["left"] is None and reasons["low"] == "lies over the weight of 'left', which is pruned", reasons
    assert reasons["head"] is None, reasons


def check_channels_and_groups(binary, folder, source):
    for pattern in ("2:4", "4:8", "1:4"):
        kept, group = map(int, pattern.split(":"))
        report_of(binary, "prune", source / "fashion_mlp.pt", "-o", folder / "g.pt", "--pattern", pattern)
        for weight in weights_of(torch.jit.load(str(folder / "g.pt"))).values():
            zeros = (weight.view(-1, group) == 0).sum(1)
            assert (zeros == group - kept).all(), pattern
    report_of(binary, "prune", source / "fashion_cnn.pt", "-o", folder / "c.pt", "--pattern", "channels-zero", "--sparsity", 0.25,
        "--types", "all", "--criterion", "l2")
    original = weights_of(torch.jit.load(str(source / "fashion_cnn.pt")))
    for name, weight in weights_of(torch.jit.load(str(folder / "c.pt"))).items():
        module = nn.Module()
        module.weight = nn.Parameter(original[name].clone())
        prune.ln_structured(module, "weight", 0.25, n=2, dim=0)
        assert torch.equal(weight, original[name] * module.weight_mask), name


def main():
    binary, source = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in ("fashion_mlp.pt", "fashion_cnn.pt"):
            check_program(binary, folder, source / model)
        check_state_dicts(binary, folder, source)
        check_bitmask_layout(binary, folder)
        check_inputs(binary, folder)
        check_odd_weights(binary, folder)
        check_channels_and_groups(binary, folder, source)
    print("masks, stores and inputs are PyTorch's")


if __name__ == "__main__":
    main()
