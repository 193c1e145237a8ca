#!/usr/bin/env python3
"""Makes tests/data/tokenizers: small tokenizers, and the ids that the libraries they come from give with them.

    make_tokenizers.py          (tokenizers 0.23.3 and sentencepiece 0.2.3, of .venv-readers)

Each is trained on the texts below and stored as NAME.json, or NAME/tokenizer.model of sentencepiece; cases.json holds,
for each, texts with their ids. Their steps are those of GPT-2, Llama 3, Qwen 2, SmolLM2, GPT-4o, Llama 2, Gemma, XLM-R and
BERT, and some that few models have. The trainers of WordPiece and unigram models break ties by chance: another run makes
other files, and the cases that go with them.
"""
import base64
import io
import json
import tempfile
from pathlib import Path

import sentencepiece
from protobuf import fields
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

OUT = Path(__file__).parent / "tokenizers"
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4O = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}|"
         r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
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
    "\u2581x \u2581", "\ufb01ne \u2460 \uff21\uff22 \u3000\u00bd", "HeLLo W\u00d6RLD \u0130I\u0307", "\u751f\u6d3b\u7684a\u771f", "\u0378\ue000x", "a\u0300\u0301b\u0327 \u1e69",
    "a/b//c", "IsItCamelCase HTTPServer'S", "\u01c5x\u02b0y", "x" * 120 + " y", "don\u2019t \u201cquote\u201d\u2026", "\u0e40\u0e01\u0e21", "\u1100\u1161\u11a8\u0308",
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


def with_bytes(tokenizer):
    """The same with tokens <0x00> to <0xFF> behind its special ones, which stand for the bytes of unknown characters."""
    parts = json.loads(tokenizer.to_str())
    vocabulary = sorted(parts["model"]["vocab"], key=parts["model"]["vocab"].get)
    special = len(parts["added_tokens"])
    tokens = vocabulary[:special] + [f"<0x{byte:02X}>" for byte in range(256)] + vocabulary[special:]
    parts["model"] |= dict(vocab={token: i for i, token in enumerate(tokens)}, byte_fallback=True)
    return Tokenizer.from_str(json.dumps(parts))


def train(model, trainer, pre=None, normalizer=None):
    tokenizer = Tokenizer(model)
    if pre:
        tokenizer.pre_tokenizer = pre
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def bpe(size=300, special=("<unk>", "<s>", "</s>")):
    return trainers.BpeTrainer(vocab_size=size, special_tokens=list(special), show_progress=False)


def others():
    """Those that work on characters."""
    llama2 = with_bytes(train(models.BPE(unk_token="<unk>", fuse_unk=True), bpe(),
                              normalizer=normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])))
    template(llama2, "<s> $A")
    gemma = with_bytes(train(models.BPE(unk_token="<unk>", fuse_unk=True), bpe(), PRE.Split(" ", "merged_with_previous"),
                             normalizers.Replace(" ", "\u2581")))
    metaspace = train(models.BPE(unk_token="<unk>"), bpe(), PRE.Metaspace(prepend_scheme="first"))
    fused = train(models.BPE(unk_token="<unk>", fuse_unk=True), bpe(), PRE.Sequence([PRE.Whitespace(), PRE.Digits(individual_digits=False)]),
                  normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.Strip()]))
    unigram = train(models.Unigram(), trainers.UnigramTrainer(vocab_size=260, special_tokens=["<s>", "<unk>"], unk_token="<unk>", show_progress=False),
                    PRE.Metaspace(), normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]))
    bert = train(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=100),
                 trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[CLS]", "[SEP]"], show_progress=False),
                 PRE.BertPreTokenizer(), normalizers.BertNormalizer())
    template(bert, "[CLS] $A [SEP]")
    cased = train(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=12),
                  trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]"], show_progress=False),
                  PRE.Sequence([PRE.WhitespaceSplit(), PRE.Punctuation("contiguous")]), normalizers.BertNormalizer(lowercase=False, strip_accents=False))
    odd = train(models.BPE(unk_token="<unk>"), bpe(), PRE.Sequence([PRE.Split(Regex(r"\d+|[a-c]"), "merged_with_next"),
                                                                  PRE.Split("e", "removed"), PRE.Punctuation("merged_with_previous")]), normalizers.NFKD())
    return dict(llama2=llama2, gemma=gemma, metaspace=metaspace, fused=fused, unigram=unigram, bert=bert, cased=cased, odd=odd)


def from_sentencepiece(name, **options):
    file = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.tsv"
        # Rows of code points: ligature fi, full-width A, e with combining acute, ideographic space, a that is dropped.
        rules.write_text("FB01\t66 69\nFF21\t41\n65 301\tE9\n3000\t20\nA0\t20\nAD\t\n")
        if options.pop("rules", False):
            options["normalization_rule_tsv"] = str(rules)
        else:
            options["normalization_rule_name"] = "identity"
        # Some versions write the trainer's paths into the model; an iterator has none.
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(line for text in CORPUS for line in text.split("\n")), model_writer=file,
                                                 minloglevel=2, num_threads=1, **options)
    (OUT / name).mkdir(exist_ok=True)
    (OUT / name / "tokenizer.model").write_bytes(file.getvalue())
    return sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())


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
    gpt4o = trained(split(GPT4O), 420)
    tokenizers = dict(gpt2=gpt2, prefixed=prefixed, llama3=llama3, qwen2=qwen2, smol=smol, gpt4o=gpt4o, **others())
    pieces = {
        "sp_bpe": from_sentencepiece("sp_bpe", model_type="bpe", vocab_size=560, byte_fallback=True, remove_extra_whitespaces=False,
                                     user_defined_symbols=["<|end|>", "word"], split_digits=True, character_coverage=0.98,
                                     allow_whitespace_only_pieces=True),
        "sp_plain": from_sentencepiece("sp_plain", model_type="bpe", vocab_size=280, rules=True, add_dummy_prefix=False, character_coverage=0.98),
        "sp_unigram": from_sentencepiece("sp_unigram", model_type="unigram", vocab_size=240, hard_vocab_limit=False, rules=True, character_coverage=0.98,
                                         user_defined_symbols=["<|end|>"]),
        "sp_fallback": from_sentencepiece("sp_fallback", model_type="unigram", vocab_size=520, hard_vocab_limit=False, byte_fallback=True, add_dummy_prefix=True,
                                          remove_extra_whitespaces=False, character_coverage=0.98),
    }
    # As converters write an XLM-R: sentencepiece's pieces and its map of characters.
    xlmr = json.loads(tokenizers["unigram"].to_str())
    proto = sentencepiece_parts(pieces["sp_unigram"])
    xlmr["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Precompiled", "precompiled_charsmap": proto},
                                                             {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}]}
    xlmr["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"},
                                                                  {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}]}
    tokenizers["xlmr"] = Tokenizer.from_str(json.dumps(xlmr))
    cases = {}
    for name, tokenizer in tokenizers.items():
        tokenizer.save(str(OUT / f"{name}.json"), pretty=False)
        cases[name] = [[text, tokenizer.encode(text).ids] for text in TEXTS]
    for name, tokenizer in pieces.items():
        cases[name] = [[text, tokenizer.encode(text)] for text in TEXTS]
    (OUT / "cases.json").write_text(json.dumps(cases, separators=(",", ":")) + "\n")


def sentencepiece_parts(processor):
    """The precompiled_charsmap of a model, base64: field 2 of its normalizer_spec, field 3."""
    spec = next(value for number, value in fields(processor.serialized_model_proto()) if number == 3)
    return base64.b64encode(next(value for number, value in fields(spec) if number == 2)).decode()


if __name__ == "__main__":
    main()
