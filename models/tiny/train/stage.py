"""What every stage shares: its arguments, averaged weights, checkpoints from which it goes on, and its part of the log.

WORK/checkpoints/NAME.pt  weights, average, optimizer and step of a stage; written every few minutes and on SIGTERM
WORK/NAME.safetensors     the averaged weights of a finished stage, "MODULE/tensor"
WORK/log/NAME.json        machine, minutes, samples, losses, figures"""
import argparse
import json
import os
import platform
import signal
import sys
import time

import torch
from safetensors.torch import load_file, save_file

from muon import Muon

# scenes drawn, then (steps, batch) of each stage
BUDGETS = {
    "gpu": dict(scenes=49152, vae=(8000, 96), clip=(4000, 512), text_to_picture=(9000, 512), mllm=(3000, 256), align=(3500, 256),
                tune=(4500, 256), controlnet=(4000, 192), lora=(1200, 96), dreambooth=(4000, 128), inversion=(1500, 64), classifier=(5000, 256)),
    "cpu": dict(scenes=16384, vae=(12000, 10), clip=(800, 96), text_to_picture=(7500, 48), mllm=(1800, 32), align=(5500, 32),
                tune=(400, 24), controlnet=(2200, 24), lora=(4100, 16), dreambooth=(3200, 24), inversion=(600, 12), classifier=(2000, 48)),
    "smoke": dict(scenes=224, vae=(3, 2), clip=(3, 8), text_to_picture=(3, 4), mllm=(3, 4), align=(4, 4),
                  tune=(2, 2), controlnet=(2, 2), lora=(2, 2), dreambooth=(4, 2), inversion=(2, 2), classifier=(3, 4)),
}


def arguments(*extra):
    """The command line of a stage: WORK, --budget, and what may be chosen otherwise. extra: more positional arguments."""
    p = argparse.ArgumentParser(usage=(sys.modules["__main__"].__doc__ or "").split("usage: ")[-1].split("\n")[0])
    p.add_argument("work")
    for name in extra:
        p.add_argument(name)
    p.add_argument("--budget", choices=BUDGETS, default="cpu")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--steps", type=int)
    p.add_argument("--batch", type=int)
    p.add_argument("--scenes", type=int)
    p.add_argument("--threads", type=int, default=2, help="of the CPU, for arithmetic")
    args = p.parse_args()
    args.scenes = args.scenes or BUDGETS[args.budget]["scenes"]
    os.makedirs(f"{args.work}/checkpoints", exist_ok=True)
    os.makedirs(f"{args.work}/log", exist_ok=True)
    torch.set_num_threads(args.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    return args


def finished(args, name):
    return os.path.exists(f"{args.work}/{name}.safetensors")


def weights(args, name, module):
    """The state of one module of a finished stage."""
    state = load_file(f"{args.work}/{name}.safetensors", device=str(args.device))
    return {k[len(module) + 1:]: v for k, v in state.items() if k.startswith(module + "/")}


def figures(args, name):
    return json.load(open(f"{args.work}/log/{name}.json"))["figures"]


def machine(args):
    if str(args.device).startswith("cuda"):
        return torch.cuda.get_device_name()
    model = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")] if os.path.exists("/proc/cpuinfo") else []
    return f"{(model or [platform.processor()])[0]}, {args.threads} threads"


def instructions():
    """What this CPU can do, as Linux names it."""
    lines = open("/proc/cpuinfo").readlines() if os.path.exists("/proc/cpuinfo") else []
    return next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])


class Stage:
    """A stage that learns. modules: those that train, by name. keep: more modules whose state belongs to the result.

    half: bf16 pays on a CPU that computes in it (on a GPU it always does). The rate rises over the first steps, stays, and falls to nothing over the last 30 %."""

    def __init__(self, args, name, modules, rate, keep={}, decay=0.0, average=.999, clip=1.0, skip=(), half=False):
        self.half = str(args.device).startswith("cuda") or half and "avx512_bf16" in instructions()
        self.args, self.name, self.modules, self.keep, self.rate, self.clip, self.average = args, name, modules, keep, rate, clip, average
        steps, batch = BUDGETS[args.budget][name.split("-")[0]]
        self.steps, self.batch, self.step, self.minutes, self.curve = args.steps or steps, args.batch or batch, 0, 0.0, []
        self.opt = Muon(modules.values(), rate, decay=decay, skip=skip)
        self.params = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.ema = [p.detach().clone() for p in self.params]
        self.path = f"{args.work}/checkpoints/{name}.pt"
        self.stop = False
        if os.path.exists(self.path):
            c = torch.load(self.path, map_location=args.device, weights_only=True)
            for k, m in {**modules, **keep}.items():
                m.load_state_dict(c["modules"][k])
            self.opt.load_state_dict(c["opt"])
            for e, v in zip(self.ema, c["ema"]):
                e.copy_(v)
            self.step, self.minutes, self.curve = c["step"], c["minutes"], c["curve"]
            print(f"{name}: goes on at step {self.step} of {self.steps}", flush=True)

    def save(self):
        state = {k: m.state_dict() for k, m in {**self.modules, **self.keep}.items()}
        torch.save(dict(modules=state, opt=self.opt.state_dict(), ema=self.ema, step=self.step, minutes=self.minutes, curve=self.curve), self.path + ".new")
        os.replace(self.path + ".new", self.path)

    def halt(self):
        self.save()
        raise SystemExit(f"{self.name}: stopped at step {self.step}; the same command goes on from here")

    @property
    def progress(self):
        return self.step / self.steps

    def rng(self, salt=0):
        """A generator that depends on the stage and the step alone, so that a stage goes on as if it had not stopped."""
        import numpy as np
        return np.random.default_rng([sum(map(ord, self.name)), salt, self.step])

    def train(self, loss_of):
        """loss_of(stage) gives the loss of one step, or (loss, {name: number to log})."""
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "stop", True))
        saved = last = time.time()
        mean, kind = {}, "cuda" if str(self.args.device).startswith("cuda") else "cpu"
        while self.step < self.steps:
            p = self.step / self.steps
            for g in self.opt.param_groups:
                g["lr"] = self.rate * min(1, (self.step + 1) / min(100, max(self.steps // 10, 1)), (1 - p) / .3)
            torch.manual_seed(self.step)
            try:
                with torch.autocast(kind, torch.bfloat16, enabled=self.half):
                    out = loss_of(self)
            except RuntimeError:  # the workers may have been told to stop as well
                if self.stop:
                    self.halt()
                raise
            loss, shown = out if isinstance(out, tuple) else (out, {})
            self.opt.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.params, self.clip)
            self.opt.step()
            self.step += 1
            torch._foreach_lerp_(self.ema, [q.detach() for q in self.params], 1 - min(self.average, (self.step + 1) / (self.step + 10)))
            for k, v in {"loss": loss, **shown}.items():
                v = v.detach() if torch.is_tensor(v) else torch.tensor(float(v))
                mean[k] = v if k not in mean else mean[k].lerp(v, .03)
            now = time.time()
            self.minutes += (now - last) / 60
            last = now
            if self.step % max(self.steps // 200, 1) == 0 or self.step == self.steps:
                line = {k: round(v.item(), 4) for k, v in mean.items()}
                if not all(abs(v) < 1e9 for v in line.values()):
                    raise SystemExit(f"{self.name}: the loss is no longer finite at step {self.step}: {line}")
                self.curve.append({"step": self.step, "minutes": round(self.minutes, 2), **line})
                print(f"{self.name} {self.minutes:.1f} min step {self.step}/{self.steps}", *(f"{k} {v}" for k, v in line.items()), flush=True)
            if self.stop:
                self.halt()
            if now - saved > 150:
                self.save()
                saved = last = time.time()
        self.save()
        for p, e in zip(self.params, self.ema):  # from here on the modules are their averages
            p.data.copy_(e)
        for m in self.modules.values():
            m.eval()

    def finish(self, figures):
        """Writes the weights and the log; figures: the stage's own validation."""
        state = {f"{k}/{n}": t.detach().cpu().contiguous().clone() for k, m in {**self.modules, **self.keep}.items() for n, t in m.state_dict().items()}
        log = dict(machine=machine(self.args), device=str(self.args.device), torch=torch.__version__, minutes=round(self.minutes, 2), steps=self.step,
                   batch=self.batch, samples=self.step * self.batch, figures=figures, curve=self.curve)
        json.dump(log, open(f"{self.args.work}/log/{self.name}.json", "w"), indent=1)
        save_file(state, f"{self.args.work}/{self.name}.safetensors")
        print(self.name, "done:", json.dumps(figures), flush=True)


def ahead(prepare, stage):
    """prepare(step) for every step still to go; on a GPU, worker processes prepare them ahead."""
    steps = range(stage.step, stage.steps)
    if not str(stage.args.device).startswith("cuda"):
        yield from map(prepare, steps)
        return

    class Steps(torch.utils.data.Dataset):
        __len__ = lambda self: len(steps)
        __getitem__ = lambda self, i: prepare(steps[i])

    workers = max((os.cpu_count() or 4) // 2, 1)
    yield from torch.utils.data.DataLoader(Steps(), batch_size=None, num_workers=workers, prefetch_factor=4, collate_fn=lambda x: x,
                                           worker_init_fn=lambda _: torch.set_num_threads(1))
