#!/usr/bin/env python3
"""Random reads of a mount whose store stops and fails, in each mode of the kernel, with and without fuse-over-io_uring: fs_stress of the
build directory that dsfs lies in, for longer than CI has time. Next to nothing is in the cache, so that nearly each reply comes from
another thread than the request's; wrong bytes and stalls end it."""
import os
import subprocess

import lib
from lib import check, say
from kernel_modes import MODES

PROGRAM = os.path.join(os.path.dirname(lib.DSFS), "..", "..", "tests", "stress", "fs_stress")


def run(box, args):
    if not os.path.exists(PROGRAM):
        raise lib.Skip(f"{PROGRAM} is not built")
    seconds, ran_n = int(60 * (args.minutes or 1) / 6.2), 0
    for uring in [], [os.path.join(lib.LIB, "with_uring.sh")]:
        for mode in MODES:
            result = subprocess.run([*uring, PROGRAM, str(seconds), str(args.seed), mode], check=False, stdout=subprocess.PIPE,
                                    stderr=subprocess.PIPE, text=True, timeout=seconds + 120)
            what = f"{mode}{', io_uring' if uring else ''}"
            if result.returncode == 77:
                say(f"{what}: skipped: {result.stderr.strip()}")
                continue
            say(f"{what}, {seconds} s: " + "; ".join(map(str.strip, result.stdout.splitlines()[1:])))
            check(result.returncode == 0, f"{what}: status {result.returncode}: {result.stderr}")
            ran_n += 1
    check(ran_n, "nothing was run")


if __name__ == "__main__":
    lib.main(run)
