#!/usr/bin/env python3
"""Writes prune_masks.safetensors: 20 random weights, many of them with ties, and what
torch.nn.utils.prune (PyTorch 2.13) prunes of them.

    .venv-readers/bin/python tests/data/make_prune_masks.py

NAME.weight; NAME.layer.AMOUNT by l1_unstructured; NAME.global.AMOUNT by global_unstructured over all
20; NAME.channels.AMOUNT by ln_structured(n=1, dim=0). Masks are 1 where a weight becomes zero. An
amount with a point is a share, one without is a number of weights.
"""
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import prune

AMOUNTS = ["0.0", "0.01", "0.3", "0.5", "0.999", "1.0", "7"]
SHAPES = [(8, 16), (5, 3), (16, 8, 3, 3), (1, 64), (40, 25), (3, 3, 7), (64, 2), (10, 10), (12, 48), (6, 1)]


def amount_of(text):
    return float(text) if "." in text else int(text)


def holder(weight):
    module = nn.Module()
    module.weight = nn.Parameter(weight.clone())
    return module


def mask_after(weight, apply):
    module = holder(weight)
    apply(module)
    return (module.weight_mask == 0).to(torch.uint8)


def main():
    generator = torch.Generator().manual_seed(0)
    weights = []
    for index in range(20):
        weight = torch.randn(SHAPES[index % len(SHAPES)], generator=generator)
        if index % 3 == 1:
            weight = (weight * 4).round() / 4  # ties, zeros among them
        if index % 3 == 2:
            weight = weight.sign() * (weight.abs() * 2).ceil()  # ties, no zero
        weights.append(weight)
    arrays = {f"w{index}.weight": weight for index, weight in enumerate(weights)}
    for text in AMOUNTS:
        amount = amount_of(text)
        modules = [holder(weight) for weight in weights]
        prune.global_unstructured([(m, "weight") for m in modules], prune.L1Unstructured, amount=amount)
        for index, weight in enumerate(weights):
            name = f"w{index}"
            arrays[f"{name}.global.{text}"] = (modules[index].weight_mask == 0).to(torch.uint8)
            if amount < weight.numel() or isinstance(amount, float):
                arrays[f"{name}.layer.{text}"] = mask_after(
                    weight, lambda m: prune.l1_unstructured(m, "weight", amount))
            if isinstance(amount, float):
                arrays[f"{name}.channels.{text}"] = mask_after(
                    weight, lambda m: prune.ln_structured(m, "weight", amount, n=1, dim=0))
    save_file(arrays, Path(__file__).parent / "prune_masks.safetensors")


if __name__ == "__main__":
    main()
