"""The rows of many files, of mounting, of committing, and of memory."""
import concurrent.futures
import hashlib
import os
import shutil
import threading
import time

from bench_contenders import Bare, Dsfs, Local, Rclone, Restic, bare_modes, variants
from bench_data import HUGE_FILES
from bench_epochs import Epochs
from bench_lib import (KIB, MIB, Unavailable, bench_read, drop_caches, own_memory, timed, touch_memory,
                       lib)

WALK = "import os, sys; print(sum(len(files) for _, _, files in os.walk(sys.argv[1])))"


class Walk(Epochs):
    """A walk over many files, the first time and the second. The manifest is local, and in the page
    cache, as the local file system's tables are: `echo 2 > drop_caches` leaves them, and a walk that is not
    counted has put them there."""
    command = ()

    def look(self, place, seed):
        return timed([*self.command, place])

    def command_of(self, place):
        return [arg.replace("PLACE", place) for arg in self.command]

    def one(self, contender, seed):
        files_n = self.data.many_n
        with contender.opened("filled") as place:
            drop_caches(2)
            for what in "first", "second":
                before = contender.cpu()
                took = self.look(place, seed)
                self.report.add(self.name, what, contender.name, files_n / took, "files/s")
                if contender.pid:
                    self.report.add(self.name, what + ", CPU", contender.name,
                                    (contender.cpu() - before) * 1e6 / files_n, "us/file")

    def run(self):
        self.local = Local(self.data.many)
        bare = [Bare(self.box, mode, self.data.many_list, "-") for mode in bare_modes()]
        dsfs = self.dsfs(self.data.repo(self.box, "many", self.data.many))
        for contender in dsfs:
            contender.fill("stat", "PLACE", self.data.many_list)
        bench_read("-n", 4, "stat", self.data.many, self.data.many_list)
        self.rounds([self.local, *bare, *dsfs])
        self.wants(dsfs, bare)

    def wants(self, dsfs, bare):
        pass


class Find(Walk):
    command = ("find", "PLACE", "-printf", "%s %p\\n")

    def look(self, place, seed):
        return timed(self.command_of(place))

    def wants(self, dsfs, bare):
        for contender in dsfs:
            name = contender.name
            self.want("first", name, self.report.get(self.name, "first", "local"), 0.8)
            self.want("first", name, self.report.best(self.name, "first", [b.name for b in bare]),
                      0.7)
            self.want("second", name, self.report.get(self.name, "second", "local"), 0.95)


class Ls(Find):
    command = ("ls", "-lR", "PLACE")

    def wants(self, dsfs, bare):
        pass


class OsWalk(Ls):
    command = ("python3", "-c", WALK, "PLACE")


class Stat(Ls):
    """lstat of each, shuffled, four at once."""

    def look(self, place, seed):
        return bench_read("-n", 4, "-s", seed, "stat", place, self.data.many_list)["seconds"]


class TreesLatency(Epochs):
    """A mount with nothing on this host and the first walk of each kind, with latency added to each request."""

    def one(self, contender, seed):
        for what, kind in ("find", Find), ("ls -lR", Ls), ("os.walk", OsWalk), ("lstat", Stat):
            drop_caches(2)
            with contender.opened("cold") as place:
                self.report.add(self.name, "mount", contender.name, 1000 * contender.mount.took_s, "ms")
                took = kind(self.bench).look(place, seed)
                self.report.add(self.name, what, contender.name, self.data.many_n / took, "files/s")

    def run(self):
        url, _ = self.bench.s3_repo("many", self.data.many)
        self.rounds(self.dsfs(url, self.bench.servers.env(delayed=True)))


class MountTime(Epochs):
    """Until `dsfs mount` has returned, with an empty cache, against the number of files; beside it, until
    the root was listed too, which holds a directory for each 1,000 files. Repositories of names alone, in
    directories. What the benchmark does to learn of the mount lies between and is not measured."""

    def sizes(self):
        sizes = [1000, max(int(100_000 * self.data.scale), 2000),
                 max(int(1_000_000 * self.data.scale), 5000)]
        if self.bench.args.huge or os.path.exists(self.data.path(f"repo-names-{HUGE_FILES}")):
            sizes.append(HUGE_FILES)
        else:
            self.report.note(self.name, f"{HUGE_FILES} files only with --huge (it takes many minutes, "
                             "once)")
        return sizes

    def one(self, contender, seed):
        with contender.opened("cold") as place:
            took, started = contender.mount.took_s, time.monotonic()
            os.listdir(place)
            listed = took + time.monotonic() - started
        self.report.add(self.name, "mount, cold", contender.name, 1000 * took, "ms")
        self.report.add(self.name, "mount and list, cold", contender.name, 1000 * listed, "ms")

    def run(self):
        sizes = self.sizes()
        found = [Dsfs(self.box, self.data.repo_of_names(self.box, n), name=f"{n} files")
                 for n in sizes]
        # They are short: more rounds cost little.
        self.bench.rounds(found, self.one, 5)
        get = [self.report.get(self.name, "mount, cold", c.name) for c in found]
        self.report.want(self.name, "mount, cold", get[-1], get[0], found[0].name, 1.5,
                         at_most=True)


def digest_part(path, off, size):
    """SHA-256 by OpenSSL; Python lets other threads run meanwhile."""
    sha, buffer = hashlib.sha256(), bytearray(4 * MIB)
    with open(path, "rb", buffering=0) as file:
        file.seek(off)
        while size:
            n = file.readinto(memoryview(buffer)[:min(size, len(buffer))])
            sha.update(memoryview(buffer)[:n])
            size -= n


def copy_with_fsync(source, target):
    buffer = bytearray(4 * MIB)
    with open(source, "rb", buffering=0) as old, open(target, "wb", buffering=0) as new:
        while n := old.readinto(buffer):
            new.write(memoryview(buffer)[:n])
        os.fsync(new.fileno())


class Commit(Epochs):
    """New data into an empty repository in a directory, the source in page cache. The reference: the
    SHA-256 of the same on all cores (one file: of its parts), then a copy with fsync."""

    def reference(self, paths, target):
        cores = len(os.sched_getaffinity(0))
        os.mkdir(target)
        started = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(cores) as pool:
            if len(paths) == 1:
                part = -(-os.path.getsize(paths[0]) // cores)
                jobs = [pool.submit(digest_part, paths[0], i * part,
                                    min(part, os.path.getsize(paths[0]) - i * part))
                        for i in range(cores)]
            else:
                jobs = [pool.submit(digest_part, path, 0, os.path.getsize(path)) for path in paths]
            for job in jobs:
                job.result()
            hashed = time.monotonic() - started
            for job in [pool.submit(copy_with_fsync, path, f"{target}/{i}")
                        for i, path in enumerate(paths)]:
                job.result()
        return time.monotonic() - started, hashed

    def one(self, case, seed):
        what, source = case
        paths = [os.path.join(source, name) for name in sorted(os.listdir(source))]
        for path in paths:  # into the page cache
            digest_part(path, 0, os.path.getsize(path))
        size = sum(map(os.path.getsize, paths)) / 1e6
        # Who goes first changes, and each begins with memory that is there.
        for name in ("reference", "dsfs") if seed % 2 else ("dsfs", "reference"):
            target = self.box.path("target")
            os.sync()
            touch_memory()
            before = os.times()
            started = time.monotonic()
            if name == "dsfs":
                self.box.commit(source, target, "--init", "--state-dir", "")
            else:
                _, hashed = self.reference(paths, target)
                self.report.add(self.name, what, "SHA-256 alone", size / hashed, "MB/s")
            took, after = time.monotonic() - started, os.times()
            self.report.add(self.name, what, name, size / took, "MB/s")
            cpu = (sum(after[:4]) - sum(before[:4]))
            self.report.add(self.name, what + ", CPU", name, cpu / (size / 1073.741824), "s/GiB")
            shutil.rmtree(target)

    def run(self):
        cases = [("32 files", self.data.parts), ("one file", self.data.large_dir)]
        self.bench.rounds(cases, self.one)
        for what, _ in cases:
            self.want(what, "dsfs", self.report.get(self.name, what, "reference"), 0.6)


class CommitStore(Epochs):
    """New small files into an empty repository in the store, without and with latency added to each request; beside it
    those peers that upload, one to an object for each file, one to packs of its own. radosgw takes most of two cores."""
    files_n = 2000

    def uploaders(self):
        found = [("dsfs", lambda source, prefix, env: self.box.commit(
            source, self.bench.servers.store.url(prefix), "--init", "--state-dir", "", env=env, timeout=900))]
        for kind in Rclone, Restic:
            try:
                if kind.name in self.bench.peers:
                    found.append((kind.name, kind(self.box, self.bench.servers, False).upload))
            except Unavailable as reason:
                self.report.note(self.name, str(reason))
        return found

    def one(self, case, seed):
        name, upload = case
        for what, delayed in ("no latency", False), ("latency", True):
            started = time.monotonic()
            upload(self.source, f"commits/{name}-{self.box.number()}", self.bench.servers.write_env(delayed))
            self.report.add(self.name, what, name, self.n / (time.monotonic() - started), "files/s")

    def run(self):
        # With what the peers' rows have put there, another few GB are too much for a machine of 24.
        self.bench.fresh_servers()
        rows = list(self.data.small_rows())[:max(int(self.files_n * min(self.data.scale, 1)), 100)]
        self.n, self.source = len(rows), self.box.new_dir("commit-store")
        for _, _, path in rows:
            os.makedirs(os.path.dirname(os.path.join(self.source, path)), exist_ok=True)
            shutil.copyfile(os.path.join(self.data.small, path), os.path.join(self.source, path))
        self.bench.rounds(self.uploaders(), self.one)


class Sampler(threading.Thread):
    """The peak of a process's own memory while it runs."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.peak, self.over = pid, 0, threading.Event()

    def run(self):
        while not self.over.wait(0.02):
            self.peak = max(self.peak, own_memory(self.pid))

    def stop(self):
        self.over.set()
        self.join()
        return self.peak


class Memory(Epochs):
    """64 readers over epochs from the store, with a cache that holds a quarter of the data, so that
    every epoch has misses; and over the large file."""
    epochs, budget = 10, 64 * MIB

    def run(self):
        url, _ = self.bench.s3_repo("small", self.data.small)
        options = [f"cache_size={max(self.data.small_bytes // 4, 64 * MIB) // MIB}M"]
        if "inflight=" in self.box.dsfs("mount", "--help").text:
            options.append(f"inflight={self.budget // MIB}M")
        else:
            self.report.note(self.name, "this dsfs has no inflight=; 64 MiB are taken for the budget")
        large, _ = self.bench.s3_repo("large", self.data.large_dir)
        for name, more in variants(self.bench.args.variant):
            self.one(Dsfs(self.box, url, options + more, self.bench.servers.env(), name), 0)
            # Replies of a megabyte, and none by the kernel itself.
            self.large(Dsfs(self.box, large, options + ["kernel=stateless"] + more,
                            self.bench.servers.env(), name))

    def large(self, contender):
        blocks_n = self.data.large_bytes // MIB
        with contender.opened("cold") as place:
            drop_caches()
            sampler = Sampler(contender.pid)
            sampler.start()
            bench_read("-n", 64, "-s", 1, "-c", blocks_n, "-b", MIB, "random", f"{place}/large.bin")
            peak = sampler.stop() / MIB
        self.report.add(self.name, "large file, peak", contender.name, peak, "MiB")
        self.report.want(self.name, "large file, peak",
                         self.report.get(self.name, "large file, peak", contender.name),
                         (self.budget + 64 * MIB) / MIB, "budget + 64 MiB", 1.0, at_most=True)

    def one(self, contender, seed):
        peaks = []
        with contender.opened("cold") as place:
            for epoch in range(self.epochs):
                drop_caches()
                sampler = Sampler(contender.pid)
                sampler.start()
                bench_read("-n", 64, "-s", epoch + 1, "epoch", place, self.data.small_list)
                peaks.append(sampler.stop() / MIB)
                self.report.add(self.name, "peak of an epoch", contender.name, peaks[-1], "MiB")
        for what, value in (("highest peak", max(peaks)), ("second epoch", peaks[1]),
                            ("last epoch", peaks[-1])):
            self.report.add(self.name, what, contender.name, value, "MiB")
        name = contender.name
        self.report.want(self.name, "highest peak", self.report.get(self.name, "highest peak", name),
                         (self.budget + 64 * MIB) / MIB, "budget + 64 MiB", 1.0, at_most=True)
        self.report.want(self.name, "last epoch", self.report.get(self.name, "last epoch", name),
                         peaks[1], "second epoch", 1.1, at_most=True)
