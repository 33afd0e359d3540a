#!/usr/bin/env python3
"""Random reads of a mount whose store stops and fails, in each mode of the kernel, with and without fuse-over-io_uring: fs_stress of the
build directory that dsfs lies in, for longer than CI has time. Next to nothing is in the cache, so that most reads wait for the
store, and their replies come from other threads than the requests'. It ends with wrong bytes, with 10 s in which no read of all was right or a reader had no answer, and
with a reader that a store without trouble does not help."""
import os
import subprocess

import lib
from lib import check, say
from kernel_modes import MODES

PROGRAM = os.path.join(os.path.dirname(lib.DSFS), "..", "..", "tests", "stress", "fs_stress")

# For all six modes, with the end of each.
MINUTES, MODE_S = 62, 600


def run(box, args):
    if not os.path.exists(PROGRAM):
        raise lib.Skip(f"{PROGRAM} is not built")
    seconds, ran_n = int(MODE_S * min((args.minutes or 1) / MINUTES, 1)), 0
    if args.minutes and seconds < MODE_S:
        say(f"out of time: {seconds} s in each mode instead of {MODE_S}")
    for uring in [], [os.path.join(lib.LIB, "with_uring.sh")]:
        for mode in MODES:
            result = subprocess.run([*uring, PROGRAM, mode, "on" if uring else "off", str(seconds), str(args.seed)], check=False,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=seconds + 240)
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
