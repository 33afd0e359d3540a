#!/usr/bin/env python3
"""S3 over TLS: a certificate that can be trusted works, everything else is refused in one clear line
(B07), and what is refused at first while a version is mounted works once it can be trusted again.

A TLS front of ours stands before a real S3 server; certificates are made with openssl."""
import errno
import os
import socket
import ssl
import subprocess
import threading
import warnings

import lib
import tree
from lib import Failed, check, equal, say

CA_CONF = """[ca]
default_ca = it
[it]
dir = {dir}
database = {dir}/index.txt
new_certs_dir = {dir}
rand_serial = yes
default_md = sha256
policy = any
unique_subject = no
[any]
commonName = supplied
"""


class Authority:
    """A certificate authority in a directory."""

    def __init__(self, box, name):
        self.dir = box.new_dir(name)
        self.cert, self.key = self.dir + "/ca.pem", self.dir + "/ca.key"
        openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", self.key, "-out",
                self.cert, "-days", "30", "-subj", f"/CN={name}")
        with open(self.dir + "/ca.conf", "w", encoding="ascii") as file:
            file.write(CA_CONF.format(dir=self.dir))
        with open(self.dir + "/index.txt", "w", encoding="ascii"):
            pass

    def issue(self, name, host="localhost", start="20200101000000Z", end="20991231000000Z"):
        path = f"{self.dir}/{name}"
        with open(path + ".ext", "w", encoding="ascii") as file:
            file.write(f"subjectAltName=DNS:{host}\n")
        openssl("req", "-new", "-newkey", "rsa:2048", "-nodes", "-keyout", path + ".key", "-out",
                path + ".csr", "-subj", f"/CN={host}")
        openssl("ca", "-batch", "-config", self.dir + "/ca.conf", "-cert", self.cert, "-keyfile",
                self.key, "-in", path + ".csr", "-out", path + ".pem", "-extfile", path + ".ext",
                "-startdate", start, "-enddate", end, "-notext")
        return path + ".pem", path + ".key"


def openssl(*args):
    done = subprocess.run(["openssl", *args], stdin=subprocess.DEVNULL, capture_output=True,
                          text=True, timeout=60)
    check(done.returncode == 0, f"openssl {args[0]}: {done.stderr}")


class Front:
    """Ends TLS before a server on `port`. `context` may be changed; None: hangs up on whoever comes."""

    def __init__(self, box, port):
        self.upstream = port
        self.context = None
        self.accepted_n = 0
        self.connections = set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()
        box.at_end(self.listener.close)

    def use(self, cert, key, newest=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        if newest:
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = newest
            context.set_ciphers("ALL:@SECLEVEL=0")
        context.load_cert_chain(cert, key)
        self.context = context
        # Whoever is connected has to shake hands again.
        for sock in list(self.connections):
            end(sock)

    def accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.accepted_n += 1
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        try:
            if not self.context:
                sock.recv(16)
                raise ConnectionError("told to hang up")
            sock = self.context.wrap_socket(sock, server_side=True)
            upstream = socket.create_connection(("127.0.0.1", self.upstream))
        except OSError:
            sock.close()
            return
        self.connections.add(sock)
        threading.Thread(target=pump, args=(sock, upstream), daemon=True).start()
        pump(upstream, sock)
        self.connections.discard(sock)


def end(sock):
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def pump(source, sink):
    try:
        while data := source.recv(1 << 16):
            sink.sendall(data)
    except OSError:
        pass
    end(source)
    end(sink)


def same(source, mount, what):
    equal(tree.compare(tree.snapshot(source), tree.snapshot(mount.root)), [], what)


def refused(box, front, repo, env, what, words, host="localhost"):
    before = front.accepted_n
    env = {**env, "AWS_ENDPOINT_URL": f"https://{host}:{front.port}"}
    result = box.dsfs("log", repo, "--timeout", "3", env=env, status=5)
    # What is tried again is said after 2 s, before the error.
    lines = [line for line in result.errors.splitlines() if "; trying for " not in line]
    equal(len(lines), 1, f"{what}: lines of {result.errors!r}")
    line = lines[0]
    check(any(word in line for word in words), f"{what}: {line!r} does not say why")
    check(front.accepted_n > before, f"{what}: nobody came")
    say(f"{what}: {line}")


def B07_what_cannot_be_trusted(box, front, ours, repo, env):
    other = Authority(box, "other")
    for what, pair, words, newest in [
            ("unknown authority", other.issue("good"), ["certificate"], None),
            ("self-signed", (other.cert, other.key), ["certificate"], None),
            ("expired", ours.issue("old", start="20200101000000Z", end="20200201000000Z"),
             ["expired"], None),
            ("not yet valid", ours.issue("new", start="20980101000000Z"), ["not yet valid"], None),
            ("wrong host", ours.issue("host", host="elsewhere.example"), ["elsewhere.example",
             "localhost", "no alternative certificate"], None),
            ("TLS 1.1", ours.issue("tls11"), ["protocol", "version"], ssl.TLSVersion.TLSv1_1)]:
        front.use(*pair, newest=newest)
        refused(box, front, repo, env, what, words)
    front.context = None
    refused(box, front, repo, env, "cut handshake", ["SSL", "TLS", "Connection reset", "EOF"])


def run(box, args):
    s3 = box.store("s3")
    plain = s3.env["AWS_ENDPOINT_URL"]
    front = Front(box, int(plain.rpartition(":")[2]))
    ours = Authority(box, "ours")
    repo = s3.url("tls")
    env = {**s3.env, "AWS_CA_BUNDLE": ours.cert, "AWS_ENDPOINT_URL": f"https://localhost:{front.port}"}
    front.use(*ours.issue("first"))
    source = box.new_dir("src")
    tree.Tree(source, args.seed).grow(60, large=False)
    box.commit(source, repo, "--init", env=env)
    with lib.Mount(box, repo, env=env) as mount:
        same(source, mount, "what is read through TLS")
    B07_what_cannot_be_trusted(box, front, ours, repo, env)

    front.use(*ours.issue("second"))
    missing = box.dsfs("log", repo, env={**env, "AWS_CA_BUNDLE": box.path("none.pem")}, status=None)
    check(missing.status and "none.pem" in missing.errors, f"a bundle that is missing: {missing.errors!r}")
    say(f"bundle missing: {missing.errors.strip()}")

    # The certificate changes while mounted: for a bad one, reads fail; for a good one they go on.
    cache = box.path("cache-2")
    with lib.Mount(box, repo, [f"cache_dir={cache}", "timeout=4s"], env=env) as mount:
        files = [os.path.join(top, name) for top, _, names in os.walk(mount.path) for name in names]
        files = sorted(f for f in files if not os.path.islink(f) and os.path.getsize(f))
        front.use(*Authority(box, "third").issue("bad"))
        failed_n = 0
        for path in files[:1]:
            try:
                with open(path, "rb") as file:
                    file.read()
            except OSError:
                failed_n += 1
        check(failed_n, "a read went on before a certificate that nobody vouches for")
        front.use(*ours.issue("third"))
        same(source, mount, "what is read once the certificate is right")
    say("a certificate changed under a mount: an error, and then the right bytes")


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # old TLS is meant
    lib.main(run)
