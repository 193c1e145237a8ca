#!/usr/bin/env python3
"""Quantization-aware training from the command line, on small data made here.

    check_training.py MCOMPRESS

Checked: the model learns what a float model of the data knows; the converted file has the accuracy of the
rounded model; its bytes do not depend on the number of threads, nor on being killed and resumed; a signal ends
a run with exit code 75; dropout is at work while training; wrong checkpoints, data and rates are refused by name.
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from stripes import make_data, trained, wait_for

warnings.filterwarnings("ignore")
BINARY = str(Path(sys.argv[1]).resolve())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1, stride=2)
        self.bn2 = nn.BatchNorm2d(16)
        self.drop = nn.Dropout(0.1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.fc(self.drop(x.mean([2, 3])))


def command(model, target, *flags, data="train.npz"):
    return [BINARY, "quantize", model, "-o", target, "--mode", "qat", "--train-data", data,
            "--report", target + ".json", "-q", "--progress", "none", *flags]


def run(model, target, *flags, code=0, words="", data="train.npz"):
    Path(target + ".json").unlink(missing_ok=True)
    done = subprocess.run(command(model, target, *flags, data=data), capture_output=True, text=True)
    assert done.returncode == code and words in done.stderr, (flags, done.returncode, done.stderr)
    return json.loads(Path(target + ".json").read_text()) if code == 0 else None


def bytes_of(path):
    return Path(path).read_bytes()


def check_learning():
    for form in ("script.pt", "trace.pt"):
        for name, own in (("w8", {}), ("w4", {"--weight-bits": "4"}), ("w2", {"--weight-bits": "2", "--epochs": "4"}),
                          ("lsq", {"--weight-bits": "3", "--optimizer": "adamw", "--lr": "0.001"}),
                          ("bn", {"--weight-bits": "4", "--freeze-bn-after": "2", "--lr": "0.01"}),
                          ("kept", {"--weight-bits": "4", "--ignore": "^conv1$"})):
            options = {"--epochs": "3", "--lr": "0.003", "--lr-schedule": "step", "--step-epochs": "2", "--clip-norm": "5",
                       "--warmup-steps": "3", "--label-smoothing": "0.05", "--weight-decay": "0.001", "--crop": "1", **own}
            flags = ["--learn-scales"] if name == "lsq" else ["--flip"] if name == "w8" else []
            report = run(form, f"{name}.pt", "--force", "--eval-data", "test.npz", *flags,
                         *(word for pair in options.items() for word in pair))
            before = report["metrics"]["before"]["top1"]["value"]
            rounded = report["training"]["fake_quantized"]["top1"]["value"]
            after = report["metrics"]["after"]["top1"]["value"]
            assert abs(rounded - after) <= 0.001, (form, name, rounded, after)
            assert after > before - (0.06 if name == "w2" else 0.03), (form, name, before, after)
            epochs = report["training"]["epochs"]
            assert len(epochs) == (5 if name == "w2" else 4) and report["training"]["steps"] > 0
            best = max(e["score"] for e in epochs)
            assert epochs[report["training"]["best_epoch"]]["score"] == best
            traced = any("traced in eval mode" in w for w in report["warnings"])
            assert traced == (form == "trace.pt"), (form, report["warnings"])
            decisions = {l["name"]: l["decision"] for l in report["layers"]}
            bits = report["settings"]["weight_bits"]
            assert decisions["fc"] == f"int{bits}", decisions
            assert decisions["conv1"] == ("keep" if name == "kept" else f"int{bits}"), decisions
            loaded = torch.jit.load(f"{name}.pt")
            images, labels = TEST
            accuracy = (loaded(images).argmax(1) == labels).float().mean().item()
            assert abs(accuracy - after) < 0.002, (form, name, accuracy, after)
            assert not Path(f"{name}.pt.checkpoint").exists()


def check_bytes():
    flags = ["--epochs", "4", "--lr", "0.003", "--weight-bits", "4", "--learn-scales", "--flip", "--freeze-bn-after",
             "1"]
    run("script.pt", "one.pt", *flags, "--threads", "1")
    run("script.pt", "two.pt", *flags, "--threads", "2")
    assert bytes_of("one.pt") == bytes_of("two.pt"), "the bytes depend on the number of threads"
    for stop in (signal.SIGKILL, signal.SIGINT):
        Path("broken.pt").unlink(missing_ok=True)
        broken = subprocess.Popen(command("script.pt", "broken.pt", "--force", *flags), stderr=subprocess.PIPE, text=True)
        wait_for("broken.pt.checkpoint")
        broken.send_signal(stop)
        _, text = broken.communicate()
        if stop == signal.SIGINT and broken.returncode != 0:
            assert broken.returncode == 75, (broken.returncode, text)
            assert "the same command with --resume" in text, text
            run("script.pt", "broken.pt", *flags, code=73, words="go on from it with --resume")
            run("script.pt", "broken.pt", *flags[2:], "--epochs", "5", "--resume", code=78, words="other settings")
        report = run("script.pt", "broken.pt", "--force", *flags, "--resume", "--threads", "1")
        assert bytes_of("broken.pt") == bytes_of("one.pt"), "the bytes depend on being stopped"
        assert len(report["training"]["epochs"]) == 5
    run("script.pt", "fresh.pt", *flags, "--resume")  # nothing to go on from: a new run
    assert bytes_of("fresh.pt") == bytes_of("one.pt")


def check_refusals():
    run("script.pt", "no.pt", "--lr", "1e30", "--epochs", "1", code=65, words="training diverged: the loss is not finite")
    Path("bad.pt.checkpoint").write_text("not a checkpoint")
    run("script.pt", "bad.pt", "--resume", code=65, words="bad.pt.checkpoint")
    run("script.pt", "no.pt", "--valid-share", "1", code=2, words="leaves none of the")
    np.savez("five.npz", images=np.zeros((8, 1, 12, 12), np.float32), labels=np.full(8, 5))
    run("script.pt", "no.pt", "--valid-share", "0", data="five.npz", code=65, words="labels outside the model's 4")
    np.savez("minus.npz", images=np.zeros((8, 1, 12, 12), np.float32), labels=np.full(8, -1))
    run("script.pt", "no.pt", "--valid-share", "0", data="minus.npz", code=65, words="negative labels")
    np.savez("nan.npz", images=np.full((8, 1, 12, 12), np.nan, np.float32), labels=np.zeros(8, np.int64))
    run("script.pt", "no.pt", data="nan.npz", code=65, words="first in layer 'conv1'")
    for option in ("--lr", "--momentum", "--weight-decay", "--clip-norm", "--label-smoothing"):
        run("script.pt", "no.pt", option, "nan", code=2, words="no number from 0")
    run("script.pt", "no.pt", "--per-tensor", code=2, words="--per-tensor does not go with --mode qat")
    run("script.pt", "no.pt", "--patience", "2", "--valid-share", "0", code=2, words="--patience needs rows")

    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(144, 4)

        def forward(self, x):
            y = torch.sigmoid(self.fc(x.flatten(1)))
            return self.fc.weight.sum() + y * y.clamp_(0, 0.5)

    torch.jit.script(InPlace().eval()).save("inplace.pt")
    run("inplace.pt", "no.pt", code=65)
    np.savez("flat.npz", images=np.zeros((8, 144), np.float32), labels=np.zeros(8, np.int64))
    run("script.pt", "no.pt", "--flip", data="flat.npz", code=2, words="--flip and --crop are for images")
    bad = torch.jit.load("script.pt")
    with torch.no_grad():
        bad.conv2.weight[0, 0, 0, 0] = float("nan")
    bad.save("nan.pt")
    run("nan.pt", "no.pt", code=65, words="first in layer 'conv2'")
    assert not Path("no.pt").exists() and not Path("no.pt.checkpoint").exists()


def check_modes(model):
    """Dropout is at work in a scripted program, and is not in one that was traced for use."""
    losses = {}
    for share in (0.0, 0.9):
        model.drop.p = share
        torch.jit.script(model).save("script_drop.pt")
        torch.jit.trace(model, TEST[0][:2], check_trace=False).save("trace_drop.pt")
        for form in ("script_drop.pt", "trace_drop.pt"):
            report = run(form, "drop.pt", "--force", "--lr", "0", "--epochs", "1", "--valid-share", "0")
            losses[form, share] = report["training"]["epochs"][-1]["loss"]
    assert losses["script_drop.pt", 0.9] > 1.5 * losses["script_drop.pt", 0.0], losses
    assert losses["trace_drop.pt", 0.9] == losses["trace_drop.pt", 0.0], losses
    # Batch statistics move the running ones, which are folded at the end.
    frozen, live = (run("script.pt", "bn.pt", "--force", "--lr", "0", "--epochs", "1", "--valid-share", "0",
                        "--freeze-bn-after", epochs) and torch.jit.load("bn.pt").conv1.bias for epochs in ("0", "1"))
    assert not torch.equal(frozen, live)


with tempfile.TemporaryDirectory() as name:
    os.chdir(name)
    TRAIN, TEST = make_data("train.npz", 2048, 1), make_data("test.npz", 2000, 2)
    model = trained(Net(), *TRAIN)
    torch.jit.script(model).save("script.pt")
    torch.jit.trace(model, TEST[0][:2], check_trace=False).save("trace.pt")
    check_refusals()
    check_bytes()
    check_learning()
    check_modes(model)
print("12 trainings, stopped and resumed ones")
