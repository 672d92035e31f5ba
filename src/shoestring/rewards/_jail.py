"""Run untrusted Python under what the Linux kernel offers against it. A script: `python -I -S _jail.py`, standard library only.

Reads one JSON line: {"source", "cases": [{"input": text} | {"call": expression}], "seconds", "memory_mib", "confine",
"readable": [folders]}. Writes {"layers": [...]}, then one line a case: {"end": how, "output": text}, where `end` is
"ok", "error", "exit", "timeout", "memory", "denied", "killed" or "flood". The expected outputs are never in here.

Layers (each is reported only once it stands): user, network, process and IPC namespaces; Landlock (kernel 5.13; the
program reads the standard library and nothing else, writes nothing); seccomp (no new process, no exec, no socket, no
ptrace). Every case is a fork of the same clean interpreter, so that nothing leaks from one to the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import platform
import resource
import select
import signal
import struct
import sys
from typing import Any

OUTPUT = 1 << 20  # bytes a case may write
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_NO_NEW_PRIVS, _PDEATHSIG, _SECCOMP = 38, 1, 22
_LANDLOCK = (444, 445, 446)  # create_ruleset, add_rule, restrict_self: the same number on every architecture
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# audit name of the machine, and the calls that are refused; clone is looked at, clone3 is "not there" so that libc uses clone
_MACHINES = {
    "x86_64": (
        0xC000003E, 56, 435, (57, 58, 59, 322, 101, 310, 311, 165, 272, 308, 250, 321, 298, 323, 425, 41, 53, 62, 200, 234),
    ),
    "aarch64": (0xC00000B7, 220, 435, (221, 281, 117, 270, 271, 40, 97, 268, 219, 280, 241, 282, 425, 198, 199, 129, 130, 131)),
}  # fmt: skip
_THREAD = 0x10000

libc = ctypes.CDLL(None, use_errno=True)


def namespaces() -> bool:
    """Leave the network, the processes and the identity of the rest of the machine. The next fork is process 1."""
    return libc.unshare(_NEWUSER | _NEWNET | _NEWPID | _NEWIPC | _NEWUTS | _NEWNS) == 0


def landlock(readable: list[str]) -> bool:
    """From here on this process opens no file but below `readable`, to read; and no TCP port."""
    create, add, restrict = _LANDLOCK
    abi = libc.syscall(create, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    if abi < 1:
        return False
    rights = 13 if abi == 1 else 14 if abi == 2 else 15 if abi < 5 else 16
    fields = [(1 << rights) - 1, 3 if abi >= 4 else 0, 3 if abi >= 6 else 0]
    fields = fields[: 1 if abi < 4 else 2 if abi < 6 else 3]
    attributes = struct.pack(f"={len(fields)}Q", *fields)
    ruleset = libc.syscall(create, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    if ruleset < 0:
        return False
    for folder in readable:
        try:
            fd = os.open(folder, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        rule = struct.pack("=Qi", _READ_FILE | (_READ_DIR if os.path.isdir(folder) else 0), fd)
        libc.syscall(add, ruleset, 1, rule, ctypes.c_uint32(0))
        os.close(fd)
    done = libc.syscall(restrict, ruleset, ctypes.c_uint32(0)) == 0
    os.close(ruleset)
    return done


def seccomp() -> bool:
    """No new processes (threads may start), programs, sockets; no signals to others; no looking into others."""
    if platform.machine() not in _MACHINES:
        return False
    audit, clone, clone3, refused = _MACHINES[platform.machine()]
    kill, errno, allow = 0x80000000, 0x50000, 0x7FFF0000
    load, equal, above, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    code = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, kill), (load, 0, 0, 0)]
    code += [(above, 0, 1, 0x40000000), (give, 0, 0, errno | 1)]  # the x32 calls of x86
    code += [(equal, 0, 1, clone3), (give, 0, 0, errno | 38)]
    for number in refused:
        code += [(equal, 0, 1, number), (give, 0, 0, errno | 1)]
    code += [(equal, 0, 3, clone), (load, 0, 0, 16), (bits, 1, 0, _THREAD), (give, 0, 0, errno | 1), (give, 0, 0, allow)]
    raw = b"".join(struct.pack("=HBBI", *c) for c in code)
    program = ctypes.create_string_buffer(raw)
    head = struct.pack("@HP", len(code), ctypes.addressof(program))
    return libc.prctl(_SECCOMP, 2, ctypes.create_string_buffer(head), 0, 0) == 0


def drop_capabilities() -> None:
    """The new user namespace gave every capability within it; a program needs none."""
    libc.syscall({"x86_64": 126, "aarch64": 91}.get(platform.machine(), -1), struct.pack("=Ii", 0x20080522, 0), bytes(24))


def limit(job: dict[str, Any]) -> None:
    seconds, memory = int(job["seconds"]) + 1, int(job["memory_mib"]) << 20
    for what, most in (
        (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_FSIZE, OUTPUT),
        (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, 64),
    ):  # fmt: skip
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (most, most))


def play(source: str, case: dict[str, str], result: int) -> str:
    """Run the program on one case; what a call gave is written to `result` as a literal."""
    space: dict[str, Any] = {"__name__": "__main__" if "input" in case else "solution", "__builtins__": __builtins__}
    try:
        exec(compile(source, "answer.py", "exec"), space)
        if "call" in case:
            os.write(result, repr(eval(compile(case["call"], "case", "eval"), space)).encode()[:OUTPUT])
        sys.stdout.flush()
    except SystemExit as stop:
        sys.stdout.flush()
        return "exit" if "call" in case or stop.code not in (None, 0) else "ok"
    except PermissionError:
        return "denied"
    except MemoryError:
        return "memory"
    except OSError as error:
        return "flood" if error.errno == 27 else "error"  # EFBIG: past OUTPUT
    except BaseException:
        return "error"
    return "ok"


def one(job: dict[str, Any], case: dict[str, str], confined: list[str]) -> dict[str, str]:
    """One case in a fork of its own."""
    written, given, said, told = os.memfd_create("out"), os.memfd_create("in"), *os.pipe()
    os.write(given, case.get("input", "").encode())
    os.lseek(given, 0, os.SEEK_SET)
    child = os.fork()
    if not child:
        end = "killed"
        try:
            os.close(said)
            libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            result = os.dup(written) if "call" in case else -1
            null = os.open(os.devnull, os.O_WRONLY)
            for fd, place in ((given, 0), (null if "call" in case else written, 1), (null, 2)):
                os.dup2(fd, place)
            sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            limit(job)
            ready = True
            if job["confine"]:
                ready = libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and ("landlock" not in confined or landlock(job["readable"]))
                drop_capabilities()
                ready = ready and ("seccomp" not in confined or seccomp())
            end = play(job["source"], case, result) if ready else "killed"
        finally:
            try:
                os.write(told, end.encode())
            finally:
                os._exit(0)
    os.close(told)
    pid = os.pidfd_open(child)
    slow = not select.select([pid], [], [], 2 * job["seconds"] + 1)[0]
    if slow:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    end = os.read(said, 16).decode(errors="replace") if select.select([said], [], [], 0)[0] else ""
    if slow or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL)):
        end = "timeout"
    os.lseek(written, 0, os.SEEK_SET)
    output = os.read(written, OUTPUT + 1)
    for fd in (written, given, said, pid):
        os.close(fd)
    known = ("ok", "error", "exit", "timeout", "memory", "denied", "flood")
    return {"end": end if end in known else "killed", "output": output.decode(errors="replace")}


def trial(what: Any, *arguments: Any) -> bool:
    """Does a layer stand? Tried in a fork, since it cannot be taken off again."""
    child = os.fork()
    if not child:
        try:
            os._exit(0 if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 and what(*arguments) else 1)
        except BaseException:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def main() -> None:
    job = json.loads(sys.stdin.readline())
    layers = []
    libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if job["confine"]:
        layers += ["landlock"] if trial(landlock, job["readable"]) else []
        layers += ["seccomp"] if trial(seccomp) else []
        layers += ["namespaces"] if namespaces() else []  # last: the first fork after it is the new namespace's process 1
    child = os.fork()  # process 1 of the new namespace: when it ends, whatever runs there ends
    if child:
        os.waitpid(child, 0)
        os._exit(0)
    libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    print(json.dumps({"layers": layers}), flush=True)
    enough = not job["confine"] or "namespaces" in layers and "landlock" in layers
    for case in job["cases"] if enough else []:
        ran = one(job, case, layers)
        print(json.dumps(ran), flush=True)
        if ran["end"] == "timeout":
            break  # the other tests of an endless program would end the same way, each at its full price
    os._exit(0)


if __name__ == "__main__":
    main()
