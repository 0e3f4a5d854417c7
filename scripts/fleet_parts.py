"""What scripts/fleet-faults and bench/queues.py set up around a fleet: engines, a stand-in of S3, a receiver of webhooks, networks."""

import atexit
import base64
import hashlib
import hmac
import http.server
import importlib.machinery
import importlib.util
import json
import os
import pwd
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
import xml.etree.ElementTree
from pathlib import Path

loader = importlib.machinery.SourceFileLoader("faults", str(Path(__file__).with_name("serve-faults")))
faults = importlib.util.module_from_spec(importlib.util.spec_from_loader("faults", loader))
sys.dont_write_bytecode = True
loader.exec_module(faults)

LEASE = 2
STARTED = []
FAKETIME = next(iter(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")), None)
PATIENCE = 120


def end_all():
    """Whatever happens, nothing stays behind."""
    for process in STARTED:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()


atexit.register(end_all)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(what, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.05)
    return False


class Folder:
    """Where pictures go: a folder that all see."""

    def __init__(self, folder):
        self.address, self.environment = folder / "store", {}

    def all(self):
        """The names of what there is, and whether each picture is whole."""
        output = self.address / "output"
        return {str(path.relative_to(output)): faults.is_whole(path) for path in output.rglob("*.png")}

    def stop(self):
        pass


class Bucket:
    """Where pictures go: a bucket of a stand-in of S3."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.address = "s3://pictures/fleet"
        self.environment = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": self.url}
        log = open(folder / "moto.log", "ab")
        self.process = subprocess.Popen(["moto_server", "-H", "127.0.0.1", "-p", str(self.port)], stdout=log, stderr=log)
        STARTED.append(self.process)

        def is_there():
            try:
                return self.ask("", method="PUT") is not None
            except OSError:
                return False
        if not wait_for(is_there, 60):
            sys.exit("moto_server does not start")

    def ask(self, path, method="GET"):
        # The stand-in looks whether a request is signed, and not how.
        signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"}
        request = urllib.request.Request(f"{self.url}/pictures{path}", method=method, headers=signed)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def all(self):
        there, token = {}, ""
        while token is not None:
            page = xml.etree.ElementTree.fromstring(self.ask(f"?list-type=2&prefix=fleet/output/{token}"))
            space = page.tag.partition("}")[0] + "}"
            for key in page.iter(f"{space}Key"):
                path = self.folder / "picture.png"
                path.write_bytes(self.ask("/" + urllib.parse.quote(key.text)))
                there[key.text.removeprefix("fleet/output/")] = faults.is_whole(path)
            more = page.findtext(f"{space}NextContinuationToken")
            token = more and "&continuation-token=" + urllib.parse.quote(more)
        return there

    def stop(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()


class Receiver(http.server.ThreadingHTTPServer):
    """Takes webhooks as a bad day would have it."""

    secret = b"a secret of more than twenty-four signs"

    def __init__(self, chance):
        super().__init__(("127.0.0.1", 0), self.handler())
        self.chance, self.told, self.wrong, self.tries, self.calm, self.lock = chance, {}, [], 0, False, threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):
        pass

    def take(self, headers, body):
        """The status that is answered; None for no answer at all."""
        with self.lock:
            self.tries += 1
            chance = 1.0 if self.calm else self.chance.random()
            message = json.loads(body)
            signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
            right = "v1," + base64.b64encode(hmac.new(self.secret, signed, hashlib.sha256).digest()).decode()
            if headers["webhook-signature"] != right:
                self.wrong.append(f"{headers['webhook-id']}: its signature is not right")
            job = message["data"]["job_id"]
            first = self.told.setdefault(job, (headers["webhook-id"], message))
            if first != (headers["webhook-id"], message):
                self.wrong.append(f"{job}: its end is told in two ways")
            return 500 if chance < 0.1 else None if chance < 0.2 else 307 if chance < 0.25 else 204

    @staticmethod
    def handler():
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                status = self.server.take(self.headers, self.rfile.read(int(self.headers["content-length"])))
                if status is None:
                    self.close_connection = True
                    return
                self.send_response(status)
                self.send_header("location", "/elsewhere")
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass
        return Handler


def unprivileged(folder):
    """How to start an engine that refuses to be root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


class Postgres:
    name = "postgres"

    def __init__(self, folder, host="127.0.0.1"):
        self.host = host
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or [Path(shutil.which("initdb") or "initdb")]
        self.bin, self.folder, self.port = found[-1].parent, folder, free_port()
        self.as_nobody = unprivileged(folder)
        self.run("initdb", "-D", folder / "data", "-U", "kosmograph", "-A", "trust", "-E", "UTF8")
        with open(folder / "data/pg_hba.conf", "a", encoding="utf-8") as access:
            access.write("host all all 10.87.0.0/16 trust\n")
        self.process = None
        self.start()

    def run(self, program, *arguments):
        subprocess.run([self.bin / program, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                       cwd=self.folder, **self.as_nobody)

    def start(self):
        command = [self.bin / "postgres", "-D", self.folder / "data", "-p", str(self.port), "-k", self.folder,
                   "-c", f"listen_addresses={self.host}"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder, **self.as_nobody)
        STARTED.append(self.process)

        def is_there():
            ready = subprocess.run([self.bin / "pg_isready", "-q", "-h", self.host, "-p", str(self.port)], check=False)
            return ready.returncode == 0
        if not wait_for(is_there):
            sys.exit("PostgreSQL does not start")

    def kill(self):
        # The first process alone: it is what makes the others end. SIGQUIT is its "immediate": no word is written any more.
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait()

    def stop(self):
        self.kill()

    def address(self, port, host="127.0.0.1"):
        return f"postgres://kosmograph@{host}:{port}/postgres"


class Redis:
    name = "redis"

    def __init__(self, folder, host="127.0.0.1", durable=True):
        self.host = host
        self.program = shutil.which("redis-server") or shutil.which("valkey-server")
        if self.program is None:
            sys.exit("redis-server (or valkey-server) is not installed")
        self.folder, self.port, self.durable = folder, free_port(), durable
        self.as_nobody = unprivileged(folder)
        self.start()

    def start(self):
        files = ["--appendonly", "yes", "--appendfsync", "always"] if self.durable else ["--appendonly", "no"]
        command = [self.program, "--port", str(self.port), "--bind", self.host, "--protected-mode", "no", "--dir", self.folder, "--save", "", *files]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **self.as_nobody)
        STARTED.append(self.process)

        def is_there():
            try:
                with socket.create_connection((self.host, self.port), timeout=1) as redis:
                    redis.sendall(b"PING\r\n")
                    return redis.recv(16).startswith(b"+PONG")
            except OSError:
                return False
        if not wait_for(is_there):
            sys.exit("Redis does not start")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        self.kill()

    def address(self, port, host="127.0.0.1"):
        return f"redis://{host}:{port}/"


class Proxy:
    """Hands bytes on, until it is cut: then it does so no more, and tells nobody."""

    def __init__(self, target, host="127.0.0.1"):
        self.target, self.host, self.cut, self.listener = target, host, False, socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.carry, args=(client,), daemon=True).start()

    def carry(self, client):
        try:
            server = socket.create_connection((self.host, self.target))
        except OSError:
            client.close()
            return
        pair = {client: server, server: client}
        try:
            while True:
                while self.cut:
                    time.sleep(0.02)
                ready, _, _ = select.select(list(pair), [], [], 0.02)
                if self.cut:
                    continue
                for one in ready:
                    data = one.recv(65536)
                    if not data:
                        return
                    pair[one].sendall(data)
        except OSError:
            pass
        finally:
            client.close()
            server.close()


class Network:
    """Networks of their own, one for each worker, and a bridge between them that the engine listens at."""

    HOST = "10.87.0.1"

    def __init__(self):
        self.count = 0
        atexit.register(self.end)
        self.end()
        self.ip("link add kosmograph0 type bridge")
        self.ip(f"addr add {self.HOST}/16 dev kosmograph0")
        self.ip("link set kosmograph0 up")

    @staticmethod
    def ip(words, check=True):
        subprocess.run(["ip", *words.split()], check=check, stdout=subprocess.DEVNULL, stderr=None if check else subprocess.DEVNULL)

    def add(self, number):
        name = f"kosmograph{number}"
        self.ip(f"netns add {name}")
        self.ip(f"link add kw{number} type veth peer name eth0 netns {name}")
        self.ip(f"link set kw{number} master kosmograph0 up")
        self.ip(f"-n {name} addr add 10.87.1.{number + 1}/16 dev eth0")
        self.ip(f"-n {name} link set eth0 up")
        self.ip(f"-n {name} link set lo up")
        self.count = max(self.count, number + 1)

    def inside(self, number):
        return ["ip", "netns", "exec", f"kosmograph{number}"]

    def cut(self, number, is_cut):
        self.ip(f"link set kw{number} {'down' if is_cut else 'up'}")

    def end(self):
        for number in range(8):
            self.ip(f"netns del kosmograph{number}", check=False)
            self.ip(f"link del kw{number}", check=False)
        self.ip("link del kosmograph0", check=False)
