"""What exists, which command to type next, and whether the machine is ready."""
