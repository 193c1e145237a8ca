#!/usr/bin/env python3
"""Losses and gradients of distillation as PyTorch computes them.

    make_distill_losses.py OUT.safetensors

For each loss, temperature and alpha: `NAME.loss` and `NAME.gradient`, that of the student's scores. `hint.*` are the
losses of features. Needs torch and safetensors; torch 2.13.0 made the stored file.
"""
import sys

import torch
from safetensors.torch import save_file
from torch.nn import functional as F


def soft(name, student, teacher, t):
    p, q = (teacher / t).log_softmax(1), (student / t).log_softmax(1)
    kl = lambda target, source: F.kl_div(source, target, reduction="batchmean", log_target=True)
    if name == "kl":
        return t * t * kl(p, q)
    if name == "reverse-kl":
        return t * t * kl(q, p)
    if name == "jsd":
        m = ((p.exp() + q.exp()) / 2).log()
        return t * t * (kl(p, m) + kl(q, m)) / 2
    return F.mse_loss(student, teacher)


def main():
    torch.manual_seed(7)
    student, teacher = torch.randn(5, 7) * 3, torch.randn(5, 7) * 3
    labels = torch.tensor([0, 6, 2, 2, 5])
    out = {"student": student, "teacher": teacher, "labels": labels}
    for name in ("kl", "reverse-kl", "jsd", "mse-logits"):
        for t, alpha in ((4.0, 0.5), (1.0, 1.0), (2.0, 0.9)):
            scores = student.double().requires_grad_(True)
            loss = alpha * soft(name, scores, teacher.double(), t)
            loss = loss + (1 - alpha) * F.cross_entropy(scores, labels, label_smoothing=0.1)
            loss.backward()
            key = f"{name} {t:g} {alpha:g}"
            out[key + ".loss"], out[key + ".gradient"] = loss.detach(), scores.grad
    wide, narrow = torch.randn(3, 6, 8, 8), torch.randn(3, 4, 4, 4)
    attention = lambda f: F.normalize(f.pow(2).mean(1).flatten(1))
    pooled = F.adaptive_avg_pool2d(wide, 4)
    out |= {"hint.teacher": wide, "hint.student": narrow,
            "hint.at": (attention(narrow.double()) - attention(pooled.double())).pow(2).mean(),
            "hint.mse": F.mse_loss(narrow.double(), pooled[:, :4].double())}
    save_file({k: v.contiguous() for k, v in out.items()}, sys.argv[1])


if __name__ == "__main__":
    main()
