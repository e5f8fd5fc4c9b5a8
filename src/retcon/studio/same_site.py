"""Keep other sites out of the studio: whom it answers, and what its pages may load.

A page of another site can make a browser send requests here. It can do so under a name of its own
that leads to this machine (DNS rebinding), so only addresses and names of this machine are
answered; and it can post forms, so whatever changes something must come from a page of the studio.
"""

import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A page may load what the studio itself serves, and nothing else.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_READS = ("GET", "HEAD")


class SameSite:
    """Wraps an application: refuses foreign requests, and puts the headers on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    answer.setdefault(name, value)
            await send(message)

        refusal = refused(scope["method"], Headers(scope=scope))
        answering = self.app if refusal is None else PlainTextResponse(refusal, status_code=403)
        await answering(scope, receive, sending)


def refused(method: str, headers: Headers) -> str | None:
    """Say why a request is not answered; None where it is."""
    host = headers.get("host", "")
    if not _of_this_machine(_name(f"//{host}")):
        return (
            f"The studio is not called {host!r}. Open it by the address that it printed, as in "
            f"http://127.0.0.1:8765."
        )
    if method not in _READS and headers.get("origin", "").partition("://")[2] != host:
        return (
            "This would change something, and does not come from a page of the studio. Open the "
            "studio itself, and do it there."
        )
    return None


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # brackets that hold no address
        return ""


def _of_this_machine(name: str) -> bool:
    """True for an address, which no rebinding has, and for what this machine is called."""
    if name in ("localhost", socket.gethostname().lower()):
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
