"""Draw pages of the studio: its templates, and the one style and the one program of all of them.

Pages hold no style, no program and no address of another machine, so that a strict
Content-Security-Policy fits them, and so that the same page can be served or written to a disk.
"""

from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from retcon.errors import MissingExtra
from retcon.report.templates import templates

if TYPE_CHECKING:
    from jinja2 import Environment

STYLE, PROGRAM = "studio.css", "studio.js"


class Link(NamedTuple):
    """A link of the navigation: the name of the part it leads to, its text, and where it leads."""

    part: str
    text: str
    href: str


def need_extra(names: Sequence[str] = ("starlette", "uvicorn", "jinja2")) -> None:
    """Refuse to go on without the packages of the extra `studio`.

    Args:
        names: those that are needed; pages that are not served need no server.

    Raises:
        MissingExtra: one of them is not installed.
    """
    absent = [name for name in names if find_spec(name) is None]
    if absent:
        raise MissingExtra(
            f"The studio's pages need {' and '.join(absent)}, not installed here. Install it "
            f"with `pip install 'retcon-llm[studio]'`; the other commands need none of it."
        )


def environment() -> "Environment":
    """The templates of the studio."""
    need_extra(["jinja2"])
    made = templates("retcon.studio", "templates")
    made.filters |= {"percent": percent, "line": in_a_line}
    return made


def percent(share: float) -> str:
    """A share for a reader."""
    size = abs(100 * share)
    if size and size < 0.1:
        return "< 0.1 %"
    return f"{'−' if share < 0 else ''}{size:.{0 if size >= 9.95 or not size else 1}f} %"


def draw(
    template: str, *, part: str, links: Sequence[Link] = (), root: str = "/", **values: object
) -> str:
    """Fill a template that extends `base.html.j2`.

    Args:
        template: its name.
        part: the part of the studio that the page is of: `edit`, `stack` or `study`.
        links: the navigation.
        root: what stands before the names of the style and the program: `/` where pages are
            served, `` or `../` where they lie on a disk.
        values: whatever else the template names.
    """
    page = environment().get_template(template)
    return page.render(part=part, links=links, root=root, **values)


def draw_part(macro: str, *values: object) -> str:
    """Fill a macro of `_parts.html.j2`: a piece of a page, for a page that is open."""
    part: str = getattr(environment().get_template("_parts.html.j2").module, macro)(*values)
    return part


def stylesheet() -> str:
    """The style of all pages: the look of the report, and what is the studio's own."""
    look = (files("retcon.report") / "look.css").read_text(encoding="utf-8")
    return look + (files("retcon.studio") / STYLE).read_text(encoding="utf-8")


def program() -> str:
    """The program of all pages."""
    return (files("retcon.studio") / PROGRAM).read_text(encoding="utf-8")


def in_a_line(text: str) -> str:
    """A text with a blank for whatever stands between its words."""
    return " ".join(text.split())
