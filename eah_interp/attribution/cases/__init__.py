"""What is asked: a prompt, a picture, the logits that are read, and where."""
