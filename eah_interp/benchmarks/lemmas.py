"""Captions as CHAIR reads them: lower-case tokens, each as its lemma."""

import functools
from collections.abc import Callable
from typing import TypeAlias

from eah_interp.errors import ExtraMissingError

Lemmatize: TypeAlias = Callable[[str], list[str]]
"""Text to its words as a vocabulary has them."""

DATA = ("punkt_tab", "averaged_perceptron_tagger_eng", "wordnet")
"""NLTK's data that this needs."""

_PARTS = {"J": "a", "V": "v", "N": "n", "R": "r"}
"""First letter of a Penn tag to WordNet's part of speech; nouns for all others."""


def load_lemmatizer() -> Lemmatize:
    """Load what turns a caption into lemmas, from NLTK.

    Lower-cased, split by NLTK's `word_tokenize`, tagged as a whole by its averaged
    perceptron, and each token put through WordNet's `lemmatize` with its part of
    speech: the reading behind published CHAIR since OPERA (the script of 2018 used the
    package `pattern`). Lemmas are kept, so that 500 captions take seconds.

    Returns:
        A function of a text that returns its lemmas in order.

    Raises:
        ExtraMissingError: If NLTK, or its data, is not installed.
    """
    try:
        import nltk
        from nltk.stem import WordNetLemmatizer
        from nltk.tag.perceptron import PerceptronTagger
    except ImportError as error:
        msg = f"CHAIR needs NLTK ({error}): pip install 'eah-interp[eval]'"
        raise ExtraMissingError(msg) from error
    lemmatizer = WordNetLemmatizer()
    lemma_of = functools.lru_cache(maxsize=None)(lemmatizer.lemmatize)
    try:
        tagger = PerceptronTagger()

        def lemmatize(text: str) -> list[str]:
            tagged = tagger.tag(nltk.word_tokenize(text.lower()))
            return [lemma_of(word, _PARTS.get(tag[:1], "n")) for word, tag in tagged]

        lemmatize("two cups")  # each of the three sets of data is opened
    except LookupError as error:
        msg = (
            f"NLTK's data is not complete in any of {nltk.data.path}: get it with "
            f"`python -m nltk.downloader {' '.join(DATA)}`, or set NLTK_DATA to a "
            "folder that has it"
        )
        raise ExtraMissingError(msg) from error
    return lemmatize
