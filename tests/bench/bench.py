#!/usr/bin/env python3
"""How fast dsfs is, beside what this machine and its kernel allow and beside others: all in one run, in
several interleaved rounds, as medians and ratios. See README.md, "How fast".

Nothing here is a test: the exit status says whether it ran, not how fast.
"""
import argparse
import json
import os
import signal
import sys
import time

from bench_contenders import URING
from bench_data import Data
from bench_epochs import Cold, LargeCold, LargeLatency, LargeNvme, LargeWarm, Latency, Nvme, Warm
from bench_lib import Box, Report, Unavailable, progress, program, root_command, run, lib
from bench_servers import FILES_PREFIX, Servers
from bench_trees import Commit, CommitStore, Find, Ls, Memory, MountTime, OsWalk, Stat, TreesLatency

ROWS = {
    "epoch-warm": (Warm, "shuffled small files from page cache; 1, 2, 4 and 16 readers"),
    "epoch-nvme": (Nvme, "the same, page cache empty, dsfs's cache on the disk full"),
    "epoch-cold": (Cold, "the same, nothing on this host; CPU seconds per GiB"),
    "epoch-latency": (Latency, "the same with latency per request"),
    "large-warm": (LargeWarm, "one large file from page cache: sequential, random, mapping"),
    "large-nvme": (LargeNvme, "the same, page cache empty, dsfs's cache on the disk full"),
    "large-cold": (LargeCold, "the same, nothing on this host"),
    "large-latency": (LargeLatency, "the same with latency per request"),
    "find": (Find, "find with sizes over many files; the first time and the second"),
    "ls": (Ls, "ls -lR over the same"),
    "oswalk": (OsWalk, "Python's os.walk over the same"),
    "stat": (Stat, "lstat of the same, shuffled, 4 readers"),
    "trees-latency": (TreesLatency, "a mount and each of these, nothing on this host, with latency per request"),
    "mount": (MountTime, "time of mounting against the number of files"),
    "commit": (Commit, "2 GiB of new data as 32 files and as one"),
    "commit-store": (CommitStore, "2,000 new small files to the store, without and with latency per request"),
    "memory": (Memory, "memory of the mount under 64 readers over epochs"),
}
PEERS = ("s3fs", "rclone", "restic", "squashfs")


class Bench:
    """One run."""

    def __init__(self, box, args):
        self.box, self.args = box, args
        self.report = Report()
        self.data = Data(args.dir, args.scale)
        self.peers = [] if args.peers == "none" else args.peers.split(",")
        self.row = None
        self.done = {}

    def once(self, key, make):
        if key not in self.done:
            self.done[key] = make()
        return self.done[key]

    @property
    def servers(self):
        return self.once("servers", lambda: Servers(self.box, self.args.latency_ms))

    def fresh_servers(self):
        """They keep everything in memory: what rows before have put there goes."""
        if "servers" in self.done:
            self.done.pop("servers").end()
        for key in [key for key in self.done if key in ("put_small", "put_restic") or key[0] == "repo"]:
            del self.done[key]

    def s3_repo(self, name, source):
        """(URL, objects) of a repository that the server's cache holds."""
        def make():
            url = self.servers.commit(source, name)
            return url, self.servers.warm(f"{name}/")
        return self.once(("repo", name), make)

    def put_small(self):
        """The small files as objects, for the peers that show a bucket's keys."""
        def make():
            self.servers.put_files(self.data.small, list(self.data.small_rows()), FILES_PREFIX)
            self.servers.warm(FILES_PREFIX + "/")
        self.once("put_small", make)

    def put_restic(self, restic):
        def make():
            restic.backup(self.data.small)
            self.servers.warm("restic/")
        self.once("put_restic", make)

    def rounds(self, contenders, one, at_least=0):
        """Each contender once in a round, each round beginning with another one."""
        contenders = list(contenders)
        for i in range(max(self.args.rounds, at_least)):
            if i and self.box.late():
                self.report.note(self.row, f"{i} rounds only, for the time was over")
                return
            turn = i % len(contenders)
            for contender in contenders[turn:] + contenders[:turn]:
                try:
                    one(contender, i + 1)
                except Unavailable as reason:
                    self.report.note(self.row, str(reason))
                if how := getattr(contender, "how", ""):
                    self.report.note(self.row, f"{contender.name}: {how}")

    def run_row(self, name):
        self.row = name
        started = time.monotonic()
        progress(f"{name}: {ROWS[name][1]}")
        try:
            ROWS[name][0](self).run()
        except Unavailable as reason:
            self.report.note(name, f"skipped: {reason}")
        progress(f"{name}: {time.monotonic() - started:.0f} s")


def prepare(bench):
    """All that is kept."""
    data, box = bench.data, bench.box
    for name, source in (("small", data.small), ("large", data.large_dir), ("many", data.many)):
        data.repo(box, name, source)
    data.many_list, data.large_list, data.parts
    bench.row = "mount"
    for files_n in MountTime(bench).sizes():
        data.repo_of_names(box, files_n)


class Uring:
    """Turns fuse-over-io_uring on for as long as the benchmark runs, where it may."""

    def __init__(self, wanted):
        self.before = None
        if not wanted:
            return
        with open(URING, encoding="ascii") as file:
            self.before = file.read().strip()
        self.set("Y")

    def set(self, value):
        run([*root_command(), "sh", "-c", f"echo {value} > {URING}"])

    def end(self):
        if self.before is not None:
            self.set(self.before)


def describe(args):
    with open("/proc/meminfo", encoding="ascii") as file:
        memory = file.readline().split(":")[1].strip()
    return {"kernel": os.uname().release, "cores": len(os.sched_getaffinity(0)), "memory": memory,
            "dsfs": run([lib.DSFS, "--version"]).decode().split("\n")[0], "scale": args.scale,
            "rounds": args.rounds, "latency_ms": args.latency_ms, "variants": args.variant}


def arguments():
    parser = argparse.ArgumentParser(prog="bench.sh", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="the rows")
    parser.add_argument("--only", action="append", metavar="ROW", choices=ROWS,
                        help="only this row; may be given several times")
    parser.add_argument("--prepare", action="store_true",
                        help="only make the data that are kept")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="(3)")
    parser.add_argument("--scale", type=float, default=1, metavar="X",
                        help="so much of the data: 0.05 for a quick look (1)")
    parser.add_argument("--json", default="build-bench/bench.json", metavar="FILE",
                        help="all samples go there, too (build-bench/bench.json)")
    parser.add_argument("--minutes", type=float, metavar="N",
                        help="begin no further round, and no further row, after this time")
    parser.add_argument("--variant", action="append", default=[], metavar="NAME=OPTIONS",
                        help="measure dsfs with these mount options, too; may be given several times")
    parser.add_argument("--peers", default=",".join(PEERS), metavar="LIST",
                        help=f"none, or some of {','.join(PEERS)} (all)")
    parser.add_argument("--latency-ms", type=int, default=20, metavar="N", help="(20)")
    parser.add_argument("--huge", action="store_true",
                        help="mount 10,000,000 files, too: made once, in many minutes")
    parser.add_argument("--uring", action="store_true",
                        help="turn fuse's enable_uring on meanwhile (root)")
    parser.add_argument("--dir", default="build-bench/data", metavar="DIR",
                        help="where the data are kept and the caches lie: on the file system that is "
                        "to be measured (build-bench/data)")
    args = parser.parse_args()
    unknown = set(args.peers.split(",")) - {*PEERS, "none"}
    if unknown:
        parser.error(f"no such peer: {', '.join(sorted(unknown))}")
    return args


def main():
    args = arguments()
    if args.list:
        for name, (_, text) in ROWS.items():
            print(f"{name:15}{text}")
        return 0
    for path in lib.DSFS, program("bench_read"):
        if not os.path.exists(path):
            sys.exit(f"bench: {path} is not built; run scripts/bench.sh")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        print("bench: /dev/fuse cannot be opened", file=sys.stderr)
        return 77
    args.dir = os.path.abspath(args.dir)
    os.makedirs(args.dir, exist_ok=True)
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
        signal.signal(number, lib.on_signal)
    box = Box("bench", args.dir)
    if args.minutes:
        box.deadline = time.monotonic() + 60 * args.minutes
    status, bench, uring = 1, Bench(box, args), None
    try:
        if args.prepare:
            prepare(bench)
            args.only = []
        uring = Uring(args.uring)
        for name in ROWS if args.only is None else args.only:
            if box.late():
                bench.report.note(name, "skipped: the time was over")
            else:
                bench.run_row(name)
        status = 0
    except lib.Failed as failure:
        print(f"bench: {failure}", file=sys.stderr)
    except SystemExit as end:
        # By a signal: what was measured is shown all the same.
        status = end.code
    finally:
        for complaint in box.close():
            print(f"bench: {complaint}", file=sys.stderr)
        box.remove()
        if uring:
            uring.end()
    machine = describe(args)
    print(", ".join(f"{key} {value}" for key, value in machine.items() if value not in ([], None)))
    print()
    bench.report.print()
    if args.json:
        os.makedirs(os.path.dirname(args.json) or ".", exist_ok=True)
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"machine": machine, **bench.report.as_json()}, file, indent=1)
            file.write("\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
