"""What is wrong about how a run ended."""

import json
import re
import zlib
from pathlib import Path

from .runner import STOP

CATEGORIES = [
    "died", "exit code", "panic text", "half picture", "temporary file", "untold picture", "told, not there", "garbled",
    "no last event", "untrue code", "nothing said", "orphan", "slow to stop", "hang", "told late", "outside", "passes",
]

PANIC = re.compile(rb"panicked at|stack backtrace|RUST_BACKTRACE|memory allocation of \d+|fatal runtime error")
# Rust's own word about a stack that a library's code overflowed; the process it is said of is a worker's.
STACK = re.compile(rb"[^\n]*has overflowed its stack\n|fatal runtime error: stack overflow[^\n]*\n?")


def whole_png(path):
    """Whether the file is a PNG to its last chunk, with every check sum and all of its rows."""
    data = path.read_bytes()
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return False
    at, packed, kind = 8, b"", b""
    while at + 12 <= len(data):
        length, kind = int.from_bytes(data[at:at + 4], "big"), data[at + 4:at + 8]
        body, check = data[at + 8:at + 8 + length], data[at + 8 + length:at + 12 + length]
        if len(check) < 4 or zlib.crc32(kind + body) != int.from_bytes(check, "big"):
            return False
        packed += body if kind == b"IDAT" else b""
        at += 12 + length
    try:
        unpacker = zlib.decompressobj()
        unpacker.decompress(packed)
        return kind == b"IEND" and at == len(data) and unpacker.eof
    except zlib.error:
        return False


def pictures(out):
    """The files under the output folder, and those of them that are temporary."""
    found = [path for path in Path(out).rglob("*") if path.is_file()] if Path(out).is_dir() else []
    temporary = [path for path in found if path.name.endswith(".tmp") or path.name.startswith(".")]
    return [path for path in found if path not in temporary], temporary


def events_of(ended):
    """The events, and the lines that are none."""
    events, garbled = [], []
    for line in ended.stdout.split(b"\n"):
        if line.strip():
            try:
                event = json.loads(line)
                if not isinstance(event, dict) or "event" not in event:
                    raise ValueError
                events.append(event)
            except ValueError:
                garbled.append(line)
    return events, garbled


def shown(data):
    return data.decode("utf-8", "replace").strip()[:300]


def judge_process(ended, codes=(0, 2, 3, 130), stack_may_overflow=False):
    """What holds for every command."""
    findings = []
    if ended.hangs:
        findings.append(("hang", f"not over {ended.seconds:.0f} s after it began, and not after SIGINT either"))
    elif ended.code < 0 or ended.code >= 132:
        findings.append(("died", f"ended with {ended.code}: {shown(ended.stderr)}"))
    elif ended.code not in codes:
        findings.append(("exit code", f"{ended.code}: {shown(ended.stderr)}"))
    said = STACK.sub(b"", ended.stderr) if stack_may_overflow else ended.stderr
    text = PANIC.search(said + ended.stdout)
    if text:
        at = max(text.start() - 100, 0)
        findings.append(("panic text", shown((said + ended.stdout)[at:at + 400])))
    if ended.orphans:
        findings.append(("orphan", f"processes {ended.orphans} were left"))
    if ended.stopped_in is not None and ended.stopped_in > STOP:
        findings.append(("slow to stop", f"{ended.stopped_in:.1f} s after SIGINT"))
    if ended.code in (2, 3) and not (ended.stderr.strip() or ended.stdout.strip()):
        findings.append(("nothing said", f"exit code {ended.code} without a word"))
    return findings


def judge_files(out):
    findings = []
    made, temporary = pictures(out)
    half = [path.name for path in made if path.suffix == ".png" and not whole_png(path)]
    if half:
        findings.append(("half picture", ", ".join(half)))
    if temporary:
        findings.append(("temporary file", ", ".join(path.name for path in temporary)))
    return findings


def judge_run(ended, out, codes=(0, 2, 3, 130), stack_may_overflow=False):
    """What holds for `run --json` with that output folder."""
    findings = judge_process(ended, codes, stack_may_overflow) + judge_files(out)
    events, garbled = events_of(ended)
    if garbled:
        findings.append(("garbled", shown(garbled[0])))
    told = [Path(file) for event in events if event["event"] == "output" for file in event.get("files", [])]
    inside = {path for path in told if Path(out) in path.parents}
    made = set(pictures(out)[0])
    if made - inside:
        findings.append(("untold picture", ", ".join(sorted(path.name for path in made - inside))))
    if inside - made:
        findings.append(("told, not there", ", ".join(sorted(path.name for path in inside - made))))
    kinds = [event["event"] for event in events]
    last = events[-1] if events else {}
    if "plan" in kinds and not ended.hangs:
        wanted = "interrupted" if ended.code == 130 else "done"
        if ended.code in (0, 3, 130) and last.get("event") != wanted:
            findings.append(("no last event", f"exit code {ended.code}, and the last event is {str(last)[:200]}"))
    if last.get("event") == "done" and ended.code != (3 if last.get("failed") or last.get("left_out") else 0):
        findings.append(("untrue code", f"{ended.code} after {last}"))
    if ended.code in (2, 3) and "error" not in kinds and not ended.stderr.strip():
        findings.append(("nothing said", f"exit code {ended.code} without an error"))
    return findings


def judge_place(folder, before, out):
    """Nothing may be written beside the output folder."""
    allowed = {Path(out), folder / "stdout", folder / "stderr", folder / "temp"}
    after = {path for path in folder.rglob("*") if not any(a == path or a in path.parents for a in allowed)}
    new = sorted(str(path.relative_to(folder)) for path in after - before)
    return [("outside", ", ".join(new[:5]))] if new else []
