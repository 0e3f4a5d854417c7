#!/usr/bin/env python3
"""Times of `kosmograph serve` on the bundled model: cargo build --release && bench/serve.py

Start to the first /object_info, memory when idle, submission to the first node behind cached ones, and what 10,000 waiting
jobs cost. Python 3 alone.
"""

import json
import os
import socket
import statistics
import struct
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PORT = 8297


def milliseconds(begin):
    return (time.monotonic() - begin) * 1e3


def ask(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    return urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data)).read()


def start(folder):
    begin = time.monotonic()
    command = [ROOT / "target/release/kosmograph", "serve", "--listen", f"127.0.0.1:{PORT}", "--no-frontend", "--models",
               ROOT / "models", "--state", folder / "state", "--out", folder / "out", "--input", folder / "in"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "KOSMOGRAPH_LOG": "warn"})
    while True:
        try:
            ask("/object_info")
            return server, milliseconds(begin)
        except OSError:
            time.sleep(0.002)


def resident(server):
    lines = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) >> 10 for line in lines if line.startswith("VmRSS"))


class Messages:
    """The texts of a websocket."""

    def __init__(self, client):
        self.stream = socket.create_connection(("127.0.0.1", PORT))
        self.stream.sendall((f"GET /ws?clientId={client} HTTP/1.1\r\nHost: 127.0.0.1:{PORT}\r\nUpgrade: websocket\r\nConnection: "
                             "Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n").encode())
        self.read = self.stream.makefile("rb")
        while self.read.readline().strip():
            pass

    def next(self):
        while True:
            kind, length = self.read.read(2)
            length &= 127
            if length > 125:
                length = struct.unpack(">H" if length == 126 else ">Q", self.read.read(2 if length == 126 else 8))[0]
            body = self.read.read(length)
            if kind & 15 == 1:
                return json.loads(body)


def first_node(messages, workflow):
    begin, first = time.monotonic(), None
    ask("/prompt", {"prompt": workflow, "client_id": "bench"})
    while True:
        message = messages.next()
        if message["type"] == "executing":
            if message["data"]["node"] is None:
                return first
            first = first or milliseconds(begin)


def jobs_a_second(folder, workflow):
    """The same seeds by the server and by a sweep of `run`, which has its start and its end in it."""
    count = 100
    begin = time.monotonic()
    ids = json.loads(ask("/prompt", {"prompt": workflow, "seed": f"5000..{5000 + count}"}))["prompt_ids"]
    while not json.loads(ask(f"/history/{ids[-1]}")):
        time.sleep(0.05)
    served = count / (time.monotonic() - begin)
    path = folder / "sweep.json"
    path.write_text(json.dumps(workflow))
    begin = time.monotonic()
    subprocess.run([ROOT / "target/release/kosmograph", "run", path, "--quiet", "--seed", f"6000..{6000 + count}", "--models",
                    ROOT / "models", "--out", folder / "sweep"], check=True, stdout=subprocess.DEVNULL)
    swept = count / (time.monotonic() - begin)
    print(f"jobs a second: {served:.1f}, a sweep's {swept:.1f}: {served / swept:.2f}")


def main():
    workflow = json.loads((ROOT / "workflows/text.json").read_text())
    sampler = next(node["inputs"] for node in workflow.values() if "steps" in node["inputs"])
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "in").mkdir()
        starts = []
        for _ in range(7):
            server, took = start(folder)
            starts.append(took)
            server.terminate()
            server.wait()
        server, _ = start(folder)
        time.sleep(1)
        print(f"start to the first /object_info: median {statistics.median(starts):.0f} ms, most {max(starts):.0f}")
        print(f"idle: {resident(server)} MiB")
        messages, took = Messages("bench"), []
        sampler["steps"] = 2
        for seed in range(40):
            sampler["seed"] = seed
            took.append(first_node(messages, workflow))
        print(f"submission to the first node behind cached ones: median {statistics.median(took[4:]):.1f} ms, most {max(took[4:]):.1f}")
        jobs_a_second(folder, workflow)
        sampler["steps"] = 1000
        ask("/prompt", {"prompt": workflow})
        sampler["steps"] = 2
        for thousand in range(10):
            ask("/prompt", {"prompt": workflow, "seed": f"{thousand * 1000}..{thousand * 1000 + 999}"})
        for path in ["/queue", "/api/jobs?status=in_progress,pending&limit=200"]:
            begin = time.monotonic()
            size = len(ask(path))
            print(f"10,000 waiting, {path}: {milliseconds(begin):.0f} ms, {size >> 10} KiB")
        begin = time.monotonic()
        ask("/prompt", {"prompt": workflow, "number": -5})
        print(f"10,000 waiting, one more in front: {milliseconds(begin):.0f} ms; {resident(server)} MiB")
        server.kill()
        server.wait()
        server, took = start(folder)
        print(f"10,000 waiting, start: {took:.0f} ms")
        server.kill()
        server.wait()


main()
