"""Training runs of the tokenizer (CVQ) and the generator (CAR)."""
