"""`shoestring chat` on a tiny model: piped prompts in this process, and a real terminal with Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import re
import select
import signal
import sys
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'shoestring[train]'")

import gguf_models  # noqa: E402

from shoestring import cli  # noqa: E402

THINKS = gguf_models.CHATML.replace("<start>assistant\n{% endif %}", "<start>assistant\n<think>\n{% endif %}")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_models.make(tmp_path_factory.mktemp("m") / "model", "llama", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It never ends a turn by itself: the end's logit is 0, and some other's is above."""
    from shoestring.models import folder

    where = tmp_path_factory.mktemp("t")
    made = gguf_models.make(where / "like", "llama", max_position_embeddings=4096, template=THINKS, tie_word_embeddings=False)
    model = folder.load(made)
    with torch.no_grad():
        model.get_parameter("head")[2] = 0.0
    return folder.save(model, where / "model", made)


def piped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, *args: object) -> tuple[str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert cli.main(["chat", *map(str, args)]) == 0
    done = capsys.readouterr()
    return done.out, done.err


def test_one_prompt_a_line(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "talk.jsonl"
    text = f"the inn\n\nthe hen\n/save {saved}\n/new\nthe inn\n/save {saved}\n/exit\nnever asked\n"
    out, err = piped(monkeypatch, capsys, text, model, "--max-tokens", 6, "--rate", "3600 USD/hour", "--system", "Be brief.")
    talks = [json.loads(line)["messages"] for line in saved.read_text().splitlines()]
    assert [m["role"] for m in talks[0]] == ["system", "user", "assistant", "user", "assistant"] and len(talks[1]) == 3
    assert talks[0][2] == talks[1][2], "a new conversation begins as the first did: greedy answers are the same"
    assert out == "".join(m["content"] + "\n" for m in (talks[0][2], talks[0][4], talks[1][2]))
    stats = [line for line in err.splitlines() if " tokens · " in line]
    assert len(stats) == 3 and all("s to the first" in s and "USD (measured, user's rate" in s for s in stats)
    assert re.search(r"cut at its longest · 6 tokens · [\d.]+ s to the first · [\d.]+ tokens/s · 0\.\d+ USD", err)


def test_a_budget_is_kept_to_the_token(thinker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "talk.jsonl"
    text = f"/budget 12\n/waits 1\nthe inn\n/think\n/save {saved}\n/budget off\n/waits x\n/budget -3\n/dance\n"
    out, err = piped(monkeypatch, capsys, text, thinker, "--max-tokens", 40)
    assert "thinks for 12 tokens at most" in err and "1 waits" in err and "12 of them thinking" in err
    assert "thought for 12 tokens" in err and "Final Answer:" in out
    reply = json.loads(saved.read_text())["messages"][-1]
    assert reply["reasoning_content"] and reply["reasoning_content"] in err, "/think shows it"
    assert "</think>" not in out and "the model decides" in err
    assert err.count("is not understood") == 3 and "/waits K" in err


def test_bad_input(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["--max-tokens", "0"], ["--budget", "-1"], ["--temperature", "-1"], ["--budget", "8", "--max-tokens", "2"]):
        assert cli.main(["chat", str(model), *args]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    out, err = piped(monkeypatch, capsys, f"{'the ' * 5000}\nthe inn\n/save {tmp_path}\n", model, "--max-tokens", 2)
    assert "more than the model's window of 4096" in err and out.count("\n") >= 1, "the talk goes on"
    assert "not saved" in err


def test_bytes_that_are_no_text(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the \xff inn\n"), "utf-8"))
    assert cli.main(["chat", str(model), "--max-tokens", "2"]) == 2
    err = capsys.readouterr().err
    assert "standard input is not UTF-8" in err and err.count("\n") == 1


def test_a_model_cannot_drive_the_terminal() -> None:
    from shoestring.commands.chat import Screen

    class Tty(io.StringIO):
        def isatty(self) -> bool:
            return True

    wild = "a\tb\n\x1b]0;title\x07\x1b[2Jc\rd\x9bm"
    assert Screen(True, Tty()).clean(wild) == "a\tb\n\ufffd]0;title\ufffd\ufffd[2Jc\ufffdd\ufffdm"
    assert Screen(False, io.StringIO()).clean(wild) == wild, "a file gets what the model wrote"


class Terminal:
    """A child on a pseudo-terminal; `until` reads what it shows."""

    def __init__(self, *args: object) -> None:
        import pty

        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # tests in a shell's background inherit it as ignored, a terminal's child does not
            os.environ |= {"TERM": "xterm", "OMP_NUM_THREADS": "1"}
            os.environ.pop("NO_COLOR", None)
            os.execv(sys.executable, [sys.executable, "-m", "shoestring.cli", "chat", *map(str, args)])
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def until(self, pattern: str, seconds: float = 60.0) -> str:
        """What was shown up to and with the pattern, since the last call."""
        ends = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.fd], [], [], max(0.0, ends - time.monotonic()))
            if not ready:
                raise AssertionError(f"no {pattern!r} in {self.seen!r}")
            try:
                self.seen += os.read(self.fd, 65536).decode(errors="replace")
            except OSError:  # the other end is closed
                raise AssertionError(f"it ended without {pattern!r}: {self.seen!r}") from None
        shown, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return shown

    def interrupted(self, seconds: float = 60.0) -> int:
        """The exit code after the terminal's own Ctrl-C at the prompt, pressed until it is taken (a new line is shown): readline
        forgets one that comes after it has shown the prompt and before it waits for a key."""
        ends, shown = time.monotonic() + seconds, ""
        try:
            while time.monotonic() < ends:
                if "\n" not in shown:
                    self.type("\x03")
                if select.select([self.fd], [], [], 2.0)[0]:
                    shown += os.read(self.fd, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        raise AssertionError(f"it goes on after Ctrl-C at the prompt: {shown!r}")


@pytest.mark.skipif(sys.platform == "win32", reason="a pseudo-terminal is Unix's")
def test_in_a_terminal(thinker: Path) -> None:
    t = Terminal(thinker, "--max-tokens", 3000)
    t.until("4,096 tokens of context")
    t.until("> ")
    t.type("/budget 20\n")
    assert "\033[2m" in t.until("thinks for 20 tokens at most"), "remarks are dim"
    t.type("the inn\n")
    shown = t.until(r"\[thought for 20 tokens; /think unfolds it\]")
    assert "thinking: " in shown and "\r" in shown, "counted while it goes on, in one line"
    t.until("Final Answer:")
    os.kill(t.pid, signal.SIGINT)
    stats = t.until(r"stopped · \d+ tokens, 20 of them thinking[^\n]*USD")
    assert "Traceback" not in stats
    t.until("> ")
    assert t.interrupted() == 0
