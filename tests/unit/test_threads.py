"""The thread count follows what others leave free, and the results do not depend on it."""

import pytest

from shoestring.threads import Threads, exact, machine_busy


class Machine:
    def __init__(self) -> None:
        self.now = self.busy = self.own = 0.0
        self.applied: list[int] = []

    def pass_(self, seconds: float, others: float, own: float = 1.0) -> None:
        self.now += seconds
        self.own += own * seconds
        self.busy += (own + others) * seconds


def make(m: Machine, most: int = 2) -> Threads:
    return Threads(most, m.applied.append, lambda: m.busy, lambda: m.own, lambda: m.now)


def test_a_busy_core_is_left_and_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    m = Machine()
    t = make(m)
    m.pass_(3, 0.05, own=1.9)
    assert t.adjust() is None
    m.pass_(3, 0.9)
    assert t.adjust() == 1
    m.pass_(3, 0.3)  # between the two bounds nothing changes
    assert t.adjust() is None
    m.pass_(3, 0.1)
    assert t.adjust() == 2
    assert m.applied == [1, 2]


def test_never_below_one_and_counts_on_many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    m = Machine()
    t = make(m, 8)
    m.pass_(2, 3.1)
    assert t.adjust() == 5
    m.pass_(2, 20.0)
    assert t.adjust() == 1


def test_the_users_choice_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    m = Machine()
    t = make(m)
    m.pass_(3, 1.5)
    assert t.adjust() is None and m.applied == []


def test_no_proc_means_no_change(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert machine_busy(tmp_path / "none") is None
    t = Threads(2, lambda n: None, lambda: None)
    assert t.adjust() is None


def test_what_the_processor_says_of_itself(tmp_path) -> None:
    (tmp_path / "amx").write_text("flags : avx512_bf16 amx_tile amx_bf16\n")
    (tmp_path / "none").write_text("flags : avx512_bf16\n")
    assert not exact(tmp_path / "amx") and exact(tmp_path / "none") and exact(tmp_path / "nothing there")


def test_results_are_bit_equal_for_any_count() -> None:
    """At sizes whose products oneDNN cuts alike for one thread and two, with AMX too."""
    import torch

    from shoestring.data.packing import pack
    from shoestring.generate.engine import Engine, Request
    from shoestring.models.config import DecoderConfig
    from shoestring.models.decoder import Decoder
    from shoestring.records import Example
    from shoestring.train.step import accumulate

    config = DecoderConfig("llama", 2, 192, 6, 2, 32, 384, 1000, 1e-5, 1e4, True, 256)
    model = Decoder(config).randomise(1, 0.1).bfloat16()
    model.inverse_frequency = model.inverse_frequency.float()
    data = [Example(tuple((i * 79 * (k + 3)) % 999 for i in range(60 + k)), (0.0,) * 30 + (1.0,) * (30 + k), 30) for k in range(12)]
    seen = []
    before = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            model.zero_grad()
            loss = accumulate(model, pack(data, 512)).loss
            grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            done = Engine(model, 12).generate([Request(e.tokens[:40], 12, 1.0, k) for k, e in enumerate(data)])
            seen.append((loss, grads, [c.tokens for c in done], [c.logprobs for c in done]))
    finally:
        torch.set_num_threads(before)
    assert seen[0][0] == seen[1][0] and seen[0][2:] == seen[1][2:]
    assert all(torch.equal(a, b) for a, b in zip(seen[0][1], seen[1][1], strict=True))
