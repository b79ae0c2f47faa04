"""Tables that a model derives from a dataset: codes and condition features."""
