"""Tests of eah_interp, in the package's own folders; the oracle is tests/oracle.py."""
