#!/usr/bin/env python3
"""A scripted HTTP fault proxy for tests on S3: it stands in front of a real server (or of none) and
spoils the requests that its rules name. Loopback and plain HTTP only; requests pass unchanged, Host
included, so that their signatures stay valid.

  fault_proxy.py start [--upstream HOST:PORT] [--owner PID] [--listen PORT] [--control PORT]
                       [--rules JSON] [--seed N]
        goes to the background once it listens and prints lines to eval: PROXY_URL,
        PROXY_CONTROL, PROXY_PID. Ports are free ones by default. It ends by itself when the
        process of --owner is gone, however it went.
  fault_proxy.py serve ...          the same in the foreground
  fault_proxy.py rules CONTROL JSON replaces the rules ([] for none)
  fault_proxy.py stats CONTROL      prints the counts as JSON
  fault_proxy.py get CONTROL NAME   prints one number of them (requests, delivered, held, ...)
  fault_proxy.py stop CONTROL

CONTROL is an HTTP server: PUT /rules replaces the rules and starts their counts anew, POST /rules
appends, GET /stats is JSON, GET /stats/NAME one number, GET /log one line for each request ("SEQ
METHOD TARGET RANGE STATUS FAULT", RANGE and FAULT are - where there is none, STATUS is 0 for no
answer), DELETE /log starts that and `requests` anew, PUT /upstream changes the server (HOST:PORT).

A rule is an object; the first one that matches and fires spoils the request:
  match    regular expression, searched in "METHOD TARGET"           (default: all)
  from     fires from this match on, 1 is the first                  (1)
  every    and then at each such match                               (1)
  times    at most this often                                        (no limit)
  chance   with this probability, from the seeded generator          (1)
  fault    one of these; `fired` counts choices, `delivered` what really reached the client:

Instead of an answer of the server, which never sees the request:
  status        code=503, s3code="SlowDown", headers={}, body=TEXT (else S3's XML), body_bytes=N
  html          200 and the page of a captive portal
  redirect      code=307, location=URL
  raw           text=TEXT as it is in Latin-1, then closes
  swallow       200 with an ETag: the object is never stored
  hang          no answer; reset when the rules are replaced, or after ms
  reset         connection reset
  refuse        reset at accept; matched against "ACCEPT"
  replay        the reply of the last request that passed unspoiled on any connection
Before the server is asked:
  hold          waits until the rules are replaced, then goes on; `held` counts those that wait
  delay         ms
  interim       count=1 replies of code=102 first
  reset_upload  reset when bytes=N of the request's body have gone to the server
After the server has done it:
  lose_reply    the answer is thrown away, connection reset
  reply_delay   ms before the first byte of the answer
  rewrite       code=N, set={}, remove=[], add=[[NAME, VALUE]] on the reply's head
  no_content_range, wrong_range (shift=1: start and end; or unit, start, end, total), content_length
                (values=[...], as they are), chunked (no length), close_after (closes, unannounced)
  whole         range ignored: 200 and the whole object
  swap          target=PATH: the same range of another object (whole and swap need keys in
                AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, as they sign a request of their own)
In the reply's body; bytes=N counts from its start, or from its end if negative:
  truncate      closes after bytes=N               reset_body   resets there
  stall         waits ms after bytes=N             rate         bytes_per_s
  flip          one bit at offset=N|"random", bit=N|"random"
  longer        bytes=N more than there are, length adjusted if honest=true
"""
import argparse
import asyncio
import collections
import datetime
import fcntl
import hashlib
import hmac
import json
import os
import random
import re
import signal
import socket
import struct
import sys
import termios
import urllib.parse
import urllib.request

PIECE = 256 * 1024
HEAD_MAX = 1 << 20
LOG_MAX = 200_000
REPLAY_MAX = 8 << 20

FAULTS = set("""status html redirect raw swallow hang reset refuse replay hold delay interim
    reset_upload lose_reply reply_delay rewrite no_content_range wrong_range content_length chunked
    close_after whole swap truncate reset_body stall rate flip longer""".split())


class Reset(Exception):
    """The client's connection is to be reset."""


class Close(Exception):
    """The client's connection is to be closed."""


class Head:
    """A request's or reply's first line and header fields, in order and as they came."""

    def __init__(self, first, fields):
        self.first = first
        self.fields = fields

    @classmethod
    async def read(cls, reader):
        raw = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = raw[:-4].split("\r\n")
        fields = []
        for line in lines:
            name, _, value = line.partition(":")
            fields.append((name, value.strip()))
        return cls(first, fields)

    def get(self, name):
        for key, value in self.fields:
            if key.lower() == name.lower():
                return value
        return None

    def remove(self, name):
        self.fields = [f for f in self.fields if f[0].lower() != name.lower()]

    def set(self, name, value):
        self.remove(name)
        self.fields.append((name, str(value)))

    @property
    def code(self):
        return int(self.first.split(" ")[1])

    @code.setter
    def code(self, code):
        self.first = f"HTTP/1.1 {code} Injected"

    def is_chunked(self):
        return (self.get("Transfer-Encoding") or "").lower() == "chunked"

    def length(self):
        value = self.get("Content-Length")
        return None if value is None else int(value)

    def encode(self):
        lines = [self.first] + [f"{name}: {value}" for name, value in self.fields]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def body_of(reader, head, is_reply=False):
    """The pieces of a body, without its framing."""
    if head.is_chunked():
        while True:
            left = int((await reader.readline()).split(b";")[0], 16)
            if left == 0:
                while (await reader.readline()).strip():
                    pass
                return
            while left:
                piece = await reader.read(min(left, PIECE))
                if not piece:
                    raise ConnectionError("body ended early")
                left -= len(piece)
                yield piece
            await reader.readexactly(2)
    elif head.length() is not None:
        left = head.length()
        while left:
            piece = await reader.read(min(left, PIECE))
            if not piece:
                raise ConnectionError("body ended early")
            left -= len(piece)
            yield piece
    elif is_reply:
        while piece := await reader.read(PIECE):
            yield piece


class Rule:
    def __init__(self, spec):
        self.spec = spec
        self.fault = spec.get("fault")
        if self.fault not in FAULTS:
            raise ValueError(f"unknown fault {self.fault!r}")
        self.pattern = re.compile(spec.get("match", ""))
        self.matched = self.fired = self.delivered = 0

    def get(self, name, default=None):
        return self.spec.get(name, default)

    def fires(self, text, rng):
        if not self.pattern.search(text):
            return False
        self.matched += 1
        late = self.matched - self.get("from", 1)
        if late < 0 or late % self.get("every", 1) or self.fired >= self.get("times", 1 << 62):
            return False
        if rng.random() >= self.get("chance", 1):
            return False
        self.fired += 1
        return True

    def as_json(self):
        counts = {"matched": self.matched, "fired": self.fired, "delivered": self.delivered}
        return {"rule": self.spec, **counts}


class Proxy:
    def __init__(self, upstream, seed):
        self.upstream = upstream
        self.seed = seed
        self.rng = random.Random(seed)
        self.rules = []
        self.changed = asyncio.Event()  # set, and replaced, when the rules are
        self.requests = self.connections = self.held = self.open = self.errors = 0
        self.delivered_before = 0
        self.log = collections.deque(maxlen=LOG_MAX)
        self.last_reply = None

    def set_rules(self, specs, append=False):
        fresh = [Rule(spec) for spec in specs]
        if append:
            self.rules = self.rules + fresh
            return
        self.delivered_before += sum(rule.delivered for rule in self.rules)
        self.rules = fresh
        self.changed.set()
        self.changed = asyncio.Event()

    def pick(self, text):
        for rule in self.rules:
            if (rule.fault == "refuse") != (text == "ACCEPT"):
                continue
            if rule.fires(text, self.rng):
                return rule
        return None

    def stats(self):
        delivered = sum(rule.delivered for rule in self.rules)
        return {
            "requests": self.requests, "connections": self.connections, "open": self.open,
            "held": self.held, "errors": self.errors, "delivered": delivered,
            "delivered_ever": delivered + self.delivered_before, "seed": self.seed,
            "rules": [rule.as_json() for rule in self.rules],
        }

    async def wait_for_change(self, ms=None):
        self.held += 1
        try:
            await asyncio.wait_for(self.changed.wait(), ms / 1000 if ms else None)
        except asyncio.TimeoutError:
            pass
        finally:
            self.held -= 1

    async def serve(self, reader, writer):
        self.connections += 1
        self.open += 1
        try:
            await Connection(self, reader, writer).run()
        finally:
            self.open -= 1


def signed(method, host, target, fields):
    """The header fields of a request that we make and sign ourselves (AWS Signature Version 4)."""
    key_id = os.environ.get("AWS_ACCESS_KEY_ID", "")
    secret = os.environ.get("AWS_SECRET_ACCESS_KEY", "")
    region = os.environ.get("AWS_REGION", "us-east-1")
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    path, _, query = target.partition("?")
    pairs = sorted(urllib.parse.parse_qsl(query, keep_blank_values=True))
    quoted = "&".join(f"{urllib.parse.quote(k, '~')}={urllib.parse.quote(v, '~')}" for k, v in pairs)
    to_sign = [("host", host), ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"), ("x-amz-date", now)]
    names = ";".join(name for name, _ in to_sign)
    canonical = "\n".join([method, path, quoted, *(f"{n}:{v}" for n, v in to_sign), "", names,
                           "UNSIGNED-PAYLOAD"])
    scope = f"{now[:8]}/{region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", now, scope,
                      hashlib.sha256(canonical.encode()).hexdigest()])
    key = ("AWS4" + secret).encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    return [(n.title(), v) for n, v in to_sign] + fields + [
        ("Authorization", f"AWS4-HMAC-SHA256 Credential={key_id}/{scope}, "
                          f"SignedHeaders={names}, Signature={signature}")]


class Connection:
    """One client's connection, and the one to the server that goes with it."""

    def __init__(self, proxy, reader, writer):
        self.proxy = proxy
        self.reader = reader
        self.writer = writer
        self.sock = writer.get_extra_info("socket")
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer.transport.set_write_buffer_limits(high=PIECE)
        self.up_reader = self.up_writer = None

    async def run(self):
        try:
            rule = self.proxy.pick("ACCEPT")
            if rule:
                rule.delivered += 1
                raise Reset
            while await self.one_request():
                pass
        except Close:
            pass
        except Reset:
            await self.reset()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, OSError,
                ValueError) as error:
            if not isinstance(error, asyncio.IncompleteReadError) or error.partial:
                self.proxy.errors += 1
            await self.reset()
        finally:
            for writer in (self.writer, self.up_writer):
                if writer:
                    writer.close()

    async def reset(self):
        # What was written before belongs to the fault: let it leave first, as far as it is read.
        self.writer.transport.set_write_buffer_limits(high=0)
        try:
            await asyncio.wait_for(self.writer.drain(), 1)
            for _ in range(100):
                queued = fcntl.ioctl(self.sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0")
                if queued == b"\0\0\0\0":
                    break
                await asyncio.sleep(0.01)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        except (OSError, ValueError, asyncio.TimeoutError):
            pass
        self.writer.transport.abort()

    async def one_request(self):
        try:
            request = await Head.read(self.reader)
        except asyncio.IncompleteReadError as error:
            if error.partial:
                raise
            return False
        proxy = self.proxy
        proxy.requests += 1
        method, target, _ = request.first.split(" ", 2)
        rule = proxy.pick(f"{method} {target}")
        entry = [proxy.requests, method, target, request.get("Range") or "-", 0,
                 rule.fault if rule else "-"]
        proxy.log.append(entry)
        if (request.get("Expect") or "").lower() == "100-continue":
            request.remove("Expect")
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if rule and await self.answer_instead(rule, request, method, entry):
            return True
        if not proxy.upstream:
            await self.swallow_body(request)
            await self.send_error(502, "NoUpstream", method, entry)
            return True
        reply = await self.ask_upstream(rule, request, method, target)
        return await self.pass_reply(rule, request, method, target, reply, entry)

    # Answers of our own.

    async def swallow_body(self, request):
        async for _ in body_of(self.reader, request):
            pass

    async def send(self, code, fields, body, method, entry):
        """body: bytes, or the number of bytes of filling"""
        length = body if isinstance(body, int) else len(body)
        head = Head(f"HTTP/1.1 {code} Injected", [])
        for name, value in fields:
            head.fields += [(name, v) for v in (value if isinstance(value, list) else [value])]
        if head.get("Content-Length") is None and code not in (204, 304):
            head.set("Content-Length", length)
        entry[4] = code
        self.writer.write(head.encode())
        if method != "HEAD":
            if isinstance(body, bytes):
                self.writer.write(body)
            else:
                while length:
                    self.writer.write(b"x" * min(length, PIECE))
                    length -= min(length, PIECE)
                    await self.writer.drain()
        await self.writer.drain()

    async def send_error(self, code, s3code, method, entry, fields=()):
        body = ('<?xml version="1.0" encoding="UTF-8"?>\n'
                f"<Error><Code>{s3code}</Code><Message>made by the fault proxy</Message>"
                f"<RequestId>proxy-{entry[0]}</RequestId></Error>").encode()
        fields = [("Content-Type", "application/xml"), *fields]
        await self.send(code, fields, body, method, entry)

    async def answer_instead(self, rule, request, method, entry):
        """True when the request is done with; False when the server is to be asked."""
        fault, get = rule.fault, rule.get
        if fault in ("hold", "delay", "interim"):
            rule.delivered += 1
            if fault == "hold":
                await self.proxy.wait_for_change(get("ms"))
            elif fault == "delay":
                await asyncio.sleep(get("ms", 0) / 1000)
            else:
                for _ in range(get("count", 1)):
                    self.writer.write(f"HTTP/1.1 {get('code', 102)} Interim\r\n\r\n".encode())
                    await self.writer.drain()
            return False
        if fault == "reset":
            rule.delivered += 1
            raise Reset
        if fault not in ("status", "html", "redirect", "raw", "swallow", "hang", "replay"):
            return False
        digest = hashlib.md5()
        async for piece in body_of(self.reader, request):
            digest.update(piece)
        rule.delivered += 1
        if fault == "hang":
            await self.proxy.wait_for_change(get("ms"))
            raise Reset
        if fault == "status":
            code, fields = get("code", 503), list(get("headers", {}).items())
            if get("body_bytes"):
                await self.send(code, fields, get("body_bytes"), method, entry)
            elif get("body") is not None:
                await self.send(code, fields, get("body").encode("latin-1"), method, entry)
            else:
                await self.send_error(code, get("s3code", "SlowDown"), method, entry, fields)
        elif fault == "html":
            page = b"<html><body><h1>Hotel network</h1>Please accept the terms.</body></html>"
            await self.send(200, [("Content-Type", "text/html")], page, method, entry)
        elif fault == "redirect":
            fields = [("Location", get("location", "/"))] if get("location") != "" else []
            await self.send(get("code", 307), fields, b"", method, entry)
        elif fault == "raw":
            self.writer.write(get("text", "").encode("latin-1"))
            await self.writer.drain()
            raise Close
        elif fault == "swallow":
            await self.send(200, [("ETag", f'"{digest.hexdigest()}"')], b"", method, entry)
        elif self.proxy.last_reply is None:
            rule.delivered -= 1
            await self.send_error(500, "InternalError", method, entry)
        else:
            head, body = self.proxy.last_reply
            self.writer.write(head + (b"" if method == "HEAD" else body))
            await self.writer.drain()
        return True

    # The way through the server.

    async def connect(self):
        if self.up_writer and not self.up_reader.at_eof() and not self.up_writer.is_closing():
            return
        if self.up_writer:
            self.up_writer.close()
        host, _, port = self.proxy.upstream.rpartition(":")
        self.up_reader, self.up_writer = await asyncio.open_connection(
            host, int(port), limit=HEAD_MAX)
        sock = self.up_writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def ask_upstream(self, rule, request, method, target):
        await self.connect()
        fault = rule.fault if rule else None
        if fault in ("whole", "swap"):
            rule.delivered += 1
            await self.swallow_body(request)
            fields = []
            if fault == "swap":
                target = rule.get("target", target)
                if request.get("Range"):
                    fields.append(("Range", request.get("Range")))
            request = Head(f"{method} {target} HTTP/1.1",
                           signed(method, request.get("Host"), target, fields))
        self.up_writer.write(request.encode())
        sent, limit = 0, rule.get("bytes", 0) if fault == "reset_upload" else None
        async for piece in body_of(self.reader, request):
            if limit is not None and sent + len(piece) > limit:
                self.up_writer.write(piece[:limit - sent])
                await self.up_writer.drain()
                rule.delivered += 1
                raise Reset
            sent += len(piece)
            if request.is_chunked():
                piece = b"%x\r\n%b\r\n" % (len(piece), piece)
            self.up_writer.write(piece)
            await self.up_writer.drain()
        if request.is_chunked():
            self.up_writer.write(b"0\r\n\r\n")
        await self.up_writer.drain()
        reply = await Head.read(self.up_reader)
        while reply.code < 200:
            reply = await Head.read(self.up_reader)
        return reply

    async def pass_reply(self, rule, request, method, target, reply, entry):
        fault = rule.fault if rule else None
        has_body = method != "HEAD" and reply.code not in (204, 304)
        length = reply.length() if has_body else 0
        closes = (reply.get("Connection") or "").lower() == "close"
        until_close = has_body and length is None and not reply.is_chunked()
        # How the body comes is what the server's own head says, whatever becomes of that head.
        pieces = body_of(self.up_reader, Head(reply.first, list(reply.fields)), True) \
            if has_body else None
        if fault == "lose_reply":
            if pieces:
                async for _ in pieces:
                    pass
            rule.delivered += 1
            raise Reset
        if fault == "reply_delay":
            rule.delivered += 1
            await asyncio.sleep(rule.get("ms", 0) / 1000)
        if fault == "longer" and has_body and rule.get("honest") and length is not None:
            reply.set("Content-Length", length + rule.get("bytes", 1))
        if rule and self.rewrite(rule, reply):
            rule.delivered += 1
        no_end = has_body and reply.get("Content-Length") is None and not reply.is_chunked()
        no_end = no_end or fault == "content_length" or \
            fault == "longer" and not rule.get("honest")
        entry[4] = reply.code
        self.writer.write(reply.encode())
        kept = [] if rule is None and method == "GET" and (length or REPLAY_MAX) < REPLAY_MAX \
            else None
        if pieces:
            if rule:
                pieces = self.spoil(rule, pieces, length)
            chunked = reply.is_chunked()
            async for piece in pieces:
                if kept is not None:
                    kept.append(piece)
                self.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                await self.writer.drain()
            if chunked:
                self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()
        if kept is not None:
            self.proxy.last_reply = reply.encode(), b"".join(kept)
        if fault == "close_after":
            rule.delivered += 1
            raise Close
        if no_end:
            raise Close
        return not closes

    def rewrite(self, rule, reply):
        """Alters the reply's head; True when it did."""
        fault, get = rule.fault, rule.get
        if fault == "rewrite":
            if get("code"):
                reply.code = get("code")
            for name in get("remove", []):
                reply.remove(name)
            for name, value in get("set", {}).items():
                reply.set(name, value)
            reply.fields += [tuple(pair) for pair in get("add", [])]
            return True
        if fault == "content_length":
            reply.remove("Content-Length")
            reply.remove("Transfer-Encoding")
            reply.fields += [("Content-Length", str(value)) for value in get("values", [])]
            return True
        if fault == "chunked" and reply.length() is not None:
            reply.remove("Content-Length")
            reply.set("Transfer-Encoding", "chunked")
            return True
        if reply.get("Content-Range") is None:
            return False
        if fault == "no_content_range":
            reply.remove("Content-Range")
            return True
        if fault == "wrong_range":
            found = re.match(r"(\w+) (\d+)-(\d+)/(\d+|\*)", reply.get("Content-Range"))
            unit, start, end, total = found.groups()
            if not set(rule.spec) & {"unit", "start", "end", "total"}:
                start, end = (int(n) + get("shift", 1) for n in (start, end))
            reply.set("Content-Range", f"{get('unit', unit)} {get('start', start)}-"
                                       f"{get('end', end)}/{get('total', total)}")
            return True
        return False

    async def spoil(self, rule, pieces, length):
        """The body's pieces, altered; raises where the connection ends."""
        fault, at = rule.fault, rule.get("bytes", 0)
        if at < 0:
            at += length or 0
        if fault == "flip":
            at, bit = rule.get("offset", "random"), rule.get("bit", "random")
            at = self.proxy.rng.randrange(length or 1) if at == "random" else at
            at = at + length if at < 0 else at
            bit = self.proxy.rng.randrange(8) if bit == "random" else bit
        done, start = 0, asyncio.get_running_loop().time()
        if fault == "rate":
            rule.delivered += 1
        async for piece in pieces:
            here = at - done
            inside = 0 <= here < len(piece)
            if fault in ("truncate", "reset_body") and inside:
                self.writer.write(piece[:here])
                await self.writer.drain()
                rule.delivered += 1
                raise Close if fault == "truncate" else Reset
            if fault == "stall" and inside:
                if here:
                    yield piece[:here]
                piece, done = piece[here:], done + here
                at = -1
                rule.delivered += 1
                await self.proxy.wait_for_change(rule.get("ms"))
            if fault == "flip" and inside:
                piece = piece[:here] + bytes([piece[here] ^ 1 << bit]) + piece[here + 1:]
                rule.delivered += 1
            if fault == "rate":
                step = max(1, min(len(piece), int(rule.get("bytes_per_s", 1000) / 20)))
                for i in range(0, len(piece), step):
                    yield piece[i:i + step]
                    due = (done + i + step) / rule.get("bytes_per_s", 1000)
                    late = due - (asyncio.get_running_loop().time() - start)
                    await asyncio.sleep(max(0, late))
            else:
                yield piece
            done += len(piece)
        if fault == "longer" and length is not None:
            rule.delivered += 1
            yield b"x" * rule.get("bytes", 1)


async def control(proxy, reader, writer):
    code, text = 200, "ok\n"
    try:
        request = await Head.read(reader)
        method, target, _ = request.first.split(" ", 2)
        if request.get("Expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b"".join([piece async for piece in body_of(reader, request)])
        name = target.removeprefix("/stats/")
        if target == "/rules" and method in ("PUT", "POST"):
            proxy.set_rules(json.loads(body), append=method == "POST")
        elif target == "/upstream" and method == "PUT":
            proxy.upstream = body.decode().strip()
        elif target == "/log" and method == "DELETE":
            proxy.log.clear()
            proxy.requests = 0
        elif target == "/log":
            text = "".join(" ".join(map(str, entry)) + "\n" for entry in proxy.log)
        elif target == "/stats":
            text = json.dumps(proxy.stats(), indent=1) + "\n"
        elif name != target and name in proxy.stats():
            text = f"{json.dumps(proxy.stats()[name])}\n"
        elif target == "/stop":
            asyncio.get_running_loop().call_later(0.01, asyncio.get_running_loop().stop)
        else:
            code, text = 404, "see --help\n"
    except (ValueError, AttributeError, re.error) as error:
        code, text = 400, f"{error}\n"
    except (ConnectionError, asyncio.IncompleteReadError):
        writer.close()
        return
    data = text.encode("utf-8", "replace")
    writer.write(f"HTTP/1.1 {code} Control\r\nContent-Length: {len(data)}\r\n"
                 "Connection: close\r\n\r\n".encode() + data)
    try:
        await writer.drain()
    except ConnectionError:
        pass
    writer.close()


async def serve(args, listener, control_listener, owner_fd):
    proxy = Proxy(args.upstream, args.seed)
    proxy.set_rules(json.loads(args.rules))
    loop = asyncio.get_running_loop()
    if owner_fd is not None:
        loop.add_reader(owner_fd, loop.stop)
    loop.add_signal_handler(signal.SIGTERM, loop.stop)
    proxy.servers = [
        await asyncio.start_server(proxy.serve, sock=listener, limit=HEAD_MAX, backlog=4096),
        await asyncio.start_server(lambda r, w: control(proxy, r, w), sock=control_listener,
                                   limit=HEAD_MAX)]
    return proxy


def command_serve(args):
    [Rule(spec) for spec in json.loads(args.rules)]  # a mistake is told before we detach
    listener = socket.create_server(("127.0.0.1", args.listen), backlog=4096)
    control_listener = socket.create_server(("127.0.0.1", args.control))
    owner_fd = os.pidfd_open(args.owner) if args.owner else None
    pid = os.getpid()
    if args.command == "start":
        pid = os.fork()
        if pid == 0:
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            # A test runner waits until its pipes are closed, so that none may be kept.
            keep = {listener.fileno(), control_listener.fileno(), owner_fd, null}
            for fd in map(int, os.listdir("/proc/self/fd")):
                if fd > 2 and fd not in keep:
                    try:
                        os.close(fd)
                    except OSError:
                        pass
            for fd in 0, 1, 2:
                os.dup2(null, fd)
    if pid != 0:
        print(f"export PROXY_URL=http://127.0.0.1:{listener.getsockname()[1]}")
        print(f"export PROXY_CONTROL=http://127.0.0.1:{control_listener.getsockname()[1]}")
        print(f"export PROXY_PID={pid}", flush=True)
        if args.command == "start":
            os._exit(0)
    loop = asyncio.new_event_loop()
    loop.run_until_complete(serve(args, listener, control_listener, owner_fd))
    try:
        loop.run_forever()
    except KeyboardInterrupt:
        pass
    os._exit(0)  # whatever is parked ends with us


def command_client(args):
    path, body, method = "/stats", None, "GET"
    if args.command == "rules":
        path, body, method = "/rules", args.argument.encode(), "PUT"
    elif args.command == "get":
        path = f"/stats/{args.argument}"
    elif args.command == "stop":
        path = "/stop"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(args.url + path, data=body, method=method)
    try:
        sys.stdout.write(opener.open(request, timeout=30).read().decode())
    except urllib.error.HTTPError as error:
        sys.exit(f"fault_proxy.py: {error.read().decode().strip()}")
    except OSError as error:
        sys.exit(f"fault_proxy.py: {args.url}: {error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in "start", "serve":
        sub = commands.add_parser(name)
        sub.add_argument("--upstream", default="", help="HOST:PORT or http://HOST:PORT")
        sub.add_argument("--owner", type=int)
        sub.add_argument("--listen", type=int, default=0)
        sub.add_argument("--control", type=int, default=0)
        sub.add_argument("--rules", default="[]")
        sub.add_argument("--seed", type=int, default=1)
    for name in "rules", "get", "stats", "stop":
        sub = commands.add_parser(name)
        sub.add_argument("url")
        if name in ("rules", "get"):
            sub.add_argument("argument")
    args = parser.parse_args()
    if args.command in ("start", "serve"):
        args.upstream = args.upstream.removeprefix("http://").rstrip("/")
        command_serve(args)
    else:
        command_client(args)


if __name__ == "__main__":
    main()
