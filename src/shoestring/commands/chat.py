"""`shoestring chat`: talk to a model in the terminal, on our own engine, with the thinking folded and each answer's price."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from shoestring.commands import _options
from shoestring.records import UserError

if TYPE_CHECKING:
    from shoestring.serve.price import Rate

HELP = """/budget N     think for at most N tokens, then answer; /budget off lets the model decide
/waits K      within a budget, take back K early ends of the thinking and go on with "Wait"
/think        unfold the thinking of the last answer
/save FILE    append this conversation to FILE, one JSON object a line
/new          forget this conversation
/exit         leave (as Ctrl-D does); Ctrl-C stops an answer, a second one leaves"""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but the tab and the line feed


def add(sub: Any) -> argparse.ArgumentParser:
    said = "talk to a model in the terminal"
    c = sub.add_parser("chat", help=said, description=said + "; with piped input, one prompt a line.")
    c.add_argument("model", metavar="MODEL", help="a run's or a model's folder, a name or a hub id")
    c.add_argument("--system", default="", metavar="TEXT", help="the system message")
    c.add_argument("--budget", type=int, metavar="N", help="thinking tokens at most (default: the model decides)")
    c.add_argument("--waits", type=int, default=0, metavar="K", help='early ends of the thinking replaced by "Wait"')
    c.add_argument("--max-tokens", type=int, default=1024, metavar="N", help="the longest answer (default: 1024)")
    c.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0, the most probable token")
    c.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")
    _options.price_arguments(c)
    return c


def run(args: argparse.Namespace) -> int:
    if args.max_tokens < 1 or args.temperature < 0 or args.waits < 0 or (args.budget is not None and args.budget < 0):
        raise UserError("chat: --max-tokens must be at least 1; --budget, --waits and --temperature 0 or more")
    from shoestring import export
    from shoestring.commands.serve import machine_rate
    from shoestring.cost.prices import PriceBook

    book = PriceBook.default(args.prices, _options.hourly(args.rate))
    folder = export.base_folder(export.run_model(args.model))
    chat = Chat(folder, machine_rate(book), args.system, args.max_tokens, args.temperature, args.seed)
    chat.budget, chat.waits = args.budget, args.waits
    if args.budget is not None:
        chat.thinking(args.budget + args.max_tokens)  # what cannot be met is said before the first prompt
    screen = Screen(sys.stdin.isatty())
    if screen.live:
        screen.note(f"{args.model}: {chat.window:,} tokens of context. /help says what else can be done.")
    for line in prompts(screen.live):
        if line.startswith("/"):
            if not command(chat, line, screen):
                break
        elif line.strip():
            answer(chat, line, screen)
    return 0


class Screen:
    """live: somebody types. Else answers alone go to standard output and all remarks to standard error."""

    def __init__(self, live: bool, out: TextIO | None = None, err: TextIO | None = None) -> None:
        self.live, self.out, self.err = live, out or sys.stdout, err or sys.stderr
        self.colours = live and self.out.isatty() and not os.environ.get("NO_COLOR")
        self._width = 0

    def say(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()

    def clean(self, text: str) -> str:
        """What a model wrote: on a terminal without the control characters by which it would move the cursor or worse."""
        return CONTROL.sub("\ufffd", text) if self.out.isatty() else text

    def note(self, text: str) -> None:
        """A remark, dim, on a line of its own."""
        self.unroll()
        if self.live:
            self.say((f"\033[2m{text}\033[0m" if self.colours else text) + "\n")
        else:
            print(text, file=self.err, flush=True)

    def roll(self, text: str) -> None:
        """A line that the next one replaces; a terminal's only."""
        if self.colours:
            self.say(f"\r\033[2m{text}\033[0m\033[K")
            self._width = len(text)

    def unroll(self) -> None:
        if self._width:
            self.say("\r\033[K")
            self._width = 0


@dataclass
class Answer:
    """text and thought as they were shown. tokens: all that the model made; thinking of these were its thinking. first:
    seconds to the first token, seconds to the last. stopped: by the user."""

    text: str = ""
    thought: str = ""
    tokens: int = 0
    thinking: int = 0
    waits: int = 0
    first: float = 0.0
    seconds: float = 0.0
    stopped: bool = False
    error: str = ""
    cut: bool = False  # the length was used up


@dataclass(eq=False)
class Chat:
    """A conversation with a model. Answers are kept without their thinking, as reasoning models are trained to read them."""

    folder: Path
    rate: Rate | None
    system: str
    max_tokens: int
    temperature: float
    seed: int
    budget: int | None = None
    waits: int = 0
    messages: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        import torch

        from shoestring.generate.engine import Engine
        from shoestring.models import device, folder
        from shoestring.models.tokenizer import Tokenizer

        self.tokenizer = Tokenizer(self.folder)
        weights = folder.load(self.folder, torch.bfloat16, device.choose())
        self.window = weights.config.max_positions
        self.engine = Engine(weights, slots=1)
        self.new()

    def new(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def thinking(self, room: int) -> Any:
        """The forcing of the budget, where there is one; `room` tokens are left for thinking and answer."""
        from shoestring.generate.thinking import thinking_of

        if self.budget is None:
            return None
        return thinking_of(self.tokenizer, self.budget, self.waits, answer=min(self.max_tokens, room - self.budget))

    def ask(self, text: str, stop: Callable[[], bool]) -> Iterator[tuple[str, str, int] | Answer]:
        """(answer's text, thinking's text, thinking tokens so far) as they become certain, then the whole Answer, with which
        the conversation goes on. stop is asked once a token. UserError where the question cannot be met."""
        from shoestring.generate.request import Request
        from shoestring.serve.talk import Talk, marks_of

        said = [*self.messages, {"role": "user", "content": text}]
        prompt = self.tokenizer.chat(said)
        room = self.window - len(prompt)
        if room < 1:
            raise UserError(f"{len(prompt)} tokens are more than the model's window of {self.window}; /new forgets them")
        forced = self.thinking(room)
        request = Request(
            prompt, min(self.max_tokens, room), self.temperature, self.seed + len(said), self.tokenizer.ends,
            logprobs=False, thinking=forced,
        )  # fmt: skip
        talk = Talk(self.tokenizer.decode, marks=marks_of(self.tokenizer, prompt, forced is not None))
        done, started, events = Answer(), time.perf_counter(), self.engine.tokens([request])
        for event in events:
            done.seconds = time.perf_counter() - started
            if len(event) == 2:
                last = event[1]
                done.error, done.cut, done.waits = last.error, last.reason == "length", last.waits
                done.thinking = last.thinking or done.thinking
                break
            done.first = done.first or done.seconds
            done.tokens += 1
            piece = talk.feed(event[1], show=event[1] not in request.stop)
            done.thinking = piece.thinking if forced is None else min(piece.thinking, forced.budget)
            yield self._add(done, piece.text, piece.thought)
            if stop():
                done.stopped = True
                events.close()  # pyright: ignore[reportAttributeAccessIssue]
                break
        rest = talk.end()
        yield self._add(done, rest.text, rest.thought)
        if not done.error:
            reply = {"role": "assistant", "content": done.text}
            self.messages = [*said, reply | ({"reasoning_content": done.thought} if done.thought else {})]
        yield done

    def _add(self, done: Answer, text: str, thought: str) -> tuple[str, str, int]:
        done.text, done.thought = done.text + text, done.thought + thought
        return text, thought, done.thinking

    def cost(self, seconds: float) -> str:
        """What the machine cost meanwhile, with whose price that is."""
        if self.rate is None:
            return "no price: this machine has none; give --rate"
        return f"{shown(self.rate.usd(seconds))} USD ({self.rate.basis}, {self.rate.source})"


def shown(usd: Decimal) -> str:
    """Two significant digits without an exponent."""
    return f"{Decimal(f'{usd:.2g}'):f}"


def prompts(live: bool) -> Iterator[str]:
    """Lines of standard input until it ends; Ctrl-C at the prompt leaves."""
    if not live:
        try:
            yield from (line.rstrip("\n") for line in sys.stdin)
        except UnicodeDecodeError as e:
            raise UserError(f"chat: standard input is not UTF-8 ({e.reason}); convert it first") from None
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (input() then edits its line)
    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


@contextlib.contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed: between two tokens nothing is half done. The second one is not waited for."""
    pressed = []

    def handler(number: int, frame: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def answer(chat: Chat, text: str, screen: Screen) -> None:
    """Stream one answer and say what it took."""
    told = False
    try:
        with stoppable() as stop:
            for event in chat.ask(text, stop):
                if isinstance(event, Answer):
                    _close(chat, event, screen, told)
                    break
                piece, _, thinking = event
                if piece:
                    told = told or _folded(screen, thinking, "" if thinking == chat.budget else "about ")
                    screen.say(screen.clean(piece))
                elif thinking and not told:
                    screen.roll(f"thinking: {thinking} tokens")
    except UserError as e:
        screen.note(str(e))


def _folded(screen: Screen, thinking: int, about: str = "about ") -> bool:
    """The line that stands for the thinking, where there was any. While the answer comes, the markers around the thinking
    may be among its tokens; the last line says what the engine counted."""
    if thinking:
        what = f"thought for {about}{thinking} tokens"
        screen.note(f"[{what}; /think unfolds it]" if screen.live else what)
    return True


def _close(chat: Chat, done: Answer, screen: Screen, told: bool) -> None:
    if done.error:
        screen.note(done.error)
        return
    if not told:
        _folded(screen, done.thinking, "")
    screen.say("\n")
    after = done.seconds - done.first
    rate = f"{(done.tokens - 1) / after:.1f} tokens/s" if done.tokens > 1 and after > 0 else "one token"
    parts = [f"{done.tokens} tokens" + (f", {done.thinking} of them thinking" if done.thinking else "")]
    parts += [f"{done.waits} waits"] if done.waits else []
    parts += [f"{done.first:.2f} s to the first", rate, chat.cost(done.seconds)]
    ended = "stopped · " if done.stopped else "cut at its longest · " if done.cut else ""
    screen.note(ended + " · ".join(parts))


def command(chat: Chat, line: str, screen: Screen) -> bool:
    """Do what a line that begins with / asks. False: leave."""
    name, _, value = line[1:].partition(" ")
    value = value.strip()
    if name in ("exit", "quit"):
        return False
    if name == "budget" and (value == "off" or value.isdecimal()):
        chat.budget = None if value == "off" else int(value)
        screen.note("the model decides how long it thinks" if chat.budget is None else f"thinks for {value} tokens at most")
    elif name == "waits" and value.isdecimal():
        chat.waits = int(value)
        screen.note(f"{value} waits" + ("" if chat.budget is not None else ", once there is a /budget"))
    elif name == "think" and not value:
        last = chat.messages[-1].get("reasoning_content", "") if chat.messages else ""
        screen.note(screen.clean(last) or "the last answer came without thinking")
    elif name == "save" and value:
        try:
            with open(Path(value).expanduser(), "a", encoding="utf-8") as f:
                f.write(json.dumps({"messages": chat.messages}, ensure_ascii=False) + "\n")
            screen.note(f"saved to {value}")
        except OSError as e:
            screen.note(f"{value}: not saved ({(e.strerror or str(e)).lower()})")
    elif name == "new" and not value:
        chat.new()
        screen.note("a new conversation")
    else:
        screen.note(HELP if name == "help" else f"/{name} {value}".strip() + " is not understood\n" + HELP)
    return True
