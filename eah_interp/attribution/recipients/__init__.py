"""Which recipients of a broadcast matter, and which later heads carry it on."""
