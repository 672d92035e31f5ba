"""The page at `/`: one file that loads nothing, under a policy that runs nothing but its own script."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
httpx2 = pytest.importorskip("httpx2", reason="needs httpx2: pip install 'shoestring[endpoint]'")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def got(served: Any) -> Any:
    return httpx2.get(served.url.removesuffix("v1"), trust_env=False)


def test_it_is_one_file(got: Any) -> None:
    assert got.status_code == 200 and got.headers["content-type"] == "text/html; charset=utf-8"
    page = Tags(got.text)
    assert {t for t, _ in page.tags} & {"link", "img", "iframe", "object", "embed", "base"} == set()
    for tag, attrs in page.tags:
        assert not [a for a in attrs if a in ("src", "href", "srcset", "action", "style") or a.startswith("on")], (tag, attrs)
    assert "http://" not in got.text and "https://" not in got.text and "@import" not in got.text and "url(" not in got.text
    # whatever a model writes goes in as text
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", got.text)


def test_the_policy_names_what_may_run(got: Any) -> None:
    policy = got.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "connect-src 'self'" in policy
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", got.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert got.headers["x-content-type-options"] == "nosniff"


def test_every_control_has_a_name(got: Any) -> None:
    page = Tags(got.text)
    labelled = {a["for"] for t, a in page.tags if t == "label" and "for" in a}
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids)) and labelled <= set(ids)
    inside = {m for m in re.findall(r"<label>[^<]+<input id=\"(\w+)\"", got.text)}
    controls = {a["id"] for t, a in page.tags if t in ("input", "textarea")}
    assert controls == labelled | inside
    assert any(a.get("aria-live") == "polite" for _, a in page.tags)


def test_it_needs_no_key_and_tells_nothing(served: Any, running: Any) -> None:
    from shoestring.serve.app import Service, make
    from shoestring.serve.worker import Worker

    s = served.service
    service = Service(Worker(s.worker._open), s.encoder, s.decoder, "a-secret-name", s.limits, s.vocab)
    with running(service, make(service, "sk-right")) as r:
        root = r.url.removesuffix("v1")
        page = httpx2.get(root, headers={"Host": "a.example"}, trust_env=False)
        assert page.status_code == 200 and "a-secret-name" not in page.text
        assert httpx2.get(root + "metrics", trust_env=False).status_code == 401
