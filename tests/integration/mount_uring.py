#!/usr/bin/env python3
"""The mount option io_uring: what is chosen and what is said, with the kernel's switch on and off; many parked
reads through one ring. Under tests/lib/with_uring.sh."""
import concurrent.futures
import contextlib
import ctypes
import os
import random
import re
import resource
import signal
import subprocess
import threading
import time

import lib
from lib import check, equal, say
from mount_stalls import Waiters, getattr_of, hang, read_uncached, stats, wait_parked

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS = 0x20000
SWITCH = "/sys/module/fuse/parameters/enable_uring"
PARKED = 1000


def said(mount):
    return re.search(r"mounted .*; io_uring=(\w+), (.*?)(?:; readahead .*)?$", mount.log_text(), re.M).groups()


def doctor(box):
    rows = box.dsfs("doctor", "--json", status=None).json
    row = next(row for row in rows if row["what"] == "io_uring")
    return row["verdict"], row["text"]


def check_off(box, repo):
    """The switch is off, in the eyes of this process and those that it starts from now on: the kernel's own is
    left alone, as others may need it."""
    switch = box.path("switch")
    with open(switch, "w", encoding="ascii") as file:
        file.write("N\n")
    if libc.unshare(CLONE_NEWNS):
        raise lib.Skip("no mount namespace of our own: not root")
    for words in (["mount", "--make-rprivate", "/"], ["umount", "-al", "-t", "fuse.dsfs"],
                  ["mount", "--bind", switch, SWITCH]):
        subprocess.run(words, check=words[0] == "mount")
    verdict, text = doctor(box)
    equal(verdict, "note", "doctor's verdict with the switch off")
    check(f"echo Y > {SWITCH}" in text, f"doctor names no remedy: {text}")
    with box.mount(repo, "io_uring=auto") as mount:
        equal(said(mount), ("off", text), "the log, with the switch off")
    result = box.dsfs("mount", repo, box.new_dir("m"), "-o", f"io_uring=on,cache_dir={box.cache}", status=1)
    check(text in result.errors, f"io_uring=on with the switch off: {result.errors}")
    equal(len(result.errors.strip().splitlines()), 1, f"lines: {result.errors}")


def check_on(box, repo):
    equal(doctor(box)[0], "ok", "doctor's verdict with the switch on")
    for option, wanted in ("auto", "on"), ("on", "on"), ("off", "off"):
        with box.mount(repo, f"io_uring={option}", env={"FUSE_URING_ENABLE": "1"}) as mount:
            with open(f"{mount.path}/local", "rb") as file:
                equal(file.read(), b"local" * 1000, "what was read")
            equal(said(mount)[0], wanted, f"io_uring={option}")
            rings = [name for name in os.listdir(f"/proc/{mount.pid}/task")
                     if "ring" in open(f"/proc/{mount.pid}/task/{name}/comm", encoding="ascii").read()]
            equal(len(rings) > 0, wanted == "on", f"io_uring={option}: rings' threads")
    no_memory_to_lock(box)
    result = box.dsfs("mount", repo, box.new_dir("m"), "-o", "io_uring=yes", status=2)
    check("io_uring" in result.errors, f"io_uring=yes: {result.errors}")


def no_memory_to_lock(box):
    """A ring's memory counts as locked, but for root: said so, and not blamed on a switch of io_uring."""
    user = lib.User(box)
    limits = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    # On many cores few requests are kept ready for each, and 64 KiB are enough.
    for size in (0, 4096, 65536) if os.cpu_count() < 64 else (0, 4096):
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (size, limits[1]))
        try:
            verdict, text = doctor(user)
        finally:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limits)
        check(verdict == "note" and "ulimit -l" in text and "io_uring_disabled" not in text,
              f"doctor with {size} bytes to lock: {text}")


def check_parked(box, repo, proxy):
    """All from one core, so that all take entries of one ring; then asked from each core."""
    with box.mount(repo, "io_uring=on", "timeout=10m", f"cache_dir={box.path('parked')}",
                   env=proxy.env) as mount:
        equal(len(open(f"{mount.path}/local", "rb").read()), 5000, "bytes")
        os.listdir(f"{mount.path}/cold")
        hang(proxy)
        cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(cpus)})
        try:
            waiters = Waiters(box, [f"{mount.path}/cold/{i}" for i in range(PARKED)])
        finally:
            os.sched_setaffinity(0, cpus)
        # Where the ring is full, the calls below wait for ever, and nothing else ends them.
        watchdog = threading.Timer(60, lambda: os.kill(mount.pid, signal.SIGKILL))
        watchdog.start()
        try:
            wait_parked(box, mount, PARKED)
            for cpu in cpus:
                os.sched_setaffinity(0, {cpu})
                for _ in range(20):
                    getattr_of(f"{mount.path}/local")
                    equal(len(read_uncached(f"{mount.path}/local")), 5000, "bytes beside parked reads")
        except OSError as error:
            raise lib.Failed(f"stat and read beside {PARKED} parked reads: {error}") from None
        finally:
            watchdog.cancel()
            os.sched_setaffinity(0, cpus)
        took = waiters.kill()
        say(f"{PARKED} reads were parked through one ring, and were gone {took:.2f} s after a kill")
        check(took <= 10, f"the killed lived for {took:.1f} s")
        proxy.rules()
        box.wait(lambda: stats(mount)["fetch_waiting"] == 0, "the reads to end when the store is back")


def image_data(cache):
    """The files of bytes in a cache directory."""
    return [os.path.join(place, "data") for place, _, names in os.walk(f"{cache}/images") if "data" in names]


def resident(path):
    """(pages in the page cache, bytes) of a file, as cachestat(2) says."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        told = (ctypes.c_uint64 * 5)()
        if libc.syscall(451, file.fileno(), (ctypes.c_uint64 * 2)(0, size), told, 0):
            raise lib.Failed(f"cachestat: {os.strerror(ctypes.get_errno())}")
        return told[0], size


@contextlib.contextmanager
def little_memory():
    """For mounts that begin here: no version fits it."""
    limits = resource.getrlimit(resource.RLIMIT_RSS)
    resource.setrlimit(resource.RLIMIT_RSS, (65536, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_RSS, limits)


def read_from_disk(pid):
    """Bytes that a process has had read from disks."""
    with open(f"/proc/{pid}/io") as file:
        return int(re.search(r"^read_bytes: (\d+)", file.read(), re.MULTILINE)[1])


def check_ahead(box, repo, cache, names):
    """Where there is memory for all of it, an epoch has whole packs read into the page cache; a few files do not. What
    was read is counted, not what is there: a host may take clean pages back at once (DAMON's pageout, say)."""
    large = max(image_data(cache), key=os.path.getsize)
    size = os.path.getsize(large)
    for n in 5, 60:
        drop(cache)
        with box.mount(repo, "io_uring=on", f"cache_dir={cache}") as mount:
            before = read_from_disk(mount.pid)
            # Not in order: the kernel's own read-ahead would leave nothing to ask the disk for.
            for name in random.Random(n).sample(names, n):
                with open(f"{mount.path}/{name}", "rb") as file:
                    file.read()
            if n > 8:
                box.wait(lambda: read_from_disk(mount.pid) - before >= 0.9 * size, "the pack to be read ahead", 20)
            else:
                # As long as reading ahead took by far.
                time.sleep(0.5)
            got = read_from_disk(mount.pid) - before
        check(n > 8 or got < size / 2, f"{got} of the pack's {size} bytes were read from the disk for {n} files")
        say(f"{n} files: {got} of the pack's {size} bytes were read from the disk, {resident(large)[0] * 4096} stayed")


def drop(cache):
    for path in image_data(cache):
        drop_file(path)


def drop_file(path):
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def check_page_cache(box, args):
    """T39: what comes from the disk of the cache is in the page cache once, as the mount's files."""
    rng = random.Random(args.seed)
    source, cache = box.new_dir("src"), box.path("direct")
    files = {f"{i:03}": rng.randbytes(rng.randrange(20000, 110000)) for i in range(300)}
    files |= {"0": b"", "1": b"x", "block": rng.randbytes(4096), "300k": rng.randbytes(300001),
              "3m": rng.randbytes(3000001)}
    for name, data in files.items():
        with open(f"{source}/{name}", "wb") as file:
            file.write(data)
    repo = box.path("direct-repo")
    box.commit(source, repo, "--init")
    for epoch in range(3):
        with box.mount(repo, "io_uring=on", f"cache_dir={cache}") as mount:
            names = list(files)
            rng.shuffle(names)
            # A read that first has a page of the manifest checked goes on where that was done, with the page cache; on
            # a busy machine eight at a time do, for each page.
            for name in names:
                os.stat(f"{mount.path}/{name}")
            # Several at a time.
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                for name, data in zip(names, pool.map(lambda n: open(f"{mount.path}/{n}", "rb").read(), names)):
                    check(data == files[name], f"epoch {epoch}: {name} is not what was committed")
        pages, total = map(sum, zip(*map(resident, image_data(cache))))
        if epoch:
            say(f"{pages} of {total >> 12} pages of the images are in the page cache")
            check(pages * 4096 < total / 20, f"{pages} pages of {total} bytes of images stay in the page cache")
        drop(cache)
    return repo, cache, list(files)


def check_again(box, repo, cache, names):
    """A read by a ring that comes too short is made again in another way, and is one request all the same."""
    counted, pack = [], max(image_data(cache), key=os.path.getsize)
    for is_short in False, True:
        with box.mount(repo, "io_uring=on", f"cache_dir={cache}") as mount:
            # Each pread is one read of the mount, of a whole file.
            fds = [os.open(f"{mount.path}/{name}", os.O_RDONLY | os.O_DIRECT) for name in sorted(names)[:50]]
            # With all but the bytes themselves at hand, they are read by the ring.
            read = [os.pread(fd, 1 << 17, 0) for fd in fds]
            drop_file(pack)
            before = stats(mount)["requests"]
            if is_short:
                os.truncate(pack, 0)
            check([os.pread(fd, 1 << 17, 0) for fd in fds] == read, "what was read again is not what it was")
            counted.append(stats(mount)["requests"] - before)
            for fd in fds:
                os.close(fd)
    equal(counted[1], counted[0], f"requests for {len(fds)} reads, with some that were made again")


def check_end(box, repo, cache, names):
    """The mount ends in the midst of reads by its rings."""
    for way in (lambda mount: os.kill(mount.pid, signal.SIGTERM),
                lambda mount: subprocess.run(["umount", "-l", mount.path], check=True)):
        mount = box.mount(repo, "io_uring=on", f"cache_dir={cache}")
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            reads = [pool.submit(read_or_not, f"{mount.path}/{name}") for name in names]
            box.wait(lambda: reads[20].done(), "some reads")
            way(mount)
            answered = sum(future.result() for future in reads)
        box.wait(lambda: not lib.is_alive(mount.pid), "the end of the mount", 20)
        check(answered > 0, "no read was answered")
        check("ERROR" not in mount.log_text(), f"the log: {mount.log_text()}")
        drop(cache)


def read_or_not(path):
    try:
        with open(path, "rb") as file:
            return bool(file.read())
    except OSError:
        return False


def run(box, args):
    if doctor(box)[0] != "ok":
        raise lib.Skip(doctor(box)[1])
    source, store = box.new_dir("src"), box.store("s3")
    repo = store.url("uring")
    with open(f"{source}/local", "wb") as file:
        file.write(b"local" * 1000)
    os.mkdir(f"{source}/cold")
    for i in range(PARKED):
        with open(f"{source}/cold/{i}", "wb") as file:
            file.write(os.urandom(20000))
    box.commit(source, repo, "--init", env=store.env)
    box.env.update(store.env)
    check_on(box, repo)
    with little_memory():
        made = check_page_cache(box, args)
        check_end(box, *made)
    check_ahead(box, *made)
    with little_memory():
        check_again(box, *made)
    check_parked(box, repo, lib.Proxy(box, store.env))
    check_off(box, repo)


if __name__ == "__main__":
    lib.main(run)
