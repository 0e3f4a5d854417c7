"""The program as a process that is kept: the catalogue is read once, models stay loaded between jobs."""

from __future__ import annotations

import atexit
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, Iterable, Mapping, Union

from ._errors import KosmographError
from ._graph import Graph
from ._job import Job, Result
from ._program import program

Workflow = Union[str, "os.PathLike[str]", Mapping[str, Any], Graph]


class Session:
    """One process. Any thread may submit; jobs run one after the other. A process that was forked starts its own.

    models, input, plugins, python_nodes: folders, as the options of the same names. out: where pictures are written, a
    folder of the session's own where it is None, which goes with it. options: further options of `kosmograph jobs`.
    """

    def __init__(
        self,
        *,
        models: Iterable[str | os.PathLike[str]] = (),
        input: str | os.PathLike[str] | None = None,
        out: str | os.PathLike[str] | None = None,
        plugins: Iterable[str | os.PathLike[str]] = (),
        python_nodes: Iterable[str | os.PathLike[str]] = (),
        options: Iterable[str] = (),
    ) -> None:
        self._places: list[str] = []
        for option, paths in (("--models", models), ("--plugins", plugins), ("--python-nodes", python_nodes)):
            for path in _list(paths):
                self._places += [option, os.fspath(path)]
        if input is not None:
            self._places += ["--input", os.fspath(input)]
        self._options = list(options)
        self._out = out
        self._own: str | None = None
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._jobs: dict[str, Job] = {}
        self._numbers = itertools.count(1)
        self._catalogue: dict[str, Any] | None = None

    # ---- what it is for ----

    def submit(self, workflow: Workflow, *, sets: Mapping[str, Any] | None = None, seed: int | None = None) -> Job:
        """Hands a job over and returns at once. workflow: a path, a dict of either format, or a Graph; sets: by
        NODE.INPUT its value, as --set."""
        given = _workflow(workflow)
        with self._lock:
            self._start()
            number = "job %d" % next(self._numbers)
            job = Job(number, lambda: self._send({"cancel": number}))
            self._jobs[number] = job
            line: dict[str, Any] = {"id": number, "workflow": given, "set": [_set(*item) for item in (sets or {}).items()]}
            if seed is not None:
                line["seed"] = int(seed)
            try:
                self._write(line)
            except OSError:
                self._jobs.pop(number, None)
                raise KosmographError("the program ended before it was given the job") from None
        return job

    def run(
        self,
        workflow: Workflow,
        *,
        sets: Mapping[str, Any] | None = None,
        seed: int | None = None,
        progress: bool = False,
        timeout: float | None = None,
    ) -> Result:
        """Runs a job to its end. progress: a bar for each node that reports steps (tqdm). What interrupts the wait,
        Ctrl-C or the timeout, cancels the job."""
        job = self.submit(workflow, sets=sets, seed=seed)
        try:
            if progress:
                from ._bars import show

                show(job)
            return job.result(timeout)
        except (KeyboardInterrupt, TimeoutError):
            job.cancel()
            raise

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
            process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            if process.stdin:
                process.stdin.close()
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._own is not None:
            _remove(self._own, self._owner)
        self._own = None

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- the process ----

    def _start(self) -> None:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return
        if self._owner != os.getpid():
            # Forked: the pipes are the parent's to speak through.
            self._process, self._jobs, self._own = None, {}, None
        if self._out is None and self._own is None:
            # Not a TemporaryDirectory: a process that was forked would delete the parent's.
            self._own = tempfile.mkdtemp(prefix="kosmograph-")
            atexit.register(_remove, self._own, os.getpid())
        out = os.fspath(self._out) if self._out is not None else self._own or "."
        command = [program(), "jobs", *self._places, "--out", out, *self._options]
        # A session of its own: Ctrl-C is Python's to hear, which cancels.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        self._owner = os.getpid()
        last_words: list[bytes] = []
        printed = threading.Thread(target=_drain, args=(self._process, last_words), daemon=True)
        printed.start()
        threading.Thread(target=self._read, args=(self._process, printed, last_words), daemon=True).start()

    def _send(self, line: Mapping[str, Any]) -> None:
        with self._lock:
            if self._owner != os.getpid():
                return
            try:
                self._write(line)
            except OSError:
                pass  # it is gone, and so is what was to be cancelled

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._process is None or self._process.stdin is None:
            raise BrokenPipeError
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        self._process.stdin.flush()

    def _read(self, process: "subprocess.Popen[bytes]", printed: threading.Thread, last_words: list[bytes]) -> None:
        refused = ""
        for line in process.stdout or ():
            event = json.loads(line)
            job = self._jobs.get(event.get("job") or "")
            if job is not None:
                job._hear(event)
                if job.done():
                    self._jobs.pop(job.id, None)
            elif event["event"] == "error":
                refused = event.get("message", "")
        code = process.wait()
        printed.join(1)
        words = b"".join(last_words)[-2000:].decode("utf-8", "replace").strip()
        lost = "the program ended with code %d: %s" % (code, refused or words or "it gives no reason")
        with self._lock:
            # Those of a process that was started since are none of this one's.
            jobs = list(self._jobs.items()) if self._process in (process, None) else []
            self._jobs = {} if jobs else self._jobs
        for _, job in jobs:
            job._end(None, lost)


def _remove(folder: str, owner: int) -> None:
    if owner == os.getpid():
        shutil.rmtree(folder, ignore_errors=True)


def _drain(process: "subprocess.Popen[bytes]", last_words: list[bytes]) -> None:
    for line in process.stderr or ():
        last_words.append(line)
        del last_words[:-50]


def _list(paths: Any) -> list[Any]:
    return [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)


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
    return "%s=%s" % (place, value)


_default: Session | None = None
_guard = threading.Lock()


def default() -> Session:
    """The session of `run` and `submit`, which is started with the first job."""
    global _default
    with _guard:
        if _default is None:
            _default = Session()
            atexit.register(close)
        return _default


def run(
    workflow: Workflow,
    *,
    sets: Mapping[str, Any] | None = None,
    seed: int | None = None,
    progress: bool = False,
    timeout: float | None = None,
) -> Result:
    """`Session.run` of the session that is kept for all that is run so."""
    return default().run(workflow, sets=sets, seed=seed, progress=progress, timeout=timeout)


def submit(workflow: Workflow, *, sets: Mapping[str, Any] | None = None, seed: int | None = None) -> Job:
    """`Session.submit` of the same session."""
    return default().submit(workflow, sets=sets, seed=seed)


def close() -> None:
    """Ends that session's process, and deletes its pictures."""
    global _default
    with _guard:
        session, _default = _default, None
    if session is not None:
        session.close()
