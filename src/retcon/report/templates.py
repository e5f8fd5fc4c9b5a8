"""Templates of pages, the report's and the studio's: what is put into them is escaped."""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def templates(package: str, folder: str) -> "Environment":
    """The templates in a folder of a package. A name that nobody gave is an error.

    Raises:
        ImportError: jinja2 is not installed; who calls this has said so before.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader(package, folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
