"""Fit the throughput prior to the shipped tables and print its constants and its errors on rows left out.

    python tools/fit_throughput.py

Leave-cell-out: each row is predicted by a fit that has not seen its card × model cell. Runs are predicted without themselves.
`estimate/throughput.py` fits the same coefficients when it is first asked; only RESIDUALS is written there by hand, from here.
"""

from __future__ import annotations

import math

from shoestring.estimate import published, runs, throughput
from shoestring.estimate.job import LADDER, NAMED
from shoestring.estimate.regression import quantile

CUSHION = 1.2  # a blind cell is a little worse than a cell of the table: intervals are widened by this


def residuals() -> list[float]:
    """log(predicted / measured) of llm-foundry's rows, each without its cell."""
    out = []
    for job, rate in throughput.foundry_rows():
        cell = throughput.cell(job.gpu, LADDER[NAMED[job.name]][0])
        out.append(math.log(throughput.tokens_per_second(job, frozenset({cell})).mid / rate))
    return out


def main() -> None:
    print("seconds a token = Σ coefficient · amount:")
    for name, value in zip(throughput.PRIOR, throughput.coefficients(), strict=True):
        print(f"  {name:26s} {value:8.3f}")
    factors = [round(f, 3) for f in throughput.stack_factors()]
    print("torchtitan's factors (stack, compile, tensor, context, pipeline):", factors)
    off = residuals()
    errors = [abs(math.expm1(r)) for r in off]
    low, high = quantile(off, 0.1), quantile(off, 0.9)
    print(f"leave-cell-out: median {quantile(errors, 0.5):.1%}, p90 {quantile(errors, 0.9):.1%}, worst {max(errors):.0%}")
    print(f"residuals: 10% {low:.4f}, 90% {high:.4f}; RESIDUALS = ({CUSHION * low:.3f}, {CUSHION * high:.3f})")
    print("all-in factors of runs:", dict(zip(runs.FEATURES, (round(f, 2) for f in runs.all_in()), strict=True)))
    ratios = [runs.gpu_hours(run).mid / hours for run, hours in published.shipped_runs()]
    print(f"runs without themselves: {sum(0.5 <= r <= 2 for r in ratios)} of {len(ratios)} within a factor of 2")


if __name__ == "__main__":
    main()
