#!/usr/bin/env python3
"""with_o_direct.sh on a kernel without cachestat(2), which a seccomp filter plays: a skip, with the reason, and only for who needs it."""
import ctypes
import errno
import os
import struct
import subprocess
import sys

CACHESTAT = 451
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, SECCOMP_MODE_FILTER = 22, 38, 2
WRAPPER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "with_o_direct.sh")


class Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def refuse_cachestat():
    """Linux's linux/filter.h and linux/seccomp.h: load the number; is it that one? ENOSYS; else let it pass."""
    code = b"".join(struct.pack("=HBBI", *line) for line in (
        (0x20, 0, 0, 0), (0x15, 0, 1, CACHESTAT), (0x06, 0, 0, 0x00050000 | errno.ENOSYS), (0x06, 0, 0, 0x7fff0000)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or \
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(4, code)), 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def ask(*words, **kwargs):
    return subprocess.run([WRAPPER, *words], capture_output=True, text=True, check=False, **kwargs)


def expect(result, status, word=""):
    if result.returncode != status or word not in result.stderr:
        sys.exit(f"{result.args}: status {result.returncode}, said {result.stderr!r}; not {status}, {word!r}")


def main():
    plain = ask("true")
    if plain.returncode == 77:
        print(plain.stderr, file=sys.stderr)
        sys.exit(77)
    expect(plain, 0)
    expect(ask("sh", "-c", "exit 3"), 3)
    expect(ask("--cachestat", "true", preexec_fn=refuse_cachestat), 77, "cachestat(2), which needs Linux 6.5")
    expect(ask("true", preexec_fn=refuse_cachestat), 0)
    # Here as it is: it runs, or is a skip that says why.
    here = ask("--cachestat", "sh", "-c", "exit 5")
    expect(here, here.returncode, "cachestat" if here.returncode == 77 else "")
    if here.returncode not in (5, 77):
        sys.exit(f"with --cachestat: status {here.returncode}")


if __name__ == "__main__":
    main()
