"""The page at `/`: one file, nothing loaded from elsewhere, and a policy that forbids it to run what a model wrote."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources

from starlette.responses import Response


@functools.cache
def parts() -> tuple[bytes, dict[str, str]]:
    """(the page, its headers). Its one script and one style are allowed by their hashes (CSP level 3), so that text of a
    model that got into the page as HTML after all would neither run nor load anything."""
    text = (resources.files("shoestring.serve") / "page.html").read_text("utf-8")

    def hashes(tag: str) -> str:
        found = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(x.encode()).digest()).decode()}'" for x in found)

    policy = (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {
        "Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }  # fmt: skip
    return text.encode(), headers


def response() -> Response:
    content, headers = parts()
    return Response(content, media_type="text/html", headers=headers)
