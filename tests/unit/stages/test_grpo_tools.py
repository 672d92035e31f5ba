"""Tools: what they compute and refuse, conversations by a scripted engine, and a loss that tool output has no part in."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoestring.generate.request import Completion, Request
from shoestring.records import Problem, StepReport, Trace, UserError
from shoestring.rewards import _sandbox
from shoestring.stages import _grpo_tools as tools
from shoestring.stages import grpo, prompts
from shoestring.stages._grpo_roll import _calls, talk
from shoestring.stages._grpo_template import Template, schemas, writes_tools
from shoestring.stages._grpo_tools import Call, Plain, calculate, converse, use
from shoestring.stages.context import write_lines
from shoestring.stages.prompts import to_row


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12 * 7", "84"), ("1/3", "0.3333333333"), ("2**10 % 7", "2"), ("-(3 - 5) × 4 ÷ 2", "4"), ("7 // 2 =", "3"),
        ("gcd(12, 18) + lcm(4, 6)", "18"), ("max(1.5, 2) - abs(-1)", "1"), ("0.1 + 0.2", "0.3"), ("2^3", "8"),
        ("1 / 0", "error: division by zero"), ("", "error: no expression"), ("__import__('os')", "error: not an arithmetic expression"),
        ("9**9**9", "error: an exponent is a small whole number"), ("(10**50)**3", "error: more than 60 digits"),
        ("2**0.5", "error: an exponent is a small whole number"), ("1e400", "error: not an arithmetic expression"),
        ("x + 1", "error: not an arithmetic expression"), ("(1).real", "error: not an arithmetic expression"),
        ("gcd(1.5, 2)", "error: gcd takes whole numbers"), ("True + 1", "error: not an arithmetic expression"),
        ("1 +" * 100, "error: longer than 200 characters"), ("0 ** -1", "error: division by zero"),
        ("[1][0]", "error: not an arithmetic expression"), ("max(1, key=2)", "error: not an arithmetic expression"),
    ],
)  # fmt: skip
def test_the_calculator(expression: str, value: str) -> None:
    assert calculate(expression) == value


@given(st.text(alphabet="0123456789+-*/%().^ abe,gcd[]='_", max_size=40))
def test_the_calculator_answers_anything(text: str) -> None:
    assert len(calculate(text)) < 100


@given(st.integers(-999, 999), st.integers(1, 999), st.sampled_from("+-*%"))
def test_the_calculator_agrees_with_python(a: int, b: int, op: str) -> None:
    assert calculate(f"{a} {op} {b}") == str(eval(f"{a} {op} {b}"))


needs_sandbox = pytest.mark.skipif(
    not set(_sandbox.NEEDED) <= set(_sandbox.layers()), reason="this kernel cannot hold programs, so none is run"
)


@needs_sandbox
def test_python_in_the_sandbox(tmp_path: Path) -> None:
    assert use("python", "print(6 * 7)", 0) == "42"
    assert use("python", "x = 6\nx * 7", 0) == "42"
    assert use("python", "import math\nmath.gcd(4, 6)", 0) == "2"
    assert use("python", "1 / 0", 0).startswith("ZeroDivisionError")
    assert use("python", "def f(:", 0) == "SyntaxError" and use("python", "x = 1", 0) == "(nothing)"
    assert use("python", "import random\nrandom.random()", 5) == use("python", "import random\nrandom.random()", 5)
    assert use("python", "import random\nrandom.random()", 5) != use("python", "import random\nrandom.random()", 6)
    assert "Error" in use("python", f"open({str(tmp_path / 'x')!r}, 'w')", 0) and not (tmp_path / "x").exists()
    assert len(use("python", "print('a' * 10**5)", 0)) < 410
    assert use("python", "print('</output><|im_end|>')", 0) == "< /output>< |im_end|>"
    assert use("python", "#" * 3000, 0).startswith("error: longer")


@needs_sandbox
def test_an_endless_program_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "SECONDS", 0.2)
    assert use("python", "while True: pass", 0) == "error: timeout"


def test_a_machine_that_cannot_hold_programs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sandbox, "layers", lambda: ())
    monkeypatch.delenv(_sandbox.PERMISSION, raising=False)
    with pytest.raises(UserError, match="the tool 'python' is unsandboxed here"):
        grpo.check(grpo.Config(tools=("calculator", "python")), "")
    grpo.check(grpo.Config(tools=("calculator",)), "")


class Bytes:
    """A tokenizer of bytes: 0 opens the answer, 1 ends it."""

    end, ends = 1, frozenset([1])

    def __init__(self, folder: Any = None) -> None:
        pass

    def chat(self, messages: Any) -> tuple[int, ...]:
        return (*self.encode("".join(m["content"] for m in messages)), 0)

    def encode(self, text: str) -> tuple[int, ...]:
        return tuple(text.encode())

    def decode(self, ids: Any) -> str:
        return bytes(i for i in ids if i > 1).decode(errors="replace")


class Script:
    """An engine that says what it is told to, turn by turn: lines[i] are the turns of conversation i."""

    def __init__(self, *lines: Sequence[str]) -> None:
        self.lines, self.asked, self.text = lines, [], None
        self.said: dict[tuple[int, ...], int] = {}

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        self.asked.append(list(requests))
        out = []
        for r in requests:
            turn = len(self.asked) - 1
            text = next(line[turn] for line in self.lines if len(line) > turn and self._begins(r, line, turn))
            tokens = text.encode()[: r.max_new]
            ended = len(tokens) < r.max_new and not any(s in text for s in r.stop_strings)
            tokens = (*tokens, 1) if ended else tuple(tokens)
            reason = "length" if len(text.encode()) > r.max_new else "stop"
            out.append(Completion(tokens, (-0.5,) * len(tokens), reason))
        return out

    @staticmethod
    def _begins(r: Request, line: Sequence[str], turn: int) -> bool:
        so_far = bytes(t for t in r.prompt if t > 1).decode()
        return line[0] in so_far if turn else so_far.startswith(line[-1])


FORM = Plain(("calculator", "python"))


def conversations(*lines: Sequence[str], turns: int = 3, max_new: int = 80) -> tuple[Script, list[Any]]:
    """Each line: the turns, and last the question."""
    engine = Script(*lines)
    asked = [[{"role": "user", "content": line[-1]}] for line in lines]
    return engine, converse(engine, Bytes(), FORM, asked, lambda i, turn: 10 * i + turn, turns, max_new, 1.0)


def test_a_conversation_inserts_what_the_tool_said() -> None:
    engine, (first, second) = conversations(
        ["so <calculator>6*7</calculator>", "it is Answer: 42", "what is 6*7?"], ["Answer: 3", "1+2?"]
    )
    text = Bytes().decode(first.tokens)
    assert text == "so <calculator>6*7</calculator><output>42</output>\nit is Answer: 42"
    forced = Bytes().decode([t for t, s in zip(first.tokens, first.sampled, strict=True) if not s])
    assert forced == "<output>42</output>\n" and first.turn == "it is Answer: 42" and first.calls == 1
    assert all((x == 0.0) != s for x, s in zip(first.logprobs, first.sampled, strict=True))
    assert second.calls == 0 and all(second.sampled) and second.turn == "Answer: 3"
    assert len(engine.asked) == 2 and len(engine.asked[1]) == 1  # who has answered is not asked again
    r = engine.asked[1][0]
    assert r.prompt == (*first.prompt, *first.tokens[: len(r.prompt) - len(first.prompt)]) and r.seed == 1
    assert r.max_new == 80 - len("so <calculator>6*7</calculator>")
    assert FORM.rules() in Bytes().decode(first.prompt)
    assert engine.asked[0][0].stop_strings == ("</calculator>", "</python>")


def test_the_last_turn_has_no_tool_and_the_budget_is_all_turns() -> None:
    call = "<calculator>1+1</calculator>"
    engine, (t,) = conversations([call + "a", call + "a", call + "a", "q"], turns=3, max_new=500)
    assert [bool(requests[0].stop_strings) for requests in engine.asked] == [True]  # text after a call: it is none
    assert t.calls == 0
    engine, (t,) = conversations([call, "b" + call, "c" + call, "q"], turns=3, max_new=500)
    assert t.calls == 2 and len(engine.asked) == 3 and not engine.asked[2][0].stop_strings and t.turn == "c" + call
    engine, (t,) = conversations([call, "d", "q"], max_new=len(call))
    assert t.reason == "length" and len(t.tokens) == len(call) and len(engine.asked) == 1 and t.calls == 1
    engine, (t,) = conversations([call, "d", "q"], max_new=len(call) - 3)
    assert t.reason == "length" and t.calls == 0


@pytest.mark.parametrize(
    ("turn", "call"),
    [
        ("a <calculator>1</calculator>", Call("calculator", "1")),
        ("<python>\nprint(1)\n</python>\n", Call("python", "print(1)")),
        ("<calculator>1</calculator> then", None), ("<calculator>1</python>", None), ("<calculator>1", None), ("", None),
        ("<calculator>1<calculator>2</calculator>", Call("calculator", "2")), ("<perl>1</perl>", None),
    ],
)  # fmt: skip
def test_calls_in_plain_text(turn: str, call: Call | None) -> None:
    assert FORM.call(turn) == call


def test_calls_by_template() -> None:
    form = Template(("calculator", "python"))
    call = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "1+1"}}\n</tool_call>'
    assert form.call("hm " + call) == Call("calculator", "1+1")
    for bad in (call + "x", call.replace("calculator", "perl"), call.replace('{"expr', '"{"expr'), "", call.replace('"1+1"', "2")):
        assert form.call(bad) is None


def test_a_template_that_writes_tools(tmp_path: Path) -> None:
    """A template in Qwen's manner: the output stands between the model's end and its next turn, as the template has it."""
    jinja2 = pytest.importorskip("jinja2", reason="templates are rendered by jinja2")
    source = (
        "{% if tools %}tools:{% for t in tools %}{{ t.function.name }} {% endfor %}\n{% endif %}"
        "{% for m in messages %}{% if m.role == 'tool' %}<|user|><tool_response>{{ m.content }}</tool_response>"
        "{% else %}<|{{ m.role }}|>{{ m.content }}{% endif %}\x01{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}{# <tool_call> #}"
    )

    class Inner:
        chat_template = source

        def apply_chat_template(self, messages: Any, tokenize: bool = True, **rest: Any) -> Any:
            text = jinja2.Template(source).render(messages=messages, **{k: v for k, v in rest.items() if k != "return_dict"})
            return {"input_ids": list(text.encode())} if tokenize else text

        def decode(self, ids: Any) -> str:
            return bytes(ids).decode()

    tokenizer: Any = Bytes()
    assert not writes_tools(tokenizer)
    tokenizer.inner = Inner()
    assert writes_tools(tokenizer) and isinstance(tools.form_of(tokenizer, ("calculator",)), Template)
    form = Template(("calculator",))
    prompt = form.prompt(tokenizer, [{"role": "user", "content": "q"}])
    assert bytes(prompt).decode() == "tools:calculator \n<|user|>q\x01<|assistant|>"
    forced = form.answer(tokenizer, [{"role": "user", "content": "q"}], Call("calculator", "1"), "2")
    assert bytes(forced).decode() == "<|user|><tool_response>2</tool_response>\x01<|assistant|>"
    assert schemas(("python",))[0]["function"]["parameters"]["required"] == ["code"]


def test_the_last_turn_is_graded_and_the_trace_is_whole() -> None:
    problem = Problem.make("what is 6*7?", "42")
    lines = (
        ["<calculator>6*7</calculator>", "Answer: 42", problem.prompt],
        ["<python>print('Answer: 42')</python>", "I do not know", problem.prompt + "!"],
    )
    engine, config, reasons = Script(*lines), grpo.Config(tools=("calculator",), max_new=99), Counter()
    other = dataclasses.replace(problem, prompt=problem.prompt + "!")
    engine.lines = lines[:1]
    (right,) = talk(engine, Bytes(), [problem], [(1, 2, 3, 4)], config, "grpo", None, reasons)
    assert right.score == 1.0 and "<output>42</output>" in right.text and right.stop_reason == "stop" and _calls(right) == 1
    assert reasons == {"right": 1}
    engine = Script(["<calculator>42</calculator>", "no", other.prompt])
    (wrong,) = talk(engine, Bytes(), [other], [(1, 2, 3, 4)], config, "grpo", None, reasons)
    assert wrong.score == 0.0 and "42" in wrong.text  # what a tool said earns nothing


def test_seeds_are_of_the_conversation_and_its_turn() -> None:
    lines = [["<calculator>1</calculator>", "x", "q"]]
    seeds = []
    for parts in ((1, 2, 3, 4), (1, 2, 3, 4), (1, 2, 3, 5)):
        engine = Script(*lines)
        talk(engine, Bytes(), [Problem.make("q", "1")], [parts], grpo.Config(tools=("calculator",), max_new=99), "m", None, Counter())
        seeds.append([r.seed for requests in engine.asked for r in requests])
    from shoestring.generate.sampling import request_seed

    assert seeds[0] == seeds[1] and len(set(seeds[0] + seeds[2])) == 4 and seeds[0][0] == request_seed(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"tools": ("abacus",)}, "unknown tool 'abacus'"), ({"tools": ("python", "python")}, "names one twice"),
        ({"tools": ("python",), "turns": 1}, "turns = 1"), ({"turns": 4}, "turns is for answers with tools"),
    ],
)  # fmt: skip
def test_bad_keys(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        grpo.Config(**keys)


def test_tools_are_in_the_plan() -> None:
    from shoestring.estimate.flops import ModelShape
    from shoestring.estimate.machine import prior
    from shoestring.stages.context import Facts

    facts = Facts(ModelShape(2, 32, 4, 2, 8, 48, 61, True), prior(frozenset(), 1), "m", "grpo")
    bare, more = (grpo.forecast(grpo.Config(tools=t), facts) for t in ((), ("calculator",)))
    assert more.flops > bare.flops and more.memory_bytes > bare.memory_bytes
    assert more.usages[0].quantity > bare.usages[0].quantity


def test_the_tools_own_seconds_are_in_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns × prompts × group × steps calls at most, half of them expected; a dearer call is a dearer plan."""
    from shoestring.estimate.flops import ModelShape
    from shoestring.estimate.machine import prior
    from shoestring.stages import _grpo_roll
    from shoestring.stages.context import Facts

    facts = Facts(ModelShape(2, 32, 4, 2, 8, 48, 61, True), prior(frozenset(), 1), "m", "grpo")

    def of(**keys: Any) -> Any:
        return grpo.forecast(grpo.Config(steps=10, prompts=4, group=8, **keys), facts)

    mid, high = _grpo_roll.CALL_SECONDS["python"]
    python, both, sums = (of(tools=t) for t in (("python",), ("calculator", "python"), ("calculator",)))
    calls = 10 * 4 * 8 * 2  # three turns have two chances of a call
    config = grpo.Config(tools=("python",))
    assert (config.tool_seconds(320).mid, config.tool_seconds(320).high) == pytest.approx((calls * mid / 2, calls * high))
    assert config.tool_seconds(320).low == 0 and config.tool_seconds(320).basis == "literature"
    assert grpo.Config().tool_seconds(320).high == 0
    apart = python.usages[0].quantity - sums.usages[0].quantity
    assert apart == pytest.approx(calls / 2 * (mid - _grpo_roll.CALL_SECONDS["calculator"][0]), rel=1e-6)
    assert both.usages[0].quantity == pytest.approx(python.usages[0].quantity)
    seconds = [of(tools=("python",), turns=n).usages[0].quantity for n in (2, 3, 5)]
    assert seconds == sorted(seconds) and seconds[1] - seconds[0] > calls / 4 * mid
    monkeypatch.setattr(_grpo_roll, "CALL_SECONDS", {"python": (10 * mid, 10 * high), "calculator": (0.0, 0.0)})
    assert of(tools=("python",)).usages[0].quantity - python.usages[0].quantity == pytest.approx(9 * calls / 2 * mid)


@needs_sandbox
def test_a_call_takes_about_what_the_plan_says() -> None:
    """In processor time, which a busy machine does not change much."""
    import resource

    from shoestring.stages._grpo_roll import CALL_SECONDS

    def spent() -> float:
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))

    use("python", "print(6 * 7)", 0)
    before = spent()
    for i in range(5):
        use("python", "print(6 * 7)", i)
    mid, _ = CALL_SECONDS["python"]
    assert mid / 8 < (spent() - before) / 5 < 8 * mid


def test_the_window_is_asked_about_prompts_as_they_are_asked() -> None:
    """With the paragraph about tools, however long it is in the tokenizer's own words."""
    from shoestring.stages._grpo_roll import refuse_too_long

    pool = {"a": [Problem.make("2 times 7?", "14")]}
    config, rules = grpo.Config(tools=("calculator",), max_new=40), len(Plain(("calculator",)).rules())
    plain = len(Bytes().chat(prompts.plain(pool["a"][0])))
    fits = plain + 2 + rules + 40 + config.forced()[1]
    refuse_too_long(pool, config, Bytes(), fits, "grpo")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=f"a prompt of {plain + 2 + rules} tokens, an answer of 40 and 128 of tools"):
        refuse_too_long(pool, config, Bytes(), fits - 1, "grpo")  # pyright: ignore[reportArgumentType]
    refuse_too_long(pool, grpo.Config(max_new=40), Bytes(), plain + 40, "grpo")  # pyright: ignore[reportArgumentType]


# training


def _gradients(model: Any, loss: Any) -> dict[str, Any]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_tool_output_has_no_part_in_the_loss() -> None:
    """The gradient is that of a loss over the sampled tokens alone, each predicted in its whole context."""
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'shoestring[train]'")
    from shoestring.data import packing
    from shoestring.models.config import DecoderConfig
    from shoestring.models.decoder import Decoder
    from shoestring.records import Document
    from shoestring.stages._grpo_roll import to_example
    from shoestring.train import step

    sizes = DecoderConfig(
        family="llama", layers=2, hidden=32, heads=4, kv_heads=2, head_dim=8, intermediate=48, vocab=61, norm_eps=1e-5,
        rope_theta=1e4, tied=True, max_positions=64,
    )  # fmt: skip
    model = Decoder(sizes).randomise(1, 0.2).float()
    sampled = (True,) * 4 + (False,) * 5 + (True,) * 3
    trace = Trace("p", (5, 6, 7), tuple(range(20, 32)), sampled, tuple(-2.0 * s for s in sampled), "stop", "m", score=1.0)
    example = to_example(trace, 1.0)
    assert [t for t, w in zip(example.tokens, example.weight, strict=True) if w] == [20, 21, 22, 23, 29, 30, 31]

    batches = packing.pack([example], 64)
    assert sum(len(b.target) for b in batches) == 7
    model.zero_grad()
    step.accumulate(model, batches, None)
    made = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    tokens = torch.tensor(example.tokens)
    hidden = model.hidden(tokens[:-1], torch.arange(len(tokens) - 1), [Document(0, len(tokens) - 1)])
    logp = torch.log_softmax(hidden.float() @ model.output_weight.float().T, -1)[torch.arange(len(tokens) - 1), tokens[1:]]
    mask = torch.tensor([0.0, 0.0, *(float(s) for s in sampled)])
    wanted = _gradients(model, -(logp * mask).sum() / mask.sum())
    assert made.keys() == wanted.keys()
    assert all(torch.allclose(made[n], wanted[n], atol=1e-6, rtol=1e-4) for n in made)


@pytest.fixture
def calls_a_calculator(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """The engine's first turns are replaced by a call; the second turn is the tiny model's own."""
    from shoestring.generate.engine import Engine

    generate, seen = Engine.generate, []

    def scripted(self: Any, requests: Any, *rest: Any) -> Any:
        seen.append(list(requests))
        done = generate(self, [dataclasses.replace(r, stop_strings=()) for r in requests], *rest)
        if requests[0].stop_strings and "<output>" not in bytes(t for t in requests[0].prompt if t > 1).decode():
            text = Bytes().encode("<calculator>6*7</calculator>")
            done = [Completion(text, (-1.0,) * len(text), "stop") if i % 2 else d for i, d in enumerate(done)]
        return done

    monkeypatch.setattr(Engine, "generate", scripted)
    return lambda: seen


def test_a_stage_with_tools(
    make_context: Any, drive: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls_a_calculator: Any
) -> None:
    """End to end on a tiny model: outputs are inserted, counted, kept in the trace as forced, and the stage trains."""
    import torch
    import transformers

    from shoestring.estimate.flops import ModelShape
    from shoestring.models import tokenizer
    from shoestring.stages.context import read_lines

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    problems = [Problem.make(f"{i} times 7?", str(7 * i), domain="times") for i in range(5)]
    mine = tmp_path / "mine.py"
    mine.write_text(
        "from shoestring import answers\ndef even(completions, answer, lengths=None, **columns):\n"
        "    right = [answers.equal(answers.extract(c), a) for c, a in zip(completions, answer)]\n"
        "    return [2.0 if r else len(c) % 2 * 0.5 if lengths else 0.0 for c, r in zip(completions, right)]\n"
    )
    inputs = {"pool": write_lines(tmp_path / "pool.jsonl", [to_row(p) for p in problems])}
    made = make_context(
        tmp_path, "grpo", base=tmp_path / "base", shape=ModelShape(2, 32, 4, 2, 8, 48, 256, True)
    )
    monkeypatch.setattr(tokenizer, "Tokenizer", Bytes)
    keys = grpo.Config(
        steps=2, prompts=2, group=4, lr=1e-3, warmup=1, max_new=48, rows=512, tools=("calculator",), rewards={f"{mine}:even": 1.0}
    )
    reports = [e for e in drive(grpo.run(keys, inputs, made)) if isinstance(e, StepReport)]
    assert [r.extra["tool_calls"] for r in reports] == [4, 4] and all(r.extra["forced_tokens"] == 4 * 20 for r in reports)
    rows = read_lines(tmp_path / "traces" / "grpo.jsonl")
    called = [r for r in rows if not all(r["sampled"])]
    assert len(called) == 8 and all("<output>42</output>" in r["text"] for r in called)
    for r in rows:
        assert sum(r["sampled"]) <= 48
        assert all(x == 0.0 for x, s in zip(r["logprobs"], r["sampled"], strict=True) if not s)
    assert any(r.loss is not None for r in reports)
