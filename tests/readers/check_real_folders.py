#!/usr/bin/env python3
"""A trained model in each format gives its readers the perplexity that `mcompress evaluate` tells of the same folder.

    check_real_folders.py MCOMPRESS

Of tiny-lm in MCOMPRESS_TEST_DATA, on its held out text. Exits with 77 (skipped) without the data or gptqmodel.
"""
import os
import sys
import tempfile
import warnings
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")

import torch
from running import report_of, test_data
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, GPTQConfig

BINARY = str(Path(sys.argv[1]).resolve())
WINDOWS, LENGTH = 8, 256


def gptq(folder, bits):
    config = GPTQConfig(bits=bits, backend="gptq_torch")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", quantization_config=config)


def awq(folder, _):
    """In bfloat16 as GPTQModel's kernel for CPUs computes, so that the ratio is as exact as that."""
    from gptqmodel import BACKEND, GPTQModel

    return GPTQModel.load(str(folder), device="cpu", dtype=torch.bfloat16, backend=BACKEND.AWQ_TORCH).model


def compressed_tensors(folder, _):
    config = CompressedTensorsConfig(run_compressed=False)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)


def dense(folder, _):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


READERS = {"gptq": (gptq, 1e-3), "awq": (awq, 1e-3), "compressed-tensors": (compressed_tensors, 1e-3), "dequantized": (dense, 1e-5)}


def their_perplexity(model, windows):
    with torch.no_grad():
        logits = model.eval()(windows).logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).exp().item()


def main():
    data = Path(test_data()) / "tiny-lm"
    try:
        import gptqmodel  # noqa: F401
    except ImportError:
        print("gptqmodel is not installed")
        sys.exit(77)
    text = data / "heldout.txt"
    ids = Tokenizer.from_file(str(data / "tokenizer.json")).encode(text.read_text(encoding="utf-8"), add_special_tokens=False).ids
    windows = torch.tensor(ids[: WINDOWS * LENGTH]).view(WINDOWS, LENGTH)
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)  # GPTQModel leaves logs where it runs
        calibration = ["--calib-data", text, "--seqlen", 256, "--nsamples", 16]
        evaluation = ["--eval-data", text, "--windows", WINDOWS]
        for method in (["quantize", "--mode", "weight-only"], ["gptq", *calibration], ["awq", *calibration]):
            for form, (open_model, most) in READERS.items():
                report_of(BINARY, *method, data, "-o", "out", "--group-size", 64, "--format", form)
                ours = report_of(BINARY, "evaluate", "out", *evaluation, "--seqlen", LENGTH)["metrics"]["before"]["perplexity"]["value"]
                theirs = their_perplexity(open_model(Path("out"), 4), windows)
                print(f"{method[0]} {form}: {ours:.4f}, its reader {theirs:.4f}", flush=True)
                assert abs(theirs / ours - 1) < most, (ours, theirs)


if __name__ == "__main__":
    main()
