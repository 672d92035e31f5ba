import gzip
import json
from pathlib import Path

import pytest

from shoestring.answers import operand_key
from shoestring.data.sources import bundled, load, stream
from shoestring.records import Problem, UserError


def write(path: Path, *rows) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def test_bundled() -> None:
    train, test = load("bundled:lcm", "train"), load("bundled:lcm", "test")
    assert len(load("bundled:lcm")) == len(train) + len(test)
    p = train[0]
    assert p.domain == "lcm" and p.grader == "exact" and p.licence == "Apache-2.0" and "reasoning-gym" in p.source
    assert p.solution is not None and p.solution.endswith(p.answer)
    with pytest.raises(UserError, match="did you mean 'chain_sum'"):
        load("bundled:chainsum")
    with pytest.raises(UserError, match="there are basic_arithmetic"):
        load("bundled:")
    with pytest.raises(UserError, match="unknown split"):
        load("bundled:lcm", "dev")  # type: ignore[arg-type]
    assert "lcm" in bundled.families()


def test_jsonl_reads_plain_and_gzip(tmp_path: Path) -> None:
    rows = [{"prompt": " 1+1? ", "answer": 2, "domain": "d"}, {"prompt": "x", "answer": "y", "split": "test"}]
    plain = write(tmp_path / "a.jsonl", rows[0], "", rows[1])
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    problems = load(str(plain))
    assert load(str(packed)) == [
        Problem.make(p.prompt, p.answer, domain=p.domain, source=str(packed)) for p in problems
    ]
    assert (problems[0].prompt, problems[0].answer, problems[0].source) == ("1+1?", "2", str(plain))
    assert [p.prompt for p in load(str(plain), "train")] == ["1+1?"]
    assert [p.prompt for p in load(str(plain), "test")] == ["1+1?", "x"]


def test_jsonl_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"question": "q", "meta": {"target": "7"}, "grader_args": {"tolerance": 1}})
    [p] = load(f"{path}?prompt=question&answer=meta.target")
    assert (p.prompt, p.answer, p.grader_args) == ("q", "7", {"tolerance": 1})
    with pytest.raises(UserError, match=r"a.jsonl:1: no column 'questions' for the prompt; did you mean 'question'"):
        load(f"{path}?prompt=questions&answer=meta.target")
    with pytest.raises(UserError, match="unknown field 'promt'; did you mean 'prompt'"):
        load(f"{path}?promt=question")
    with pytest.raises(UserError, match="field=column"):
        load(f"{path}?prompt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "q"', r":2: is not JSON: .* at column"),
        ("[1]", ":2: must be a JSON object, not list"),
        ({"prompt": "q", "answers": "1"}, ":2: no column 'answer' for the answer; did you mean 'answers'.*=COLUMN"),
        ({"prompt": "q", "answer": ""}, ":2: the answer cannot be graded: the gold answer '' is empty"),
        ({"prompt": "q", "answer": None}, ":2: the answer is null"),
        ({"prompt": "q", "answer": [1]}, ":2: the answer must be text or a number, not list"),
        ({"prompt": " ", "answer": "1"}, ":2: the prompt is empty"),
        ({"prompt": "q", "answer": "1", "split": "dev"}, ":2: the split must be"),
        ({"prompt": "q", "answer": "1", "grader_args": 3}, ":2: grader_args must be an object"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line, message: str) -> None:
    path = write(tmp_path / "bad.jsonl", {"prompt": "q", "answer": "1"}, line)
    with pytest.raises(UserError, match=message) as error:
        load(str(path))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_check_is_asked(tmp_path: Path) -> None:
    def check(problem: Problem) -> None:
        if problem.answer == "many":
            raise ValueError("'many' is not a number")

    path = write(tmp_path / "a.jsonl", {"prompt": "q", "answer": "1"}, {"prompt": "q", "answer": "many"})
    with pytest.raises(UserError, match="a.jsonl:2: the answer cannot be graded: 'many' is not a number"):
        load(str(path), check=check)


def test_bad_files(tmp_path: Path) -> None:
    write(tmp_path / "pool.jsonl", {"prompt": "q", "answer": "1", "split": "test"})
    with pytest.raises(UserError, match="no such file; did you mean pool.jsonl"):
        load(str(tmp_path / "pol.jsonl"))
    with pytest.raises(UserError, match="none of its 1 problems is in the split 'train'"):
        load(str(tmp_path / "pool.jsonl"), "train")
    with pytest.raises(UserError, match="holds no problem"):
        load(str(write(tmp_path / "empty.jsonl")))
    with pytest.raises(UserError, match="cannot be read"):
        load(str(tmp_path))
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(gzip.compress(b'{"prompt": "q", "answer": "1"}\n' * 50)[:40])
    with pytest.raises(UserError, match="cannot be read"):
        load(str(broken))
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "q", "answer": "1"}\n{"prompt": "\xe9"}\n')
    with pytest.raises(UserError, match=":2: is not UTF-8"):
        load(str(tmp_path / "latin.jsonl"))
    with pytest.raises(UserError, match="did you mean 'bundled'"):
        load("bundle:lcm")


class TestGym:
    def test_generates_distinct_problems_split_by_operands(self) -> None:
        pytest.importorskip("reasoning_gym", reason="needs Reasoning Gym: pip install 'shoestring[gym]'")
        spec = "gym:chain_sum?min_terms=2&max_terms=2&min_digits=1&max_digits=2&size=300&seed=5"
        everything, train, test = load(spec), load(spec, "train"), load(spec, "test")
        assert len(everything) == len(train) + len(test) == len({p.prompt for p in everything})
        keys = [{operand_key(p.prompt, p.domain) for p in split} for split in (train, test)]
        assert keys[1] and not keys[0] & keys[1]
        assert all(p.solution and p.domain == "chain_sum" for p in everything)
        assert everything[0].source.startswith("reasoning-gym 0.1")
        assert load(spec) == everything

    def test_families_with_many_right_answers_are_graded_by_their_own_verifier(self) -> None:
        pytest.importorskip("reasoning_gym", reason="needs Reasoning Gym: pip install 'shoestring[gym]'")
        from shoestring import rewards
        from shoestring.data.sources.reasoning_gym import SCORED

        assert not SCORED & {"basic_arithmetic", "chain_sum", "gcd", "lcm", "letter_counting", "number_format",
                             "number_sequence", "products", "syllogism"}  # fmt: skip
        assert {(p.grader, len(p.grader_args)) for p in load("gym:lcm?size=5")} == {("exact", 0)}
        p = load("gym:number_sorting?size=2&seed=3")[0]
        assert p.grader == "gym" and json.loads(json.dumps(p.grader_args)) == p.grader_args
        spaced = "Answer: " + p.answer.replace(", ", " ,  ")  # the same list, which `exact` refuses
        assert rewards.get("gym").grade(spaced, p) == 1.0 and rewards.get("exact").grade(spaced, p) == 0.0
        assert rewards.get("gym").grade("Answer: []", p) == 0.0
        rewards.get("gym").check(p)

    def test_what_nobody_can_grade_is_dropped_and_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        factory = pytest.importorskip("reasoning_gym.factory", reason="needs Reasoning Gym: pip install 'shoestring[gym]'")
        real = factory.create_dataset
        spoilt: dict[int, object] = {}

        def made(name: str, **config: object) -> list[dict[str, object]]:
            data = real(name, **config)
            return [{**data[i], "answer": spoilt.get(i, data[i]["answer"])} for i in range(config["size"])]  # type: ignore[call-overload]

        monkeypatch.setattr(factory, "create_dataset", made)
        whole = load("gym:gcd?size=20")
        spoilt.update({3: None, 5: "", 7: "$$"})
        lost: list[str] = []
        some = load("gym:gcd?size=20", lost=lost)
        assert len(some) + len(lost) == len(whole) and len(lost) == 3 and all(p in whole for p in some)
        assert all(s.startswith("gym: gcd: the answer of ") and "cannot be graded" in s for s in lost) and "states none" in lost[0]
        assert [m for m in stream("gym:gcd?size=20") if isinstance(m, str)] == lost
        assert all("\0" not in p.answer for p in some)
        spoilt.update(dict.fromkeys(range(20), None))
        with pytest.raises(UserError, match="gym: gcd: none of its .* answers can be graded"):
            load("gym:gcd?size=20")

    def test_bad_specs(self) -> None:
        pytest.importorskip("reasoning_gym", reason="needs Reasoning Gym: pip install 'shoestring[gym]'")
        with pytest.raises(UserError, match="did you mean 'chain_sum'"):
            load("gym:chain_sun")
        with pytest.raises(UserError, match="refuses its configuration"):
            load("gym:chain_sum?terms=2")
        with pytest.raises(UserError, match="refuses its configuration"):
            load("gym:chain_sum?min_terms=5&max_terms=2")
        with pytest.raises(UserError, match="name=value"):
            load("gym:chain_sum?min_terms")

    def test_missing_package_is_said_clearly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
        with pytest.raises(UserError, match=r"pip install 'shoestring\[gym\]'"):
            load("gym:chain_sum")
