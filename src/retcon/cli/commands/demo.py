"""`retcon demo`."""


def demo() -> None:
    """x."""
