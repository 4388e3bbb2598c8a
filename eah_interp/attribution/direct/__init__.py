"""Direct logit attribution: what each head writes towards a logit."""
