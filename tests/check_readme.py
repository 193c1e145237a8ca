#!/usr/bin/env python3
"""Run every mcompress command of the README, in a folder that holds what they name.

    check_readme.py MCOMPRESS REPOSITORY
"""
import json
import math
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path


def write_language_model(folder):
    """A random llama of two blocks, wide enough for GPTQ's format, with the vocabulary of tokenizers/gpt2.json."""
    shapes = {"embed_tokens": (448, 64), "norm": (64,)}
    for block in ("layers.0.", "layers.1."):
        shapes |= {block + "input_layernorm": (64,), block + "post_attention_layernorm": (64,), block + "mlp.down_proj": (64, 96)}
        shapes |= {f"{block}mlp.{name}_proj": (96, 64) for name in ("gate", "up")}
        shapes |= {f"{block}self_attn.{name}_proj": (64 if name in "qo" else 32, 64) for name in "qkvo"}
    random.seed(1)
    header, data = {}, b""
    for name, shape in shapes.items():
        values = [random.gauss(0, 0.3) + len(shape) % 2 for _ in range(math.prod(shape))]
        header[f"model.{name}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + 4 * len(values)]}
        data += struct.pack(f"<{len(values)}f", *values)
    text = json.dumps(header).encode()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
    (folder / "config.json").write_text(json.dumps({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 448, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": True}))


def prepare(binary, repository, folder):
    """The files that the README names without showing where they come from."""
    (folder / "tests").symlink_to(repository / "tests")
    dict_file = repository / "tests/data/state_dicts/plain.pt"
    subprocess.run([binary, "quantize", dict_file, "-o", folder / "model.safetensors", "--dtype", "bfloat16", "-q"], check=True)
    write_language_model(folder / "language_model")
    shutil.copy(repository / "tests/data/tokenizers/gpt2.json", folder / "language_model/tokenizer.json")
    (folder / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 500)
    (folder / "model_folder").mkdir()
    (folder / "model_folder/config.json").write_text('{"model_type": "none"}')
    (folder / "model_folder/model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())


def main():
    binary, repository = str(Path(sys.argv[1]).resolve()), Path(sys.argv[2]).resolve()
    commands = re.findall(r"^    mcompress (.*)$", (repository / "README.md").read_text(), re.MULTILINE)
    assert len(commands) >= 5, commands
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(binary, repository, folder)
        for command in commands:
            print("mcompress", command, flush=True)
            subprocess.run(f"{binary} {command}", shell=True, check=True, cwd=folder, env={**os.environ, "MCOMPRESS_LIMIT": "500", "MCOMPRESS_TRAIN_LIMIT": "1000"})


if __name__ == "__main__":
    main()
