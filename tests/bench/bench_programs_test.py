#!/usr/bin/env python3
"""usage: bench_programs_test.py DIRECTORY
The programs of the benchmark, built in DIRECTORY, start and handle the right bytes. Nothing is timed,
but that the delay proxy delays."""
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time

FILES, DELAY_MS = 40, 50


def fail(text):
    sys.exit(f"bench_programs_test: {text}")


def xor_of_digests(parts):
    total = 0
    for part in parts:
        total ^= int.from_bytes(hashlib.sha256(part).digest(), "big")
    return f"{total:064x}"


def run(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120)
    if done.returncode:
        fail(f"{argv}: status {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def equal(got, wanted, what):
    if got != wanted:
        fail(f"{what}: {got!r}, not {wanted!r}")


def blocks(data, size):
    return [data[at:at + size] for at in range(0, len(data), size)]


class Ranges(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    objects = {}

    def do_GET(self):
        first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
        data = self.objects[self.path][int(first):int(last) + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Tree:
    """FILES small files and a large one, the list that the programs want, and the sums to expect."""

    def __init__(self, base):
        self.root, self.list = f"{base}/tree", f"{base}/list"
        self.bytes = f"{self.root}/large"
        self.large = os.urandom(3 * 1024 * 1024 + 17)
        parts, lines, at = [], [], 0
        for i in range(FILES):
            path = f"d {i % 3}/sub/f{i}"
            parts.append(self.large[at:at + i * 1777])
            lines.append(f"{len(parts[-1])} {at} {path}\n")
            at += len(parts[-1])
            os.makedirs(os.path.dirname(f"{self.root}/{path}"), exist_ok=True)
            with open(f"{self.root}/{path}", "wb") as file:
                file.write(parts[-1])
        with open(self.list, "w", encoding="ascii") as file:
            file.writelines([*lines, f"{len(self.large)} 0 large\n"])
        with open(self.bytes, "wb") as file:
            file.write(self.large)
        self.small_sum = xor_of_digests([*parts, self.large])
        self.small_bytes = sum(map(len, parts)) + len(self.large)


def look(tool, tree, root, where):
    """Everything that bench_read does, on a directory that holds the tree."""
    got = run(tool, "-n", "3", "-f", "-d", "epoch", root, tree.list)
    equal(got["sum"], tree.small_sum, f"sum of an epoch {where}")
    equal((got["ops"], got["bytes"]), (FILES + 1, tree.small_bytes), f"an epoch {where}")
    equal(run(tool, "-c", "10", "epoch", root, tree.list)["ops"], 10, f"-c {where}")
    equal(run(tool, "-n", "2", "stat", root, tree.list)["ops"], FILES + 1, f"stat {where}")
    wanted = xor_of_digests(blocks(tree.large, 65536))
    for more in ((), ("-m",), ("-p", "3")):
        got = run(tool, "-d", "-b", "65536", *more, "seq", f"{root}/large")
        equal(got["sum"], wanted, f"sum of seq {more} {where}")
    got = run(tool, "-n", "2", "-c", "500", "random", f"{root}/large")
    equal(got["ops"], 500, f"random {where}")
    assert got["us"]["p50"] <= got["us"]["p99"] <= got["us"]["max"], got
    listed = sorted(os.path.relpath(os.path.join(path, name), root)
                    for path, _, names in os.walk(root) for name in names)
    with open(tree.list, encoding="ascii") as file:
        equal(listed, sorted(line.rstrip("\n").split(" ", 2)[2] for line in file), f"names {where}")


def serve(programs, tree, base, options):
    place = f"{base}/mount"
    os.makedirs(place, exist_ok=True)
    server = subprocess.Popen([f"{programs}/bench_fuse", *options, place, tree.list, tree.bytes])
    try:
        while not os.path.ismount(place):
            if server.poll() is not None:
                fail("bench_fuse has ended")
            time.sleep(0.01)
        look(f"{programs}/bench_read", tree, place, f"of bench_fuse {options}")
    finally:
        server.terminate()
        equal(server.wait(60), 0, "status of bench_fuse")
    equal(os.path.ismount(place), False, "mounted at the end")


def receive(programs, tree, base):
    """Directly, and with latency, which one connection shows and many hide."""
    Ranges.objects = {"/large": tree.large, "/small": tree.large[:100]}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    delay = subprocess.Popen([f"{programs}/bench_delay", str(server.server_port), str(DELAY_MS)],
                             stdout=subprocess.PIPE, text=True)
    try:
        ports = server.server_port, int(delay.stdout.readline())
        parts = [*blocks(tree.large, 262144), tree.large[:100]]
        for port in ports:
            with open(f"{base}/objects", "w", encoding="ascii") as file:
                for name, data in Ranges.objects.items():
                    file.write(f"{len(data)} 0 http://127.0.0.1:{port}{name}\n")
            got = run(f"{programs}/bench_receive", "-c", "1", "-r", "262144", f"{base}/objects",
                      f"{base}/out")
            equal(got["sum"], xor_of_digests(parts), "sum of what was received")
            equal(got["bytes"], len(tree.large) + 100, "bytes received")
            with open(f"{base}/out", "rb") as file:
                equal(file.read(), b"".join(parts), "what was written")
        # Never less; how much more is the machine's affair.
        if got["seconds"] < len(parts) * DELAY_MS / 1000:
            fail(f"{len(parts)} requests in {got['seconds']} s: not delayed")
    finally:
        delay.kill()
        delay.wait()
        server.shutdown()


def main():
    programs = os.path.abspath(sys.argv[1])
    with tempfile.TemporaryDirectory(prefix="dsfs-bench.") as base:
        tree = Tree(base)
        look(f"{programs}/bench_read", tree, tree.root, "of a directory")
        receive(programs, tree, base)
        if not os.access("/dev/fuse", os.R_OK | os.W_OK):
            print("bench_programs_test: /dev/fuse cannot be opened", file=sys.stderr)
            sys.exit(77)
        for options in (), ("-s",):
            serve(programs, tree, base, options)


if __name__ == "__main__":
    main()
