"""Geometry: from any triangle soup to one solid with labels, and from a field back to a mesh.

load -> watertight -> (surface, labels) -> convert is the way in; isosurface and render are the way out.
"""
