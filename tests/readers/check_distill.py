#!/usr/bin/env python3
"""Distillation and fine-tuning from the command line, on small data made here.

    check_distill.py MCOMPRESS

Checked: a student gets the weights that the same loop gives in PyTorch, with and without hints; its bytes depend
neither on the number of threads, nor on a cache, nor on being killed and resumed; labels are not needed where only
the teacher counts; what is pruned stays zero while it is trained and when it is quantized; what cannot be learned
from is refused by name.
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

from stripes import CLASSES, make_data, trained, wait_for

warnings.filterwarnings("ignore")
BINARY = str(Path(sys.argv[1]).resolve())


class Net(nn.Module):
    def __init__(self, width, classes=CLASSES):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.block = nn.Sequential(nn.Conv2d(8, width, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.block(F.relu(self.conv1(x))).mean([2, 3]))


class Raising(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, CLASSES)

    def forward(self, x):
        if x.shape[0] % 2 == 0:
            raise ValueError("only for odd batches")
        return self.fc(x.mean([2, 3]))


def command(words, target):
    return [BINARY, *map(str, words), "-o", target, "--report", target + ".json", "-q", "--progress", "none"]


def run(*words, target="out.pt", code=0, text="", data="train.npz"):
    Path(target + ".json").unlink(missing_ok=True)
    words = [*words, "--train-data", data] if data else words
    done = subprocess.run(command(words, target), capture_output=True, text=True)
    assert done.returncode == code and text in done.stderr, (words, done.returncode, done.stderr)
    return json.loads(Path(target + ".json").read_text()) if Path(target + ".json").exists() else None


def distill(*flags, student="student.pt", teacher="teacher.pt", **more):
    return run("distill", teacher, student, "--force", *flags, **more)


def bytes_of(path):
    return Path(path).read_bytes()


def top1(report, when="after"):
    return report["metrics"][when]["top1"]["value"]


# The same loop in PyTorch: all rows in one batch, so that their order does not matter.
def attention(f):
    return F.normalize(f.pow(2).mean(1).flatten(1))


def trained_in_python(teacher, hints):
    student = torch.jit.load("student.pt").train()
    images, labels = TRAIN[0][:512], TRAIN[1][:512]
    optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9, weight_decay=0.0)
    with torch.no_grad():
        target = teacher(images) if hints else teacher(images).half().float()
        wanted = F.relu(teacher.conv1(images)), teacher.block(F.relu(teacher.conv1(images)))
    for _ in range(5):
        optimizer.zero_grad()
        scores = student(images)
        soft = F.kl_div((scores / 3).log_softmax(1), (target / 3).softmax(1), reduction="batchmean") * 9
        loss = 0.7 * soft + 0.3 * F.cross_entropy(scores, labels)
        if hints == "mse":
            loss = loss + 0.5 * F.mse_loss(student.conv1(images), teacher.conv1(images).detach())
        elif hints == "at":
            got = student.block(F.relu(student.conv1(images)))
            loss = loss + 0.5 * (attention(got) - attention(wanted[1])).pow(2).mean()
        loss.backward()
        optimizer.step()
    return student


def check_loop(teacher):
    for hints in ("", "mse", "at"):
        flags = {"": [], "mse": ["--hint", "conv1=conv1"], "at": ["--hint", "block=block", "--hint-kind", "at"]}[hints]
        if hints:
            flags += ["--hint-weight", "0.5"]
        report = distill("--train-limit", 512, "--batch-size", 512, "--epochs", 5, "--lr", 0.05, "--lr-schedule", "constant",
                         "--temperature", 3, "--alpha", 0.7, "--valid-share", 0, *flags)
        assert report["teacher"]["live"] == bool(hints), report["teacher"]
        ours, exact = torch.jit.load("out.pt"), trained_in_python(teacher, hints)
        start = dict(torch.jit.load("student.pt").named_parameters())
        for name, value in ours.named_parameters():
            want = dict(exact.named_parameters())[name]
            moved = (want - start[name]).abs().max()
            # BatchNorm hides the running of a second forward pass in the loop, so statistics are not compared.
            assert (value - want).abs().max() < 1e-3 * moved + 1e-5, (hints, name, (value - want).abs().max(), moved)


def check_bytes():
    flags = ["--epochs", 3, "--batch-size", 32, "--eval-data", "test.npz"]
    report = distill(*flags, "--threads", 1, target="one.pt")
    assert top1(report) > 0.7 and report["training"]["epochs"][-1]["score"] > 0.7, report["training"]
    assert not list(Path(".").glob("one.pt.*ch*")), "something is left beside the output"
    distill(*flags, "--threads", 2, target="two.pt")
    assert bytes_of("one.pt") == bytes_of("two.pt"), "the bytes depend on the number of threads"
    for again in (False, True):
        report = distill(*flags, "--cache", "cache", target="cached.pt")
        assert report["teacher"]["reused"] == again and not report["teacher"]["live"], report["teacher"]
        assert bytes_of("one.pt") == bytes_of("cached.pt"), "the bytes depend on the cache"
    more = [*flags, "--baseline", "--seeds", 2, "--seed", 7]
    whole = distill(*more, target="whole.pt")
    runs = whole["distillation"]["runs"]
    assert [r["seed"] for r in runs] == [7, 8] and runs[0]["baseline"] and runs[0] != runs[1], runs
    gains = [r["top1"]["value"] - r["baseline"]["value"] for r in runs]
    assert abs(whole["distillation"]["gain"]["mean"] - sum(gains) / 2) < 1e-12, whole["distillation"]["gain"]
    for stop, path in ((signal.SIGKILL, "broken.pt.checkpoint"), (signal.SIGKILL, "broken.pt.seed8.baseline.checkpoint"),
                       (signal.SIGINT, "broken.pt.baseline.checkpoint")):
        for old in Path(".").glob("broken.pt*"):
            old.unlink()
        broken = subprocess.Popen(command(["distill", "teacher.pt", "student.pt", "--train-data", "train.npz", *more], "broken.pt"),
                                  stderr=subprocess.PIPE, text=True)
        wait_for(path)
        broken.send_signal(stop)
        _, text = broken.communicate()
        assert broken.returncode in (75, -9) and not Path("broken.pt").exists(), (broken.returncode, text)
        run("distill", "teacher.pt", "student.pt", *more, target="broken.pt", code=73, text="go on from it with --resume")
        distill(*more[:-2], "--seed", 6, "--resume", target="broken.pt", code=78, text="other settings")
        report = run("distill", "teacher.pt", "student.pt", *more, "--resume", "--threads", 1, target="broken.pt")
        assert bytes_of("broken.pt") == bytes_of("whole.pt"), "the bytes depend on being stopped"
        assert report["distillation"]["runs"] == runs, (report["distillation"]["runs"], runs)
        assert report["teacher"]["reused"]


def check_unlabelled():
    np.savez("images.npz", images=TRAIN[0].numpy())
    flags = ["--alpha", 1, "--epochs", 3, "--batch-size", 32, "--eval-data", "test.npz"]
    report = distill(*flags, data="images.npz")
    assert top1(report) > 0.7 and report["training"]["best_epoch"] > 0, report["training"]
    assert report["comparison"]["agreement"]["value"] > 0.7
    distill("--alpha", 0.9, data="images.npz", code=65, text="images.npz")


def check_variants():
    flags = ["--epochs", 2, "--batch-size", 32, "--eval-data", "test.npz"]
    for own in (["--loss", "reverse-kl"], ["--loss", "jsd"], ["--loss", "mse-logits"], ["--top-k", 2], ["--flip", "--crop", 1],
                ["--hint", "block=block"], ["--hint", "block.0=block.0", "--hint", "conv1=block", "--hint-kind", "at"]):
        report = distill(*flags, *own)
        assert top1(report) > 0.6, (own, top1(report))
        assert report["teacher"]["live"] == (own[0] in ("--flip", "--hint")), report["teacher"]
    report = distill(*flags, "--init-from-teacher", student="sister.pt")
    assert report["distillation"]["copied"] and "fc.weight" in report["distillation"]["copied"]
    assert report["training"]["epochs"][0]["score"] > 0.9, report["training"]["epochs"][0]
    page = distill(*flags, "--baseline", "--html", "page.html") and Path("page.html").read_text()
    assert page.count("<svg") == 2 and page.count("</svg>") == 2 and "without teacher" in page and "kept" in page
    assert any("traced in eval mode" in w for w in distill(*flags, student="trace.pt")["warnings"])
    two = distill(*flags, "--hint", "conv1=conv1", "--hint", "conv1=block.0", "--hint-kind", "at")
    assert top1(two) > 0.6, two["metrics"]
    dry = run("distill", "teacher.pt", "student.pt", "--dry-run", target="dry.pt")
    assert dry["output"] is None and dry["layers"], dry


def zeros_in(path, names=("conv1", "block.0", "fc")):
    """Which weights of a program are zero, whatever they are stored as."""
    program, found = torch.jit.load(path), {}
    modules = dict(program.named_modules())
    for name in names:
        weight = modules[name].weight
        found[name] = (weight() if callable(weight) else weight) == 0
    return found


def prune(*flags, model="teacher.pt", **more):
    return run("prune", model, "--force", "--types", "all", "--finetune", "--epochs", 3, "--lr", 0.02, "--eval-data",
               "test.npz", *flags, **more)


def check_pruning():
    for own in ([], ["--schedule", "linear", "--steps", 3], ["--schedule", "cubic", "--steps", 4, "--scope", "global"],
                ["--teacher", "student.pt", "--alpha", 0.2, "--schedule", "cubic"], ["--optimizer", "adamw", "--weight-decay", 0.1],
                ["--criterion", "random", "--schedule", "linear"], ["--store", "bitmask"],
                ["--criterion", "wanda", "--calib-data", "train.npz"]):
        report = prune("--sparsity", 0.8, *own)
        assert abs(report["pruning"]["sparsity"] - 0.8) < 0.01, (own, report["pruning"])
        zeros = sum(z.sum().item() for z in zeros_in("out.pt").values())
        assert zeros == report["pruning"]["zeros"], (own, zeros, report["pruning"])
        at_once = report["pruning"]["at_once"]["top1"]["value"]
        assert top1(report) >= at_once - 0.02 and top1(report) > (0.4 if "random" in own else 0.6), (own, at_once, top1(report))
        assert not Path("out.pt.checkpoint").exists()
        if "--schedule" in own:  # epochs that are not pruned in full are not kept
            assert report["training"]["best_epoch"] >= 2, (own, report["training"])
    prune("--sparsity", 0.6, target="sparse.pt")
    sparse = zeros_in("sparse.pt")
    prune("--sparsity", 0.3, "--schedule", "linear", model="sparse.pt")  # which asks for fewer zeros than there are
    assert all(z[sparse[name]].all() for name, z in zeros_in("out.pt").items()), "zeros came back to life"
    prune("--sparsity", 0.6, "--schedule", "cubic", "--steps", 100_000, target="many.pt")  # more than are trained
    assert sum(z.sum() for z in zeros_in("many.pt").values()) >= 0.59 * sum(z.numel() for z in zeros_in("many.pt").values())
    flags = ["--sparsity", 0.7, "--schedule", "cubic", "--steps", 5]
    prune(*flags, "--threads", 1, target="one.pt")
    prune(*flags, "--threads", 2, target="two.pt")
    assert bytes_of("one.pt") == bytes_of("two.pt"), "the bytes depend on the number of threads"
    words = ["prune", "teacher.pt", "--types", "all", "--finetune", "--epochs", 3, "--lr", 0.02, "--eval-data", "test.npz",
             *flags, "--train-data", "train.npz"]
    for old in Path(".").glob("broken.pt*"):
        old.unlink()
    broken = subprocess.Popen(command(words, "broken.pt"))
    wait_for("broken.pt.checkpoint")
    broken.kill()
    broken.wait()
    run(*words, "--resume", target="broken.pt", data=None)
    assert bytes_of("broken.pt") == bytes_of("one.pt"), "the bytes depend on being stopped"


def check_quantizing():
    """A sparse model has the same zeros, and none fewer, however it is quantized."""
    prune("--sparsity", 0.6, target="sparse.pt")
    sparse = zeros_in("sparse.pt")
    for mode in (["dynamic"], ["static", "--calib-data", "train.npz"],
                 ["static", "--calib-data", "train.npz", "--weight-bits", 4, "--bias-correction"],
                 ["qat", "--train-data", "train.npz", "--epochs", 2, "--weight-bits", 4],
                 ["qat", "--train-data", "train.npz", "--epochs", 2, "--freeze-bn-after", 1, "--learn-scales"],
                 ["qat", "--train-data", "train.npz", "--epochs", 1, "--teacher", "teacher.pt"],
                 ["qat", "--train-data", "train.npz", "--epochs", 1, "--teacher", "sparse.pt"]):
        report = run("quantize", "sparse.pt", "--force", "--eval-data", "test.npz", "--mode", *mode, data=None)
        for name, zeros in zeros_in("out.pt").items():
            assert zeros[sparse[name]].all(), (mode, name)
        layers = {layer["name"]: layer for layer in report["layers"]}
        for name, zeros in zeros_in("out.pt").items():
            if layers[name]["decision"] != "keep":
                assert layers[name]["zeros"] == zeros.sum().item() and layers[name]["parameters"] == zeros.numel(), (mode, layers[name])
        assert top1(report) > top1(report, "before") - 0.05, (mode, report["metrics"])


def check_refusals(teacher):
    no = dict(target="no.pt")
    Path("copy.pt").write_bytes(bytes_of("teacher.pt"))
    distill(student="copy.pt", code=2, text="are the same model", **no)
    torch.jit.script(Net(4, classes=5).eval()).save("five.pt")
    distill(student="five.pt", code=65, text="teacher 'teacher.pt' tells 4 classes apart and model 'five.pt' 5", **no)
    for flags, text in ((["--temperature", 0], "--temperature"), (["--temperature", -1], "--temperature"),
                        (["--temperature", "nan"], "--temperature"), (["--alpha", 1.5], "--alpha"), (["--alpha", -0.1], "--alpha"),
                        (["--hint", "conv1"], "is not TEACHER_LAYER=STUDENT_LAYER"), (["--loss", "hinge"], "--loss"),
                        (["--top-k", 2, "--loss", "jsd"], "--top-k goes with --loss kl"), (["--hint-weight", 2], "go with --hint"),
                        (["--baseline", "--alpha", 1], "--baseline trains on labels"), (["--seeds", 0], "--seeds"),
                        (["--seeds", 2, "--valid-share", 0], "need rows to compare on"), (["--baseline", "--valid-share", 0], "need rows to compare on"),
                        (["--loss", "mse-logits", "--temperature", 2], "without a temperature"),
                        (["--crop", 12], "would move images of 12 x 12 out of sight"), (["--html", "-"], "cannot go to stdout"),
                        (["--alpha", 1, "--label-smoothing", 0.1], "--label-smoothing is for labels"),
                        (["--valid-data", "test.npz", "--valid-share", 0.2], "exclude each other")):
        distill(*flags, code=2, text=text, **no)
    distill("--hint", "conv9=conv1", code=65, text="in the teacher: the model has no module 'conv9'; those at its top are conv1, block, fc", **no)
    distill("--hint", "conv1=nothing", code=65, text="the model has no module 'nothing'", **no)
    distill("--hint", "conv1=fc", code=65, text="cannot be compared: they must have the same number of dimensions", **no)
    distill("--lr", 1e30, "--epochs", 1, code=65, text="training diverged", **no)
    frozen = torch.jit.script(nn.Sequential(nn.Flatten(), nn.Softmax(1)).eval())
    frozen.save("frozen.pt")
    np.savez("tiny.npz", images=TRAIN[0][:64, :, 0:2, 0:2].numpy(), labels=TRAIN[1][:64].numpy())
    torch.jit.script(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)).eval()).save("small.pt")
    distill(student="frozen.pt", teacher="small.pt", data="tiny.npz", code=65, text="no parameters that can be trained", **no)
    torch.jit.script(Net(4).double().eval()).save("double.pt")
    distill(student="double.pt", code=65, **no)
    torch.jit.script(Raising().eval()).save("raising.pt")
    distill(student="raising.pt", code=65, text="only for odd batches", **no)
    distill(teacher="raising.pt", code=65, text="in the teacher: the model fails on this data: only for odd batches", **no)
    np.savez("colour.npz", images=np.zeros((4, 3, 12, 12), np.float32), labels=np.zeros(4, np.int64))
    for option in ("--eval-data", "--valid-data"):
        distill(option, "colour.npz", code=65, text="with 'colour.npz': the model fails on this data", **no)
    distill(teacher="nowhere.pt", code=66, text="nowhere.pt", **no)
    distill(teacher="train.npz", code=65, **no)
    distill("--init-from-teacher", student="small.pt", code=65, **no)
    np.savez("seven.npz", images=TRAIN[0][:64].numpy(), labels=np.full(64, 7))
    distill(data="seven.npz", code=65, text="with 'seven.npz': the data has labels outside the model's 4 classes", **no)
    # A cache that is damaged, of another teacher, or no folder.
    distill("--epochs", 1, "--cache", "scores")
    cache = next(Path("scores").iterdir())
    whole = cache.read_bytes()
    for damaged in (b"", whole[:100], whole[:-5], whole[:-200] + b"\0" * 200):
        cache.write_bytes(damaged)
        distill("--cache", "scores", code=65, text="are damaged", **no)
    cache.write_bytes(whole.replace(b'"teacher":"', b'"teacher":"0', 1).replace(b'","teacher_path"', b'0","teacher_path"', 1)[:len(whole)])
    distill("--cache", "scores", code=65, **no)
    torch.save(0, "file")
    distill("--cache", "file", code=73, text="is no folder", **no)
    for own in ("no.pt", "no.pt.checkpoint", "no.pt.json", "teacher.pt"):
        distill("--cache", own, code=73, text="has the name of a file of this run", **no)
    with torch.no_grad():
        loud = Net(16)
        loud.fc.weight.mul_(1e9)
    torch.jit.script(loud.eval()).save("loud.pt")
    distill(teacher="loud.pt", code=65, text="numbers beyond 65504", **no)
    # Options without what they are for.
    run("prune", "teacher.pt", "--sparsity", 0.5, code=2, text="--train-data goes with --finetune", **no)
    run("prune", "teacher.pt", "--sparsity", 0.5, "--teacher", "student.pt", data=None, code=2, text="--teacher goes with --finetune", **no)
    run("prune", "teacher.pt", "--sparsity", 0.5, "--schedule", "cubic", data=None, code=2, text="--schedule goes with --finetune", **no)
    run("prune", "teacher.pt", "--sparsity", 0.5, "--finetune", "--steps", 5, code=2, text="--steps goes with --schedule", **no)
    run("prune", "teacher.pt", "--sparsity", 0.5, "--finetune", "--html", "no.pt.checkpoint", code=73, **no)
    run("prune", "teacher.pt", "--sparsity", 0.5, "--finetune", data=None, code=2, text="--finetune needs --train-data", **no)
    run("prune", "teacher.pt", "--sparsity", 0.5, "--finetune", "--alpha", 0.2, code=2, text="--alpha needs --teacher", **no)
    run("prune", "teacher.pt", "--pattern", "2:4", "--finetune", "--schedule", "cubic", code=2, text="use --schedule one-shot", **no)
    run("quantize", "teacher.pt", "--teacher", "student.pt", data=None, code=2, text="--teacher goes with --mode qat", **no)
    run("quantize", "teacher.pt", "--momentum", 0.5, data=None, code=2, text="--momentum goes with --mode qat", **no)
    assert not list(Path(".").glob("no.pt*")), list(Path(".").glob("no.pt*"))


with tempfile.TemporaryDirectory() as name:
    os.chdir(name)
    torch.manual_seed(0)
    TRAIN, TEST = make_data("train.npz", 2048, 1), make_data("test.npz", 2000, 2)
    teacher = trained(Net(16), *TRAIN)
    torch.jit.script(teacher).save("teacher.pt")
    torch.jit.script(Net(16).eval()).save("sister.pt")
    torch.jit.script(Net(4).eval()).save("student.pt")
    torch.jit.trace(Net(4).eval(), TEST[0][:2]).save("trace.pt")
    check_loop(teacher)
    check_bytes()
    check_unlabelled()
    check_variants()
    check_pruning()
    check_quantizing()
    check_refusals(teacher)
print("distilled, pruned and quantized")
