"""What exists, what to type next, and whether the machine is fit for it."""
