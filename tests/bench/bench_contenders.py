"""Who is measured: a local directory, the bare libfuse server, dsfs, and the peers.

A contender gives a directory with the data: `with contender.opened(state) as place`, where the state is
"cold" (nothing of it is on this host) or "filled" (its cache on the disk holds all it can hold; the
page cache is the row's affair). `cpu()` is then the CPU seconds of its process up to now.
"""
import contextlib
import os
import shutil
import subprocess
import time

from bench_lib import Unavailable, bench_read, cpu_seconds, progress, program, run, lib
from bench_servers import FILES_PREFIX

URING = "/sys/module/fuse/parameters/enable_uring"


class Contender:
    name = ""
    is_peer = False
    has_cache = True  # whether "filled" is another state than "cold"
    pid = None
    how = ""  # what it says of how it reads, when it was opened last

    def cpu(self):
        return cpu_seconds(self.pid) if self.pid else 0.0

    def opened(self, state):
        raise NotImplementedError


class Local(Contender):
    name = "local"

    def __init__(self, place):
        self.place = place

    @contextlib.contextmanager
    def opened(self, state):
        yield self.place


class Program(Contender):
    """A program in the foreground that mounts."""

    def __init__(self, box):
        self.box = box
        self.caches = {}

    def command(self, place, cache):
        """(argv, environment)."""
        raise NotImplementedError

    def inside(self, place):
        """Where in the mount the data are."""
        return place

    def cache(self, state):
        if state == "filled" and "filled" in self.caches:
            return self.caches["filled"]
        cache = self.box.new_dir("cache-")
        if state == "filled":
            self.caches[state] = cache
        return cache

    @contextlib.contextmanager
    def opened(self, state):
        place, cache = self.box.new_dir("place"), self.cache(state)
        argv, env = self.command(place, cache)
        log = self.box.path(f"log-{self.name}")
        with open(log, "ab") as file:
            server = self.box.start_program(argv, env, stdout=file, stderr=file)
        try:
            self.box.wait(lambda: lib.is_mounted(place) or server.poll() is not None, self.name, 60)
            if server.poll() is not None:
                with open(log, encoding="utf-8", errors="replace") as file:
                    raise Unavailable(f"{self.name} does not mount: {file.read().strip()[-300:]}")
            self.pid = server.pid
            yield self.inside(place)
        finally:
            self.pid = None
            unmount(place)
            if server.poll() is None:
                self.box.end(server)
            if state == "cold":
                shutil.rmtree(cache, ignore_errors=True)


def unmount(place):
    """Whoever looked last may hold it for a moment."""
    for _ in range(100):
        if not lib.is_mounted(place):
            return
        if subprocess.run(["fusermount3", "-u", place], capture_output=True,
                          check=False).returncode:
            time.sleep(0.1)
    raise lib.Failed(f"{place} cannot be unmounted")


class Bare(Program):
    """The bare libfuse server: what the kernel interface allows."""
    has_cache = False

    def __init__(self, box, mode, listed, data):
        super().__init__(box)
        self.name = f"bare-{mode}"
        self.args = {"classic": [], "stateless": ["-s"],
                     "uring": ["-s", "-o", "io_uring,io_uring_q_depth=64"]}[mode]
        self.listed, self.data = listed, data

    def command(self, place, cache):
        return [program("bench_fuse"), *self.args, place, self.listed, self.data], {}


def bare_modes():
    """Those that this kernel has."""
    try:
        with open(URING, encoding="ascii") as file:
            return ["classic", "stateless", *(["uring"] if file.read().strip() in "Y1" else [])]
    except OSError:
        return ["classic", "stateless"]


class Dsfs(Contender):
    """A version; options are those of `-o`."""

    def __init__(self, box, repo, options=(), env=None, name="dsfs"):
        self.box, self.repo, self.options, self.env = box, repo, list(options), env
        self.name = name
        self.filled = None

    def fill(self, *look):
        """Reads all through a mount once: bench_read's arguments, the place left out."""
        if self.filled:
            return
        progress(f"filling the cache of {self.name} ...")
        self.filled = self.box.path(f"filled-{self.box.number()}")
        with self.opened("filled") as place:
            bench_read(*(arg.replace("PLACE", place) for arg in look))

    @contextlib.contextmanager
    def opened(self, state):
        cold = self.box.path(f"cold-{self.box.number()}")
        cache = self.filled if state == "filled" else cold
        mount = self.box.mount(self.repo, f"cache_dir={cache}", *self.options, env=self.env)
        try:
            self.pid, self.mount, self.how = mount.pid, mount, mount.how()
            yield mount.path
        finally:
            self.pid = None
            unmount(mount.path)
            self.box.wait(lambda: not lib.is_alive(mount.pid), f"the end of {mount.path}")
            self.box.mounts.remove(mount)
            shutil.rmtree(cold, ignore_errors=True)

    def log_tail(self):
        return self.mount.log_text().strip()[-300:]


def variants(texts):
    """NAME=OPTIONS of the command line: [(name, options)]; always dsfs as it is by itself."""
    found = [("dsfs", [])]
    for text in texts:
        name, _, options = text.partition("=")
        found.append((f"dsfs:{name}", [options] if options else []))
    return found


class Peer(Program):
    is_peer = True
    needs = ()

    def __init__(self, box, servers, delayed):
        super().__init__(box)
        for tool in self.needs:
            if not shutil.which(tool):
                raise Unavailable(f"{self.name}: {tool} is not installed "
                                  "(scripts/setup.sh --bench)")
        self.servers = servers
        self.env = servers.env(delayed) if servers else {}


class S3fs(Peer):
    name, needs = "s3fs", ("s3fs",)

    def command(self, place, cache):
        return (["s3fs", f"{self.servers.bucket}:/{FILES_PREFIX}", place, "-f", "-o", "ro",
                 "-o", f"url={self.env['AWS_ENDPOINT_URL']},use_path_request_style",
                 "-o", f"endpoint={self.env['AWS_REGION']}", "-o", f"use_cache={cache}",
                 "-o", "max_stat_cache_size=2000000,stat_cache_expire=86400",
                 "-o", "parallel_count=16,multireq_max=64"],
                {"AWSACCESSKEYID": self.env["AWS_ACCESS_KEY_ID"],
                 "AWSSECRETACCESSKEY": self.env["AWS_SECRET_ACCESS_KEY"]})


class Rclone(Peer):
    name, needs = "rclone", ("rclone",)

    def remote(self, env, prefix):
        return (f":s3,provider=Ceph,env_auth=true,endpoint='{env['AWS_ENDPOINT_URL']}',"
                f"force_path_style=true:{self.servers.bucket}/{prefix}")

    def upload(self, source, prefix, env):
        run(["rclone", "copy", source, self.remote(env, prefix), "--config", "", "--transfers", "16",
             "--checkers", "16", "--s3-no-check-bucket", "--no-check-dest", "--s3-disable-checksum"],
            env=self.box.environment(env))

    def command(self, place, cache):
        return (["rclone", "mount", self.remote(self.env, FILES_PREFIX), place, "--read-only", "--config", "", "--cache-dir",
                 cache, "--vfs-cache-mode", "full", "--dir-cache-time", "24h", "--attr-timeout",
                 "24h", "--no-checksum", "--no-modtime", "--use-server-modtime", "--transfers", "16",
                 "--vfs-fast-fingerprint"], self.env)


class Restic(Peer):
    """It keeps no file data on the disk."""
    name, needs, has_cache = "restic", ("restic",), False
    password = {"RESTIC_PASSWORD": "benchmark"}

    def repository(self, env, prefix="restic"):
        return f"s3:{env['AWS_ENDPOINT_URL']}/{self.servers.bucket}/{prefix}"

    def upload(self, source, prefix, env):
        to = self.box.environment({**env, **self.password})
        run(["restic", "-r", self.repository(env, prefix), "init", "--no-cache"], env=to)
        run(["restic", "-r", self.repository(env, prefix), "backup", "--no-cache", "--compression", "off",
             "."], env=to, cwd=source)

    def backup(self, source):
        progress("restic backup ...")
        self.upload(source, "restic", self.servers.store.env)

    def command(self, place, cache):
        return (["restic", "-r", self.repository(self.env), "mount", "--no-lock", "--cache-dir",
                 cache, place], {**self.env, **self.password})

    def inside(self, place):
        """The snapshot has the path that was backed up, or nothing above the directory."""
        for path, dirs, _ in os.walk(f"{place}/snapshots/latest/"):
            if any(name.startswith("class-") for name in dirs):
                return path
        raise Unavailable("restic: the snapshot cannot be found in its mount")


class Squashfs(Contender):
    """An image on the local disk: no store at all. The kernel's where root may, else squashfuse."""
    name, is_peer = "squashfs", True

    def __init__(self, box, data):
        if not shutil.which("mksquashfs"):
            raise Unavailable("squashfs: mksquashfs is not installed (scripts/setup.sh --bench)")
        self.box = box

        def make(path):
            run(["mksquashfs", data.small, path, "-noI", "-noD", "-noF", "-noX", "-no-progress",
                 "-quiet"])
        self.image = data.made("small.squashfs", make)

    @contextlib.contextmanager
    def opened(self, state):
        place = self.box.new_dir("place")
        is_root = os.geteuid() == 0
        try:
            if is_root:
                run(["mount", "-t", "squashfs", "-o", "loop,ro", self.image, place])
            else:
                run(["squashfuse", self.image, place])
        except (lib.Failed, OSError) as error:
            raise Unavailable(f"squashfs cannot be mounted: {error}") from None
        try:
            yield place
        finally:
            run(["umount", place] if is_root else ["fusermount3", "-u", place])
