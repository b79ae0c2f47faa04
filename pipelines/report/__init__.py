"""One page of HTML about any folder of outputs."""
