"""Runs the program once, in bounded time and memory, and says how it ended and what it left."""

import collections
import os
import random
import shutil
import signal
import subprocess
import threading
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MARK = "KG_ATTACK_MARK"
# Address space of each process, in KiB: what is asked for without being there fails instead of being taken.
MEMORY = 6_000_000
# A run that takes longer is interrupted, which must work within STOP; what does not end then hangs.
PATIENCE, STOP, LAST = 8.0, 2.0, 12.0


@dataclass
class Ended:
    command: list
    code: int  # negative: the signal
    stdout: bytes
    stderr: bytes
    seconds: float
    stopped_in: float | None = None  # how long it took to end after it was asked to
    hangs: bool = False
    orphans: list = field(default_factory=list)
    began: float = 0.0  # on the monotonic clock


@dataclass
class Setting:
    program: Path
    seed: int
    root: Path
    # How often the runs of a kind ended with which code.
    codes: collections.Counter = field(default_factory=collections.Counter)

    def random(self, kind, number):
        return random.Random(f"{self.seed}/{kind}/{number}")

    def folder(self, kind, number):
        return self.root / f"{kind}-{number}"

    def fresh(self, kind, number):
        folder = self.folder(kind, number)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder


def processes(mark):
    """The processes that have the mark in their environment; a zombie has none."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if wanted in Path("/proc", entry, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
            except OSError:
                pass
    return found


def catches(process, number):
    """Whether the process has a handler for the signal; None when it is gone."""
    try:
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    except OSError:
        pass
    return None


def send(process, number):
    try:
        os.kill(process, number)
    except ProcessLookupError:
        pass


def run(setting, arguments, folder, *, patience=PATIENCE, memory=MEMORY, limits="", during=None, stdout=None,
        stderr=None, environment=None):
    """`during(popen, mark)` runs once the program has started. `limits` are further words of the shell's, before exec."""
    mark = uuid.uuid4().hex
    variables = {k: v for k, v in os.environ.items() if not k.startswith(("KOSMOGRAPH_", "RUST_", "RAYON_"))}
    (folder / "temp").mkdir(exist_ok=True)
    cache = setting.root / "cache"
    variables.update({MARK: mark, "TMPDIR": str(folder / "temp"), "XDG_CACHE_HOME": str(cache), **(environment or {})})
    command = [str(setting.program), *map(str, arguments)]
    shell = f"ulimit -c 0; ulimit -v {memory}; {limits} exec \"$@\"" if memory else f"ulimit -c 0; {limits} exec \"$@\""
    out_path, error_path = folder / "stdout", folder / "stderr"
    begin = time.monotonic()
    with open(out_path, "wb") as out, open(error_path, "wb") as error:
        child = subprocess.Popen(["sh", "-c", shell, "sh", *command], cwd=folder, env=variables,
                                 stdin=subprocess.DEVNULL, stdout=out if stdout is None else stdout,
                                 stderr=error if stderr is None else stderr, start_new_session=True)
        ended = Ended(command, 0, b"", b"", 0.0, began=begin)
        # Processes that the child leaves behind are found by the mark; the child itself is reaped here.
        helper = threading.Thread(target=during, args=(child, mark, ended)) if during else None
        if helper:
            helper.start()
        try:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            asked = time.monotonic()
            send(child.pid, signal.SIGINT)
            try:
                child.wait(LAST)
                ended.stopped_in = time.monotonic() - asked
            except subprocess.TimeoutExpired:
                ended.hangs = True
                child.kill()
                child.wait()
        if helper:
            helper.join()
    ended.code, ended.seconds = child.returncode, time.monotonic() - begin
    deadline = time.monotonic() + 2
    while (left := processes(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    ended.orphans = left
    for process in left:
        send(process, signal.SIGKILL)
    ended.stdout, ended.stderr = out_path.read_bytes(), error_path.read_bytes()
    setting.codes[folder.name.rsplit("-", 1)[0], ended.code] += 1
    return ended


class Kind:
    """A kind of attack. `run` makes case number `number` and returns what is wrong: (category, sentence)."""

    name = ""
    alone = False

    def count(self, setting):
        raise NotImplementedError

    def missing(self, setting):
        """Why it cannot be run here, or None."""
        return None

    def run(self, setting, number):
        folder = setting.fresh(self.name, number)
        findings = self.attack(setting, number, setting.random(self.name, number), folder)
        if not findings:
            shutil.rmtree(folder, ignore_errors=True)
        return findings

    def attack(self, setting, number, rng, folder):
        raise NotImplementedError
