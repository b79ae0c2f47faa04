"""Read one mesh file into plain arrays, safely (see MeshError for what is refused)."""


class MeshError(ValueError):
    """A mesh that can't be used; `reason` is its short class, the message says what was found."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
