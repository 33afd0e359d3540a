#!/usr/bin/env python3
"""Our patches to libfuse's fuse-over-io_uring, for longer than CI has time: fuse_uring_stress of the
build directory that dsfs lies in: with every reply from another thread than the queue's, with the
ring's own reads, and with readers that are killed."""
import os
import subprocess

import lib
from lib import check, say

PROGRAM = os.path.join(os.path.dirname(lib.DSFS), "..", "..", "tests", "stress", "fuse_uring_stress")

MINUTES = 17


def run(box, args):
    if not os.path.exists(PROGRAM):
        raise lib.Skip(f"{PROGRAM} is not built")
    minutes = min(args.minutes or 1, MINUTES)
    if args.minutes and minutes < MINUTES:
        say(f"out of time: {minutes} minutes instead of {MINUTES}")
    # The first gets 10.2 of the minutes.
    for mode, share in (("replies", 0.6), ("reads", 0.25), ("interrupts", 0.15)):
        seconds = int(60 * minutes * share)
        argv = [os.path.join(lib.LIB, "with_uring.sh"), PROGRAM, mode, str(seconds), str(args.seed)]
        # Not for the pipe to end: what is skipped leaves nothing that holds it.
        result = subprocess.run(argv, check=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                text=True, timeout=seconds + 120)
        if result.returncode == 77:
            raise lib.Skip(result.stderr.strip())
        say(f"{mode}, {seconds} s: " + "; ".join(map(str.strip, result.stdout.splitlines()[1:])))
        check(result.returncode == 0, f"{mode}: status {result.returncode}: {result.stderr}")


if __name__ == "__main__":
    lib.main(run)
