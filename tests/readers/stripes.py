"""What the trainings share: a small task with data made here, and waiting for a run to come so far."""
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

CLASSES = 4


def make_data(path, rows, seed):
    """Stripes in four directions under noise, written as .npz; returns images and labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, rows)
    y, x = np.mgrid[0:12, 0:12]
    waves = np.stack([np.sin(1.6 * x), np.sin(1.6 * y), np.sin(1.2 * (x + y)), np.sin(1.2 * (x - y))])
    images = (waves[labels] + random.normal(0, 1.3, (rows, 12, 12)))[:, None].astype(np.float32)
    np.savez(path, images=images, labels=labels.astype(np.int64))
    return torch.from_numpy(images), torch.from_numpy(labels)


def trained(model, images, labels):
    """The model after six epochs on one thread, in eval mode."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.train()
    for _ in range(6):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model.eval()


def wait_for(path, seconds=60):
    end = time.time() + seconds
    while not Path(path).exists():
        assert time.time() < end, f"{path} does not appear"
        time.sleep(0.01)
