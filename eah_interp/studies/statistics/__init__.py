"""What rows say: metrics, intervals, contrasts, claims."""
