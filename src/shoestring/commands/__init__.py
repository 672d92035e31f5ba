"""The command line's larger commands, one file each: `add(sub)` makes the parser, `run(args)` does the work.

Importing one costs nothing: what a command needs is imported inside `run`.
"""
