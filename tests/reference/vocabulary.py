"""A small CLIP-style tokenizer: byte-level BPE with `</w>`, learnt from a few sentences."""

import re
from collections import Counter

CORPUS = """
a photo of a red fox in the snow, highly detailed, sharp focus, 8k
an oil painting of the sea at sunset, golden light, by a famous painter
a portrait of an old man with a white beard, studio lighting, photograph
the quick brown fox jumps over the lazy dog while it's raining and they're sleeping
a castle on a green hill under a blue sky, fantasy landscape, trending on artstation
low quality, blurry, watermark, ugly, deformed, bad anatomy, extra fingers
a bowl of fruit on a wooden table, still life, soft shadows, watercolour
a robot walking through a city of neon lights in the rain at night
astronaut riding a horse on the moon, cinematic, wide angle
a cat and a dog drinking coffee in a small café in paris
"""
START, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"


def byte_characters():
    """The 256 characters by which a byte-level BPE writes bytes, in the order of CLIP's vocabulary."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + index) for index in range(len(hidden))]


def learn_merges(count):
    """The most frequent pair, again and again; of equally frequent ones the alphabetically first."""
    words = Counter(re.findall(r"[a-z]+", CORPUS))
    split = {word: [*word[:-1], word[-1] + END_OF_WORD] for word in words}
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for word, parts in split.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += words[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in split.items():
            split[word] = merge(parts, best)
    return merges


def merge(parts, pair):
    """`parts` with each occurrence of `pair` joined, from the left."""
    joined, index = [], 0
    while index < len(parts):
        if tuple(parts[index : index + 2]) == pair:
            joined.append(parts[index] + parts[index + 1])
            index += 2
        else:
            joined.append(parts[index])
            index += 1
    return joined


def vocabulary(count):
    """(token → id, merges): bytes, bytes that end a word, `count` merges, start, end."""
    merges = learn_merges(count)
    characters = byte_characters()
    tokens = characters + [c + END_OF_WORD for c in characters] + ["".join(pair) for pair in merges]
    tokens = list(dict.fromkeys(tokens)) + [START, END]
    return {token: index for index, token in enumerate(tokens)}, merges
