"""How programs that use the package end, and that nothing stays behind: notebook_ends.py WORKFLOWS, for
tests/tests/python_package.rs. Each is a process of its own, with a job that would go on for long.
"""

import os
import signal
import subprocess
import sys
import time

# What a shell runs in the background ignores Ctrl-C, and so would the scripts.
signal.signal(signal.SIGINT, signal.default_int_handler)

BEGINNING = """
import os, signal, sys, threading, time
import kosmograph
session = kosmograph._session.default()
job = kosmograph.submit(%r, sets={"Sampler.steps": 1000}, seed=1)
waits = kosmograph.submit(%r, sets={"Sampler.steps": 1000}, seed=2)
next(event for event in job.events() if event["event"] == "progress")
print(session._running.popen.pid, session._own, flush=True)
sys.stdin.readline()
""" % ((os.path.join(sys.argv[1], "text.json"),) * 2)

INTERRUPTED = """
import signal, sys, threading, time
import kosmograph
session = kosmograph.Session()
job = session.submit(%r, sets={"Sampler.steps": 1}, seed=1)
job.result()
print(session._running.popen.pid, session._own, flush=True)
sys.stdin.readline()
begin = time.monotonic()
threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start() if len(sys.argv) > 1 else None
try:
    session.run(%r, sets={"Sampler.steps": 1000}, seed=1)
except KeyboardInterrupt:
    # What comes next does not wait for 1000 steps.
    assert session.run(%r, sets={"Sampler.steps": 1}, seed=2).pictures
    print("interrupted after %%.1f s" %% (time.monotonic() - begin), flush=True)
""" % ((os.path.join(sys.argv[1], "text.json"),) * 3)


def of_session(session):
    """The processes whose session the program leads: the worker and Python's packs are in it, too."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/stat" % pid) as file:
                state, _, _, sid = file.read().rsplit(")", 1)[1].split()[:4]
        except OSError:
            continue
        if int(sid) == session and state != "Z":
            found.append(int(pid))
    return found


def ends(name, script, end, folder_goes, after=None):
    process = subprocess.Popen([sys.executable, "-c", script + end], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    begun = process.stdout.readline()
    assert begun, "%s: %s" % (name, process.communicate()[1])
    session, folder = begun.split()
    session = int(session)
    assert len(of_session(session)) >= 2, "%s: a program and its worker were expected" % name
    process.stdin.write("\n")
    process.stdin.flush()
    if after:
        after(process)
    said, errors = process.communicate(timeout=120)
    until = time.monotonic() + 5
    while of_session(session) and time.monotonic() < until:
        time.sleep(0.05)
    left = of_session(session)
    assert not left, "%s: processes are left: %s" % (name, left)
    assert os.path.exists(folder) != folder_goes, "%s: %s" % (name, folder)
    if os.path.exists(folder):
        subprocess.run(["rm", "-r", folder], check=True)
    return said, errors


ends("sys.exit", BEGINNING, "sys.exit(0)", True)
ends("the end of the script", BEGINNING, "", True)
ends("an exception that nobody catches", BEGINNING, "raise RuntimeError('x')", True)
ends("os._exit", BEGINNING, "os._exit(3)", False)
ends("kill -9", BEGINNING, "time.sleep(100)", False, lambda process: process.kill())
ends("kill -15", BEGINNING, "time.sleep(100)", False, lambda process: process.terminate())
ends("kill -9 of the program", BEGINNING, "session._running.popen.kill(); job._ended.wait(20); kosmograph.close(); sys.exit(0)", True)
ends("a thread that submitted and ended", BEGINNING.replace("job =", "job = None; threading.Thread(target=lambda: globals().__setitem__('job', kosmograph.submit("
     "sys.argv[0] and %r, sets={'Sampler.steps': 1000}, seed=7))).start()\nwhile job is None: time.sleep(0.05)\nother =" % os.path.join(sys.argv[1], "text.json")), "sys.exit(0)", True)

# A child that was forked holds none of the parent's pipes: the parent's end is the program's.
FORKED = "child = os.fork()\nif child == 0:\n    print(os.getpid(), flush=True); sys.stdout = None; os.close(1); os.close(2); time.sleep(60); os._exit(0)\ntime.sleep(100)"
children = []


def kill_parent(process):
    children.append(int(process.stdout.readline()))
    process.kill()


ends("kill -9 beside a child that was forked", BEGINNING, FORKED, False, kill_parent)
os.kill(children[0], signal.SIGKILL)

# Ctrl-C while run() waits.
said, errors = ends("Ctrl-C", INTERRUPTED, "", True, lambda process: (time.sleep(1.5), process.send_signal(signal.SIGINT)))
assert "interrupted after" in said, ("the script never saw Ctrl-C", said, errors)
assert float(said.split()[2]) < 20, said
print("nothing stays behind")
