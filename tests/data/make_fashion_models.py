#!/usr/bin/env python3
"""Train the shipped Fashion-MNIST models and save them as TorchScript.

    make_fashion_models.py mlp|cnn|student OUT.pt [--data FOLDER]

FOLDER holds the four IDX files as Debian's dataset-fashion-mnist installs them. The seed and the
thread count are fixed. The student is not trained. Input: float32 [batch, 1, 28, 28], pixels divided by 255. Output: 10 logits.
Needs torch and numpy.
"""
import argparse
import gzip
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class FashionMlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(784, 448)
        self.fc2 = nn.Linear(448, 10)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class FashionCnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(24)
        self.conv2 = nn.Conv2d(24, 48, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(48)
        self.conv3 = nn.Conv2d(48, 64, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(64)
        self.fc1 = nn.Linear(64 * 3 * 3, 96)
        self.fc2 = nn.Linear(96, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class FashionStudent(nn.Module):
    """A twentieth of the convolutional network, to be trained by distillation."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, stride=2, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16 * 3 * 3, 10)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        return self.fc(F.max_pool2d(x, 2).flatten(1))


def read_idx(path):
    raw = gzip.open(path).read()
    rank = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(rank)]
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(shape).copy())


def load_split(folder, split):
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz").float().div_(255).unsqueeze(1)
    return images, read_idx(folder / f"{split}-labels-idx1-ubyte.gz").long()


def augment(x, generator):
    """Horizontal flips and shifts by at most one pixel."""
    flip = torch.rand(len(x), generator=generator) < 0.5
    x = torch.where(flip[:, None, None, None], x.flip(3), x)
    down, right = torch.randint(0, 3, (2,), generator=generator).tolist()
    return F.pad(x, (1, 1, 1, 1))[:, :, down : down + 28, right : right + 28]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["mlp", "cnn", "student"])
    parser.add_argument("out")
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    args = parser.parse_args()

    torch.manual_seed(20261125)
    torch.set_num_threads(1)
    if args.model == "student":
        torch.jit.script(FashionStudent().eval()).save(args.out)
        return
    generator = torch.Generator().manual_seed(20261125)
    model, epochs, rate = (FashionMlp(), 16, 2e-3) if args.model == "mlp" else (FashionCnn(), 10, 3e-3)
    images, labels = load_split(args.data, "train")
    batch = 128
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(images), generator=generator)
        for i in range(len(images) // batch):
            rows = order[i * batch : (i + 1) * batch]
            x = augment(images[rows], generator) if args.model == "cnn" else images[rows]
            loss = F.cross_entropy(model(x), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: last batch loss {loss.item():.4f}", flush=True)
    model.eval()
    torch.jit.script(model).save(args.out)

    images, labels = load_split(args.data, "t10k")
    with torch.no_grad():
        correct = sum((model(images[i : i + 500]).argmax(1) == labels[i : i + 500]).sum().item()
                      for i in range(0, len(images), 500))
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{args.model}: {parameters} parameters, {correct} of {len(images)} test images correct")


if __name__ == "__main__":
    main()
