"""The logit lens: what each layer's residual stream says already."""
