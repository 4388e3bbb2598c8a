"""Exact activation patching and ablation, many heads a batch."""
