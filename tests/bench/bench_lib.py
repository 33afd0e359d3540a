"""What the parts of the benchmark share: its settings, running its programs, the page cache, and the
figures with their references."""
import ctypes
import json
import mmap
import os
import signal
import statistics
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "integration"))
import lib  # noqa: E402

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
CLOCK_HZ = os.sysconf("SC_CLK_TCK")
TOUCH_MAX = 6 * GIB  # more than an epoch and its cache take
MADV_POPULATE_WRITE = 23


class Unavailable(Exception):
    """A row or a contender that cannot be measured here; the reason is its text."""


def progress(*words):
    print(*words, file=sys.stderr, flush=True)


def programs_dir():
    return os.path.join(os.path.dirname(lib.DSFS), "..", "..", "tests", "bench")


def program(name):
    return os.path.normpath(os.path.join(programs_dir(), name))


def die_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def run(argv, timeout=900, **kwargs):
    """Runs to the end; its stdout. Another status than 0 is a failure."""
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=timeout, check=False, **kwargs)
    if done.returncode:
        raise lib.Failed(f"{' '.join(map(str, argv))[:300]}: status {done.returncode}: "
                         f"{done.stderr.decode(errors='replace').strip()[-1000:]}")
    return done.stdout


def bench_read(*args):
    return json.loads(run([program("bench_read"), *map(str, args)]))


def timed(argv, **kwargs):
    """Seconds that a command takes; its output goes nowhere."""
    started = time.monotonic()
    run(["sh", "-c", 'exec "$@" >/dev/null', "sh", *argv], **kwargs)
    return time.monotonic() - started


def root_command():
    return [] if os.geteuid() == 0 else ["sudo", "-n"]


def touch_memory():
    """Free memory of a virtual machine may have to be fetched from its host (free page reporting): the
    first touch costs several times what it does elsewhere, and a contender would pay for what the one before
    it gave back. So all begin with memory that is there."""
    with open("/proc/meminfo", encoding="ascii") as file:
        free = next(int(row.split()[1]) * KIB for row in file if row.startswith("MemFree:"))
    with mmap.mmap(-1, max(min(free // 2, TOUCH_MAX), mmap.PAGESIZE)) as memory:
        try:
            memory.madvise(MADV_POPULATE_WRITE)
        except OSError:  # before Linux 5.14
            pass


def drop_caches(what=3):
    """1: pages, 2: dentries and inodes, 3: both. Dirty pages are written first."""
    os.sync()
    try:
        run([*root_command(), "sh", "-c", f"echo {what} > /proc/sys/vm/drop_caches"])
    except (lib.Failed, OSError):
        raise Unavailable("dropping the page cache needs root") from None
    if what & 1:
        touch_memory()


def cpu_seconds(pid):
    """User and system seconds of a process with all its threads."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_HZ


def own_memory(pid):
    """Bytes that only this process has: RssAnon + RssShmem."""
    with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
        rows = dict(line.split(":", 1) for line in file)
    return sum(int(rows[key].split()[0]) for key in ("RssAnon", "RssShmem")) * KIB


class Box(lib.Box):
    """A scratch directory on the file system that is measured."""

    def start_program(self, argv, env=None, **kwargs):
        process = subprocess.Popen(argv, env=self.environment(env), preexec_fn=die_with_parent,
                                   **{"stdin": subprocess.DEVNULL, **kwargs})
        self.processes.append(process)
        return process

    def end(self, process):
        process.terminate()
        process.wait(60)
        self.processes.remove(process)


class Series:
    """The samples of one figure."""

    def __init__(self, row, what, contender, unit):
        self.row, self.what, self.contender, self.unit = row, what, contender, unit
        self.samples = []

    @property
    def median(self):
        return statistics.median(self.samples)


class Report:
    """All figures, the references beside them, and what is wanted of some."""

    def __init__(self):
        self.series = {}
        self.wanted = []
        self.notes = []

    def add(self, row, what, contender, value, unit):
        key = row, what, contender
        self.series.setdefault(key, Series(*key, unit)).samples.append(value)
        if not what.endswith(", p99"):
            progress(f"    {row}: {what}: {contender}: {show(value, unit)}")

    def get(self, row, what, contender):
        return self.series.get((row, what, contender))

    def best(self, row, what, contenders):
        """The one with the highest median of those that were measured."""
        found = [s for name in contenders if (s := self.get(row, what, name))]
        return max(found, key=lambda s: s.median, default=None)

    def want(self, row, what, series, reference, reference_name, limit, at_most=False, aim=None):
        """Asks for the ratio of the medians; `reference` is a Series or a number."""
        if series is None or reference is None:
            self.note(row, f"{what}: nothing to compare with {reference_name}")
            return
        value = reference.median if isinstance(reference, Series) else reference
        ratio = series.median / value if value else float("inf")
        self.wanted.append({
            "row": row, "what": what, "contender": series.contender, "median": series.median,
            "unit": series.unit, "reference": reference_name, "reference_median": value,
            "ratio": ratio, "wanted": limit, "at_most": at_most, "aim": aim,
            "met": ratio <= limit if at_most else ratio >= limit})

    def note(self, row, text):
        if (row, text) not in self.notes:
            self.notes.append((row, text))
            progress(f"    {row}: {text}")

    def as_json(self):
        return {
            "figures": [{"row": s.row, "what": s.what, "contender": s.contender, "unit": s.unit,
                         "median": s.median, "min": min(s.samples), "max": max(s.samples),
                         "samples": s.samples} for s in self.series.values()],
            "wanted": self.wanted,
            "notes": [{"row": row, "text": text} for row, text in self.notes]}

    def print(self):
        table = [("row", "what", "contender", "median", "from", "to", "unit", "x local")]
        for s in self.series.values():
            if s.what.endswith(", p99"):
                continue  # in the JSON
            local = self.get(s.row, s.what, "local")
            ratio = f"{s.median / local.median:.3f}" if local and local.median else "-"
            table.append((s.row, s.what, s.contender, number(s.median), number(min(s.samples)),
                          number(max(s.samples)), s.unit, ratio))
        print_table(table, 3)
        if self.wanted:
            print("\nWanted (ratios of medians of this run):\n")
            table = [("row", "what", "contender", "figure", "reference", "is", "ratio", "wanted",
                      "met")]
            for w in self.wanted:
                limit = f"{'<=' if w['at_most'] else '>='} {w['wanted']}"
                if w["aim"]:
                    limit += f" (aim {w['aim']})"
                table.append((w["row"], w["what"], w["contender"],
                              f"{number(w['median'])} {w['unit']}", w["reference"],
                              number(w["reference_median"]), f"{w['ratio']:.3f}", limit,
                              "yes" if w["met"] else "NO"))
            print_table(table, 9)
        if self.notes:
            print()
        for row, text in self.notes:
            print(f"{row}: {text}")


def number(value):
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 100 else f"{value:.3g}"


def show(value, unit):
    return f"{number(value)} {unit}"


def print_table(table, left_n):
    """The first left_n columns are words, the others numbers."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) if i < left_n else cell.rjust(width)
                        for i, (cell, width) in enumerate(zip(row, widths))).rstrip())
