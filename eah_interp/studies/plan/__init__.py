"""What a study is: items, conditions, decoding, and the file that states them."""
