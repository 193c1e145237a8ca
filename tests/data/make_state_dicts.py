#!/usr/bin/env python3
"""Write the small checkpoints that tests/formats/state_dict_test.cpp reads.

    make_state_dicts.py FOLDER

fc.weight is [[0, 1, 2], [3, 4, 5]] and fc.bias is [6, 7], float32, in all of them. Needs torch.
"""
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

WEIGHT = torch.arange(6.0).reshape(2, 3)
BIAS = torch.tensor([6.0, 7.0])


def plain():
    return {"fc.weight": WEIGHT, "fc.bias": BIAS}


def shared_dicts():
    """Forty levels that each hold the next one twice: 2^40 paths in two kilobytes."""
    content = {"w": WEIGHT}
    for _ in range(40):
        content = {"a": content, "b": content}
    return content


def module():
    layer = nn.Module()
    layer.fc = nn.Linear(3, 2)
    layer.fc.weight.data.copy_(WEIGHT)
    layer.fc.bias.data.copy_(BIAS)
    return layer


def main():
    folder = Path(sys.argv[1])
    files = {
        "plain.pt": plain(),
        "ordered.pt": module().state_dict(),
        "parameters.pt": {"fc.weight": nn.Parameter(WEIGHT), "fc.bias": nn.Parameter(BIAS)},
        "nested.pt": {"epoch": 3, "lr": 0.1, "name": "run", "model": OrderedDict(plain()), "optimizer": {"state": {0: WEIGHT.clone()}}},
        "state_dict.pt": {"state_dict": plain(), "best": torch.tensor(0.5).item()},
        "model_state_dict.pt": {"model_state_dict": plain()},
        "module_prefix.pt": {"module." + name: value for name, value in plain().items()},
        "blocks.pt": {"fc": {"weight": WEIGHT, "bias": BIAS}},
        "transposed.pt": {"fc.weight": WEIGHT.t().contiguous().t(), "fc.bias": torch.cat([WEIGHT.flatten(), BIAS])[6:]},
        "odd_types.pt": {
            **plain(),
            "fp8.weight": WEIGHT.to(torch.float8_e4m3fn),
            "rotary": torch.view_as_complex(WEIGHT.reshape(3, 2)).clone(),
            "wide": torch.tensor([65535], dtype=torch.uint16),
            "empty.weight": torch.zeros(0, 3),
        },
        "shared_dicts.pt": shared_dicts(),
        "half.pt": {"fc.weight": WEIGHT.half(), "fc.bias": BIAS.bfloat16()},
    }
    for name, content in files.items():
        torch.save(content, folder / name)
    torch.save(module().state_dict(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save(nn.Linear(3, 2), folder / "whole_module.pt")
    torch.save({"epoch": 3}, folder / "no_tensors.pt")


if __name__ == "__main__":
    main()
