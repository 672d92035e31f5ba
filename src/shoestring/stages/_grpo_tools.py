"""Answers in several turns, with tools: the model writes a call, the machine runs it and inserts what came out.

What the machine inserts is forced: it is in the conversation and in the metered tokens, and it carries no loss
(`Trace.sampled` is False). Two ways of writing a call:

* plain text, for any chat model: ``<calculator>12 * 7</calculator>`` or ``<python>print(6 * 7)</python>``; the answer goes on
  after ``<output>84</output>``. The question is followed by one paragraph that says so (`rules`);
* the tokenizer's own template, where it writes tools (a ``<tool_call>`` with JSON, as Qwen's and Hermes' do): the call ends
  the turn, the output is a message of the role "tool" (`_grpo_template`).

The last turn alone is graded, so that no tool's output earns anything.
"""

from __future__ import annotations

import ast
import math
import operator
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Protocol

from shoestring.records import UserError

if TYPE_CHECKING:
    from shoestring.generate.request import Completion, Request
    from shoestring.models.tokenizer import Tokenizer

TOOLS = ("calculator", "python")
OUTPUT_TOKENS = 64  # of one tool's output, at most; what is longer is cut
OUTPUT_CHARACTERS = 400
SOURCE_CHARACTERS = 2000
SECONDS, MEMORY_MIB = 2.0, 256  # of one Python program
DIGITS = 60  # of a calculator's numbers
EXPRESSION = 200  # characters of an expression
_SAMPLES = {"calculator": "12 * 7", "python": "print(sum(range(10)))"}
_ABOUT = {"calculator": "arithmetic, such as 12 * (7 + 1) / 4", "python": "a short Python program; what it prints comes back"}

# the calculator


class Bad(ValueError):
    """An expression that is not computed; the message is the tool's output."""


_BINARY: dict[type, Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: lambda a, b: Fraction(a // b), ast.Mod: operator.mod,
}  # fmt: skip
_NAMED: dict[str, tuple[int, Callable[..., Any]]] = {
    "abs": (1, abs), "round": (1, round), "min": (0, min), "max": (0, max), "gcd": (0, math.gcd), "lcm": (0, math.lcm),
}  # fmt: skip


def calculate(expression: str) -> str:
    """The value of an arithmetic expression, exact: + - * / // % **, brackets, abs, round, min, max, gcd, lcm.

    × ÷ − ^ are read too. Anything else, and whatever grows beyond 60 digits, is "error: …". Never raises.
    """
    text = expression.strip().rstrip("=").translate(str.maketrans({"×": "*", "÷": "/", "−": "-", "·": "*"})).replace("^", "**")
    try:
        if not text or len(text) > EXPRESSION:
            raise Bad("no expression" if not text else f"longer than {EXPRESSION} characters")
        return _shown(_value(ast.parse(text, mode="eval").body))
    except Bad as e:
        return f"error: {e}"
    except ZeroDivisionError:
        return "error: division by zero"
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "error: not an arithmetic expression"


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as x) if not isinstance(x, bool) and math.isfinite(x):
            out = Fraction(x) if isinstance(x, int) else Fraction(repr(x))
        case ast.UnaryOp(op=ast.UAdd() | ast.USub() as op, operand=inner):
            out = _value(inner) if isinstance(op, ast.UAdd) else -_value(inner)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            out = _power(_value(left), _value(right))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            out = _BINARY[type(op)](_value(left), _value(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _NAMED and args:
            count, function = _NAMED[name]
            values = [_value(a) for a in args]
            if (count and len(values) != count) or (name in ("gcd", "lcm") and any(v.denominator != 1 for v in values)):
                raise Bad(f"{name} takes " + ("one number" if count else "whole numbers"))
            out = Fraction(function(*(int(v) for v in values) if name in ("gcd", "lcm") else values))
        case _:
            raise Bad("not an arithmetic expression")
    if max(abs(out.numerator), out.denominator) >= 10**DIGITS:
        raise Bad(f"more than {DIGITS} digits")
    return out


def _power(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) > 4 * DIGITS:
        raise Bad("an exponent is a small whole number")
    size = max(abs(base.numerator), base.denominator).bit_length() * abs(int(exponent))
    if size > 8 * DIGITS:
        raise Bad(f"more than {DIGITS} digits")
    return base ** int(exponent)


def _shown(value: Fraction) -> str:
    """Whole numbers as they are, other ones to 10 digits, without zeros at the end."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.10g}"


# Python


def run_python(source: str, seed: int) -> str:
    """What the program prints (its last line's value, where that is an expression), in the sandbox of the code grader.

    seed: of the module `random`. A program that is cut off gives "error: timeout" or the like.
    """
    from shoestring.rewards import _sandbox

    if len(source) > SOURCE_CHARACTERS:
        return f"error: longer than {SOURCE_CHARACTERS} characters"
    ran = _sandbox.run(_wrapped(source, seed), [{"input": ""}], SECONDS, MEMORY_MIB, _sandbox.confined()).cases[0]
    printed = ran.output.strip()
    return printed if ran.end == "ok" else f"{printed}\nerror: {ran.end}".strip()


def _wrapped(source: str, seed: int) -> str:
    try:
        tree = ast.parse(source.strip())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "print('SyntaxError')"
    if tree.body and isinstance(last := tree.body[-1], ast.Expr):
        show = ast.parse("(lambda v: print(v) if v is not None else None)(0)").body[0]
        show.value.args = [last.value]  # pyright: ignore[reportAttributeAccessIssue]
        tree.body[-1] = show
    code = ast.unparse(ast.fix_missing_locations(tree))
    run = f"    exec(compile({code!r}, 'tool', 'exec'), {{'__name__': '__main__'}})\n"
    caught = "except Exception as e:\n    print(f'{type(e).__name__}: {e}')\n"
    return f"import random\nrandom.seed({seed})\ntry:\n{run}{caught}"


def use(tool: str, text: str, seed: int) -> str:
    """A tool's output, at most 400 characters, without marks that would open a turn."""
    out = calculate(text) if tool == "calculator" else run_python(text, seed)
    out = out if len(out) <= OUTPUT_CHARACTERS else out[:OUTPUT_CHARACTERS] + " …"
    return out.replace("<|", "< |").replace("</", "< /") or "(nothing)"


def check(tools: Sequence[str]) -> None:
    """UserError, before anything is spent, where Python programs could not be held."""
    if "python" in tools:
        from shoestring.rewards import _sandbox

        try:
            _sandbox.confined()
        except UserError as e:
            raise UserError(str(e).replace("the grader 'code' is", "the tool 'python' is")) from None


# the ways to write a call


@dataclass(frozen=True)
class Call:
    tool: str
    text: str


class Form(Protocol):
    """How calls are written for one tokenizer. stops: strings that end a turn, for the engine."""

    @property
    def stops(self) -> tuple[str, ...]: ...

    def prompt(self, tokenizer: Tokenizer, messages: list[dict[str, str]]) -> tuple[int, ...]: ...

    def call(self, turn: str) -> Call | None: ...

    def answer(self, tokenizer: Tokenizer, messages: list[dict[str, str]], call: Call, output: str) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class Plain:
    """Calls as tags in the text."""

    tools: tuple[str, ...]

    @property
    def stops(self) -> tuple[str, ...]:
        return tuple(f"</{t}>" for t in self.tools)

    def rules(self) -> str:
        """The paragraph that follows the question."""
        ways = " or ".join(f"<{t}>{_SAMPLES[t]}</{t}>" for t in self.tools)
        return f"You may use a tool: write {ways} and the result follows. Then give the answer."

    def prompt(self, tokenizer: Tokenizer, messages: list[dict[str, str]]) -> tuple[int, ...]:
        last = messages[-1]
        return tokenizer.chat([*messages[:-1], {**last, "content": f"{last['content']}\n\n{self.rules()}"}])

    def call(self, turn: str) -> Call | None:
        """The call that a turn ends in; more than a line's end after it is none."""
        found = re.search(rf"<({'|'.join(self.tools)})>((?:(?!<\1>).)*)</\1>\s*\Z", turn, re.DOTALL)
        return Call(found[1], found[2].strip()) if found else None

    def answer(self, tokenizer: Tokenizer, messages: list[dict[str, str]], call: Call, output: str) -> tuple[int, ...]:
        opening, close = (tokenizer.encode(t) for t in ("<output>", "</output>\n"))
        return (*opening, *tokenizer.encode(output)[: OUTPUT_TOKENS - len(opening) - len(close)], *close)


def form_of(tokenizer: Any, tools: tuple[str, ...]) -> Form:
    """The tokenizer's own template where it writes tools, else tags in the text."""
    from shoestring.stages._grpo_template import Template, writes_tools

    return Template(tools) if writes_tools(tokenizer) else Plain(tools)


# a conversation


@dataclass
class Talk:
    """One answer in the making. turn: the text of the model's last turn, which is graded; calls: how many were run."""

    prompt: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    sampled: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: Literal["stop", "length"] = "stop"
    turn: str = ""
    calls: int = 0

    @property
    def used(self) -> int:
        """Tokens that the model has written."""
        return sum(self.sampled)


class Speaker(Protocol):
    def generate(self, requests: Sequence[Request]) -> list[Completion]: ...


def converse(
    engine: Speaker, tokenizer: Any, form: Form, asked: Sequence[list[dict[str, str]]],
    seeds: Callable[[int, int], int], turns: int, max_new: int, temperature: float,
) -> list[Talk]:  # fmt: skip
    """One conversation a list of messages; all of a turn are sampled together.

    seeds(i, turn): the noise of conversation i, and of its tools. max_new: tokens that the model writes in all its turns.
    Raises UserError where the engine cannot meet a request.
    """
    from shoestring.generate.request import Request

    talks = [Talk(form.prompt(tokenizer, m)) for m in asked]
    live = list(range(len(talks)))
    for turn in range(turns):
        last = turn == turns - 1
        requests = [
            Request(
                (*talks[i].prompt, *talks[i].tokens), max_new - talks[i].used, temperature, seeds(i, turn),
                tokenizer.ends, stop_strings=() if last else form.stops,
            )
            for i in live
        ]  # fmt: skip
        going = []
        for i, done in zip(live, engine.generate(requests), strict=True):
            if done.reason == "error":
                raise UserError(f"a conversation with tools, turn {turn + 1}: {done.error}")
            talk = talks[i]
            talk.tokens += done.tokens
            talk.sampled += [True] * len(done.tokens)
            talk.logprobs += done.logprobs
            talk.turn = tokenizer.decode([t for t in done.tokens if t not in tokenizer.ends])
            talk.reason = "length" if done.reason == "length" else "stop"
            call = None if last or done.reason == "length" else form.call(talk.turn)
            if call is None:
                continue
            talk.calls += 1
            if talk.used >= max_new:
                talk.reason = "length"
                continue
            noise = random.Random(seeds(i, turn)).getrandbits(32)
            forced = form.answer(tokenizer, asked[i], call, use(call.tool, call.text, noise))
            talk.tokens += forced
            talk.sampled += [False] * len(forced)
            talk.logprobs += [0.0] * len(forced)
            going.append(i)
        live = going
        if not live:
            break
    return talks
