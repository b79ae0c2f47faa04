"""How close a shape or a set of shapes is to another."""
