#!/usr/bin/env python3
"""Makes tests/data/tokenizers: small byte-level tokenizers, and the ids that the tokenizers library gives with them.

    make_tokenizers.py          (tokenizers 0.23.3, of .venv-readers)

Each is trained on the texts below and stored as NAME.json; cases.json holds, for each, texts with their ids. The
pre-tokenizers are those of GPT-2, Llama 3, Qwen 2 and SmolLM2.
"""
import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = Path(__file__).parent / "tokenizers"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
PRE = pre_tokenizers

CORPUS = [
    "The quick brown fox doesn't jump over the lazy dog, and we've said that they'll see it: 1234567 times in 2024.",
    "It's what I'm told; you're right, he'd say.  Two  spaces,   three   spaces.\n\nA new line\r\nand another\t\ttabs.",
    "Größe, naïve café, Ελληνικά, русский язык, 日本語の文章, العربية, हिन्दी, 한국어 문장, e\u0301 and \u00e9.",
    "def f(x):\n    return x ** 2  # code\n\n\nclass A(B):\n\tpass",
] * 3

TEXTS = CORPUS[:4] + [
    "", " ", "  ", "   a", "a   ", "\n", "\n\n\n", " \n \n x", "\r\n\r\n", "\t\n ", "a\n b", "  \n\n  a",
    "'", "'s", "it'S", "IT'LL", "'lll", "x'd'", "''s", "I'\u017f", "don't'", "'ve 've",
    "1", "12", "123", "1234", "12345 678", " 1 2", "3.14159", "a1b22c333", "\u00bd\u2163\u0667 1\u00bd", "x\u00b2",
    "!?", " !", "!!\n\n", " ...\r\n a", "a.b", "_a_", "$x$", "-1", "(a)", "a\u00a0b", "\u2003\u3000 a", "a\u0085b", "\u200b",
    "e\u0301", "A\u030a", "\u212b", "\ud55c\uae00", "\u1112\u1161\u11ab", "\ufb01", "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U00020000",
    "\u0e01\u0e33", "\u0301", " \u0301a", "\u00ad", "\x00\x01", "\ufeffa", "\ufffd",
    "<|end|>", "a<|end|>b", "<|end|><|end|>", " <|end|> ", "<|en", "<|end", "word", "a word b", "awordb", "word word", "sword",
    "left  ", "  left", "a  trim  b", "a" * 200, "ab" * 100, " " * 120, "abc " * 50, "=" * 77, "1" * 90,
]


def trained(pre, size, normalizer=None, **model):
    tokenizer = Tokenizer(models.BPE(**model))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=PRE.ByteLevel.alphabet(), special_tokens=["<|end|>"], show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def split(pattern):
    return PRE.Sequence([PRE.Split(Regex(pattern), "isolated"), PRE.ByteLevel(add_prefix_space=False, use_regex=False)])


def template(tokenizer, single):
    ids = [(token, tokenizer.token_to_id(token)) for token in single.replace("$A", "").split()]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)


def main():
    OUT.mkdir(exist_ok=True)
    gpt2 = trained(PRE.ByteLevel(add_prefix_space=False), 420)
    prefixed = trained(PRE.ByteLevel(add_prefix_space=True), 400)
    prefixed.add_tokens([AddedToken("word", single_word=True), AddedToken(" trim ", lstrip=True, rstrip=True), AddedToken("left", lstrip=True)])
    llama3 = trained(split(LLAMA3), 420, ignore_merges=True)
    template(llama3, "<|end|> $A")
    qwen2 = trained(split(QWEN2), 420, normalizers.NFC())
    qwen2.add_tokens([AddedToken("\u00c5", normalized=True)])
    smol = trained(PRE.Sequence([PRE.Digits(individual_digits=True), PRE.ByteLevel(add_prefix_space=False)]), 420)
    template(smol, "<|end|> $A <|end|>")
    cases = {}
    for name, tokenizer in (("gpt2", gpt2), ("prefixed", prefixed), ("llama3", llama3), ("qwen2", qwen2), ("smol", smol)):
        tokenizer.save(str(OUT / f"{name}.json"), pretty=False)
        cases[name] = [[text, tokenizer.encode(text).ids] for text in TEXTS]
    (OUT / "cases.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
