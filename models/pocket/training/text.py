"""The vocabulary, in the form CLIP's tokenizer has, and its training."""

import json
import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers, Regex

import data
from catalogue import COLOURS, STYLES

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_LENGTH = 24
VOCABULARY = 1200

# The words that CLIP's tokenizer splits a text into, before byte pairs.
WORDS = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def train_tokenizer(things, folder: Path, captions: int = 40_000):
    """Write vocab.json and merges.txt, learnt from captions, and CLIPTokenizer's configuration."""
    rng = random.Random(0)
    styles, colours = list(STYLES), list(COLOURS)
    corpus = [
        data.caption(rng, rng.choice(things), rng.choice(styles), rng.choice(colours))
        for _ in range(captions)
    ]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(alphabet) - 2,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    merges = [pair if isinstance(pair, list) else pair.split(" ")
              for pair in json.loads(tokenizer.to_str())["model"]["merges"]]

    # CLIP's order: the bytes, the bytes that end a word, the merges, the two special tokens.
    entries = alphabet + [byte + "</w>" for byte in alphabet]
    entries += [left + right for left, right in merges]
    entries += [START, END]
    vocabulary = {entry: index for index, entry in enumerate(dict.fromkeys(entries))}

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2"] + [" ".join(pair) for pair in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": MAX_LENGTH,
            "tokenizer_class": "CLIPTokenizer",
            **special,
        },
    )


def write_json(path: Path, value):
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenize(tokenizer, captions):
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    ).input_ids
