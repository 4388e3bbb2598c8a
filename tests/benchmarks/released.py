"""Files of the reference data, and CHAIR computed by hand, written from its rules."""

import functools
import json

import pandas as pd

CAPTIONS = {
    "r1": "less-is-more_r1_llava-1.5-7b.jsonl",
    "r2": "less-is-more_r2_vcd.jsonl",
    "r4": "less-is-more_r4_opera-fast.jsonl",
    "r6": "less-is-more_r6_selective-eos.jsonl",
}


@functools.cache
def load_reader(nltk_folder):
    """Return one lemmatizer for all tests, which reads each caption once."""
    import nltk

    from eah_interp.benchmarks.mentions import load_lemmatizer

    before = nltk.data.path
    nltk.data.path = [nltk_folder]
    try:
        reader = load_lemmatizer()
        reader.read = functools.cache(reader.read)
        reader.read("two cups")
    finally:
        nltk.data.path = before
    return reader


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def name_objects(text, vocabulary):
    """Name the objects of a caption as the metric's rules say, one step at a time."""
    import nltk
    from nltk.stem import WordNetLemmatizer

    lemmatizer, lemmas = WordNetLemmatizer(), []
    for token, tag in nltk.pos_tag(nltk.word_tokenize(text.lower())):
        part = "n"
        if tag.startswith("J"):
            part = "a"
        elif tag.startswith("V"):
            part = "v"
        elif tag.startswith("R"):
            part = "r"
        lemmas.append(lemmatizer.lemmatize(token, part))
    words, pairs = [], vocabulary["double_word_map"]
    while lemmas:
        pair = " ".join(lemmas[:2])
        if len(lemmas) > 1 and pair in pairs:
            words.append(pairs[pair])
            del lemmas[:2]
        else:
            words.append(lemmas.pop(0))
    if "toilet" in words and "seat" in words:
        words = [word for word in words if word != "seat"]
    named = []
    for word in words:
        groups = [g[0] for g in vocabulary["synonym_groups"] if word in g]
        named += groups[-1:]
    return named


def rows(named, truth):
    """Make a table of captions of lists of names."""
    return pd.DataFrame(
        {
            "mentions": named,
            "truth": truth,
            "caption": [" ".join(names) for names in named],
        }
    )
