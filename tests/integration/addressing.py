#!/usr/bin/env python3
"""Where the bucket's name goes, into the path or into the host: by option, by profile, and by itself."""
import os
import socket
import threading

import lib
from lib import check, equal, say

USAGE = 2
ABSENT = b"HTTP/1.1 404 N\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Listener:
    """Answers that nothing is there, and keeps the first line and the host of each request."""

    def __init__(self, box):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.seen = []
        threading.Thread(target=self.serve, daemon=True).start()
        box.at_end(self.socket.close)

    def serve(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(65536)
                lines = head.decode().split("\r\n")
                host = [line[6:] for line in lines if line.lower().startswith("host: ")]
                self.seen.append((lines[0].split(" ")[1].split("?")[0], *host))
                connection.sendall(ABSENT)


def profile(box, name, text):
    path = box.path(name)
    with open(path, "w") as file:
        file.write(text)
    return {"AWS_CONFIG_FILE": path}


def asked(box, listener, *words, env=None, host="localhost"):
    """The first request of `log`: its path, and its host without the port."""
    listener.seen.clear()
    box.dsfs("log", "s3://bucket/pre", "--endpoint", f"http://{host}:{listener.port}", *words, status=3,
             env={"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", **(env or {})})
    path, seen_host = listener.seen[0]
    return path, seen_host.removesuffix(f":{listener.port}")


def choices(box):
    listener = Listener(box)
    by_path, by_host = ("/bucket/pre/dsfs.json", "localhost"), ("/pre/dsfs.json", "bucket.localhost")
    virtual = profile(box, "virtual", "[default]\nregion = us-east-1\ns3 =\n  max_queue_size = 10\n"
                                      "  addressing_style = virtual\n")
    equal(asked(box, listener), by_path, "where nothing is said")
    equal(asked(box, listener, "--addressing", "virtual"), by_host, "--addressing virtual")
    equal(asked(box, listener, "--addressing=path", env=virtual), by_path, "--addressing=path against the profile")
    equal(asked(box, listener, env=virtual), by_host, "the profile's addressing_style")
    equal(asked(box, listener, env=virtual, host="127.0.0.1"), ("/bucket/pre/dsfs.json", "127.0.0.1"),
          "the profile's addressing_style with an IP address")
    equal(asked(box, listener, env=profile(box, "auto", "[default]\ns3 =\n\taddressing_style = auto\n")), by_path,
          "addressing_style = auto")
    listener.seen.clear()
    endpoint = f"endpoint=http://localhost:{listener.port}"
    mountpoint = box.new_dir("mnt")
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    box.dsfs("mount", "s3://bucket/pre", mountpoint, "-o", f"{endpoint},addressing=virtual", status=3, env=keys)
    equal(listener.seen[0][1], f"bucket.localhost:{listener.port}", "host of a mount with addressing=virtual")
    for words, named in ((["log", "s3://bucket/pre", "--addressing", "host"], "host"),
                         (["ls", "s3://bucket/pre", "--addressing", "host"], "host"),
                         (["mount", "s3://bucket/pre", mountpoint, "-o", "addressing="], "addressing"),
                         (["log", "s3://bucket/pre", "--addressing=virtual", "--endpoint=http://127.0.0.1:9"],
                          "addressing=path"),
                         (["log", "s3://bucket/pre"], "addressing_style")):
        odd = profile(box, "odd", "[default]\ns3 =\n  addressing_style = dns\n") if len(words) == 2 else {}
        errors = box.dsfs(*words, status=USAGE, env={**keys, **odd}).errors
        check(named in errors and errors.count("\n") == 1, f"{words}: {errors}")


def real(box):
    s3 = box.store("s3")
    repo, source = s3.url("virtual"), box.new_dir("source")
    with open(f"{source}/file", "wb") as file:
        file.write(os.urandom(100_000))
    env = {**s3.env, "AWS_ENDPOINT_URL": "http://localhost:" + s3.env["AWS_ENDPOINT_URL"].rpartition(":")[2]}
    box.commit(source, repo, "--init", "--addressing", "virtual", env=env)
    with box.mount(repo, "addressing=virtual", env=env) as mount:
        with open(f"{mount.path}/file", "rb") as mounted, open(f"{source}/file", "rb") as own:
            check(mounted.read() == own.read(), "a file through a mount with addressing=virtual")
    check(box.json("verify", repo, env=env)["clean"], "verify by path finds something")


def run(box, args):
    choices(box)
    real(box)
    say("path and virtual-host style, by option and by profile")


if __name__ == "__main__":
    lib.main(run)
