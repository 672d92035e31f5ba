"""Small charts as inline SVG: points, lines, grouped bars and ranges, with axes, ticks and interval whiskers.

Each chart is a function of a width, so that `both` can draw it twice: once for a desk and once for a phone, where a
scaled-down picture would have unreadable text. Colours are CSS variables of the page. All text is escaped.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from .text import clean

WIDE, NARROW = 800, 340
_ids = itertools.count(1)


@dataclass(frozen=True)
class Mark:
    """A value with its interval. `colour` is a CSS variable's name; `hollow` draws an outline only."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: str = "ink"
    x: float = 0.0
    hollow: bool = False
    joined: bool = False  # the points chart draws a line through joined marks
    note: str = ""
    x_low: float | None = None  # the interval of x, where it has one
    x_high: float | None = None


@dataclass(frozen=True)
class Group:
    """Bars that belong together (one family), with a reference value marked across them."""

    label: str
    bars: Sequence[Mark]
    baseline: float | None = None


def e(text: object, limit: int = 200) -> str:
    return escape(clean(text, limit), quote=True)


def n(x: float) -> str:
    return f"{x:.1f}".rstrip("0").rstrip(".") if math.isfinite(x) else "0"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) that cover the inside of [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low or about < 1:
        return [low] if math.isfinite(low) else [0.0]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999), 10 * power)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [0.0 if k == 0 else k * step for k in range(first, min(last, first + 50) + 1)]


def svg(width: float, height: float, title: str, desc: str, body: str) -> str:
    uid = f"c{next(_ids)}"
    return (
        f'<svg viewBox="0 0 {n(width)} {n(height)}" role="img" aria-labelledby="{uid}t {uid}d">'
        f'<title id="{uid}t">{e(title)}</title><desc id="{uid}d">{e(desc, 2000)}</desc>{body}</svg>'
    )


def both(draw: Callable[[int], str]) -> str:
    """The chart for a desk and the chart for a phone; the style sheet shows one of them."""
    return f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>'


def _text(x: float, y: float, text: str, cls: str = "tick", anchor: str = "start", limit: int = 60) -> str:
    return f'<text x="{n(x)}" y="{n(y)}" class="{cls}" text-anchor="{anchor}">{e(text, limit)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, cls: str, colour: str = "") -> str:
    style = f' style="stroke:var(--{colour})"' if colour else ""
    return f'<line x1="{n(x1)}" y1="{n(y1)}" x2="{n(x2)}" y2="{n(y2)}" class="{cls}"{style}/>'


def _whisker(x1: float, y1: float, x2: float, y2: float, cls: str = "whisker", colour: str = "") -> str:
    """A line with caps, horizontal or vertical."""
    cap = 3.5
    dx, dy = (0.0, cap) if y1 == y2 else (cap, 0.0)
    return (
        _line(x1, y1, x2, y2, cls, colour)
        + _line(x1 - dx, y1 - dy, x1 + dx, y1 + dy, cls, colour)
        + _line(x2 - dx, y2 - dy, x2 + dx, y2 + dy, cls, colour)
    )


Box = tuple[float, float, float, float]


def _place(text: str, x: float, y: float, boxes: Sequence[Box], frame: Box) -> tuple[float, float, str, Box]:
    """Where a point's label covers least: right of it, left, above or below."""
    size = 7.4 * len(text)
    best: tuple[float, float, float, str, Box] | None = None
    for dx, dy in (
        (11, 4),
        (11, 17),
        (-11, 4),
        (-11, -9),
        (11, -9),
        (-11, 17),
        (11, 30),
        (11, -22),
        (-11, -22),
        (-11, 30),
    ):
        lx, ly = x + dx, y + dy
        box = (lx, ly - 12, lx + size, ly + 3) if dx > 0 else (lx - size, ly - 12, lx, ly + 3)
        cost = sum(
            max(0.0, min(box[2], b[2]) - max(box[0], b[0])) * max(0.0, min(box[3], b[3]) - max(box[1], b[1]))
            for b in boxes
        )
        cost += 50 * (
            max(0.0, frame[0] - box[0])
            + max(0.0, box[2] - frame[2])
            + max(0.0, box[3] - frame[3])
            + max(0.0, frame[1] - 14 - box[1])
        )
        if best is None or cost < best[0] - 1e-9:
            best = (cost, lx, ly, "start" if dx > 0 else "end", box)
    assert best is not None
    return best[1:]


def points(
    marks: Sequence[Mark],
    *,
    width: int,
    title: str,
    x_label: str,
    x_show: Callable[[float], str],
    y_show: Callable[[float], str],
    y_tick: Callable[[float], str],
    y_max: float = 1.0,
    x_mark: tuple[float, str] | None = None,
    y_mark: tuple[float, str] | None = None,
) -> str:
    """Points with vertical whiskers, labelled in place; joined ones are connected in order of x."""
    height = 330 if width > 500 else 300
    left, right, top, bottom = 44.0, width - 16.0, 18.0, height - 46.0
    xs = [m.x_high or m.x for m in marks] + ([x_mark[0]] if x_mark else [])
    x_top = max([*xs, 1e-12]) * 1.06
    y_high = max(
        [y_max * 1e-9, *(m.high if m.high is not None else m.value for m in marks), y_mark[0] if y_mark else 0.0]
    )
    y_top = min(y_max, y_high * 1.15) or y_max

    def px(v: float) -> float:
        return left + (right - left) * v / x_top

    def py(v: float) -> float:
        return bottom - (bottom - top) * min(v, y_top) / y_top

    out = []
    for t in ticks(0, y_top, 5):
        out += [_line(left, py(t), right, py(t), "grid"), _text(left - 8, py(t) + 4, y_tick(t), anchor="end")]
    for t in ticks(0, x_top, 6 if width > 500 else 3):
        out += [_line(px(t), bottom, px(t), bottom + 5, "axis"), _text(px(t), bottom + 19, x_show(t), anchor="middle")]
    out += [
        _line(left, bottom, right, bottom, "axis"),
        _text((left + right) / 2, height - 6, x_label, "label", "middle"),
    ]
    if x_mark:
        x = px(x_mark[0])
        out += [_line(x, top, x, bottom, "ref"), _text(x - 6, top + 10, x_mark[1], "reftext", "end")]
    boxes: list[Box] = []
    if y_mark:
        y, end = py(y_mark[0]), right - (70 if x_mark else 4)
        base = y + 15 if bottom - y > 20 else y - 6
        out += [_line(left, y, right, y, "ref"), _text(end, base, y_mark[1], "reftext", "end")]
        boxes += [(end - 7 * len(y_mark[1]), base - 12, end, base + 3), (left, y - 1, right, y + 1)]
    path = sorted((m for m in marks if m.joined), key=lambda m: m.x)
    if len(path) > 1:
        out.append(f'<polyline class="join" points="{" ".join(f"{n(px(m.x))},{n(py(m.value))}" for m in path)}"/>')
    boxes += [(px(m.x) - 7, py(m.value) - 7, px(m.x) + 7, py(m.value) + 7) for m in marks]
    boxes += [
        (px(m.x) - 4, py(m.high), px(m.x) + 4, py(m.low)) for m in marks if m.low is not None and m.high is not None
    ]
    for m in sorted(marks, key=lambda m: -m.value):
        x, y = px(m.x), py(m.value)
        if m.low is not None and m.high is not None:
            out.append(_whisker(x, py(m.high), x, py(m.low), "whisker", m.colour))
        if m.x_low is not None and m.x_high is not None:
            out.append(_whisker(px(m.x_low), y, px(m.x_high), y, "whisker", m.colour))
        fill = "var(--paper)" if m.hollow else f"var(--{m.colour})"
        style = f"fill:{fill};stroke:var(--{m.colour})"
        out.append(f'<circle cx="{n(x)}" cy="{n(y)}" r="5.5" style="{style}" class="dot">')
        out.append(f"<title>{e(m.note or m.label)}</title></circle>")
        text = f"{clean(m.label, 24)} {y_show(m.value)}"
        lx, ly, anchor, box = _place(text, x, y, boxes, (left, top, right, bottom))
        boxes.append(box)
        out.append(_text(lx, ly, text, "halo", anchor))
    desc = "; ".join(f"{m.label}: {y_show(m.value)} at {x_show(m.x)}" for m in marks)
    return svg(width, height, title, desc, "".join(out))


def thin(series: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """The finite points; at most `most`, each the mean of its bin, so that a long run makes a small page."""
    series = [p for p in series if math.isfinite(p[0]) and math.isfinite(p[1])]
    if len(series) <= most:
        return series
    size = math.ceil(len(series) / most)
    bins = [series[i : i + size] for i in range(0, len(series), size)]
    return [(sum(p[0] for p in b) / len(b), sum(p[1] for p in b) / len(b)) for b in bins]


def smooth(series: Sequence[tuple[float, float]], half: int) -> list[tuple[float, float]]:
    """A centred moving mean; at the ends the window is cut to what there is."""
    out = []
    for i, (x, _) in enumerate(series):
        window = series[max(0, i - half) : i + half + 1]
        out.append((x, sum(p[1] for p in window) / len(window)))
    return out


def lines(
    series: Sequence[tuple[float, float]],
    *,
    width: int,
    title: str,
    x_label: str,
    y_show: Callable[[float], str],
    colour: str,
    zero: bool = False,
    each: Sequence[Sequence[tuple[float, float]]] = (),
) -> str:
    """One curve: every step faint, the moving mean strong. `zero` puts 0 on the axis. `each`: curves that `series` is
    the mean of; then it is their moving means that are faint."""
    height = 230
    left, right, top, bottom = 44.0, width - 14.0, 14.0, height - 44.0
    data = thin(series)
    if not data:
        return svg(width, 40, title, "no data", _text(4, 24, "no data"))
    half = len(data) // 16
    faint = [smooth(thin(s), half) for s in each] if each else [data] * (half >= 1)
    xs, ys = [p[0] for p in data], [p[1] for p in data]
    x0, x1 = (end(p[0] for s in (data, *faint) for p in s) for end in (min, max))
    every = [p[1] for s in ((smooth(data, half), *faint) if each else (data,)) for p in s]
    y0, y1 = (min(0.0, min(every)) if zero else min(every)), max(every)
    pad = (y1 - y0) * 0.06 or max(abs(y1) * 0.1, 1e-6)
    y0, y1 = (y0 if zero and y0 == 0 else y0 - pad), y1 + pad

    def px(v: float) -> float:
        return left + (right - left) * ((v - x0) / (x1 - x0) if x1 > x0 else 0.5)

    def py(v: float) -> float:
        return bottom - (bottom - top) * (v - y0) / (y1 - y0)

    def path(pts: Sequence[tuple[float, float]], cls: str) -> str:
        where = " ".join(f"{n(px(x))},{n(py(y))}" for x, y in pts)
        return f'<polyline class="{cls}" style="stroke:var(--{colour})" points="{where}"/>'

    out = []
    for t in ticks(y0, y1, 4):
        out += [_line(left, py(t), right, py(t), "grid"), _text(left - 8, py(t) + 4, y_show(t), anchor="end")]
    for t in ticks(x0, x1, 4):
        out += [_line(px(t), bottom, px(t), bottom + 5, "axis"), _text(px(t), bottom + 19, f"{t:g}", anchor="middle")]
    out += [
        _line(left, bottom, right, bottom, "axis"),
        _text((left + right) / 2, height - 6, x_label, "label", "middle"),
    ]
    out += [*(path(s, "raw") for s in faint), path(smooth(data, half), "curve")]
    if len(data) == 1:
        out.append(f'<circle cx="{n(px(xs[0]))}" cy="{n(py(ys[0]))}" r="4" style="fill:var(--{colour})"/>')
    desc = f"{len(series)} steps, from {y_show(ys[0])} to {y_show(ys[-1])}"
    desc += f"; lowest {y_show(min(ys))}, highest {y_show(max(ys))}"
    return svg(width, height, title, desc, "".join(out))


def bars(
    groups: Sequence[Group], *, width: int, title: str, show: Callable[[float], str], top_value: float = 1.0
) -> str:
    """Grouped horizontal bars with whiskers; a tick across each group marks its baseline."""
    wide = width > 500
    left, right = (150.0, width - 52.0) if wide else (2.0, width - 44.0)
    thick, gap, between, head = 12.0, 2.0, 20.0, (0.0 if wide else 22.0)
    values = [v for g in groups for m in g.bars for v in (m.value, m.high or 0.0)] + [g.baseline or 0.0 for g in groups]
    x_top = min(top_value, max([*values, 1e-9]) * 1.05)

    def px(v: float) -> float:
        return left + (right - left) * max(0.0, min(v, x_top)) / x_top

    y = 10.0
    body: list[str] = []
    for g in groups:
        y += head
        tall = len(g.bars) * (thick + gap) - gap
        if wide:
            body.append(_text(left - 14, y + tall / 2 + 4, g.label, "name", "end", 22))
        else:
            body.append(_text(left, y - 8, g.label, "name", limit=40))
        start = y
        for m in g.bars:
            end = max(px(m.value), left + 1)
            r = min(3.0, end - left)
            d = f"M{n(left)},{n(y)}H{n(end - r)}q{n(r)},0 {n(r)},{n(r)}V{n(y + thick - r)}"
            d += f"q0,{n(r)} {n(-r)},{n(r)}H{n(left)}Z"
            tip = e(m.note or f"{m.label}: {show(m.value)}")
            body.append(f'<path d="{d}" style="fill:var(--{m.colour})" class="bar"><title>{tip}</title></path>')
            reach = end
            if m.low is not None and m.high is not None:
                body.append(_whisker(px(m.low), y + thick / 2, px(m.high), y + thick / 2))
                reach = max(reach, px(m.high))
            if m is g.bars[-1]:
                body.append(_text(reach + 7, y + thick / 2 + 4, show(m.value), "value"))
            y += thick + gap
        if g.baseline is not None:
            x, tip = n(px(g.baseline)), e(f"commonest answer: {show(g.baseline)}")
            at = f'x1="{x}" y1="{n(start - 4)}" x2="{x}" y2="{n(y - gap + 4)}"'
            body.append(f'<line {at} class="baseline"><title>{tip}</title></line>')
        y += between
    bottom = y - between + 10
    frame: list[str] = []
    for t in ticks(0, x_top, 5 if wide else 4):
        frame += [
            _line(px(t), 2, px(t), bottom, "grid"),
            _text(px(t), bottom + 16, show(t), anchor="middle" if t else "start"),
        ]
    frame.append(_line(left, 2, left, bottom, "axis"))
    desc = "; ".join(f"{g.label}: " + ", ".join(f"{m.label} {show(m.value)}" for m in g.bars) for g in groups)
    return svg(width, bottom + 24, title, desc, "".join(frame + body))


def ranges(
    marks: Sequence[Mark],
    *,
    width: int,
    title: str,
    show: Callable[[float], str],
    actual: Sequence[float | None] = (),
    tick: Callable[[float], str] | None = None,
    zero_line: bool = True,
    x_label: str = "",
) -> str:
    """One row a mark: its interval as a bar, its value as a dot; a diamond where something else was measured."""
    wide = width > 500
    left, right = (190.0, width - 74.0) if wide else (4.0, width - 62.0)
    row, head = (34.0, 0.0) if wide else (46.0, 14.0)
    found = (
        [v for m in marks for v in (m.value, m.low, m.high) if v is not None]
        + [a for a in actual if a is not None]
        + [0.0]
    )
    low, high = min(found), max(found)
    high = high if high > low else low + 1.0
    pad = (high - low) * 0.04
    low, high = (low - pad if low < 0 else low), high + pad

    def px(v: float) -> float:
        return left + (right - left) * (v - low) / (high - low)

    bottom = 8 + row * len(marks)
    out = []
    for t in ticks(low, high, 6 if wide else 4):
        cls = "zero" if t == 0 and zero_line else "grid"
        out += [
            _line(px(t), 4, px(t), bottom, cls),
            _text(px(t), bottom + 17, (tick or show)(t), anchor="middle" if px(t) > left + 8 else "start"),
        ]
    for i, m in enumerate(marks):
        y = 8 + row * i + row / 2 + head / 2
        out.append(
            _text(left - 14, y + 4, m.label, "name", "end", 28)
            if wide
            else _text(left, y - 13, m.label, "name", limit=44)
        )
        if m.low is not None and m.high is not None:
            at = f'x="{n(px(m.low))}" y="{n(y - 5)}" width="{n(max(1.5, px(m.high) - px(m.low)))}"'
            out.append(f'<rect {at} height="10" rx="5" style="fill:var(--{m.colour})" class="range"/>')
        style = f"fill:var(--{m.colour});stroke:var(--paper)"
        out.append(f'<circle cx="{n(px(m.value))}" cy="{n(y)}" r="5" class="dot" style="{style}">')
        out.append(f"<title>{e(m.note or m.label)}</title></circle>")
        reach, text = max(px(m.value), px(m.high) if m.high is not None else 0.0), show(m.value)
        a = actual[i] if i < len(actual) else None
        if a is not None:
            x = px(a)
            tip = e(f"{m.label}: actual {show(a)}")
            out.append(f'<path d="M{n(x)},{n(y - 7)}l7,7l-7,7l-7,-7Z" class="actual"><title>{tip}</title></path>')
            reach, text = max(reach, x), show(a)
        out.append(_text(reach + 11, y + 4, text, "value"))
    if x_label:
        out.append(_text((left + right) / 2, bottom + 36, x_label, "label", "middle"))
    desc = "; ".join(
        f"{m.label}: {show(m.value)}"
        + (f" (actual {show(a)})" if (a := actual[i] if i < len(actual) else None) is not None else "")
        for i, m in enumerate(marks)
    )
    return svg(width, bottom + (42 if x_label else 24), title, desc, "".join(out))
