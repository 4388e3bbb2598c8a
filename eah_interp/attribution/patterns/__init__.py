"""What heads attend to: their rows, and every column's score, plain and patched."""
