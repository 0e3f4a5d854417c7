#!/usr/bin/env python3
"""What the three queues cost, end to end: one server, one worker, jobs of two small nodes.

    cargo build --release --workspace && bench/queues.py

Engines are started in folders of their own (PostgreSQL as it is set up by itself, Redis with an append-only file that is synced
at every write). For each: what submitting takes, one after the other; how many jobs a second are done when 300 wait; and, one job at
a time on an idle worker, from submitting to hearing of its end on a socket.
"""

import importlib.machinery
import importlib.util
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

sys.dont_write_bytecode = True
path = Path(__file__).resolve().parent.parent / "scripts/fleet-faults"
loader = importlib.machinery.SourceFileLoader("fleet", str(path))
fleet = importlib.util.module_from_spec(importlib.util.spec_from_loader("fleet", loader))
loader.exec_module(fleet)

JOBS, SINGLE = 300, 60


class Alone:
    """As a fleet is to its processes."""

    def __init__(self, folder, engine):
        self.folder, self.engine, self.wrong, self.receiver, self.store = folder, engine, [], None, fleet.Folder(folder)


class Own(fleet.Process):
    """A server with its own queue and worker."""

    def __init__(self, alone):
        own = fleet.free_port()
        self.address, self.fleet, self.name = f"http://127.0.0.1:{own}", alone, "sqlite"
        command = [fleet.faults.PROGRAM, "serve", "--listen", f"127.0.0.1:{own}", "--no-frontend", "--models", fleet.faults.ROOT / "models",
                   "--state", alone.folder / "state", "--store", alone.folder / "store"]
        self.process = fleet.subprocess.Popen(command, stderr=fleet.subprocess.DEVNULL)
        fleet.wait_for(self.is_there)

    is_there, ask = fleet.Server.is_there, fleet.Server.ask


def measure(server):
    graph = lambda number: fleet.faults.picture(number, "q")
    listener = fleet.Listener(server, "bench")
    first = server.ask("/prompt", {"prompt": graph(0), "client_id": "bench"})["prompt_id"]
    fleet.wait_for(lambda: first in listener.ends)
    single = []
    for number in range(1, SINGLE + 1):
        begun = time.perf_counter()
        job = server.ask("/prompt", {"prompt": graph(number), "client_id": "bench"})["prompt_id"]
        while job not in listener.ends:
            time.sleep(0.0005)
        single.append(time.perf_counter() - begun)
    submits, begun = [], time.perf_counter()
    jobs = []
    for number in range(JOBS):
        before = time.perf_counter()
        jobs.append(server.ask("/prompt", {"prompt": graph(1000 + number), "client_id": "bench"})["prompt_id"])
        submits.append(time.perf_counter() - before)
    fleet.wait_for(lambda: all(job in listener.ends for job in jobs), 120)
    took = time.perf_counter() - begun
    ms = lambda values, part: 1e3 * sorted(values)[int((len(values) - 1) * part)]
    return (f"{1e3 * statistics.median(submits):.1f} ms, {ms(submits, 0.95):.1f}", f"{JOBS / took:.0f}",
            f"{1e3 * statistics.median(single):.1f} ms, {ms(single, 0.95):.1f}")


print(f"{date.today()}\n\n| queue | submitting: median, 95 % | jobs a second | submitted to told: median, 95 % |\n|---|---|---:|---|", flush=True)
for made in [None, fleet.Postgres, fleet.Redis]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        folder = Path(folder)
        folder.chmod(0o755)
        if made is None:
            server = Own(Alone(folder, None))
            figures, name = measure(server), "SQLite, in the server"
            server.process.terminate()
            server.process.wait()
        else:
            (folder / "engine").mkdir()
            engine = made(folder / "engine")
            alone = Alone(folder, engine)
            server = fleet.Server(alone, "server", engine.port)
            worker = fleet.Process(alone, "worker", engine.port, "worker")
            figures, name = measure(server), made.__name__
            worker.end()
            server.end()
            engine.stop()
    print("| " + " | ".join([name, *figures]) + " |", flush=True)
