#!/usr/bin/env python3
"""Many files, ten million for a soak: memory of each command stays below 1 GiB; a commit that finds nothing
to do reads nothing, one with 1 % changed reads that, and (--strict) both take a few times as long as a walk at
most; mounting takes as long as with 1,000 files; look-ups and listings as long for each entry as with 100,000.
Times stand beside a bare walk of the same tree that takes the stat of each file, on all processors."""
import ctypes
import glob
import mmap
import os
import random
import statistics
import subprocess
import threading
import time

import lib
from lib import GIB, KIB, MIB, check, equal, say

PER_DIRECTORY = 1000
MEMORY_MAX = GIB
ROUNDS = 9
FEWER = 100_000
# Ten million have one more level in both B-trees of the manifest, and no longer fit the caches of a processor.
PACE_MAX = 1.5
# What a mount may have besides the bytes on their way, and the least that may be on their way (inflight=16M): nothing is, here.
READERS, MOUNT_MAX = 64, (64 + 16) * MIB
# A commit of a tree in which nothing or 1 % has changed, against the walk: it also reads one stat of each from its own file.
AGAIN_MAX = 4.0


def place(source, i):
    return f"{source}/d{i // PER_DIRECTORY:05}/image-{i:08}.jpg"


def make_some(source, first, end):
    for d in range(first, end, PER_DIRECTORY):
        os.mkdir(f"{source}/d{d // PER_DIRECTORY:05}")
        for i in range(d, min(d + PER_DIRECTORY, end)):
            fd = os.open(place(source, i), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            # Every fifth has a content of its own, the others none.
            if i % 5 == 0:
                os.write(fd, b"%08d\n" % i)
            os.close(fd)


def make(source, files):
    """By several processes, each with directories of its own."""
    share = -(-files // len(os.sched_getaffinity(0)) // PER_DIRECTORY) * PER_DIRECTORY
    pids = []
    for first in range(0, files, share):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                make_some(source, first, min(first + share, files))
                status = 0
            finally:
                os._exit(status)
        pids.append(pid)
    check(not any([os.waitpid(pid, 0)[1] for pid in pids]), "the source could not be made")


def walk(source):
    """Seconds that a bare walk takes that asks for the size of each file."""
    started = time.monotonic()
    names = subprocess.Popen(["find", source, "-mindepth", "1", "-maxdepth", "1", "-print0"],
                             stdout=subprocess.PIPE)
    subprocess.run(["xargs", "-0", "-n", "50", "-P", str(len(os.sched_getaffinity(0))), "sh", "-c",
                    'exec find "$@" -printf "%s\\n" >/dev/null', "find"],
                   stdin=names.stdout, check=True)
    names.stdout.close()
    equal(names.wait(), 0, "status of find")
    return time.monotonic() - started


class Sampler(threading.Thread):
    """The peak of what only this process has, RssAnon + RssShmem, while it runs."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak, self.over = pid, 0, threading.Event()
        self.start()

    def look(self):
        try:
            with open(f"/proc/{self.pid}/status", encoding="ascii", errors="replace") as file:
                rows = dict(line.split(":", 1) for line in file)
            return sum(int(rows[key].split()[0]) for key in ("RssAnon", "RssShmem")) * KIB
        except (OSError, KeyError):
            return 0  # it has ended

    def run(self):
        while not self.over.wait(0.05):
            self.peak = max(self.peak, self.look())

    def end(self):
        self.over.set()
        self.join()
        return self.peak


def measured(box, what, files, *args, status=0):
    """Runs dsfs with its time, CPU seconds and memory; returns what it printed, and the seconds."""
    out = box.path("out")
    before, started = os.times(), time.monotonic()
    with open(out, "wb") as file:
        process = box.start(args, stdout=file, stderr=subprocess.PIPE)
        sampler = Sampler(process.pid)
        _, err = process.communicate(timeout=7200)
    took, after = time.monotonic() - started, os.times()
    box.processes.remove(process)
    equal(process.returncode, status, f"status of {what}: {err.decode()[-2000:]}")
    peak, cpu = sampler.end(), after[2] + after[3] - before[2] - before[3]
    say(f"{what}: {took:.1f} s, {files / took:,.0f} files/s, {cpu:.1f} CPU s, memory {peak >> 20} MiB")
    if not under_sanitizer():
        check(peak < MEMORY_MAX, f"{what}: {peak >> 20} MiB of memory")
    with open(out, "rb") as file:
        return lib.Result(args, process.returncode, file.read(), err), took


def under_sanitizer():
    with open(lib.DSFS, "rb") as file:
        return b"__asan_init" in file.read()


def commit(box, what, files, source, repo, *options):
    done, took = measured(box, what, files, "commit", "--json", source, repo, "--state-dir",
                          box.path("state"), *options)
    return done.json, took


def change(source, files, seed):
    """One in a hundred, all over the tree: other contents of another size."""
    chosen = random.Random(seed).sample(range(files), files // 100)
    for i in chosen:
        with open(place(source, i), "wb") as file:
            file.write(b"changed %08d\n" % i)
    return chosen


def mount_once(box, repo):
    cache = box.path(f"cold-{box.number()}")
    mount = box.mount(repo, f"cache_dir={cache}")
    mount.umount()
    subprocess.run(["rm", "-rf", cache], check=True)
    return mount.took_s


def mounts(box, repos):
    """Medians of mounting with an empty cache; interleaved."""
    times = {name: [] for name in repos}
    for _ in range(ROUNDS):
        for name, repo in repos.items():
            times[name].append(mount_once(box, repo))
    return [statistics.median(times[name]) for name in repos]


def look_at(mount, files, seed):
    """A walk with the stat of each, and random look-ups in what was not walked: files/s."""
    rng = random.Random(seed)
    dirs = rng.sample(range(files // PER_DIRECTORY), min(files // PER_DIRECTORY, 100))
    listed, looked_up = dirs[::2], dirs[1::2]
    started = time.monotonic()
    for d in listed:
        subprocess.run(["find", f"{mount.path}/d{d:05}", "-printf", "%s"], check=True,
                       stdout=subprocess.DEVNULL)
    walked = len(listed) * PER_DIRECTORY / (time.monotonic() - started)
    chosen = [d * PER_DIRECTORY + i for d in looked_up for i in rng.sample(range(PER_DIRECTORY), 100)]
    rng.shuffle(chosen)
    started = time.monotonic()
    for i in chosen:
        os.stat(place(mount.path, i))
    return walked, len(chosen) / (time.monotonic() - started) if chosen else 0


def cpu_of(pid):
    """CPU seconds of another process (clock_getcpuclockid(3)), to the microsecond: those that others take do not count."""
    return time.clock_gettime(~pid << 3 | 2)


def disk_bytes_of(pid):
    """What a process has read from the disk (proc_pid_io(5))."""
    with open(f"/proc/{pid}/io", encoding="ascii") as file:
        return int(dict(map(str.split, file))["read_bytes:"])


class InMemory:
    """Keeps files in the page cache (mlock needs privilege): what has not been used for some seconds is not safe there where DAMON reclaims
    (Linux, admin-guide/mm/damon), and a manifest of ten million files is used more thinly than one of 100,000."""

    def __init__(self, paths):
        libc, self.maps = ctypes.CDLL(None, use_errno=True), []
        for path in paths:
            with open(path, "r+b") as file:
                self.maps.append(mmap.mmap(file.fileno(), 0))
            kept = ctypes.c_char.from_buffer(self.maps[-1])
            r = libc.mlock(ctypes.byref(kept), ctypes.c_size_t(len(self.maps[-1])))
            check(r == 0, f"mlock of {path}: {os.strerror(ctypes.get_errno())}")
            del kept

    def end(self):
        for one in self.maps:
            one.close()


class Asked:
    """A mount and what it is asked for, a share in each round: nothing that the kernel knows already."""

    def __init__(self, box, repo, files, amounts, rng, strict):
        cache = box.path(f"local-{files}")
        self.files, self.mount = files, box.mount(repo, f"cache_dir={cache}", "warm")
        box.wait(lambda: not self.stats()["warm_running"], f"{files} files to be warmed", timeout=3600)
        equal(self.stats()["warm_incomplete"], 0, f"{files} files: whether the warming was incomplete")
        listed_n, looked_up_n = amounts
        dirs = rng.sample(range(files // PER_DIRECTORY), files // PER_DIRECTORY)
        others = dirs[listed_n:]
        self.dirs = [f"{self.mount.path}/d{d:05}" for d in dirs[:listed_n]]
        self.paths = [place(self.mount.path, others[i // PER_DIRECTORY] * PER_DIRECTORY + i % PER_DIRECTORY)
                      for i in rng.sample(range(len(others) * PER_DIRECTORY), looked_up_n)]
        for d in dirs:
            os.lstat(f"{self.mount.path}/d{d:05}")
        images = glob.glob(f"{cache}/**/images/*/*/*", recursive=True) if strict else []
        self.in_memory = InMemory(path for path in images if os.path.getsize(path))
        check(self.in_memory.maps or not strict, "no images to keep in memory")
        self.before, self.seconds = self.stats(), {"listing": [], "look-ups": []}

    def stats(self):
        with open(f"{self.mount.path}/.dsfs/stats", encoding="ascii") as file:
            return {key: int(value) for key, value in map(str.split, file)}

    def listing(self, paths):
        n = 0
        for path in paths:
            with os.scandir(path) as entries:
                n += sum(entry.stat(follow_symlinks=False).st_size >= 0 for entry in entries)
        equal(n, PER_DIRECTORY * len(paths), "files listed")
        return n

    def look_up(self, paths):
        for path in paths:
            os.lstat(path)
        return len(paths)

    def time(self, what, i, rounds):
        function, paths = {"listing": (self.listing, self.dirs), "look-ups": (self.look_up, self.paths)}[what]
        share = paths[i::rounds]
        cpu, started = cpu_of(self.mount.pid), time.monotonic()
        n = function(share)
        self.seconds[what].append(((time.monotonic() - started) / n, (cpu_of(self.mount.pid) - cpu) / n))

    def crowd(self, rng):
        """READERS at once, each with look-ups and a listing of its own; returns the peak of what the mount has for itself."""
        sampler, pids = Sampler(self.mount.pid), []
        dirs = rng.sample(range(self.files // PER_DIRECTORY), READERS)
        paths = [place(self.mount.path, i) for i in rng.sample(range(self.files), READERS * 1000)]
        for i, d in enumerate(dirs):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    self.look_up(paths[i::READERS])
                    self.listing([f"{self.mount.path}/d{d:05}"])
                    status = 0
                finally:
                    os._exit(status)
            pids.append(pid)
        check(not any([os.waitpid(pid, 0)[1] for pid in pids]), "a reader failed")
        return sampler.end()

    def end(self):
        """All look-ups must have come to the mount, and nothing from the store or the disk."""
        after = self.stats()
        check(after["requests"] - self.before["requests"] >= len(self.paths), "look-ups that the kernel answered")
        equal(after["fetch_gets"], self.before["fetch_gets"], "GETs when all was local")
        if self.in_memory.maps:
            # Its code may have gone from memory meanwhile.
            read_bytes = disk_bytes_of(self.mount.pid) - self.disk_bytes
            check(read_bytes <= MIB, f"{self.files} files: {read_bytes} bytes were read from the disk")
        self.in_memory.end()
        self.mount.umount()


def paces(box, fewer, files, fewer_repo, repo, seed, strict):
    """Listings and random look-ups in both, interleaved: nothing of them in the kernel, the manifest in page cache and checked."""
    rng, dirs = random.Random(seed), fewer // PER_DIRECTORY
    rounds = min(ROUNDS, dirs // 2)
    if not rounds:
        say("too few directories to compare listings and look-ups")
        return
    listed = dirs // 2 // rounds * rounds
    amounts = listed, (dirs - listed) * PER_DIRECTORY
    both = [Asked(box, fewer_repo, fewer, amounts, rng, strict), Asked(box, repo, files, amounts, rng, strict)]
    if strict:
        for one in both:
            one.disk_bytes = disk_bytes_of(one.mount.pid)
    for i in range(rounds):
        for what in "listing", "look-ups":
            for one in both[::-1] if i % 2 else both:
                one.time(what, i, rounds)
    for what in "listing", "look-ups":
        for j, unit in enumerate(["us", "us of the mount's CPU"]):
            few, many = ([seconds[j] for seconds in one.seconds[what]] for one in both)
            # Of each round by itself: what else goes on here changes from one to the next.
            ratio = statistics.median(m / f for f, m in zip(few, many))
            say(f"{what}: {1e6 * statistics.median(few):.1f} {unit} for each entry of {fewer}, "
                f"{1e6 * statistics.median(many):.1f} of {files}: {ratio:.2f} x")
            check(not strict or ratio <= PACE_MAX, f"{what}: {ratio:.2f} x the {unit} for each entry")
    if strict:
        peak = both[1].crowd(rng)
        say(f"memory of the mount of {files} with {READERS} readers: {peak >> 20} MiB")
        check(peak <= MOUNT_MAX, f"{peak >> 20} MiB of memory with {READERS} readers")
    for one in both:
        one.end()


def out_of_time(box):
    if box.late():
        say("out of time")
    return box.late()


def run(box, args):
    files, source, repo, seed = args.files, args.source, box.path("repo"), args.seed
    if not source:
        source, started = box.new_dir("src"), time.monotonic()
        make(source, files)
        say(f"{files} files made in {time.monotonic() - started:.1f} s")
        time.sleep(2.1)  # until the stat cache may vouch for all of them
    walk(source)
    say(f"bare walk with stat: {walk(source):.1f} s")
    done, _ = commit(box, "first commit", files, source, repo, "--init")
    equal(done["totals"]["files"], files, "files committed")
    say(f"  manifest: {done['uploaded_manifest_bytes']} bytes in the store")

    bare = walk(source)
    done, took = commit(box, "second commit, nothing changed", files, source, repo)
    check(done["unchanged"] and done["read_bytes"] == 0, f"second commit: {done}")
    say(f"bare walk with stat: {bare:.1f} s; commit: {took / bare:.2f} x")
    check(not args.strict or took <= AGAIN_MAX * bare, f"a commit of nothing takes {took / bare:.2f} x as long as a walk")

    chosen = change(source, files, seed)
    if out_of_time(box):
        return
    bare = walk(source)
    done, took = commit(box, "third commit, 1 % changed", files, source, repo)
    equal(done["changed"], len(chosen), "files changed")
    equal(done["read_bytes"], 17 * len(chosen), "bytes read")
    say(f"bare walk with stat: {bare:.1f} s; commit: {took / bare:.2f} x")
    check(not args.strict or took <= AGAIN_MAX * bare, f"a commit of 1 % takes {took / bare:.2f} x as long as a walk")
    say(f"  manifest: {done['uploaded_manifest_bytes']} bytes more in the store")

    if out_of_time(box):
        return
    result, _ = measured(box, "fingerprint", files, "fingerprint", "--json", source)
    equal(result.json["fingerprint"], done["fingerprint"], "fingerprint of the source")
    result, _ = measured(box, "diff", files, "diff", f"{repo}@1", f"{repo}@2")
    changed = [line for line in result.text.splitlines() if line.startswith("C ")]
    equal(len(changed), len(chosen), "files that diff shows as changed")
    measured(box, "verify", files, "verify", repo)

    small, small_repo = box.new_dir("small"), box.path("small-repo")
    make(small, 1000)
    box.commit(small, small_repo, "--init", "--state-dir", "")
    few, many = mounts(box, {"few": small_repo, "many": repo})
    say(f"mount: {1000 * few:.1f} ms with 1000 files, {1000 * many:.1f} ms with {files}: "
        f"{many / few:.2f} x")
    if args.strict:
        check(many <= 1.5 * few, f"mounting takes {many / few:.2f} x as long as with 1000 files")
    with box.mount(repo) as mount:
        for what in "first", "again, others, manifest partly local":
            walked, looked_up = look_at(mount, files, f"{seed} {what}")
            say(f"{what}: find with stat {walked:,.0f} files/s, random look-ups {looked_up:,.0f}/s")

    if out_of_time(box):
        return
    fewer, fewer_source, fewer_repo = min(FEWER, files // 2), box.new_dir("fewer"), box.path("fewer-repo")
    make(fewer_source, fewer)
    box.commit(fewer_source, fewer_repo, "--init", "--state-dir", "")
    paces(box, fewer, files, fewer_repo, repo, f"{seed} paces", args.strict)


def arguments(parser):
    parser.add_argument("--files", type=int, default=10_000, help="a multiple of 1000")
    parser.add_argument("--source", help="such a tree that is there already; it is changed")
    parser.add_argument("--strict", action="store_true", help="the ratios of times are checked")


if __name__ == "__main__":
    lib.main(run, arguments)
