"""Who may ask: the key, this machine's own names for itself, and errors in OpenAI's form."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from shoestring.serve.schema import Refused

OPEN = {"/", "/health"}  # the page holds nothing but itself, and asks for the key


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine's own name for itself. No other name is: a name can be made to point anywhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def error(e: Refused) -> JSONResponse:
    headers = {"Retry-After": str(e.retry_after)} if e.retry_after is not None else {}
    if e.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(e.body(), e.status, headers)


class Guard:
    """Before anything is read: the key where one is set; without one, only this machine's own names for itself, so that a
    web page whose name was made to point here (DNS rebinding) is turned away. denied: told of each one turned away."""

    def __init__(self, app: ASGIApp, key: str, denied: Callable[[], None]) -> None:
        self.app, self.key, self.denied = app, key.encode(), denied

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refused := self._refuse(scope)):
            self.denied()
            await error(refused)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _refuse(self, scope: Scope) -> Refused | None:
        headers = dict(scope["headers"])
        if not self.key:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            return None if is_loopback(name.strip("[]")) else Refused("this server answers to localhost only", 403)
        if scope["path"] in OPEN:
            return None
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.key):
            return None
        return Refused("a key is needed: Authorization: Bearer KEY", 401, code="invalid_api_key")
