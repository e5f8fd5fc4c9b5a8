"""The studio as a Starlette application: its routes, and how mistakes are told."""

import logging
from collections.abc import Sequence

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from retcon.errors import RetconError
from retcon.studio.drawing import PROGRAM, STYLE, draw, need_extra, program, stylesheet
from retcon.studio.jobs import UNEXPECTED
from retcon.studio.same_site import HEADERS, SameSite


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
        exception_handlers={RetconError: _refused, HTTPException: _absent, Exception: _broken},
    )


def told(request: Request, problem: str, status: int) -> Response:
    """A page that says what went wrong, or the sentence alone for the program of a page."""
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"problem": problem}, status_code=status)
    came = request.headers.get("referer", "")
    own = came.startswith(f"{request.url.scheme}://{request.headers.get('host')}/")
    back = came if own and came != str(request.url) else "/"
    page = draw("problem.html.j2", part="", problem=problem, back=back)
    return HTMLResponse(page, status_code=status)


async def _refused(request: Request, error: Exception) -> Response:
    return told(request, str(error), 400)


async def _absent(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return told(request, f"The studio has no page {request.url.path!r}.", error.status_code)


async def _broken(request: Request, error: Exception) -> Response:
    """Tell of a mistake that nobody has foreseen. This answer does not pass through SameSite."""
    logging.getLogger(__name__).error("%s", request.url.path, exc_info=error)
    answer = told(request, UNEXPECTED.format(type(error).__name__, error), 500)
    answer.headers.update(HEADERS)
    return answer


async def _style(request: Request) -> Response:
    return Response(stylesheet(), media_type="text/css")


async def _program(request: Request) -> Response:
    return Response(program(), media_type="text/javascript")
