#!/usr/bin/env python3
"""A lock on the map of an image that is never let go of, as by a process that was stopped in the midst of evicting:
what needs nothing of that image is answered meanwhile as ever, and its files are read from the store.

Once as it comes and once with so little memory that rings read the images past the page cache."""
import contextlib
import fcntl
import glob
import os
import random
import struct
import threading
import time

import lib
from lib import MIB, check, equal, say
from mount_kernel import read_uncached
from mount_stalls import stats
from mount_uring import little_memory

FILES, SIZE = 60, 50000
# More than FUSE has threads (THREADS_MAX in fs_session.c).
READERS = 24
SECONDS = 4
# Who waits for the lock gives up after 1 s (ds_map_lock_soon). A machine that stands still for as long is not counted (lib.Pulse).
SLOW_S = 0.4
F_OFD_SETLK = 37


def lock_use(path):
    """The map, open and with the exclusive lock on its byte 0: so nobody else has it open."""
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.fcntl(fd, F_OFD_SETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    except OSError as error:
        raise lib.Failed(f"the mount has opened the pack before anybody read of it: {error}") from None
    return fd


def has_open(pid, path):
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/{pid}/fd/{fd}") == path:
                return True
    return False


@contextlib.contextmanager
def one_core():
    """For this thread and those that it starts: with io_uring one thread serves them."""
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cpus)


class Readers:
    """Threads that read the files over and over."""

    def __init__(self, mount, files):
        self.wrong, self.reads_n, self.is_over = [], 0, False
        self.threads = [threading.Thread(target=self.read, args=(mount, files, n)) for n in range(READERS)]
        for thread in self.threads:
            thread.start()

    def read(self, mount, files, n):
        names = sorted(files)
        random.Random(n).shuffle(names)
        while not self.is_over:
            for name in names:
                try:
                    if read_uncached(f"{mount.path}/{name}") != files[name]:
                        self.wrong.append(f"{name} is not what was committed")
                except OSError as error:
                    self.wrong.append(f"{name}: {error}")
                self.reads_n += 1
                if self.is_over:
                    break

    def end(self):
        self.is_over = True
        for thread in self.threads:
            thread.join()
        check(not self.wrong, f"{len(self.wrong)} reads failed; {self.wrong[:3]}")


def check_round(box, repo, files, what):
    with box.mount(repo) as mount, one_core():
        for name in files:
            os.getxattr(f"{mount.path}/{name}", "user.dsfs.digest")
        pack = max(glob.glob(f"{box.cache}/images/*/*/data"), key=os.path.getsize)
        check(os.path.getsize(pack) >= FILES * SIZE, f"{pack} is not the pack")
        path = f"{os.path.dirname(pack)}/map"
        lock = lock_use(path)
        calls, names, met_n = [], sorted(files), 0
        readers, pulse = Readers(mount, files), lib.Pulse()
        try:
            began = time.monotonic()
            # On a busy machine for longer, until somebody was seen to wait.
            while time.monotonic() - began < (SECONDS if met_n else 10 * SECONDS):
                for name in names:
                    start = time.monotonic()
                    os.getxattr(f"{mount.path}/{name}", "user.dsfs.digest")
                    calls.append((start, time.monotonic()))
                met_n += has_open(mount.pid, path)
        finally:
            # They would go on from the image itself.
            readers.end()
            os.close(lock)
        took = pulse.end(calls)
        slow = [seconds for seconds in took if seconds > SLOW_S]
        say(f"{what}: {len(took)} calls, the slowest {max(took):.3f} s, {len(slow)} of more than {SLOW_S} s, beside "
            f"{readers.reads_n} reads; the map was waited for at {met_n} looks")
        check(not slow, f"{len(slow)} of {len(took)} calls that need nothing of the pack took up to {max(took):.2f} s")
        check(met_n > 0, "nobody has tried to get the lock")
        check(readers.reads_n >= READERS, "nothing was read")
        equal(stats(mount)["failures"], 0, "failures")
        # And then it is used again.
        box.wait(lambda: read_uncached(f"{mount.path}/{names[0]}") == files[names[0]] and has_open(mount.pid, path),
                 "the mount to open the pack when the lock is gone")


def check_opens(box, rng):
    """A large file that is opened over and over, as passthrough asks the cache for it: the lock is on its own image."""
    missing = lib.no_passthrough(box)
    if missing:
        say(f"opens are not tried: {missing}")
        return
    source, repo, data = box.new_dir("src"), box.path("large"), rng.randbytes(5 * MIB)
    for name, text in ("large", data), ("small", b"small"):
        with open(f"{source}/{name}", "wb") as file:
            file.write(text)
    box.commit(source, repo, "--init")
    options = "kernel=passthrough", f"cache_dir={box.new_dir('opens')}"
    with box.mount(repo, *options) as mount:
        equal(read_uncached(f"{mount.path}/large"), data, "the large file")
    with box.mount(repo, *options) as mount, one_core():
        os.getxattr(f"{mount.path}/small", "user.dsfs.digest")
        image = next(path for path in glob.glob(f"{options[1].partition('=')[2]}/images/*/*/data")
                     if os.path.getsize(path) == len(data))
        path = f"{os.path.dirname(image)}/map"
        lock, calls, opens, is_over = lock_use(path), [], [], threading.Event()

        def open_it():
            while not is_over.is_set():
                with open(f"{mount.path}/large", "rb", buffering=0):
                    opens.append(time.monotonic())

        thread = threading.Thread(target=open_it)
        thread.start()
        pulse = lib.Pulse()
        try:
            began = time.monotonic()
            while time.monotonic() - began < SECONDS:
                start = time.monotonic()
                os.getxattr(f"{mount.path}/small", "user.dsfs.digest")
                calls.append((start, time.monotonic()))
        finally:
            is_over.set()
            thread.join()
            os.close(lock)
        took = pulse.end(calls)
        say(f"opens: {len(took)} calls, the slowest {max(took):.3f} s, beside {len(opens)} opens")
        check(max(took) <= SLOW_S, f"a call that needs nothing of the large file took {max(took):.2f} s")
        check(opens, "nothing was opened")
        equal(read_uncached(f"{mount.path}/large"), data, "the large file, afterwards")
        equal(stats(mount)["failures"], 0, "failures")


def run(box, args):
    rng = random.Random(args.seed)
    source, repo = box.new_dir("src"), box.path("repo")
    files = {f"{i:03}": rng.randbytes(SIZE) for i in range(FILES)}
    for name, data in files.items():
        with open(f"{source}/{name}", "wb") as file:
            file.write(data)
    box.commit(source, repo, "--init")
    with box.mount(repo) as mount:
        for name, data in files.items():
            with open(f"{mount.path}/{name}", "rb") as file:
                check(file.read() == data, f"{name} is not what was committed")
    check_round(box, repo, files, "much memory")
    with little_memory():
        check_round(box, repo, files, "little memory")
    check_opens(box, rng)


if __name__ == "__main__":
    lib.main(run)
