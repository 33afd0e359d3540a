"""The servers of the benchmark: radosgw for writing; before it, for reads, an nginx whose cache holds
everything; and a line with latency before that. What is measured against radosgw alone is radosgw,
which takes most of two cores.

The cache is of slices of 1 MiB, so that whoever asked first, and for which ranges, gives nobody an
advantage. The bucket may be read by everybody: a request that the cache passes on is another one than
was signed. Its files lie in memory, so that dropping the page cache does not drop the server's.
"""
import concurrent.futures
import datetime
import hashlib
import hmac
import http.client
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import xml.etree.ElementTree

from bench_lib import Unavailable, die_with_parent, program, progress, run, lib

PUT_THREADS = 8
FILES_PREFIX = "files"  # of the small files as objects
CONFIG = """
%(user)s
daemon off;
master_process off;
pid %(dir)s/pid;
error_log %(dir)s/error.log;
events { worker_connections 4096; }
http {
	access_log off;
	sendfile on;
	tcp_nopush on;
	keepalive_requests 100000000;
	keepalive_timeout 3600s;
	client_body_temp_path %(dir)s/body;
	proxy_temp_path %(dir)s/proxy;
	fastcgi_temp_path %(dir)s/fastcgi;
	uwsgi_temp_path %(dir)s/uwsgi;
	scgi_temp_path %(dir)s/scgi;
	proxy_cache_path %(dir)s/cache levels=1:2 keys_zone=all:64m max_size=64g inactive=1d
		use_temp_path=off;
	# What asks for more than an object's bytes.
	map $request_method$is_args$uri $is_other { default 1; ~^GET/[^/]+/. 0; }
	upstream store { server 127.0.0.1:%(upstream)d; keepalive 64; }
	proxy_http_version 1.1;
	proxy_cache all;
	proxy_cache_methods GET HEAD;
	proxy_cache_convert_head off;
	proxy_cache_valid 200 206 1d;
	proxy_ignore_headers Cache-Control Expires Vary Set-Cookie;
	server {
		listen 127.0.0.1:%(port)d backlog=4096;
		location / {
			error_page 418 = @other;
			if ($is_other) { return 418; }
			slice 1m;
			proxy_set_header Connection "";
			proxy_set_header Authorization "";
			proxy_set_header Host $http_host;
			proxy_set_header Range $slice_range;
			proxy_cache_key $request_method$uri$slice_range;
			proxy_pass http://store;
		}
		location @other {
			proxy_set_header Connection "";
			proxy_set_header Authorization "";
			proxy_set_header Host $http_host;
			proxy_cache_key $request_method$request_uri;
			proxy_pass http://store;
		}
	}
}
"""


def sign(store, method, path, query, body, now):
    """Headers of AWS Signature Version 4."""
    host = urllib.parse.urlsplit(store.env["AWS_ENDPOINT_URL"]).netloc
    stamp, digest = now.strftime("%Y%m%dT%H%M%SZ"), hashlib.sha256(body).hexdigest()
    headers = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": stamp}
    names = ";".join(headers)
    canonical = "\n".join([method, urllib.parse.quote(path), query,
                           *(f"{key}:{value}" for key, value in headers.items()), "", names, digest])
    scope = f"{stamp[:8]}/{store.env['AWS_REGION']}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope,
                      hashlib.sha256(canonical.encode()).hexdigest()])
    key = ("AWS4" + store.env["AWS_SECRET_ACCESS_KEY"]).encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={store.env['AWS_ACCESS_KEY_ID']}/{scope}, "
        f"SignedHeaders={names}, Signature={key.hex()}")
    return headers


def request(store, connection, method, path, query="", body=b""):
    now = datetime.datetime.now(datetime.timezone.utc)
    connection.request(method, urllib.parse.quote(path) + ("?" + query if query else ""), body,
                       sign(store, method, path, query, body, now))
    answer = connection.getresponse()
    data = answer.read()
    lib.check(answer.status < 300, f"{method} {path}: {answer.status} {data[:300]!r}")
    return data


class Servers:
    def __init__(self, box, latency_ms):
        if not shutil.which("nginx"):
            raise Unavailable("nginx is not installed (scripts/setup.sh --bench)")
        try:
            self.store = lib.S3(box)
        except lib.Skip as skip:
            raise Unavailable(str(skip)) from None
        self.box = box
        self.bucket = self.store.bucket
        self.netloc = urllib.parse.urlsplit(self.store.env["AWS_ENDPOINT_URL"]).netloc
        self.let_everybody_read()
        self.write_port = int(self.netloc.rsplit(":", 1)[1])
        self.port = self.start_cache()
        # One connection's end of the line must not be that of the others: one proxy for all.
        self.delays = []
        self.delay_port = self.start_delay(self.port, latency_ms)
        self.write_delay_port = self.start_delay(self.write_port, latency_ms)

    def connect(self):
        return http.client.HTTPConnection(self.netloc, timeout=60)

    def let_everybody_read(self):
        policy = {"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"],
            "Resource": [f"arn:aws:s3:::{self.bucket}", f"arn:aws:s3:::{self.bucket}/*"]}]}
        request(self.store, self.connect(), "PUT", f"/{self.bucket}", "policy=",
                json.dumps(policy).encode())

    def start_cache(self):
        base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        place = tempfile.mkdtemp(prefix="dsfs-bench-nginx.", dir=base)
        self.end_cache = self.box.at_end(lambda: shutil.rmtree(place, ignore_errors=True))
        port = free_port()
        config = os.path.join(place, "nginx.conf")
        with open(config, "w", encoding="ascii") as file:
            file.write(CONFIG % {"dir": place, "port": port,
                                 "user": "user root;" if os.geteuid() == 0 else "",
                                 "upstream": self.write_port})
        self.cache = self.box.start_program(["nginx", "-c", config, "-e", place + "/error.log"])
        self.box.wait(lambda: answers(port) or self.cache.poll() is not None, "nginx")
        lib.check(self.cache.poll() is None, "nginx does not start")
        return port

    def start_delay(self, port, latency_ms):
        process = self.box.start_program([program("bench_delay"), str(port), str(latency_ms)],
                                         stdout=subprocess.PIPE, text=True)
        self.delays.append(process)
        return int(process.stdout.readline())

    def end(self):
        for process in (*self.delays, self.cache):
            self.box.end(process)
        self.end_cache()
        self.store.end()

    def env(self, delayed=False):
        """What leads a reader to the cache, or through the line before it."""
        port = self.delay_port if delayed else self.port
        return {**self.store.env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}

    def write_env(self, delayed=False):
        """What leads a writer to the store itself, or through a line before it."""
        port = self.write_delay_port if delayed else self.write_port
        return {**self.store.env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}

    def url(self, key, delayed=False):
        return f"{self.env(delayed)['AWS_ENDPOINT_URL']}/{self.bucket}/{urllib.parse.quote(key)}"

    def objects(self, prefix):
        """[(key, size)] of all keys below a prefix."""
        found, query = [], f"list-type=2&prefix={urllib.parse.quote(prefix, safe='')}"
        connection, more = self.connect(), ""
        while more is not None:
            connection.request("GET", f"/{self.bucket}?{query}{more}")
            tree = xml.etree.ElementTree.fromstring(connection.getresponse().read())
            space = tree.tag[:tree.tag.index("}") + 1]
            found += [(item.findtext(space + "Key"), int(item.findtext(space + "Size")))
                      for item in tree.iter(space + "Contents")]
            token = tree.findtext(space + "NextContinuationToken")
            more = token and f"&continuation-token={urllib.parse.quote(token, safe='')}"
        return found

    def list_file(self, objects, delayed=False):
        path = self.box.path(f"objects-{self.box.number()}")
        with open(path, "w", encoding="ascii") as file:
            for key, size in objects:
                if size:
                    file.write(f"{size} 0 {self.url(key, delayed)}\n")
        return path

    def warm(self, prefix):
        """Everything below a prefix into the cache; returns its objects."""
        objects = self.objects(prefix)
        listed = self.list_file(objects)
        progress(f"warming the server's cache: {prefix}: {len(objects)} objects ...")
        run([program("bench_receive"), "-c", "8", listed, "/dev/null"])
        return objects

    def commit(self, source, name):
        url = self.store.url(name)
        progress(f"committing {name} ...")
        self.box.commit(source, url, "--init", "--state-dir", "", env=self.store.env, timeout=1800)
        return url

    def put_files(self, root, rows, prefix):
        """The files themselves as objects, as the peers want them."""
        def put(some):
            connection = self.connect()
            for _, _, path in some:
                with open(os.path.join(root, path), "rb") as file:
                    request(self.store, connection, "PUT", f"/{self.bucket}/{prefix}/{path}",
                            body=file.read())
        progress(f"putting {len(rows)} objects ...")
        with concurrent.futures.ThreadPoolExecutor(PUT_THREADS) as pool:
            list(pool.map(put, [rows[i::PUT_THREADS] for i in range(PUT_THREADS)]))


def free_port():
    import socket
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


def answers(port):
    try:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/")
        connection.getresponse().read()
        return True
    except OSError:
        time.sleep(0.02)
        return False
