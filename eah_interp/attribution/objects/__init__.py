"""Object words: their token ids, synonyms, and mentions in a text."""
