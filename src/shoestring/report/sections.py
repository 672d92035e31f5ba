"""What the run achieved: the headline, accuracy, gains, forgetting, the funnel, answers.

Each function takes a `RunFolder` and returns a section as HTML, or a line that says what is missing.
"""

from __future__ import annotations

from typing import Any

from . import charts, money, scores
from .charts import Mark
from .load import RunFolder, objects
from .scores import label, rows_of, shown
from .style import absent, figure, h, legend, section, table, tag
from .text import DASH, interval, listed, num, p_value, percent, points
from .text import figure as number
from .text import money as dollars

COMMONEST = '<li><i class="tick"></i>always giving the commonest answer</li>'


def headline(run: RunFolder) -> str:
    """The sentence, and right below it what its dollar figure leaves out."""
    best, first = scores.final(run), scores.start(run)
    cost = money.spent_phrase(run)
    status = str(run.run.get("status") or "")
    if best and first:
        gain, ends = scores.overall_gain(run, first, best)
        sentence = f"Macro accuracy {percent(first.get('accuracy'))} → <em>{percent(best.get('accuracy'))}</em>"
        if gain is not None:
            bounds = f", 95% interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f}".replace("-", "−") if ends else ""
            sentence += f" ({points(gain)} points{bounds})"
        sentence += f" {cost}"
        if gain is not None and ends and ends[0] <= 0 <= ends[1]:
            sentence += ". The interval includes zero: no gain is shown"
    elif best:
        sentence = f"Macro accuracy <em>{percent(best.get('accuracy'))}</em> {cost}; the base model was not scored"
    elif first:
        sentence = f"Base model {percent(first.get('accuracy'))}; nothing trained was scored {cost}"
    elif tested := scores.of_benchmarks(run.scores):
        sentence = f"{h(tested[0].get('benchmark'), 80)}: <em>{percent(tested[0].get('accuracy'))}</em> {cost}"
    else:
        sentence = f"No scores yet {cost}" if status in ("", "finished") else f"Not scored {cost}"
    if status in ("stopped", "failed"):
        reason = h(run.run.get("reason") or "", 200)
        sentence += f". The run {status}" + (f": {reason}" if reason else "")
    words = [f"<b>shoestring</b> · run {h(run.name, 80)}"]
    words += [h(run.run[k], 80) for k in ("base", "status") if run.run.get(k)]
    what = ""
    if best and first:
        against = label(first) + (", the better of its scores" if len(scores.base_rows(run)) > 1 else "")
        what = (
            f"{h(label(best))} against {h(against)}, on {number(best.get('n'), 6)} unseen problems{money.beside(run)}"
        )
        what = f'<p class="small">{what} {tag("measured")}</p>'
    return (
        f'<header><p class="eyebrow">{" · ".join(words)}</p><h1>{sentence.rstrip(". ")}.</h1>'
        f"{what}{money.left_out(run)}{_notices(run)}</header>"
    )


def _notices(run: RunFolder) -> str:
    out = []
    if run.missing:
        out.append(f"<strong>Not in this folder:</strong> {h(listed(run.missing))}. The page shows the rest.")
    out += [f"<strong>{h(name)}</strong>: {h(why)}." for name, why in run.broken]
    return f'<div class="notice">{"<br>".join(out)}</div>' if out else ""


def against_dollars(run: RunFolder) -> str:
    title = "Accuracy against dollars"
    rows = [r for r in scores.macro(run) if num(r.get("accuracy")) is not None]
    if not rows:
        return absent(title, run.why_absent("scores.json") or "no macro accuracy was scored")
    colours, marks, unplaced = scores.colours(run), [], []
    for r in rows:
        model, value = str(r.get("model")), num(r.get("accuracy")) or 0.0
        x = num(r.get("usd"))
        if x is None and model == "base":
            x = 0.0
        if x is None:
            unplaced.append(label(r))
            continue
        ends = interval(r.get("ci95")) or (None, None)
        note = f"{label(r)}: {percent(value)}, {dollars(x, run.currency)} accrued when measured"
        shot = model.startswith("base-")
        marks.append(
            Mark(label(r), value, *ends, colour=colours[model], x=max(0.0, x), hollow=shot, joined=not shot, note=note)
        )
    top = max((m.x for m in marks), default=0.0)
    budget = money.budget(run)
    near = budget is not None and 0 < budget <= max(6 * top, 1e-9)
    always = next(
        (num(r.get("commonest_answer_baseline")) for r in rows if num(r.get("commonest_answer_baseline")) is not None),
        None,
    )

    def draw(width: int) -> str:
        return charts.points(
            marks,
            width=width,
            title=title,
            x_label="dollars accrued when measured",
            x_show=lambda v: dollars(v, run.currency),
            y_show=percent,
            y_tick=lambda v: percent(v, 0),
            x_mark=(budget, "budget") if near and budget is not None else None,
            y_mark=(always, "commonest answer") if always is not None else None,
        )

    text = "Macro accuracy on unseen problems, with 95% intervals, at the dollars accrued when each was measured. "
    text += tag("measured")
    body = f"<figure>{charts.both(draw)}</figure>" if marks else ""
    if unplaced:
        body += f'<p class="small">Dollars when measured were not recorded for {h(listed(unplaced))}.</p>'
    if budget is not None and not near and marks:
        body += f'<p class="small">The budget, {dollars(budget, run.currency)}, lies far beyond the right edge.</p>'
    return section(title, text, body)


def _score_cell(r: dict[str, Any] | None) -> str:
    if not r:
        return DASH
    ends = interval(r.get("ci95"))
    return percent(r.get("accuracy")) + (
        f'<span class="ci">{100 * ends[0]:.0f}–{100 * ends[1]:.0f}</span>' if ends else ""
    )


def _families(run: RunFolder, benchmark: str, chart_title: str) -> str:
    """The grouped bars and the table of one benchmark."""
    rows = shown(rows_of(run, benchmark))
    models = list(dict.fromkeys(str(r.get("model")) for r in rows))
    families = [f for f in dict.fromkeys(str(r.get("family")) for r in rows) if f != "macro"]
    cell = {(str(r.get("family")), str(r.get("model"))): r for r in rows}
    colours = scores.colours(run)

    def always(family: str) -> float | None:
        values = (num(cell[family, m].get("commonest_answer_baseline")) for m in models if (family, m) in cell)
        return next((v for v in values if v is not None), None)

    groups = []
    for family in families:
        marks = []
        for m in models:
            r = cell.get((family, m))
            value = num(r.get("accuracy")) if r else None
            if r and value is not None:
                ends = interval(r.get("ci95")) or (None, None)
                note = f"{family}, {m}: {percent(value)}, {number(r.get('correct'), 6)} of {number(r.get('n'), 6)}"
                marks.append(Mark(m, value, *ends, colour=colours[m], note=note))
        if marks:
            groups.append(charts.Group(family, marks, always(family)))

    def draw(width: int) -> str:
        return charts.bars(groups, width=width, title=chart_title, show=lambda v: percent(v, 0))

    out = ""
    if groups:
        keys = legend(
            [(m, colours[m]) for m in models], COMMONEST if any(g.baseline is not None for g in groups) else ""
        )
        out += figure(h(chart_title), charts.both(draw), keys, "with 95% intervals")
    head = [
        ("family", "nw"),
        ("n", "r"),
        *((h(label(next(r for r in rows if str(r.get("model")) == m))), "r") for m in models),
        ("commonest<br>answer", "r"),
    ]

    def line(family: str) -> list[str]:
        size = next((number(cell[family, m].get("n"), 6) for m in models if (family, m) in cell), DASH)
        return [h(family, 60), size, *(_score_cell(cell.get((family, m))) for m in models), percent(always(family))]

    return out + table(
        head, map(line, families), line("macro") if any(f == "macro" for f, _ in cell) else None, chart_title
    )


def families(run: RunFolder) -> str:
    title = "Unseen problems, family by family"
    if not rows_of(run, "unseen"):
        return absent(title, run.why_absent("scores.json") or "no unseen problems were scored")
    text = (
        "Problems of the trained families that are in no training file, compared by their operands whatever the order. "
        f"The red tick is what always giving the commonest answer would score. {tag('measured')}"
    )
    body = _families(run, "unseen", "Accuracy by family")
    both_ways = scores.strict_and_lenient(run)
    if both_ways:
        head = [("macro accuracy", "nw"), ("strict extraction", "r"), ("lenient extraction", "r")]
        body += "<h3>Is it reasoning, or only format?</h3>"
        body += "<p class='small'>Lenient extraction takes an answer from anywhere in the text. "
        body += "The gain is counted from the best of the base model's scores, so the format alone earns nothing.</p>"
        body += table(
            head,
            ([h(m, 60), _score_cell(a), _score_cell(b)] for m, a, b in both_ways),
            label="strict and lenient extraction",
        )
    traps = []
    for t in run.traps:
        traps.append(
            [
                h(t.get("family"), 60),
                h(t.get("commonest_answer"), 60),
                percent(t.get("share")),
                h(t.get("verdict"), 200),
            ]
        )
    if traps:
        head = [("family", "nw"), ("commonest answer", ""), ("its share", "r"), ("verdict", "text")]
        body += f"<h3>Trap check {tag('measured')}</h3>"
        body += "<p class='small'>A family whose commonest answer scores high can be won without reasoning.</p>"
        body += table(head, traps, label="trap check")
    return section(title, text, body)


def gains(run: RunFolder) -> str:
    title = "The gain of each stage by itself"
    found = [g for g in run.gains if num(g.get("gain")) is not None]
    if not found:
        return absent(title, run.why_absent("gains.json") or "no gain was computed")
    found.sort(key=lambda g: str(g.get("benchmark")) != "unseen")
    colours = scores.colours(run)
    unseen = [g for g in found if str(g.get("benchmark")) == "unseen"] or found
    marks = []
    for g in unseen:
        ends = interval(g.get("ci95")) or (None, None)
        marks.append(
            Mark(
                f"{g.get('from')} → {g.get('to')}",
                num(g.get("gain")) or 0.0,
                *ends,
                colour=colours.get(str(g.get("to")), "m2"),
            )
        )

    def draw(width: int) -> str:
        return charts.ranges(
            marks, width=width, title=title, show=points, tick=lambda v: points(v, 0), x_label="percentage points"
        )

    rows = []
    for g in found:
        ends = interval(g.get("ci95"))
        bounds = f"{points(ends[0])} to {points(ends[1])}" if ends else DASH
        verdict = (
            ""
            if ends is None
            else "no difference shown"
            if ends[0] <= 0 <= ends[1]
            else "gain"
            if ends[0] > 0
            else "loss"
        )
        pair = f"{h(g.get('from'), 60)} → {h(g.get('to'), 60)}"
        rows.append(
            [
                pair,
                h(g.get("benchmark"), 60),
                points(g.get("gain")),
                bounds,
                p_value(g.get("p_value")),
                verdict,
                h(g.get("note") or "", 300),
            ]
        )
    head = [
        ("from → to", "nw"),
        ("benchmark", "nw"),
        ("points", "r"),
        ("95% interval", "r"),
        ("p", "r"),
        ("verdict", "nw"),
        ("note", "text"),
    ]
    text = f"Paired on the same problems, so each stage is credited with its own work only. {tag('measured')}"
    return section(title, text, figure("Change in macro accuracy", charts.both(draw)) + table(head, rows, label=title))


def forgetting(run: RunFolder) -> str:
    title = "What it forgot"
    texts = [r for r in rows_of(run, "heldout-text") if num(r.get("loss")) is not None]
    if not rows_of(run, "untrained") and not texts:
        return absent(title, run.why_absent("scores.json") or "no forgetting check was scored")
    body = (
        _families(run, "untrained", "Accuracy on families that were not trained") if rows_of(run, "untrained") else ""
    )
    if texts:
        first = num(texts[0].get("loss")) or 0.0
        rows = []
        for r in texts:
            loss = num(r.get("loss")) or 0.0
            change = DASH if r is texts[0] or not first else f"{100 * (loss / first - 1):+.1f}%".replace("-", "−")
            rows.append(
                [h(r.get("model"), 60), h(r.get("family") or "", 60), number(loss, 4), change, number(r.get("n"), 7)]
            )
        head = [
            ("model", "nw"),
            ("text", "nw"),
            ("nats a token", "r"),
            (f"change from {h(texts[0].get('model'), 40)}", "r"),
            ("n", "r"),
        ]
        body += f"<h3>Loss on a held-out plain text {tag('measured')}</h3>" + table(head, rows, label="held-out text")
    text = "Training on a few families can cost the others. A rise in loss, or bars that shrink, is the price. "
    text += tag("measured")
    return section(title, text, body)


def funnel(run: RunFolder) -> str:
    title = "The funnel"
    steps = [s for s in run.funnel if num(s.get("after")) is not None]
    if not steps:
        return absent(title, run.why_absent("funnel.json") or "nothing was selected")
    start = num(steps[0].get("before"))
    start = start if start is not None else num(steps[0].get("after")) or 0.0
    most = max([start, *(num(s.get(k)) or 0.0 for s in steps for k in ("before", "after")), 1e-9])
    items = []
    for s in steps:
        after = max(0.0, num(s.get("after")) or 0.0)
        before = max(after, num(s.get("before")) or after)
        lost = f"{_minus(before - after)}" if before > after else "none dropped"
        why = f'<p class="why">{h(s.get("why"), 400)}</p>' if s.get("why") else ""
        items.append(
            f'<li><div class="top"><b>{h(s.get("step"), 120)}</b>'
            f'<span class="num">{number(after, 9)} <small>{lost}</small></span></div>'
            f'<div class="bar" aria-hidden="true"><i style="width:{100 * before / most:.2f}%"></i>'
            f'<i class="kept" style="width:{100 * after / most:.2f}%"></i></div>{why}</li>'
        )
    kept = number(steps[-1].get("after"), 9)
    text = f"From {number(start, 9)} candidate problems to the {kept} that were chosen, and why the others fell out. "
    text += tag("measured")
    return section(title, text, f'<ol class="funnel">{"".join(items)}</ol>')


def _minus(x: float) -> str:
    return "−" + number(x, 9)


def samples(run: RunFolder) -> str:
    title = "Answers before and after"
    if not run.samples:
        return absent(title, run.why_absent("samples.json") or "no answers were kept")
    cards = [_sample(s) for s in run.samples[:60]]
    more = (
        f'<details class="more"><summary>{len(cards) - 4} more</summary>{"".join(cards[4:])}</details>'
        if len(cards) > 4
        else ""
    )
    text = f"The same unseen problems, put to each model. Not chosen for their outcome by this page. {tag('measured')}"
    return section(title, text, "".join(cards[:4]) + more)


def _sample(s: dict[str, Any]) -> str:
    answers = []
    for a in objects(s.get("answers"))[:8]:
        right = a.get("correct")
        verdict = (
            '<span class="right">✓ right</span>'
            if right is True
            else '<span class="wrong">✗ wrong</span>'
            if right is False
            else "<span>not graded</span>"
        )
        answers.append(
            f'<div><div class="who"><b>{h(a.get("model"), 60)}</b>{verdict}</div>'
            f"<pre>{h(a.get('text'), 3000) or '(empty)'}</pre></div>"
        )
    return (
        f'<div class="sample"><p class="q">{h(s.get("prompt"), 3000)}</p>'
        f'<p class="small">{h(s.get("family"), 60)} · the right answer is <b>{h(s.get("answer"), 300)}</b></p>'
        f'<div class="answers">{"".join(answers)}</div></div>'
    )
