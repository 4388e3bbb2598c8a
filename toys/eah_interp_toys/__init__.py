"""Weights of three toys, a folder each; `eah_interp.toy.toy_path` finds them."""
