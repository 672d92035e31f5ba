"""The command line. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import time

STARTED = time.time()  # the lease of a run begins with its process

import errno  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402

from shoestring import __version__, commands  # noqa: E402
from shoestring.commands.parser import Parser, parse  # noqa: E402
from shoestring.records import UserError  # noqa: E402

DISK = {
    errno.ENOSPC: "the disk is full: free space, then go on with --resume",
    errno.EDQUOT: "the disk quota is used up: free space, then go on with --resume",
    errno.EACCES: "no permission to write here: choose another folder with --runs",
    errno.EPERM: "no permission to write here: choose another folder with --runs",
    errno.EROFS: "the file system is read-only: choose another folder with --runs",
    errno.EFBIG: "the file is larger than is allowed here: raise the limit, then go on with --resume",
    errno.EEXIST: "a file is in the way: choose another folder with --runs",
    errno.ENOTDIR: "a file is in the way: choose another folder with --runs",
}


def parser(called: str = "") -> Parser:
    """Of every command, or of `called` alone, if it is one."""
    p = Parser(prog="shoestring", description="The best small reasoning model that a budget buys.")
    p.add_argument("--version", action="version", version=f"shoestring {__version__}")
    sub = p.add_subparsers(dest="command", metavar="command", required=True)

    for module in commands.modules(called):
        module.add(sub)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input (one line on stderr), 130 interrupted."""
    argv = sys.argv[1:] if argv is None else list(argv)
    called = argv[0] if argv else ""
    args = parse(parser(called), argv)
    args.started = STARTED
    for stream in (sys.stdout, sys.stderr):  # progress must reach a log file while the run goes on
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        return commands.table(commands.modules(args.command))[args.command](args)
    except UserError as e:
        print(f"shoestring: {e}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone, as in `shoestring prices | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as e:
        said = DISK.get(e.errno or 0) or (e.strerror or str(e) or type(e).__name__).lower()
        print(f"shoestring: {f'{e.filename}: ' if e.filename else ''}{said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("shoestring: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
