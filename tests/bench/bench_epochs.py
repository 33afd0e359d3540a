"""The rows that read: epochs over small files, and the large file."""
import json
import os

from bench_contenders import (Bare, Dsfs, Local, Restic, Rclone, S3fs, Squashfs, bare_modes, variants)
from bench_lib import GIB, Unavailable, bench_read, drop_caches, lib, program, run

READERS = (1, 4, 16)
PEER_FILES, PEER_SECONDS = 2000, 10
RANGES = (1 << 20, 4 << 20)
# Readers from page cache: more than two have no core to themselves where there are two.
WARM_READERS = (1, 2, 4, 16)


class Epochs:
    """A row of epochs. Its contenders are made by subclasses."""
    readers = READERS
    state = "filled"

    def __init__(self, bench):
        self.bench = bench
        self.report, self.data, self.box = bench.report, bench.data, bench.box
        self.local = Local(self.data.small)

    @property
    def name(self):
        return self.bench.row

    def dsfs(self, repo, env=None):
        return [Dsfs(self.box, repo, options, env, name)
                for name, options in variants(self.bench.args.variant)]

    def bare(self):
        return [Bare(self.box, mode, self.data.small_list, self.data.large)
                for mode in bare_modes()]

    def dir_dsfs(self):
        """From a directory: where the store does not matter."""
        found = self.dsfs(self.data.repo(self.box, "small", self.data.small))
        for contender in found:
            contender.fill("-n", "4", "epoch", "PLACE", self.data.small_list)
        return found

    def peers(self, delayed=False, cold=False):
        """Those that were asked for and are installed; the reason of others is noted."""
        found = []
        for kind in S3fs, Rclone, Restic, Squashfs:
            if kind.name not in self.bench.peers or (cold and kind is Squashfs):
                continue
            try:
                found.append(Squashfs(self.box, self.data) if kind is Squashfs
                             else kind(self.box, self.bench.servers, delayed))
                if kind in (S3fs, Rclone):
                    self.bench.put_small()
                elif kind is Restic:
                    self.bench.put_restic(found[-1])
            except Unavailable as reason:
                found = [peer for peer in found if not isinstance(peer, kind)]
                self.report.note(self.name, str(reason))
        return found

    def limits(self, contender):
        """A peer is asked for so many files only, or for what it does in so many seconds."""
        if not contender.is_peer:
            return []
        n = max(int(PEER_FILES * min(self.bench.args.scale * 5, 1)), 50)
        return ["-c", n, "-t", PEER_SECONDS]

    def epoch(self, contender, place, readers, seed, passes=1):
        before = contender.cpu()
        got = bench_read("-n", readers, "-s", seed, "-p", passes, *self.limits(contender), "epoch",
                         place, self.data.small_list)
        what = f"{readers} reader" + "s" * (readers > 1)
        self.report.add(self.name, what, contender.name, got["ops_per_s"], "files/s")
        self.report.add(self.name, what + ", p99", contender.name, got["us"]["p99"] / 1000, "ms")
        if contender.pid and got["bytes"]:
            self.report.add(self.name, what + ", CPU", contender.name,
                            (contender.cpu() - before) / passes / (got["bytes"] / GIB), "s/GiB")
        return got

    def one(self, contender, seed):
        """All that a round asks of a contender."""
        for readers in self.readers if not contender.is_peer else (4,):
            with contender.opened(self.state) as place:
                drop_caches()
                self.epoch(contender, place, readers, seed)

    def rounds(self, contenders):
        self.bench.rounds(contenders, self.one)

    def want(self, what, contender, reference, limit, **kwargs):
        name = "what was not measured" if reference is None else getattr(reference, "contender", str(reference))
        self.report.want(self.name, what, self.report.get(self.name, what, contender), reference,
                         name, limit, **kwargs)


class Warm(Epochs):
    """From page cache."""
    readers = WARM_READERS

    def one(self, contender, seed):
        limits = self.limits(contender)
        with contender.opened(self.state) as place:
            # The same seed: a peer reads the same files again.
            bench_read("-n", 4, "-s", seed, *limits[:2], "epoch", place, self.data.small_list)
            for readers in self.readers if not contender.is_peer else (4,):
                self.epoch(contender, place, readers, seed, 4)

    def run(self):
        self.rounds([self.local, *self.bare(), *self.dir_dsfs(), *self.peers()])
        for name, _ in variants(self.bench.args.variant):
            for what in "2 readers", "4 readers":
                self.want(what, name, self.report.get(self.name, what, "local"), 0.75)


class Nvme(Epochs):
    """The cache on the disk is full, the page cache empty."""

    def one(self, contender, seed):
        if contender.is_peer and contender.has_cache:
            with contender.opened(self.state) as place:
                bench_read("-n", 4, "-s", seed, *self.limits(contender)[:2], "epoch", place,
                           self.data.small_list)
        super().one(contender, seed)

    def run(self):
        peers = [peer for peer in self.peers() if peer.has_cache]
        self.rounds([self.local, *self.dir_dsfs(), *peers])
        for name, _ in variants(self.bench.args.variant):
            self.want("4 readers", name, self.report.get(self.name, "4 readers", "local"), 1.0)


class Receive:
    """The bare receiving program on the objects of a repository."""

    def __init__(self, row, objects, delayed=False):
        self.row = row
        self.listed = row.bench.servers.list_file(objects, delayed)

    def once(self, range_bytes):
        out = self.row.box.path("received")
        return json.loads(run([program("bench_receive"), "-r", str(range_bytes), self.listed, out]))

    def one(self):
        for range_bytes in RANGES:
            got = self.once(range_bytes)
            name = f"receive-{range_bytes >> 20}M"
            self.row.report.add(self.row.name, "received", name, got["bytes_per_s"] / 1e6, "MB/s")
            self.row.report.add(self.row.name, "received, CPU", name,
                                got["cpu_s"] / (got["bytes"] / GIB), "s/GiB")

    def best(self):
        names = [f"receive-{size >> 20}M" for size in RANGES]
        return self.row.report.best(self.row.name, "received", names)

    def cpu(self):
        """None when it was not measured."""
        best = self.best()
        return best and self.row.report.get(self.row.name, "received, CPU", best.contender).median


class Cold(Epochs):
    """Nothing on this host; the server on the same cores, without latency."""
    state = "cold"

    def start(self, delayed=False):
        url, objects = self.bench.s3_repo("small", self.data.small)
        packs = [(key, size) for key, size in objects if "/packs/" in key]
        self.receive = Receive(self, packs, delayed)
        return self.dsfs(url, self.bench.servers.env(delayed))

    def one(self, contender, seed):
        if contender is self.receive:
            drop_caches()
            contender.one()
        elif isinstance(contender, Bare):
            # Not cold, for it has nothing to be cold: for its CPU seconds.
            with contender.opened("cold") as place:
                drop_caches()
                self.epoch(contender, place, 4, seed)
        else:
            super().one(contender, seed)

    def epoch(self, contender, place, readers, seed):
        got = super().epoch(contender, place, readers, seed)
        self.report.add(self.name, f"{readers} reader{'s' * (readers > 1)}, bytes", contender.name,
                        got["bytes_per_s"] / 1e6, "MB/s")

    def run(self):
        dsfs, bare = self.start(), self.bare()
        self.rounds([self.local, *dsfs, self.receive, *bare, *self.peers(cold=True)])
        # The cheapest of the bare servers.
        cpus = [s.median for server in bare
                if (s := self.report.get(self.name, "4 readers, CPU", server.name))]
        received = self.receive.cpu()
        both = received + min(cpus) if received and cpus else None
        for contender in dsfs:
            name = contender.name
            self.want("4 readers", name, self.report.get(self.name, "4 readers", "local"), 0.5,
                      aim=0.7)
            self.report.want(self.name, "4 readers, CPU",
                             self.report.get(self.name, "4 readers, CPU", name),
                             both, "receive + bare", 1.4, at_most=True)


class Latency(Cold):
    """The same with latency added to each request."""

    def run(self):
        dsfs, peers = self.start(delayed=True), self.peers(delayed=True, cold=True)
        self.rounds([*dsfs, self.receive, *peers])
        best_peer = self.report.best(self.name, "4 readers", [peer.name for peer in peers])
        for contender in dsfs:
            name = contender.name
            self.want("4 readers", name, best_peer, 10)
            self.want("4 readers, bytes", name, self.receive.best(), 0.7)


class Large(Epochs):
    """Shared by the rows of the large file."""

    def __init__(self, bench):
        super().__init__(bench)
        self.local = Local(self.data.large_dir)

    def bare(self):
        return [Bare(self.box, mode, self.data.large_list, self.data.large)
                for mode in bare_modes()]

    def dir_dsfs(self):
        found = self.dsfs(self.data.repo(self.box, "large", self.data.large_dir))
        for contender in found:
            contender.fill("seq", "PLACE/large.bin")
        return found

    def look(self, contender, what, place, *args):
        before = contender.cpu()
        got = bench_read(*args, f"{place}/large.bin")
        self.report.add(self.name, what, contender.name, got["bytes_per_s"] / 1e6, "MB/s")
        if contender.pid and got["bytes"] > 100e6:
            passes = int(args[args.index("-p") + 1]) if "-p" in args else 1
            self.report.add(self.name, what + ", CPU", contender.name,
                            (contender.cpu() - before) / passes / (got["bytes"] / GIB), "s/GiB")


class LargeWarm(Large):
    """From page cache: 1 MiB through one open descriptor, 4 KiB at random, a mapping. What goes through a server is
    measured again with the mount's own pages forgotten before each pass, so that each byte comes from the server."""
    figure_served = "sequential, each byte asked for"

    def one(self, contender, seed):
        # Not for a file of a few MB, as the tests have it.
        reads_n = int(200000 * min(self.bench.args.scale * 20, 1))
        with contender.opened(self.state) as place:
            self.look(contender, "sequential", place, "-p", 5, "seq")
            self.look(contender, "4 KiB at random, 4 readers", place, "-p", 2, "-n", 4, "-s", seed,
                      "-c", reads_n, "random")
            self.look(contender, "mapping", place, "-p", 2, "-m", "seq")
            if contender in self.served:
                before = self.served_bytes(place)
                self.look(contender, self.figure_served, place, "-p", 4, "-e", "seq")
                size = os.path.getsize(f"{place}/large.bin")
                if before is not None and self.served_bytes(place) - before < 3.99 * size:
                    raise lib.Failed(f"{contender.name}: the kernel has not asked for each byte")

    @staticmethod
    def served_bytes(place):
        """As dsfs counts them; the bare servers count nothing."""
        try:
            with open(f"{place}/.dsfs/stats", encoding="ascii") as file:
                return next(int(row.split()[1]) for row in file if row.startswith("read_bytes "))
        except FileNotFoundError:
            return None

    def without_privilege(self, dsfs):
        """What all may ask for: by itself, a mount of root's has the kernel read a large file without it, and reads
        further ahead than the bare server's."""
        found = []
        for mode in "classic", "stateless":
            found.append(Dsfs(self.box, dsfs.repo, [f"kernel={mode}", "readahead=128K"], None, f"dsfs:kernel={mode}"))
            # The same bytes, however they are read.
            found[-1].filled = dsfs.filled
        return found

    def run(self):
        bare, dsfs = self.bare(), self.dir_dsfs()
        slow = self.without_privilege(dsfs[0])
        self.served = [*bare, *slow]
        self.rounds([self.local, *bare, *dsfs, *slow])
        for contender in dsfs:
            self.want("sequential", contender.name, self.report.get(self.name, "sequential", "local"), 0.85)
        for what in "sequential", self.figure_served:
            best = self.report.best(self.name, what, [server.name for server in bare])
            for contender in slow:
                self.want(what, contender.name, best, 0.8)


class LargeNvme(Large):
    """The cache on the disk is full, the page cache empty."""

    def one(self, contender, seed):
        for what, args in (("sequential", ("seq",)), ("mapping", ("-m", "seq")),
                           ("4 KiB at random, 4 readers",
                            ("-n", 4, "-s", seed, "-t", 5, "-c", 20000, "random"))):
            with contender.opened(self.state) as place:
                drop_caches()
                self.look(contender, what, place, *args)

    def run(self):
        self.rounds([self.local, *self.dir_dsfs()])


class LargeCold(LargeNvme):
    """Nothing on this host."""
    state = "cold"
    delayed = False

    def one(self, contender, seed):
        if contender is self.receive:
            drop_caches()
            contender.one()
        else:
            super().one(contender, seed)

    def run(self):
        url, objects = self.bench.s3_repo("large", self.data.large_dir)
        self.receive = Receive(self, [row for row in objects if "/packs/" in row[0]], self.delayed)
        dsfs = self.dsfs(url, self.bench.servers.env(self.delayed))
        self.rounds([self.local, *dsfs, self.receive])
        for contender in dsfs:
            self.want("sequential", contender.name, self.receive.best(), 0.6, aim=0.8)


class LargeLatency(LargeCold):
    """The same with latency added to each request."""
    delayed = True
