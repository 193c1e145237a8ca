#!/usr/bin/env python3
"""Run every mcompress command of the README, in a folder that holds what they name.

    check_readme.py MCOMPRESS REPOSITORY
"""
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path


def prepare(binary, repository, folder):
    """The files that the README names without showing where they come from."""
    (folder / "tests").symlink_to(repository / "tests")
    dict_file = repository / "tests/data/state_dicts/plain.pt"
    subprocess.run([binary, "quantize", dict_file, "-o", folder / "model.safetensors", "--dtype", "bfloat16", "-q"], check=True)
    shutil.copytree(repository / "tests/data/decoders/llama", folder / "language_model")
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
