"""Odd inputs at every door: each ends in a result, or in an error of `errors.py`.

`python -m tests.fuzz --inputs 10000 --seed 0` prints what came of each target. An input
is made from a seed, its target's name and its number alone, so that one that fails is
made again by `--only TARGET --index N`. `--each` replaces every argument by every odd
value, one at a time: what is rare in a random choice is then found for certain.
"""
