"""Ray: the only `ray.init`, the pool of actors, the nodes, and how a run is stopped."""
