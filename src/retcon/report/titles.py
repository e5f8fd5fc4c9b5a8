"""What methods are called: as their papers write them. The report knows no methods."""

_TITLES = {
    "alphaedit": "AlphaEdit",
    "lyaplock": "LyapLock",
    "ultraedit": "UltraEdit",
    "finetune": "FT-L",
    "in_context": "In context",
}


def called(method: str) -> str:
    """A method's title, by its name."""
    return _TITLES.get(method, method.upper())
