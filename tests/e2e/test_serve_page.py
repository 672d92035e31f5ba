"""The server's page in Debian's Chromium, over a tiny random model: ask, watch it think, drag the budget, see the cost."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")
uvicorn = pytest.importorskip("uvicorn", reason="needs uvicorn: pip install 'shoestring[serve]'")
pytest.importorskip("starlette", reason="needs starlette: pip install 'shoestring[serve]'")

from browser import CHROMIUM, Browser  # noqa: E402

from shoestring.serve import server  # noqa: E402
from shoestring.serve.app import make  # noqa: E402
from shoestring.serve.price import Rate  # noqa: E402

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")
RATE = Rate(lambda seconds: Decimal("0.00003") * Decimal(repr(seconds)), "a test's rate", "measured")
# requests as the page sent them, and how long a step takes: the tiny model's would be over before anybody looks
WATCH = "window.sent=[];const f=window.fetch;window.fetch=(u,o)=>{if(o.body)sent.push(JSON.parse(o.body));return f(u,o)};0"


class Running:
    def __init__(self, url: str, service: Any) -> None:
        self.url, self.service = url, service


@contextlib.contextmanager
def run(service: Any, app: Any) -> Iterator[Running]:
    listener = server.bind("127.0.0.1", 0)
    listener.listen()
    made = server.make_server(uvicorn, app, 64)
    service.worker.start()
    thread = threading.Thread(target=made.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}/", service)
    finally:
        made.should_exit = True
        thread.join(20)
        service.worker.stop()
        listener.close()


@pytest.fixture(scope="module")
def served(world: Any) -> Iterator[Running]:
    service, app = server.build(world.base, "", "tiny", "float32", 8, None, 256, 64, RATE)
    with run(service, app) as r:
        yield r


@pytest.fixture(scope="module")
def browser(tmp_path_factory: Any) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("chromium")) as b:
        yield b


@pytest.fixture
def page(served: Running, browser: Browser, monkeypatch: Any) -> Iterator[Browser]:
    from shoestring.generate.engine import Session

    quick = Session.step
    monkeypatch.setattr(Session, "step", lambda self: (time.sleep(0.012), quick(self))[1])
    browser.size(1100, 900)
    browser.faults.clear()
    browser.open(served.url)
    browser.wait("model")
    browser.run(WATCH)
    yield browser
    assert browser.faults == []


def ask(page: Browser, text: str, most: int = 40) -> None:
    page.run(f"document.querySelector('#most').value = {most}")
    page.focus("#ask")
    page.type(text)
    page.press("Enter")


def stat(page: Browser, what: str) -> str:
    return page.text(f".turn:last-child [data-what={what}] dd")


def test_ask_and_watch_it_think(page: Browser) -> None:
    page.focus("#budget")
    page.press("ArrowRight")
    assert page.text("#shown") == "32 tokens" == page.run("document.querySelector('#budget').getAttribute('aria-valuetext')")
    ask(page, "What is 2 + 3?")
    page.wait("document.querySelector('.thinking')?.open && document.querySelector('.thought').textContent")
    assert page.text(".thinking summary").startswith("Thinking")
    assert page.run("document.querySelector('#log').getAttribute('aria-busy')") == "true"
    page.wait("document.querySelector('.answer').textContent")
    assert not page.run("document.querySelector('.thinking').open")  # it folds as the answer begins
    page.wait("!running")
    assert page.text(".answer").startswith("Final Answer:") and "Final Answer" not in page.run("document.querySelector('.thought').textContent")
    assert page.text(".thinking summary").startswith("Thought · 32 of 32 tokens")
    page.click(".thinking summary")
    page.wait("document.querySelector('.thinking').open")
    assert (stat(page, "thinking"), stat(page, "answer")) == ("32 tokens", "40 tokens")
    assert stat(page, "prompt").endswith(" tokens") and float(stat(page, "speed").split()[0]) > 0
    cost, basis = stat(page, "cost").split()
    assert cost.startswith("$0.0000") and float(cost[1:]) > 0 and basis == "measured"
    assert page.text("#status") == "Cut at the longest answer." == page.text(".fault")
    (sent,) = page.run("sent")
    assert (sent["thinking_budget"], sent["max_tokens"]) == (32, 72)


def test_the_budget_changes_what_is_asked(page: Browser) -> None:
    most = page.run("Number(document.querySelector('#budget').max)")
    box = page.run("(b => [b.x, b.y + b.height / 2, b.width])(document.querySelector('#budget').getBoundingClientRect())")
    for kind, x in (("mousePressed", box[0] + 11), ("mouseMoved", box[0] + box[2] / 2), ("mouseMoved", box[0] + box[2] - 3), ("mouseReleased", box[0] + box[2] - 3)):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=box[1], button="left", buttons=1, clickCount=1)
    budget = page.run("budgets[document.querySelector('#budget').value]")
    assert page.run("Number(document.querySelector('#budget').value)") == most and budget == 128
    assert page.text("#shown") == "128 tokens"
    ask(page, "One", 10)
    page.wait("sent.length == 1 && !running", 60)
    page.focus("#budget")
    page.press("Home")
    ask(page, "Two", 10)
    page.wait("sent.length == 2 && !running")
    sent = page.run("sent")
    assert sent[0]["thinking_budget"] == 128 and "thinking_budget" not in sent[1]
    assert [m["content"] for m in sent[1]["messages"]][::2] == ["One", "Two"]  # the conversation goes along
    assert stat(page, "thinking") == "0 tokens" and page.run("document.querySelectorAll('.turn')[1].querySelector('.thinking').hidden")
    page.click("#fresh")
    assert page.run("document.querySelectorAll('.turn').length") == 0


def test_stop_frees_the_engine(page: Browser, served: Running) -> None:
    ask(page, "Count for ever", 250)
    page.wait("document.querySelector('.answer')?.textContent.length > 20")
    page.click("#stop")
    page.wait("!running")
    assert page.text(".fault") == "Stopped." and page.run("document.activeElement.id") == "ask"
    until = time.monotonic() + 10
    while served.service.active or served.service.worker.load.blocks_used:
        assert time.monotonic() < until
        time.sleep(0.02)
    ask(page, "Again", 250)
    page.wait("!!running")
    page.press("Escape")
    page.wait("!running")


HOSTILE = "<img src=x onerror=\"window.broken=1\"><script>window.broken=2</script></p><b>bold</b> &amp; <style>*{display:none}</style>"


def test_what_a_model_writes_stays_text(page: Browser) -> None:
    """The page is handed a stream in which thinking and answer are HTML, and so is the question."""
    chunks: list[dict[str, Any]] = [{"choices": [{"delta": d, "finish_reason": None}]} for d in ({"reasoning_content": HOSTILE}, {"content": HOSTILE})]
    body = "".join(f"data: {json.dumps(c)}\n\n" for c in chunks) + "data: [DONE]\n\n"
    page.run(f"window.fetch = async () => new Response({json.dumps(body)}); 0")
    ask(page, HOSTILE)
    page.wait("document.querySelector('.answer') && !running")
    for place in (".ask", ".thought", ".answer"):
        assert page.run(f"document.querySelector('{place}').textContent") == HOSTILE
        assert page.run(f"document.querySelector('{place}').children.length") == 0
    assert page.run("window.broken === undefined")


def test_an_error_is_told(page: Browser) -> None:
    ask(page, "x " * 2000)
    assert "maximum context length" in page.wait("document.querySelector('.fault')?.textContent")
    assert "maximum context length" in page.text("#status")
    page.faults.clear()  # the browser notes that the server said 400


def test_a_key_is_asked_for(served: Running, browser: Browser) -> None:
    from shoestring.serve.app import Service
    from shoestring.serve.worker import Worker

    s = served.service
    service = Service(Worker(s.worker._open), s.encoder, s.decoder, "tiny", s.limits, s.vocab)
    with run(service, make(service, "sk-right")) as r:
        browser.open(r.url)
        browser.wait("document.activeElement.id === 'key'")
        assert browser.run("document.querySelector('#dock').hidden")
        browser.type("sk-wrong")
        browser.press("Enter")
        browser.wait("document.querySelector('#why').textContent.startsWith('That key')")
        browser.run("document.querySelector('#key').value = ''")
        browser.type("sk-right")
        browser.press("Enter")
        browser.wait("!document.querySelector('#dock').hidden")
        assert browser.text("#name") == "tiny" and "no price is known" in browser.text("#about")
        ask(browser, "Hi", 5)
        browser.wait("document.querySelector('.stats') && !running")
        assert stat(browser, "cost") == "unknown" and browser.run("document.querySelector('#key').value") == ""
    browser.open("about:blank")
    browser.faults.clear()  # the browser notes each 401


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [320, 390, 1100])
def test_it_fits_and_follows_the_scheme(page: Browser, width: int, dark: bool, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="needs pillow: pip install 'shoestring[test]'")
    page.dark(dark)
    page.size(width, 700, mobile=width < 1000)
    page.run("document.querySelector('details.more').open = true")
    ask(page, "w" * 300, 8)
    page.wait("document.querySelector('.stats') && !running")
    assert page.run("document.documentElement.scrollWidth") <= width
    page.shot(tmp_path / "shot.png")
    colours = image.open(tmp_path / "shot.png").convert("RGB").getcolors(1 << 24)
    assert len(colours) > 100 and (sum(max(colours)[1]) < 200) == dark
    page.dark(False)


def test_the_keyboard_reaches_everything(page: Browser) -> None:
    page.focus("#ask")
    seen = []
    for _ in range(3):
        page.press("Tab")
        seen.append(page.run("document.activeElement.id || document.activeElement.tagName"))
    assert seen == ["send", "budget", "SUMMARY"]
