"""Connections that ask for nothing: whoever sends no whole request is let go, before it holds a place that others need.

uvicorn ends a connection that is idle after an answer; one that never asks, or whose head comes a byte at a time, it keeps
for ever, and so a few hundred of them would fill the server without any key.
"""

from __future__ import annotations

import asyncio
from typing import Any

HEAD_SECONDS = 30.0  # from a connection's beginning, or a request's first byte, to the end of its head


def protocol(seconds: float = HEAD_SECONDS) -> type[Any]:
    """uvicorn's HTTP/1.1 protocol with that limit. It holds for a body too that nobody reads because it was refused."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Patient(H11Protocol):
        _late: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _watch(self) -> None:
            if self.cycle is not None and not self.cycle.response_complete:
                self._forget()  # a request is being answered; its body and its reading have limits of their own
            elif self._late is None:
                self._late = self.loop.call_later(seconds, self._close)

        def _forget(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def _close(self) -> None:
            self._late = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Patient
