"""The program as a process that is kept: the catalogue is read once, models stay loaded between jobs."""

from __future__ import annotations

import atexit
import io
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
import weakref
from collections import deque
from pathlib import Path
from typing import IO, Any, Iterable, Mapping, Union

from . import _memory
from ._errors import KosmographError
from ._graph import Graph
from ._job import Job, Result
from ._program import program

Workflow = Union[str, "os.PathLike[str]", Mapping[str, Any], Graph]

#: How many jobs the process is given at once. It runs one; the others wait here, where they cost no descriptors.
AHEAD = 2


class _Running:
    """The process, and the jobs that it was given."""

    def __init__(self, command: list[str]) -> None:
        # A session of its own: Ctrl-C is Python's to hear, which cancels. Unbuffered: a fork could hold a buffer's lock.
        self.popen = subprocess.Popen(
            command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        self.jobs: dict[str, Job] = {}
        self.last_words: list[bytes] = []

    def write(self, line: Mapping[str, Any]) -> None:
        """Raises OSError where the process is gone."""
        left = memoryview(json.dumps(line).encode() + b"\n")
        pipe: IO[bytes] | None = self.popen.stdin
        while left:
            if pipe is None or pipe.closed:
                raise BrokenPipeError
            left = left[pipe.write(left) :]

    def close_pipes(self) -> None:
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                pipe.close()


class Session:
    """One process. Any thread may submit; jobs run one after the other. A process that was forked starts its own.

    models, input, plugins, python_nodes: folders, as the options of the same names. out: where pictures are written, a
    folder of the session's own where it is None, which goes with it. options: further options of `kosmograph jobs`.
    """

    def __init__(
        self,
        *,
        models: Iterable[str | os.PathLike[str]] | str | os.PathLike[str] = (),
        input: str | os.PathLike[str] | None = None,
        out: str | os.PathLike[str] | None = None,
        plugins: Iterable[str | os.PathLike[str]] | str | os.PathLike[str] = (),
        python_nodes: Iterable[str | os.PathLike[str]] | str | os.PathLike[str] = (),
        options: Iterable[str] = (),
    ) -> None:
        self._places: list[str] = []
        for option, paths in (("--models", models), ("--plugins", plugins), ("--python-nodes", python_nodes)):
            for path in [paths] if isinstance(paths, (str, os.PathLike)) else paths:
                self._places += [option, os.fspath(path)]
        if input is not None:
            self._places += ["--input", os.fspath(input)]
        self._options = list(options)
        self._out = out
        self._own: str | None = None
        self._lock = threading.RLock()
        self._running: _Running | None = None
        self._waiting: deque[tuple[Job, dict[str, Any], dict[str, _memory.Given]]] = deque()
        self._numbers = itertools.count(1)
        self._catalogue: dict[str, Any] | None = None
        _sessions.add(self)

    # ---- what it is for ----

    def submit(
        self,
        workflow: Workflow,
        *,
        inputs: Mapping[str, Any] | None = None,
        sets: Mapping[str, Any] | None = None,
        seed: int | None = None,
    ) -> Job:
        """Hands a job over and returns at once.

        workflow: a path, a dict of either format, or a Graph. sets: by NODE.INPUT its value, as --set. inputs: pictures, of
        numpy, torch or Pillow: by NODE, which need not load its own then, or by NODE.INPUT. [H, W, C] or [B, H, W, C], uint8 or
        floats from 0 to 1; a mask [H, W] or [B, H, W]. They are copied now.
        """
        line: dict[str, Any] = {"workflow": _workflow(workflow)}
        if isinstance(workflow, (str, os.PathLike)):
            line["folder"] = str(Path(workflow).absolute().parent)
        line["set"] = [_set(*item) for item in (sets or {}).items()]
        if seed is not None:
            line["seed"] = int(seed)
        pictures = {place: _memory.given(place, value) for place, value in (inputs or {}).items()}
        if pictures and not _memory.there_is():
            raise KosmographError("pictures are given in memory on Linux alone; elsewhere sets can name their files")
        with self._lock:
            number = line["id"] = "job %d" % next(self._numbers)
            job = Job(number, lambda: self._cancel(number))
            self._waiting.append((job, line, pictures))
            self._feed()
        return job

    def run(
        self,
        workflow: Workflow,
        *,
        inputs: Mapping[str, Any] | None = None,
        sets: Mapping[str, Any] | None = None,
        seed: int | None = None,
        progress: bool = False,
        timeout: float | None = None,
    ) -> Result:
        """Runs a job to its end, see `submit`. progress: a bar for each node that reports steps (tqdm). What interrupts the
        wait, Ctrl-C or the timeout, cancels the job."""
        job = self.submit(workflow, inputs=inputs, sets=sets, seed=seed)
        try:
            if progress:
                from ._bars import show

                show(job)
            return job.result(timeout)
        finally:
            if not job.done():
                job.cancel()

    def catalogue(self) -> dict[str, Any]:
        """Every class, as ComfyUI's object_info."""
        if self._catalogue is None:
            command = [program(), "nodes", "--json", *self._places]
            said = subprocess.run(command, capture_output=True, check=False)
            if said.returncode != 0:
                raise KosmographError(said.stderr.decode("utf-8", "replace").strip())
            self._catalogue = json.loads(said.stdout)
        return self._catalogue

    def close(self) -> None:
        """Ends the process, and what it is at. The session can be used again."""
        with self._lock:
            running, self._running = self._running, None
            own, self._own = self._own, None
            while self._waiting:
                self._waiting.popleft()[0]._end(None, "the session was closed before the job began")
        if running is not None:
            if running.popen.stdin:
                running.popen.stdin.close()
            try:
                running.popen.wait(3)
            except subprocess.TimeoutExpired:
                running.popen.kill()
                running.popen.wait()
        if own is not None:
            shutil.rmtree(own, ignore_errors=True)

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the process; with the lock ----

    def _feed(self) -> None:
        """Gives the process what it can take. Raises what starting it does, and the first job that waits is none then."""
        while self._waiting:
            if self._running is None or self._running.popen.poll() is not None:
                try:
                    self._start()
                except BaseException:
                    self._waiting.popleft()
                    raise
            running = self._running
            if running is None or len(running.jobs) >= AHEAD:
                return
            job, line, pictures = self._waiting.popleft()
            try:
                if _memory.there_is():
                    job._memory = _memory.Memory()
                    line["memory"] = job._memory.path
                    line["inputs"] = {place: job._memory.add(picture) for place, picture in pictures.items()}
                running.jobs[job.id] = job
                running.write(line)
            except BrokenPipeError:
                running.jobs.pop(job.id, None)
                job._end(None, "the program ended before it was given the job")
                return
            except OSError as error:
                # No memory, or no descriptors.
                running.jobs.pop(job.id, None)
                job._end(None, "the job cannot be handed to the program: %s" % error)

    def _start(self) -> None:
        if self._out is None and self._own is None:
            self._own = tempfile.mkdtemp(prefix="kosmograph-")
        out = os.fspath(self._out) if self._out is not None else self._own or "."
        running = _Running([program(), "jobs", *self._places, "--out", out, *self._options])
        self._running = running
        printed = threading.Thread(target=_drain, args=(running,), daemon=True)
        printed.start()
        threading.Thread(target=self._read, args=(running, printed), daemon=True).start()

    def _cancel(self, number: str) -> None:
        with self._lock:
            for waits in self._waiting:
                if waits[0].id == number:
                    self._waiting.remove(waits)
                    waits[0]._end(130)
                    return
            if self._running is not None and number in self._running.jobs:
                try:
                    self._running.write({"cancel": number})
                except OSError:
                    pass  # it is gone, and so is what was to be cancelled

    def _read(self, running: _Running, printed: threading.Thread) -> None:
        """In a thread of its own, from the process's beginning to its end."""
        refused = ""
        for line in _lines(running.popen.stdout):
            try:
                event = json.loads(line)
            except ValueError:
                continue  # half a line, of a process that ended
            job = running.jobs.get(event.get("job") or "")
            if job is None:
                refused = event.get("message", "") if event["event"] == "error" else refused
                continue
            try:
                job._hear(event)
            except (OSError, ValueError) as error:
                job._events.put({"event": "log", "level": "warning", "message": "a picture in memory cannot be read: %s" % error})
            if job.done():
                with self._lock:
                    running.jobs.pop(job.id, None)
                    self._go_on()
        code = running.popen.wait()
        printed.join(1)
        words = b"".join(running.last_words)[-2000:].decode("utf-8", "replace").strip()
        lost = "the program ended with code %d: %s" % (code, refused or words or "it gives no reason")
        with self._lock:
            jobs, running.jobs = running.jobs, {}
            if self._running is running:
                self._running = None
            for job in jobs.values():
                job._end(None, lost)
            self._go_on()

    def _go_on(self) -> None:
        """As `_feed`, where nobody is there to catch anything."""
        while self._waiting:
            first = self._waiting[0][0]
            try:
                return self._feed()
            except Exception as error:
                first._end(None, str(error))

    def _forked(self) -> None:
        """In the process that was forked: the process and its pipes are the parent's, and so are its pictures."""
        self._lock = threading.RLock()
        running, self._running, self._own = self._running, None, None
        if running is not None:
            # The parent's end must be the last: a pipe that is open here would keep the program alive.
            running.close_pipes()
            for job in running.jobs.values():
                if job._memory is not None:
                    job._memory.close()
        self._waiting.clear()


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _all_forked() -> None:
    global _guard
    _guard = threading.Lock()
    for session in list(_sessions):
        session._forked()


def _close_all() -> None:
    for session in list(_sessions):
        session.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_all_forked)
atexit.register(_close_all)


def _lines(pipe: IO[bytes] | None) -> Iterable[bytes]:
    return io.BufferedReader(pipe) if isinstance(pipe, io.RawIOBase) else ()


def _drain(running: _Running) -> None:
    for line in _lines(running.popen.stderr):
        running.last_words.append(line)
        del running.last_words[:-50]


def _workflow(workflow: Workflow) -> Any:
    if isinstance(workflow, Graph):
        return workflow.to_dict()
    if isinstance(workflow, Mapping):
        return dict(workflow)
    path = Path(workflow)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise KosmographError("%s: this is no workflow in JSON: %s" % (path, error)) from None


def _set(place: str, value: Any) -> str:
    if isinstance(value, bool):
        value = "true" if value else "false"
    elif not isinstance(value, (str, int, float, os.PathLike)):
        raise TypeError("sets[\"%s\"] is a %s; sets gives texts and numbers, and inputs gives pictures" % (place, type(value).__name__))
    return "%s=%s" % (place, value)


_default: Session | None = None
_guard = threading.Lock()


def default() -> Session:
    """The session of `run` and `submit`, which is started with the first job."""
    global _default
    with _guard:
        if _default is None:
            _default = Session()
        return _default


def run(
    workflow: Workflow,
    *,
    inputs: Mapping[str, Any] | None = None,
    sets: Mapping[str, Any] | None = None,
    seed: int | None = None,
    progress: bool = False,
    timeout: float | None = None,
) -> Result:
    """`Session.run` of the session that is kept for all that is run so."""
    return default().run(workflow, inputs=inputs, sets=sets, seed=seed, progress=progress, timeout=timeout)


def submit(
    workflow: Workflow,
    *,
    inputs: Mapping[str, Any] | None = None,
    sets: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Job:
    """`Session.submit` of the same session."""
    return default().submit(workflow, inputs=inputs, sets=sets, seed=seed)


def close() -> None:
    """Ends that session's process, and deletes its pictures."""
    global _default
    with _guard:
        session, _default = _default, None
    if session is not None:
        session.close()
