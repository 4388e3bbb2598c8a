"""Effects of the patches of a picture."""
