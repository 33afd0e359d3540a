"""The data of the benchmark, kept below one directory for the next run with the same scale, and the
repositories in plain directories that are made of them (for rows that read nothing from a store)."""
import json
import os
import random
import shutil

from bench_lib import KIB, MIB, GIB, program, progress, run, lib

SMALL_FILES, SMALL_MIN, SMALL_MAX = 20_000, 20_000, 110_000
LARGE_BYTES = 2 * GIB
PARTS = 32
MANY_FILES = 1_000_000
HUGE_FILES = 10_000_000
PER_DIRECTORY = 1000


class Data:
    """Each attribute that is a path is made when it is first asked for."""

    def __init__(self, base, scale):
        self.dir = os.path.join(base, f"scale-{scale:g}")
        self.scale = scale
        os.makedirs(self.dir, exist_ok=True)

    def path(self, *parts):
        return os.path.join(self.dir, *parts)

    def made(self, name, make):
        """path(name), made as a whole or not at all: under another name first."""
        path = self.path(name)
        if not os.path.exists(path):
            progress(f"making {name} ...")
            half = path + ".half"
            shutil.rmtree(half, ignore_errors=True) if os.path.isdir(half) else remove(half)
            make(half)
            os.rename(half, path)
        return path

    @property
    def large_bytes(self):
        return max(int(LARGE_BYTES * self.scale) // MIB, PARTS) * MIB

    @property
    def large_dir(self):
        def make(path):
            os.mkdir(path)
            with open(f"{path}/large.bin", "wb") as file:
                for _ in range(self.large_bytes // MIB):
                    file.write(os.urandom(MIB))
        return self.made("large", make)

    @property
    def large(self):
        return self.large_dir + "/large.bin"

    @property
    def large_list(self):
        def make(path):
            with open(path, "w", encoding="ascii") as file:
                file.write(f"{self.large_bytes} 0 large.bin\n")
        return self.made("large.list", make)

    @property
    def small_list(self):
        """Sizes, and where in the large file their bytes lie: one after the other."""
        def make(path):
            rng, at = random.Random(1), 0
            with open(path, "w", encoding="ascii") as file:
                for i in range(max(int(SMALL_FILES * self.scale), 100)):
                    size = rng.randint(SMALL_MIN, SMALL_MAX)
                    if at + size > self.large_bytes:
                        at = 0
                    file.write(f"{size} {at} class-{i // 100:03}/image-{i:06}.jpg\n")
                    at += size
        return self.made("small.list", make)

    def small_rows(self):
        with open(self.small_list, encoding="ascii") as file:
            for line in file:
                size, off, path = line.rstrip("\n").split(" ", 2)
                yield int(size), int(off), path

    @property
    def small(self):
        def make(path):
            os.mkdir(path)
            with open(self.large, "rb") as source:
                for size, off, name in self.small_rows():
                    os.makedirs(os.path.dirname(f"{path}/{name}"), exist_ok=True)
                    with open(f"{path}/{name}", "wb") as file:
                        file.write(os.pread(source.fileno(), size, off))
        return self.made("small", make)

    @property
    def small_bytes(self):
        return sum(size for size, _, _ in self.small_rows())

    @property
    def parts(self):
        def make(path):
            os.mkdir(path)
            with open(self.large, "rb") as source:
                for i in range(PARTS):
                    with open(f"{path}/part-{i:02}.bin", "wb") as file:
                        file.write(source.read(self.large_bytes // PARTS))
        return self.made("parts", make)

    @property
    def many_n(self):
        return max(int(MANY_FILES * self.scale), 2 * PER_DIRECTORY)

    @property
    def many_list(self):
        return self.made("many.list", lambda path: write_list(path, self.many_n))

    @property
    def many(self):
        """Every hundredth file holds its number, the others nothing."""
        def make(path):
            os.mkdir(path)
            for d in range(self.many_n // PER_DIRECTORY):
                os.mkdir(f"{path}/d{d:05}")
                fd = os.open(f"{path}/d{d:05}", os.O_RDONLY | os.O_DIRECTORY)
                for i in range(d * PER_DIRECTORY, (d + 1) * PER_DIRECTORY):
                    file = os.open(many_name(i), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644,
                                   dir_fd=fd)
                    if i % 100 == 0:
                        os.write(file, b"%07d\n" % i)
                    os.close(file)
                os.close(fd)
        return self.made("many", make)

    def repo(self, box, name, source):
        """A repository in a directory, of the tree at `source`."""
        def make(path):
            box.commit(source, path, "--init", "--state-dir", "", timeout=1800)
        path = self.made(f"repo-{name}", make)
        # One of another format would be an older program's.
        if box.dsfs("log", path, status=None).status:
            shutil.rmtree(path)
            path = self.made(f"repo-{name}", make)
        return path

    def repo_of_names(self, box, files_n):
        """A repository of files_n empty files, which never lie on a disk: the source is bench_fuse."""
        def make(path):
            names = self.path("names.list")
            write_list(names, files_n, sizes=False)
            place = box.new_dir("names")
            server = box.start_program([program("bench_fuse"), "-s", place, names, "-"])
            box.wait(lambda: lib.is_mounted(place) or server.poll() is not None, "bench_fuse")
            box.commit(place, path, "--init", "--state-dir", "", timeout=3600)
            run(["fusermount3", "-u", place])
            server.wait(60)
            os.unlink(names)
        return self.made(f"repo-names-{files_n}", make)


def remove(path):
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def many_name(i):
    return f"image-{i:08}.jpg"


def write_list(path, files_n, sizes=True):
    with open(path, "w", encoding="ascii") as file:
        for i in range(files_n):
            size = 8 if sizes and i % 100 == 0 else 0
            file.write(f"{size} 0 d{i // PER_DIRECTORY:05}/{many_name(i)}\n")
