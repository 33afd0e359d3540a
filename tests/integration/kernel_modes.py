#!/usr/bin/env python3
"""All the end-to-end programs that mount and take no minutes, in each mode of the kernel, with and without fuse-over-io_uring:
for the soak, as CI has time for the short ones only. mount_kernel, mount_memory and mount_uring choose by themselves; the few mounts
of addresses and names are started past lib.Mount."""
import os
import subprocess
import sys
import time

import lib
from lib import say

MODES = ["classic", "stateless", "passthrough"]
PROGRAMS = ["addressing", "bad_input", "big_shapes", "cache_cmd", "commit_options", "dedup", "epoch", "flips", "killed_commit",
            "listing", "messages", "mount_cache", "mount_helper", "mount_life", "mount_lock", "mount_semantics", "mount_stalls", "other_writer",
            "racers", "scale", "scan", "store_tls", "trees", "warm"]
# Its mounts say for themselves whether it is io_uring.
NOT_URING = ["listing"]
ARGUMENTS = {"flips": ["--flips", "100"], "mount_stalls": ["--strict", "--readers", "1000"], "trees": ["--seeds", "31-40"]}
LIMIT_S = 900


def one(program, options, seed):
    """Status and output."""
    argv = [sys.executable, os.path.join(lib.HERE, program + ".py"), *ARGUMENTS.get(program, []), "--seed", str(seed)]
    if "io_uring=on" in options:
        argv.insert(0, os.path.join(lib.LIB, "with_uring.sh"))
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                             errors="replace", env={**os.environ, "DSFS_MOUNT_OPTIONS": ",".join(options)})
    try:
        return child, child.communicate(timeout=LIMIT_S)[0]
    finally:
        # It ends what it has started.
        if child.poll() is None:
            child.terminate()
            child.wait(60)


def run(box, args):
    modes = [[f"kernel={mode}", *uring] for uring in ([], ["io_uring=on"]) for mode in MODES]
    failed, skipped, passed_n = [], [], 0
    took = dict.fromkeys(map(",".join, modes), 0.0)
    # All modes of a program, then the next, should the time not be enough for all.
    for program in args.only or PROGRAMS:
        if box.late():
            say(f"out of time: {program} and what follows were not run")
            break
        for options in modes:
            if "io_uring=on" in options and program in NOT_URING:
                continue
            mode, started = ",".join(options), time.monotonic()
            child, out = one(program, options, args.seed)
            took[mode] += time.monotonic() - started
            say(f"  {program} with {mode}: status {child.returncode}, {time.monotonic() - started:.0f} s")
            passed_n += child.returncode == 0
            if child.returncode == 77:
                skipped.append(f"{program} with {mode}")
            elif child.returncode:
                failed.append(f"{program} with {mode}")
                print(f"{failed[-1]}: status {child.returncode}:\n{out[-3000:]}", file=sys.stderr, flush=True)
    for mode, seconds in took.items():
        say(f"{mode}: {seconds:.0f} s")
    for what in skipped:
        say(f"skipped: {what}")
    lib.check(not failed, f"failed: {'; '.join(failed)}")
    lib.check(passed_n, "nothing was run")
    say(f"{passed_n} runs passed")


def add_arguments(parser):
    parser.add_argument("--only", action="append", choices=PROGRAMS, help="only this program; may be given several times")


if __name__ == "__main__":
    if "DSFS_MOUNT_OPTIONS" in os.environ:
        sys.exit("kernel_modes: DSFS_MOUNT_OPTIONS is what this is to set")
    lib.main(run, add_arguments)
