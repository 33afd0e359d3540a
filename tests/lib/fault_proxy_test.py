#!/usr/bin/env python3
"""Tests of the fault proxy: each fault as a client meets it, before a small server of our own."""
import http.server
import json
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
import unittest
import urllib.request

PROXY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fault_proxy.py")
OBJECT = bytes(i * 7 % 251 for i in range(100_000))
OTHER = bytes(i * 5 % 241 for i in range(100_000))


class Origin(http.server.BaseHTTPRequestHandler):
    """GET with ranges and PUT; remembers what was asked."""
    protocol_version = "HTTP/1.1"
    seen = []

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.seen.append(("GET", self.path, 0))
        data = OTHER if self.path == "/b/other" else OBJECT
        found = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        part = data[int(found[1]):int(found[2]) + 1] if found else data
        self.send_response(206 if found else 200)
        if found:
            self.send_header("Content-Range", f"bytes {found[1]}-{found[2]}/{len(data)}")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    do_HEAD = do_GET

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append(("PUT", self.path, len(body)))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Raw:
    """A client that sees the wire: the reply's head and body, and how it ended."""

    def __init__(self, port):
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=5)

    def ask(self, text, body=b""):
        self.sock.sendall(text.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
        return self

    def until(self, done):
        data, end = b"", "open"
        while not done(data):
            try:
                piece = self.sock.recv(1 << 16)
            except ConnectionResetError:
                end = "reset"
                break
            except socket.timeout:
                end = "timeout"
                break
            if not piece:
                end = "closed"
                break
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        return head.decode("latin-1"), body, end

    def everything(self):
        return self.until(lambda data: False)

    def reply(self):
        def done(data):
            head, sep, body = data.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower())
            return sep and length and len(body) >= int(length[1])
        return self.until(done)


GET = "GET /b/object HTTP/1.1\nHost: x"
PART = GET + "\nRange: bytes=100-1099"
SLICE = OBJECT[100:1100]


class FaultProxy(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.origin = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Origin)
        threading.Thread(target=cls.origin.serve_forever, daemon=True).start()
        out = subprocess.run(
            [PROXY, "start", "--upstream", f"127.0.0.1:{cls.origin.server_port}",
             "--owner", str(os.getpid())], capture_output=True, text=True, check=True).stdout
        env = dict(re.findall(r"export (\w+)=(.*)", out))
        cls.control, cls.pid = env["PROXY_CONTROL"], int(env["PROXY_PID"])
        cls.port = int(env["PROXY_URL"].rpartition(":")[2])

    @classmethod
    def tearDownClass(cls):
        subprocess.run([PROXY, "stop", cls.control], check=True, capture_output=True)
        cls.origin.shutdown()
        cls.origin.server_close()

    def setUp(self):
        self.rules()
        Origin.seen.clear()

    def rules(self, *rules):
        request = urllib.request.Request(self.control + "/rules", json.dumps(rules).encode(),
                                         method="PUT")
        with urllib.request.urlopen(request) as reply:
            reply.read()

    def stats(self, name):
        with urllib.request.urlopen(f"{self.control}/stats/{name}") as reply:
            return json.load(reply)

    def raw(self, text=GET, body=b""):
        client = Raw(self.port)
        self.addCleanup(client.sock.close)
        return client.ask(text, body)

    def delivered(self, count=1):
        self.assertEqual(self.stats("delivered"), count)

    def wait_held(self, count):
        deadline = time.monotonic() + 5
        while self.stats("held") != count:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)

    def test_without_rules_everything_passes_and_is_logged(self):
        client = Raw(self.port)
        self.addCleanup(client.sock.close)
        before = self.stats("requests")
        for _ in range(3):
            head, body, _ = client.ask(PART).reply()
            self.assertIn(" 206 ", head)
            self.assertEqual(body, SLICE)
        self.assertEqual(self.stats("requests"), before + 3)
        with urllib.request.urlopen(self.control + "/log") as reply:
            log = reply.read().decode().splitlines()
        self.assertEqual(log[-1].split(" ", 1)[1], "GET /b/object bytes=100-1099 206 -")

    def test_from_every_and_times_choose_the_requests(self):
        self.rules({"fault": "status", "from": 2, "every": 2, "times": 2})
        client = Raw(self.port)
        self.addCleanup(client.sock.close)
        codes = [client.ask(PART).reply()[0].split(" ")[1] for _ in range(8)]
        self.assertEqual(codes, "206 503 206 503 206 206 206 206".split())
        self.delivered(2)

    def test_match_and_order_of_rules(self):
        self.rules({"match": "^PUT ", "fault": "reset"},
                   {"match": "object$", "fault": "status", "code": 404, "s3code": "NoSuchKey"},
                   {"fault": "status", "code": 500})
        head, body, _ = self.raw().reply()
        self.assertIn(" 404 ", head)
        self.assertIn(b"<Code>NoSuchKey</Code>", body)
        self.assertEqual(Origin.seen, [])

    def test_status_with_headers_and_body_of_any_size(self):
        self.rules({"fault": "status", "code": 429, "headers": {"Retry-After": "3"}, "body": "no"})
        head, body, _ = self.raw().reply()
        self.assertIn("Retry-After: 3", head)
        self.assertEqual(body, b"no")
        self.rules({"fault": "status", "body_bytes": 3_000_000})
        self.assertEqual(len(self.raw().reply()[1]), 3_000_000)

    def test_delay_and_reply_delay(self):
        for fault in "delay", "reply_delay":
            self.rules({"fault": fault, "ms": 200})
            start = time.monotonic()
            self.assertEqual(self.raw(PART).reply()[1], SLICE)
            self.assertGreaterEqual(time.monotonic() - start, 0.2)
            self.delivered()

    def test_held_requests_go_on_when_the_rules_change(self):
        self.rules({"fault": "hold"})
        clients = [self.raw(PART) for _ in range(20)]
        self.wait_held(20)
        self.assertEqual(Origin.seen, [])
        self.rules()
        for client in clients:
            self.assertEqual(client.reply()[1], SLICE)

    def test_hang_ends_in_a_reset(self):
        self.rules({"fault": "hang"})
        client = self.raw()
        self.wait_held(1)
        self.rules()
        self.assertEqual(client.everything(), ("", b"", "reset"))

    def test_reset_and_refuse(self):
        for fault in "reset", "refuse":
            self.rules({"fault": fault})
            try:
                self.assertEqual(self.raw().everything(), ("", b"", "reset"))
            except ConnectionError:
                pass
            self.delivered()
            self.assertEqual(Origin.seen, [])

    def test_lost_reply_after_the_write(self):
        self.rules({"match": "^PUT", "fault": "lose_reply"})
        put = "PUT /b/new HTTP/1.1\nHost: x\nContent-Length: 5"
        self.assertEqual(self.raw(put, b"hello").everything(), ("", b"", "reset"))
        self.assertEqual(Origin.seen, [("PUT", "/b/new", 5)])
        self.delivered()

    def test_swallowed_write_never_reaches_the_server(self):
        self.rules({"match": "^PUT", "fault": "swallow"})
        put = "PUT /b/new HTTP/1.1\nHost: x\nExpect: 100-continue\nContent-Length: 5"
        head, body, _ = self.raw(put, b"hello").until(lambda data: b"ETag" in data)
        self.assertIn("100 Continue", head)
        self.assertIn(b"200", body)
        self.assertEqual(Origin.seen, [])

    def test_upload_reset_in_the_middle(self):
        self.rules({"fault": "reset_upload", "bytes": 1000})
        put = "PUT /b/new HTTP/1.1\nHost: x\nContent-Length: 300000"
        with self.assertRaises(ConnectionError):
            client = self.raw(put, b"x" * 300000)
            if client.everything()[2] == "reset":
                raise ConnectionResetError
        self.delivered()
        deadline = time.monotonic() + 5
        while not Origin.seen:
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.01)
        self.assertEqual(Origin.seen, [("PUT", "/b/new", 1000)])

    def test_body_cut_by_close_or_reset(self):
        for fault, end in ("truncate", "closed"), ("reset_body", "reset"):
            for at in 0, 1, 500, 999:
                self.rules({"fault": fault, "bytes": at})
                head, body, how = self.raw(PART).everything()
                self.assertIn("Content-Length: 1000", head)
                self.assertEqual((body, how), (SLICE[:at], end))
                self.delivered()

    def test_stall_in_the_body(self):
        self.rules({"fault": "stall", "bytes": 10})
        client = self.raw(PART)
        self.wait_held(1)
        head, body, _ = client.until(lambda data: data.partition(b"\r\n\r\n")[2])
        self.assertEqual(SLICE[:10], body)
        self.rules()
        self.assertEqual(client.until(lambda data: len(data) == 990)[0].encode("latin-1"),
                         SLICE[10:])

    def test_flip_changes_one_bit_at_the_place(self):
        for offset, at in (0, 0), (999, 999), (-1, 999):
            self.rules({"fault": "flip", "offset": offset, "bit": 3})
            body = self.raw(PART).reply()[1]
            self.assertEqual([i for i in range(1000) if body[i] != SLICE[i]], [at])
            self.assertEqual(body[at] ^ SLICE[at], 8)
        self.rules({"fault": "flip"})
        places = set()
        for _ in range(5):
            body = self.raw(PART).reply()[1]
            diff = [i for i in range(1000) if body[i] != SLICE[i]]
            self.assertEqual(len(diff), 1)
            places.add(diff[0])
        self.assertGreater(len(places), 1)
        self.delivered(5)

    def test_flip_past_the_end_is_not_counted_as_delivered(self):
        self.rules({"fault": "flip", "offset": 5000})
        self.assertEqual(self.raw(PART).reply()[1], SLICE)
        self.delivered(0)

    def test_range_faults(self):
        self.rules({"fault": "wrong_range", "shift": 4})
        head, body, _ = self.raw(PART).reply()
        self.assertIn("Content-Range: bytes 104-1103/100000", head)
        self.assertEqual(body, SLICE)
        self.rules({"fault": "wrong_range", "unit": "pages", "total": "*"})
        self.assertIn("Content-Range: pages 100-1099/*", self.raw(PART).reply()[0])
        self.rules({"fault": "no_content_range"})
        self.assertNotIn("Content-Range", self.raw(PART).reply()[0])
        self.rules({"fault": "whole"})
        head, body, _ = self.raw(PART).reply()
        self.assertIn(" 200 ", head)
        self.assertEqual(body, OBJECT)
        self.rules({"fault": "swap", "target": "/b/other"})
        head, body, _ = self.raw(PART).reply()
        self.assertIn(" 206 ", head)
        self.assertEqual(body, OTHER[100:1100])

    def test_length_faults(self):
        self.rules({"fault": "content_length", "values": ["1000", "1001"]})
        head = self.raw(PART).everything()[0]
        self.assertEqual(re.findall(r"Content-Length: (.*?)\r", head + "\r"), ["1000", "1001"])
        self.rules({"fault": "chunked"})
        head, body, _ = self.raw(PART).until(lambda data: data.endswith(b"0\r\n\r\n"))
        self.assertNotIn("Content-Length", head)
        self.assertEqual(body, b"3e8\r\n" + SLICE + b"\r\n0\r\n\r\n")
        for honest in False, True:
            self.rules({"fault": "longer", "bytes": 7, "honest": honest})
            head, body, _ = self.raw(PART).until(lambda data: data.endswith(b"x" * 7))
            self.assertIn(f"Content-Length: {1007 if honest else 1000}", head)
            self.assertEqual(body, SLICE + b"x" * 7)

    def test_rewritten_head(self):
        self.rules({"fault": "rewrite", "code": 200, "remove": ["content-range"],
                    "set": {"ETag": '"z"'}, "add": [["Content-Encoding", "gzip"]]})
        head, body, _ = self.raw(PART).reply()
        self.assertIn(" 200 ", head)
        self.assertIn('ETag: "z"', head)
        self.assertIn("Content-Encoding: gzip", head)
        self.assertNotIn("Content-Range", head)
        self.assertEqual(body, SLICE)

    def test_pages_redirects_raw_bytes_and_interim_replies(self):
        self.rules({"fault": "html"})
        self.assertIn(b"<html>", self.raw().reply()[1])
        self.rules({"fault": "redirect", "code": 301, "location": "http://127.0.0.1:1/"})
        self.assertIn("Location: http://127.0.0.1:1/", self.raw().reply()[0])
        self.rules({"fault": "raw", "text": "HTTP/1.1 200 OK\r\nA: \0\r\n\r\nzz"})
        self.assertEqual(self.raw().everything(), ("HTTP/1.1 200 OK\r\nA: \0", b"zz", "closed"))
        self.rules({"fault": "interim", "count": 3})
        data = self.raw(PART).until(lambda data: data.endswith(SLICE))
        self.assertIn("102", data[0])

    def test_replayed_reply_of_another_request(self):
        self.raw(PART).reply()
        self.rules({"match": "other", "fault": "replay"})
        body = self.raw("GET /b/other HTTP/1.1\nHost: x\nRange: bytes=100-1099").reply()[1]
        self.assertEqual(body, SLICE)
        self.delivered()

    def test_connection_closed_without_a_word(self):
        self.rules({"fault": "close_after"})
        head, body, end = self.raw(PART).everything()
        self.assertEqual((body, end), (SLICE, "closed"))
        self.assertNotIn("close", head)

    def test_rate(self):
        self.rules({"fault": "rate", "bytes_per_s": 5000})
        start = time.monotonic()
        self.assertEqual(self.raw(PART).reply()[1], SLICE)
        self.assertGreater(time.monotonic() - start, 0.15)

    def test_bad_rules_are_refused(self):
        with self.assertRaises(urllib.error.HTTPError) as caught:
            self.rules({"fault": "none such"})
        self.assertEqual(caught.exception.code, 400)
        caught.exception.close()

    def test_ends_with_its_owner(self):
        owner = subprocess.Popen(["sleep", "60"])
        out = subprocess.run([PROXY, "start", "--owner", str(owner.pid)], capture_output=True,
                             text=True, check=True).stdout
        fd = os.pidfd_open(int(re.search(r"PROXY_PID=(\d+)", out)[1]))
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        self.assertTrue(select.select([fd], [], [], 5)[0])
        os.close(fd)


if __name__ == "__main__":
    unittest.main()
