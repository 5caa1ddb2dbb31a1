"""What transformers makes of the files that a tokenizer may lie beside, as diffusers calls it."""

import json
import shutil
import tempfile
from pathlib import Path

from diffusers.loaders import TextualInversionLoaderMixin
from transformers import CLIPTokenizer

from checkpoints import write_json
from vocabulary import END, START

WINDOW = 32
NAMED = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
CONFIG = {"model_max_length": WINDOW, "tokenizer_class": "CLIPTokenizer", **NAMED}
PROMPTS = [
    "a photo of a red fox",
    "",
    "   ",
    "A RED FOX, IT'S 3",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈!",
    "日本語 の 絵",
    "e\u0301cole \u00c9COLE \u1e9b\u0323",
    "a\u00a0b\u2003c\u3000d\u200be",
    "a\x00b\x07c\x1cd\x1fe\x7ff\x85g",
    "a\tb\nc\r\nd",
    f"a{END}b",
    f"a {END} b {START}",
    f"{END.upper()} fox",
    f"x{START.upper()}y",
    "<| endoftext |> <|endoftext",
    "wow!! really ! (!)",
    "a <cat-toy> on a chair",
    "a<cat-toy>b",
    "(<cat-toy>), <cat-toy>!",
    "<CAT-TOY> <Cat-Toy>",
    "<cat-toy>_1 and <cat-toy>_9",
    "<cat-toy><cat-toy>",
    "sks dog, SKS dog, asks sks's",
    "the   <Dog>   runs",
    "the <dog> runs",
    "fox" * 60,
    "zq" * 40,
    "ǅ İ ß ﬁ ⅷ ²",
]


def token(content, **flags):
    """A token as files describe it."""
    plain = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    return {"content": content, **plain, **flags}


def typed(content, **flags):
    return {"__type": "AddedToken", **token(content, **flags)}


VECTORS = ["<cat-toy>", "<cat-toy>_1", "<cat-toy>_2"]
SAVED_CALL = {
    "truncation": {"direction": "Right", "max_length": 5, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 3,
        "pad_type_id": 0,
        "pad_token": "$",
    },
}
LEFT = {key: {**value, "direction": "Left"} for key, value in SAVED_CALL.items()}


def flagged(first):
    """Tokens with one flag each, and special tokens that are normalised, by number."""
    return {
        "0": token("!", normalized=False, special=True),
        str(first - 2): token(START, special=True),
        str(first - 1): token(END, special=True),
        str(first): token("<cat-toy>", lstrip=True, rstrip=True, normalized=False),
        str(first + 1): token("sks", single_word=True),
        str(first + 2): token("<Dog>", lstrip=True, special=True),
        str(first + 3): token("<CAT-TOY>", rstrip=True, normalized=False, special=True),
    }


def numbered(tokens):
    return [{"id": int(number), "special": False, **described} for number, described in tokens.items()]


def cases(size):
    """[(name, base, files beside the vocabulary, changes to tokenizer.json)]; `size` is the vocabulary's."""
    described = {key: token(value) for key, value in NAMED.items()}
    vectors = {name: size + index for index, name in enumerate(VECTORS)}
    config, words = "tokenizer_config.json", "special_tokens_map.json"
    published = {config: {**CONFIG, "pad_token": END}, words: {**described, "pad_token": END}}
    published[config].update({key: typed(NAMED[key]) for key in ("bos_token", "eos_token", "unk_token")})
    xl = {config: {**CONFIG, "pad_token": "!", "added_tokens_decoder": flagged(size)}}
    plain = {config: CONFIG}
    return [
        ("no_files", "sd15", {config: {"model_max_length": WINDOW}}, None),
        ("named_as_text", "sd15", plain, None),
        ("named_as_published", "sd15", published, None),
        ("map_wins", "sd15", {config: {**CONFIG, "pad_token": "!"}, words: {**NAMED, "pad_token": "$"}}, None),
        ("described_without_flags", "sd15", {config: {**CONFIG, "eos_token": {"__type": "AddedToken", "content": END}}}, None),
        ("other_unknown", "sd15", {config: {**CONFIG, "unk_token": "!"}}, None),
        ("split_special", "sd15", {config: {**CONFIG, "split_special_tokens": True}}, None),
        ("max_len", "sd15", {config: {**NAMED, "max_len": 12}}, None),
        ("sides", "sd15", {config: {**CONFIG, "model_max_length": 12, "padding_side": "left", "truncation_side": "left"}}, None),
        ("added_tokens", "sd15", {**plain, "added_tokens.json": {**vectors, "<Dog>": size + 3}}, None),
        ("added_special", "sd15", {**published, "added_tokens.json": {END: size - 1, **vectors}}, None),
        ("flags", "sd15", xl, None),
        ("numbered_wins", "sd15", {**xl, words: {"pad_token": "$"}, "added_tokens.json": {"the": size + 9}}, None),
        ("additional", "sd15", {config: {**CONFIG, "additional_special_tokens": ["<cat-toy>", typed("<Dog>")]}}, None),
        ("additional_in_map", "sd15", {**plain, words: {"additional_special_tokens": ["<Dog>", "<cat-toy>"]}}, None),
        ("extra_in_map", "sd15", {**plain, words: {"extra_special_tokens": [token("<Dog>"), "<cat-toy>"]}}, None),
        ("extra_by_name", "sd15", {config: {**CONFIG, "extra_special_tokens": {"toy_token": "<cat-toy>"}}}, None),
        ("own_role", "sd15", {config: {**CONFIG, "toy_token": "<cat-toy>", "dog_token": typed("<Dog>")}}, None),
        ("json", "sd2v", plain, {}),
        ("json_alone", "sd2v", {config: {"model_max_length": WINDOW}}, {}),
        ("json_saved_call", "sd2v", plain, SAVED_CALL),
        ("json_left", "sd2v", {config: {**CONFIG, "model_max_length": 12}}, LEFT),
        ("json_left_config_wins", "sd2v", {config: {**CONFIG, "padding_side": "right"}}, LEFT),
        ("json_added", "sd2v", plain, {"added_tokens": numbered(flagged(size)), **SAVED_CALL}),
        ("json_and_numbered", "sd2v", xl, {"added_tokens": []}),
        ("json_other_splitting", "sd2v", plain, {"normalizer": None, "pre_tokenizer": None, "post_processor": None}),
    ]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def encode(tokenizer, prompt):
    """(ids of the window, how many ids the prompt has with start and end)."""
    prompt = TextualInversionLoaderMixin().maybe_convert_prompt(prompt, tokenizer)
    most = tokenizer.model_max_length
    ids = tokenizer(prompt, padding="max_length", max_length=most, truncation=True).input_ids
    return ids, len(tokenizer(prompt).input_ids)


def write_tokenizers(data):
    rows = []
    for base in ("sd15", "sd2v"):
        folder = data / base / "model" / "tokenizer"
        whole = read(folder / "tokenizer.json")["model"]["vocab"] if base == "sd2v" else read(folder / "vocab.json")
        for name, of, files, changes in cases(len(whole)):
            if of != base:
                continue
            with tempfile.TemporaryDirectory() as made:
                made = Path(made)
                if changes is None:
                    shutil.copy(folder / "vocab.json", made)
                    shutil.copy(folder / "merges.txt", made)
                else:
                    write_json(made / "tokenizer.json", {**read(folder / "tokenizer.json"), **changes})
                for file, value in files.items():
                    write_json(made / file, value)
                tokenizer = CLIPTokenizer.from_pretrained(made)
                encoded = [encode(tokenizer, prompt) for prompt in PROMPTS]
            row = {"name": name, "base": base, "files": files, "tokenizer_json": changes}
            ids, whole_ids = zip(*encoded)
            rows.append({**row, "ids": ids, "whole": whole_ids})
    lines = ",\n".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
    prompts = json.dumps(PROMPTS)
    (data / "tokenizers.json").write_text(f'{{"prompts": {prompts},\n"cases": [\n{lines}\n]}}\n', encoding="utf-8")
