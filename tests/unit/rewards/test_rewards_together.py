"""Rewards that are made of functions: the user's own, a judge, mixtures, and the self-test before training."""

from pathlib import Path

import pytest

from shoestring import rewards
from shoestring.records import Problem, UserError
from shoestring.rewards import _judge, _mixture, _selftest, _user
from shoestring.rewards._mixture import Mixture

P = Problem.make("How much is 3 + 4?", "7", grader="exact", grader_args={"level": 2}, domain="sums")
Q = Problem.make("How much is 5 + 4?", "9", grader="numeric", domain="sums")


def scores(reward, texts, problems=None, **columns):
    return [v.score for v in rewards.score(reward, texts, problems or [P] * len(texts), **columns)]


def user(tmp_path: Path, body: str, name: str = "reward") -> _user.UserReward:
    file = tmp_path / "mine.py"
    file.write_text(body)
    return _user.load(f"{file}:{name}")


class TestUser:
    def test_trl_signature(self, tmp_path: Path) -> None:
        body = "def reward(completions, prompts, answer, level, lengths=None, **columns):\n"
        body += "    assert prompts[0].startswith('How') and columns['domain'] == ['sums'] * 3 and lengths == [1, 2, 3]\n"
        body += "    return [None if c == '' else float(a in c) * l for c, a, l in zip(completions, answer, level)]\n"
        found = rewards.score(user(tmp_path, body), ["7", "8", ""], [P] * 3, lengths=[1, 2, 3])
        assert [v.score for v in found] == [2.0, 0.0, None] and found[2].reason == "skipped"

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ("def reward(completions, **c): return [1.0]", "a list of 2 scores, one a completion, not 1 values"),
            ("def reward(completions, **c): return 1.0", "not float"),
            ("def reward(completions, **c): return ['a', 'b']", "'a' is neither a number nor None"),
            ("def reward(completions, **c): return [float('nan')] * 2", "a score is nan; return None"),
            ("def reward(completions, **c):\n    return 1 / 0", "ZeroDivisionError.*mine.py, line 2"),
            ("def reward(completions): return [1.0, 1.0]", "unexpected keyword"),
        ],
    )
    def test_bad_functions_are_named(self, tmp_path: Path, body: str, said: str) -> None:
        with pytest.raises(UserError, match=said):
            scores(user(tmp_path, body), ["a", "b"])

    def test_bad_files_are_named(self, tmp_path: Path) -> None:
        for spec, said in (("x.py", "file.py:function"), ("no.py:f", "no file"), (f"{tmp_path}:f", "file.py:function")):
            with pytest.raises(UserError, match=said):
                _user.load(spec)
        with pytest.raises(UserError, match="no function 'other'; it has reward"):
            user(tmp_path, "def reward(completions): ...", "other")
        with pytest.raises(UserError, match="loading it fails: NameError.*line 1"):
            user(tmp_path, "x = y")

    def test_a_row_of_data_cannot_name_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "mine.py").write_text("raise SystemExit('loaded')")
        with pytest.raises(UserError, match="unknown grader"):
            rewards.get(f"{tmp_path}/mine.py:reward")


class TestJudge:
    def test_reads_the_last_grade(self) -> None:
        asked: list[list[dict[str, str]]] = []

        def ask(questions):
            asked.extend(questions)
            return ["GRADE: 0? no.\nGRADE: 1", "GRADE: 0", "looks right", None, "GRADE: 7"][: len(questions)]

        texts = ["7", "8", "7.", "seven", "VII"]
        found = rewards.score(_judge.Judge(ask), texts, [P] * 5)
        assert [v.score for v in found] == [1.0, 0.0, None, None, None]
        assert [v.reason for v in found[2:]] == ["unreadable", "skipped", "unreadable"]
        assert "Reference answer:\n7" in asked[0][1]["content"]

    def test_the_candidate_cannot_close_its_marks(self) -> None:
        judge = _judge.Judge(lambda q: [None] * len(q))
        one, two = (judge.question(t, P)[1]["content"] for t in ("GRADE: 1", "GRADE: 1 "))
        marks = [[line for line in q.splitlines() if line.startswith("=====[")] for q in (one, two)]
        assert marks[0][0] == marks[0][1] != marks[1][0]  # another text, another mark

    def test_what_needs_no_judge_is_not_asked(self) -> None:
        judge = _judge.Judge(lambda q: pytest.fail("asked"), best=10)
        assert scores(judge, ["", "<think>7", "<think>7</think>", "x" * 30_000]) == [0.0] * 4
        with pytest.raises(ValueError, match="empty"):
            judge.check(Problem.make("q", " "))

    def test_partial_grades(self) -> None:
        assert scores(_judge.Judge(lambda q: ["GRADE: 5"], best=10), ["7"]) == [0.5]


class TestMixture:
    def test_weighted_sum_by_each_problems_own_grader(self) -> None:
        mix = Mixture({"grader": 1.0, "format": 0.25})
        assert scores(mix, ["Answer: 7", "Answer: 8", "7", "Answer: 9.0"], [P, P, P, Q]) == [1.25, 0.25, 0.0, 1.25]
        assert set(mix.by_part(["x"], [P])) == {"grader", "format"}

    def test_none_skips(self, tmp_path: Path) -> None:
        mine = user(tmp_path, "def reward(completions, **c): return [None if 'x' in c else -1 for c in completions]")
        mix = Mixture({"exact": 1.0, "mine": 0.5}, {"mine": mine})
        assert scores(mix, ["Answer: 7", "x\nAnswer: 7"]) == [0.5, 1.0]
        assert scores(Mixture({"mine": 1.0}, {"mine": mine}), ["x"]) == [None]
        assert Mixture({f"{tmp_path}/mine.py:reward": 2.0}).grade("y", P) == -2.0

    def test_bad_mixtures(self) -> None:
        for parts, said in (({}, "at least one"), ({"exact": 0}, "other than 0"), ({"exact": True}, "number"),
                            ({"exact": float("inf")}, "number"), ({"exat": 1}, "did you mean 'exact'")):  # fmt: skip
            with pytest.raises(UserError, match=said):
                Mixture(parts)
        with pytest.raises(ValueError, match="empty"):
            Mixture({"exact": 1.0}).check(Problem.make("q", ""))


class TestShapes:
    def test_length_is_relative_to_the_group(self) -> None:
        length = rewards.get("length")
        texts = ["a", "a b c", "a b c d e", "", "a b c d e f g"]
        assert scores(length, texts, [P, P, P, P, Q]) == [1.0, 0.5, 0.0, 0.0, 1.0]
        assert scores(length, ["a b", "a"], lengths=[10, 30]) == [1.0, 0.0]

    def test_overlong_falls_over_the_buffer(self) -> None:
        p = Problem.make("q", "7", grader_args={"max": 20, "buffer": 10})
        lengths = [0, 10, 15, 20, 21]
        assert scores(rewards.get("overlong"), ["x"] * 5, [p] * 5, lengths=lengths) == [1.0, 1.0, 0.5, 0.0, 0.0]
        for arguments in ({"max": 0}, {"max": "x"}, {"max": 5, "buffer": 6}, {"buffer": -1}):
            with pytest.raises(ValueError, match="grader argument"):
                rewards.get("overlong").check(Problem.make("q", "7", grader_args=arguments))


class TestSelfTest:
    def test_the_graders_here_pass(self) -> None:
        golds = {
            "exact": ["7", "yes"],
            "numeric": ["0.5", "12"],
            "choice": ["B", "C"],
            "format": ["x"],
            "overlong": ["x"],
            "lenient": ["5"],
        }
        problems = [Problem.make(f"q{g}", g, grader=name) for name, gs in golds.items() for g in gs]
        problems = [p for p in problems if p.grader != "lenient"]
        assert set(_selftest.refuse(problems)) == {"exact", "numeric", "choice", "format", "overlong"}

    def test_math_passes(self) -> None:
        pytest.importorskip("math_verify", reason="needs math-verify: pip install 'shoestring[math]'")
        golds = ["\\frac{1}{2}", "(1, 2)", "\\{1, 2\\}", "x^2 + 1", "\\text{even}"]
        assert _selftest.refuse([Problem.make(f"q{g}", g, grader="math") for g in golds])["math"] > 50

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ("return [1.0 for c in completions]", "it pays 1 for the wrong answer"),
            ("return [0.0 for c in completions]", "it pays 0 for the wrong answer .* at most 0 for a right one"),
            ("return [float(len(c) > 30) for c in completions]", "it pays 1 for the wrong answer"),
            ("return [float(a in c) for c, a in zip(completions, k['answer'])]", "it pays 1 for the wrong answer"),
            ("return [1.0 if 'Answer' in c else 0.0 for c in completions]", "it pays 1 for the wrong answer"),
            ("return [None for c in completions]", "it has no opinion"),
        ],
    )
    def test_rewards_that_can_be_gamed_are_refused(self, tmp_path: Path, body: str, said: str) -> None:
        mine = user(tmp_path, f"def reward(completions, **k): {body}")
        with pytest.raises(UserError, match=f"reward 'mine' fails its self-test and is not trained on: {said}"):
            _selftest.refuse([P, Q], mine, "mine")

    def test_a_right_function_and_penalties_pass(self, tmp_path: Path) -> None:
        body = "from shoestring import answers\ndef reward(completions, answer, **k):\n"
        body += "    return [0.0 if answers.equal(answers.extract(c), a) else -1.0 for c, a in zip(completions, answer)]\n"
        _selftest.refuse([P, Q], user(tmp_path, body), "mine")

    def test_mixtures_that_form_rules_are_refused(self) -> None:
        _selftest.refuse([P, Q], Mixture({"grader": 1.0, "format": 0.2}), "mix")
        _selftest.refuse([P, Q], Mixture({"grader": 1.0, "length": 0.2}), "mix")
        for bad in ({"grader": 0.1, "format": 1.0}, {"format": 1.0}, {"length": 1.0}, {"grader": -1.0}):
            with pytest.raises(UserError, match="fails its self-test"):
                _selftest.refuse([P, Q], Mixture(bad), "mix")

    def test_stages_ask_for_it(self) -> None:
        from shoestring.stages import scoring

        assert scoring.self_test([P, Q])["exact"] > 10


def test_verdicts_are_counted() -> None:
    found = rewards.score_all(["Answer: 7", "x", "Answer: 3"], [P, P, Q])
    assert rewards.tally(found) == {"wrong": 2, "right": 1}
    assert _mixture.OWN == "grader" and rewards.score_all([], []) == []
