"""The studio as a Starlette application: its routes, and how mistakes are told."""

from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from retcon.errors import RetconError
from retcon.studio.drawing import PROGRAM, STYLE, draw, need_extra, program, stylesheet
from retcon.studio.same_site import SameSite


def application(routes: Sequence[BaseRoute], start: str) -> Starlette:
    """The studio with some parts.

    Args:
        routes: those of its parts.
        start: the path that `/` leads to.

    Raises:
        MissingExtra: a package of the extra is not installed.
    """
    need_extra()
    return Starlette(
        routes=[
            Route("/", lambda request: RedirectResponse(start)),
            Route(f"/{STYLE}", _style),
            Route(f"/{PROGRAM}", _program),
            *routes,
        ],
        middleware=[Middleware(SameSite)],
        exception_handlers={RetconError: told},
    )


async def told(request: Request, error: Exception) -> Response:
    """A page that says what went wrong, or the sentence alone for the program of a page."""
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"problem": str(error)}, status_code=400)
    back = request.headers.get("referer", "/")
    page = draw("problem.html.j2", part="", problem=str(error), back=back)
    return HTMLResponse(page, status_code=400)


async def _style(request: Request) -> Response:
    return Response(stylesheet(), media_type="text/css")


async def _program(request: Request) -> Response:
    return Response(program(), media_type="text/javascript")
