"""Runs of runs: the arms of a comparison, each with several seeds, under one ceiling that all of them share.

    file.py      the file that names recipe, arms, seeds and budget, and the recipe of every arm
    planning.py  minutes and dollars of each arm before it runs; arms of equal dollars
    pool.py      the shared ceiling: what a child run may spend is reserved before it starts
    running.py   the child runs, one after another; killed ones go on where they were
    results.py   accuracy, paired gains with intervals, the table of other domains

Layer: right of the pipeline, left of the commands. No torch at module level.
"""
