"""What the readers of packed folders share: tiny random models, wide enough for their formats."""
import shutil
import sys
from pathlib import Path

import torch

DATA = Path(__file__).resolve().parents[1] / "data"
sys.path.insert(0, str(DATA))

from make_decoders import MODELS, SMALL, randomize


def make_model(name, folder, **sizes):
    """Saves one of make_decoders.py's with other sizes, and returns its vocabulary."""
    config_type, model_type, changes = MODELS[name]
    torch.manual_seed(7)
    model = model_type(config_type(**{**SMALL, **changes, "hidden_size": 64, "max_position_embeddings": 128, "vocab_size": 448, **sizes})).eval()
    randomize(model, name, 0.1)
    model.save_pretrained(folder)
    # GPTQModel opens no folder without a tokenizer.
    shutil.copy(DATA / "tokenizers/gpt2.json", folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return model.config.vocab_size
