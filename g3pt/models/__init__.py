"""The paper in PyTorch: tokenizer (CVQ), generator (CAR), quantisers, encoders, sampling."""
