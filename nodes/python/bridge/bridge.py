"""The process that runs one pack of nodes written in Python, for a worker of Kosmograph.

    GIVEN = {"mode": "describe" | "run", "pack": path, "name": …, "version": …, "folders": {…}}

It came by standard input. To run, standard output is the socket to the worker; to describe, where the answer goes. It is started by host/src/python. Messages are 4 bytes of length, little-endian, and JSON; tensors go beside them as
descriptors of memory, by SCM_RIGHTS. docs/python.md says what a pack finds here.
"""

import hashlib
import inspect
import io
import json
import os
import queue
import signal
import socket
import sys
import threading
import traceback

PROCESS = os.getpid()
MOST_DESCRIPTORS = 200


def end_with_parent():
    try:
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    except Exception:
        pass  # the socket's end says it too


class Host:
    """The worker, as the shim and the nodes meet it."""

    def __init__(self):
        self.socket = None
        self.lock = threading.Lock()
        self.running = None
        self.cancel = False

    def send(self, message, fds=()):
        if os.getpid() != PROCESS:
            os._exit(0)  # a process that a node forked has nothing to say here
        try:
            body = json.dumps(message, allow_nan=False, default=str).encode("ascii")
        except ValueError:
            # JSON has no NaN; what a node shows beside its outputs may have one.
            message = json.loads(json.dumps(message, default=str), parse_constant=lambda _: None)
            body = json.dumps(message).encode("ascii")
        body = len(body).to_bytes(4, "little") + body
        with self.lock:
            sent = socket.send_fds(self.socket, [body], list(fds)) if fds else 0
            self.socket.sendall(body[sent:])

    def progress(self, step, steps):
        if self.running is not None and self.socket is not None:
            try:
                step, steps = int(step), int(steps)
            except (TypeError, ValueError, OverflowError):
                return
            if 0 <= step <= steps < 2**53 and steps > 0:
                self.send({"progress": [self.running, step, steps]})
        if self.cancel and threading.current_thread() is threading.main_thread():
            raise shim.Interrupted()

    def cancelled(self):
        return self.cancel

    def read(self, inbox):
        """The reader's thread. The end of the socket is the end of the process."""
        data, fds = bytearray(), []
        while True:
            try:
                more, new, _, _ = socket.recv_fds(self.socket, 1 << 16, 253)
            except OSError:
                more, new = b"", []
            if not more:
                os._exit(0)
            data += more
            fds += new
            while len(data) >= 4 and len(data) >= 4 + int.from_bytes(data[:4], "little"):
                length = int.from_bytes(data[:4], "little")
                message = json.loads(bytes(data[4 : 4 + length]))
                del data[: 4 + length]
                count = message.get("fds", 0)
                if "cancel" in message:
                    self.interrupt(message["cancel"])
                else:
                    inbox.put((message, fds[:count]))
                    del fds[:count]

    def interrupt(self, number):
        if self.running == number:
            self.cancel = True
            # A signal, so that what waits or sleeps hears it too.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


def on_interrupt(*_):
    if host.running is not None and host.cancel:
        raise shim.Interrupted()


# ---- the pack ----


def load(path, name):
    """Imports the pack as ComfyUI does; gives its two tables."""
    import importlib.util

    module_name = "kosmograph_pack_" + "".join(sign if sign.isalnum() else "_" for sign in name)
    if os.path.isdir(path):
        source = os.path.join(path, "__init__.py")
        spec = importlib.util.spec_from_file_location(module_name, source, submodule_search_locations=[path])
    else:
        spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    mappings = getattr(module, "NODE_CLASS_MAPPINGS", None)
    if not isinstance(mappings, dict):
        if hasattr(module, "comfy_entrypoint"):
            return schema.mappings(module), {}
        raise Refused("it has neither NODE_CLASS_MAPPINGS nor comfy_entrypoint, so there is no node in it")
    titles = getattr(module, "NODE_DISPLAY_NAME_MAPPINGS", None)
    return mappings, titles if isinstance(titles, dict) else {}


class Refused(Exception):
    """Why a pack cannot be used, as a sentence without its name."""


def where(error):
    """The place in the pack where it happened, as " (file, line N, in function)"."""
    if isinstance(error, SyntaxError) and error.filename:
        return " (%s, line %s)" % (short(error.filename), error.lineno)
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if frame.filename.startswith(GIVEN["pack"])]
    if not inside and not frames:
        return ""
    frame = (inside or frames)[-1]
    if frame.filename.startswith("<kosmograph"):
        return ""
    return " (%s, line %s, in %s)" % (short(frame.filename), frame.lineno, frame.name)


def short(file):
    parent = os.path.dirname(GIVEN["pack"]) + os.sep
    return file[len(parent) :] if file.startswith(parent) else file


def said(error):
    """The last line of a traceback and where it happened."""
    name = type(error).__name__
    # Of a file that is not Python the place stands in the text of the error already.
    line = error.msg if isinstance(error, SyntaxError) and error.filename else describe.first_line(error)
    if isinstance(error, shim.Unavailable):
        return line + where(error)
    return (name + ": " + line if line else name) + where(error)


def refusal(error):
    """Why a pack could not be loaded."""
    if isinstance(error, Refused):
        return str(error)
    sentence = "its import failed: " + said(error)
    if isinstance(error, ModuleNotFoundError) and error.name:
        sentence += "; %s does not have %s" % (sys.executable or "this Python", error.name)
    return sentence


def run(message, fds, instances, classes, values):
    number = message["run"] if "run" in message else message["lazy"]
    out = []
    try:
        if "lazy" in message:
            wanted = wanted_inputs(message, fds, instances, classes, values)
            host.running = None
            host.send({"done": number, "wanted": wanted})
            return
        outputs, ui, warning = run_node(message, fds, instances, classes, values, out)
        if len(out) > MOST_DESCRIPTORS:
            raise NodeFailed(None, "it gives %d tensors at once; %d can be passed" % (len(out), MOST_DESCRIPTORS))
        host.running = None
        returned = values_module.Lent.returned
        back, returned[:] = list(returned), []
        host.send({"done": number, "outputs": outputs, "ui": ui, "fds": len(out), "returned": back, "warning": warning}, out)
    except NodeFailed as failed:
        host.running = None
        host.send({"failed": number, "input": failed.input, "sentence": failed.sentence})
    except shim.Interrupted:
        host.running = None
        host.send({"cancelled": number})
    except BaseException as error:
        host.running = None
        host.send({"failed": number, "input": None, "sentence": said(error), "traceback": trace(error)})
    finally:
        host.running = None
        for fd in out:
            os.close(fd)


def trace(error):
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    return describe.text_of(text)[-8000:]


class NodeFailed(Exception):
    def __init__(self, input, sentence):
        self.input, self.sentence = input, sentence


def prepared(message, number, fds, instances, classes, values):
    """How the class is read, its instance for this node, and what it is given."""
    key, node_id = message["class"], message["node"]
    reading = classes[key]
    host.cancel, host.running = False, number
    given = read_inputs(message, reading, values, fds)
    # What is linked and was not computed is None, as in ComfyUI.
    for name in reading.lazy.intersection(message.get("linked") or ()):
        given.setdefault(name, [None] if reading.takes_lists else None)
    given.update(hidden_inputs(reading, message.get("hidden", {}), node_id))
    instance = instances.get((key, node_id))
    if instance is None:
        instance = instances[key, node_id] = reading.node()
    return reading, instance, given


def wanted_inputs(message, fds, instances, classes, values):
    """check_lazy_status: the names of the lazy inputs that are wanted."""
    reading, instance, given = prepared(message, message["lazy"], fds, instances, classes, values)
    check = getattr(instance, "check_lazy_status", None)
    if check is None:
        return []
    wanted = waited(check(**given))
    wanted = wanted if isinstance(wanted, (list, tuple, set)) else []
    return [name for name in wanted if isinstance(name, str) and name in reading.lazy]


def run_node(message, fds, instances, classes, values, out):
    reading, instance, given = prepared(message, message["run"], fds, instances, classes, values)
    result = waited(getattr(instance, reading.node.FUNCTION)(**given))
    ui = warning = None
    if isinstance(result, dict):
        ui = result.get("ui")
        if "expand" in result:
            raise NodeFailed(None, "it gives a graph to run in its place (expand), which is not done for Python here")
        result = result.get("result", ())
    if result is None and not reading.outputs:
        result = ()
    if not isinstance(result, (tuple, list)):
        # A node with one output that forgot its comma.
        raise NodeFailed(None, "it returned %s where a tuple of %d is due" % (values_module.shown(result), len(reading.outputs)))
    if len(result) < len(reading.outputs):
        # As in ComfyUI: what takes one of those that are missing is given None.
        warning = "it returned %d values where RETURN_TYPES has %d; the others are None" % (len(result), len(reading.outputs))
        missing = reading.outputs[len(result) :]
        result = tuple(result) + tuple([None] if is_list else None for _, _, is_list in missing)
    outputs = []
    for (name, kind, is_list), value in zip(reading.outputs, result):
        try:
            outputs.append(values.encode_list(value, kind, out) if is_list else values.encode(value, kind, out))
        except values_module.Wrong as wrong:
            raise NodeFailed(None, "its output %s (%s) %s" % (name, kind, wrong)) from None
    return outputs, ui if isinstance(ui, dict) else None, warning


def waited(result):
    if inspect.iscoroutine(result):
        import asyncio

        return asyncio.run(result)
    return result


def read_inputs(message, reading, values, fds):
    """The inputs that are there, by name."""
    given = {}
    for name, wire in message["inputs"]:
        if wire[0] == "none":
            continue
        try:
            value = values.decode(wire, fds)
        except values_module.Wrong as wrong:
            raise NodeFailed(name, "what is connected to it %s" % wrong) from None
        given[name] = chosen(reading, name, value)
    return given


def chosen(reading, name, value):
    """A choice as the class listed it, which need not be a text."""
    choices = reading.choices.get(name)
    if choices is None:
        return value
    if reading.takes_lists and isinstance(value, list):
        return [choices.get(one, one) if isinstance(one, str) else one for one in value]
    return choices.get(value, value) if isinstance(value, str) else value


def hidden_inputs(reading, hidden, node_id):
    given = {}
    prompt, workflow = hidden.get("prompt"), hidden.get("workflow")
    for name, what in reading.hidden.items():
        if what == "PROMPT":
            given[name] = json.loads(prompt) if prompt else None
        elif what == "EXTRA_PNGINFO":
            given[name] = {"workflow": json.loads(workflow)} if workflow else {}
        elif what == "UNIQUE_ID":
            given[name] = node_id
        else:
            given[name] = None
    return {name: [value] for name, value in given.items()} if reading.takes_lists else given


# ---- what a class is asked before it runs ----


def ask(message, classes):
    """IS_CHANGED, VALIDATE_INPUTS: `message` has the values that stand in the workflow, and the types of what is linked."""
    number, reading = message["ask"], classes[message["class"]]
    host.cancel, host.running = False, number
    answer = {"answer": number}
    try:
        given = {name: chosen(reading, name, plain(wire)) for name, wire in message["inputs"]}
        if reading.takes_lists:
            given = {name: [value] for name, value in given.items()}
        # As in ComfyUI, what is linked is not known yet, and None.
        given.update((name, (None,) if reading.takes_lists else None) for name, _ in message["linked"])
        given.update(hidden_inputs(reading, {}, message["node"]))
        if message["what"] == "valid":
            answer["sentence"] = refused_inputs(reading, given, dict(message["linked"]))
        else:
            answer["fingerprint"], answer["sentence"] = fingerprint(reading, given)
    except shim.Interrupted:
        answer = {"cancelled": number}
    finally:
        host.running = None
    host.send(answer)


def plain(wire):
    return float(wire[1]) if wire[0] == "float" else wire[1]


def fingerprint(reading, given):
    """What stands for the value of IS_CHANGED in a key, or None: then the node runs always, and why that is if it is no
    wish of the class."""
    try:
        value = waited(reading.node.IS_CHANGED(**given))
    except shim.Interrupted:
        raise
    except BaseException as error:
        return None, "its IS_CHANGED failed: %s" % said(error)
    try:
        # It may be the contents of a file.
        text = describe.fingerprint(value).encode("utf-8", "surrogatepass")
        return hashlib.sha256(text).hexdigest(), None
    except describe.Different:
        return None, None


def refused_inputs(reading, given, types):
    """Why VALIDATE_INPUTS refuses the inputs, or None."""
    validate = reading.node.VALIDATE_INPUTS
    try:
        parameters = inspect.signature(validate).parameters.values()
        everything = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
        names = {parameter.name for parameter in parameters}
        asked = {name: value for name, value in given.items() if everything or name in names}
        if "input_types" in names:
            asked["input_types"] = [types] if reading.takes_lists else types
        answer = waited(validate(**asked))
    except shim.Interrupted:
        raise
    except BaseException as error:
        return "its VALIDATE_INPUTS failed: %s" % said(error)
    if answer is True:
        return None
    if answer is False:
        return "its VALIDATE_INPUTS refuses it, and does not say why"
    if isinstance(answer, str):
        return "it refuses its inputs: %s" % describe.text_of(answer)
    return "its VALIDATE_INPUTS gave %s, where True or the reason as a text is due" % values_module.shown(answer)


def serve(inbox, classes, values):
    instances = {}
    while True:
        message, fds = inbox.get()
        values.release(message.get("release", ()))
        if "run" in message or "lazy" in message:
            run(message, fds, instances, classes, values)
        elif "ask" in message:
            ask(message, classes)


def find_temporary_folder():
    """In a confined process the usual ones cannot be written, the job's own can."""
    import tempfile

    try:
        tempfile.gettempdir()
    except OSError:
        tempfile.tempdir = GIVEN["folders"].get("temp")


def main():
    end_with_parent()
    import faulthandler

    describing = GIVEN["mode"] == "describe"
    answer = None
    if describing:
        # What it prints is none of the answer.
        answer = os.fdopen(os.dup(1), "wb")
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
    else:
        host.socket = socket.socket(fileno=os.dup(1))
        os.dup2(2, 1)
    faulthandler.enable()
    sys.stdin = io.StringIO()
    sys.argv = ["kosmograph"]
    sys.path[:] = [path for path in sys.path if path]
    inbox = queue.Queue()
    find_temporary_folder()
    if not describing:
        signal.signal(signal.SIGINT, on_interrupt)
        threading.Thread(target=host.read, args=(inbox,), daemon=True, name="kosmograph").start()
    the_shim = shim.Shim(host, dict(GIVEN["folders"], pack=GIVEN["pack"]))
    the_shim.install(schema, extras)
    describe.adapted = schema.adapted
    values_module.Lent.unavailable = shim.Unavailable
    try:
        mappings, titles = load(GIVEN["pack"], GIVEN["name"])
        described, classes = describe.descriptor(GIVEN["name"], GIVEN["version"], mappings, titles)
        told = {"descriptor": dict(described, lists=the_shim.listed)}
    except BaseException as error:
        told, classes = {"refused": "%s: %s" % (GIVEN["pack"], refusal(error))}, {}
    if os.getpid() != PROCESS:
        os._exit(0)
    if describing:
        answer.write(json.dumps(told, ensure_ascii=True).encode("ascii"))
        answer.close()
        os._exit(0)
    host.send(told)
    serve(inbox, classes, values_module.Values(values_module.Arrays()))


host = Host()
main()
