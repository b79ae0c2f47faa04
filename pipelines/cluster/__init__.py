"""The only `ray.init`, and how work waits for it and is stopped."""
