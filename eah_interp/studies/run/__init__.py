"""How a study runs: batches, workers, engines, and rows on disk."""
