"""One training loop for tokenizer and generator, and what it needs: parallelism, exports, operation counts, alarms."""
