"""Muon for the weight matrices (orthogonalised momentum: every direction learns at the same rate), Adam for everything else."""
import torch


def orthogonal(g, steps=5):
    """The nearest (semi-)orthogonal matrix, about, by a quintic Newton-Schulz iteration. g: [n, rows, columns]."""
    x = g / (g.flatten(1).norm(dim=1).view(-1, 1, 1) + 1e-7)
    flip = x.shape[1] > x.shape[2]
    if flip: x = x.transpose(1, 2)
    for _ in range(steps):
        a = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.transpose(1, 2) if flip else x


class Muon(torch.optim.Optimizer):
    def __init__(self, modules, lr, momentum=.95, decay=0.0, skip=()):
        named = [(n, p) for m in modules for n, p in m.named_parameters() if p.requires_grad]
        ours = [p for n, p in named if p.dim() >= 2 and not any(s in n for s in ("embed", "query", "position", "conv_in", "conv_out", *skip))]
        rest = [p for _, p in named if not any(p is q for q in ours)]
        groups = {}
        for p in ours: groups.setdefault((len(p), p[0].numel()), []).append(p)
        super().__init__([dict(params=ps, muon=True) for ps in groups.values()] + [dict(params=rest, muon=False)], dict(lr=lr, momentum=momentum, decay=decay))

    @torch.no_grad()
    def step(self):
        for g in self.param_groups:
            ps = [p for p in g["params"] if p.grad is not None]
            if not ps: continue
            for p in ps:
                s = self.state[p]
                if not s:
                    s["m"] = torch.zeros_like(p, memory_format=torch.contiguous_format)
                    if not g["muon"]: s["v"], s["t"] = torch.zeros_like(p, memory_format=torch.contiguous_format), 0
            if g["muon"]:
                for p in ps: self.state[p]["m"].lerp_(p.grad, 1 - g["momentum"])
                u = orthogonal(torch.stack([p.grad.lerp(self.state[p]["m"], g["momentum"]).reshape(len(p), -1) for p in ps]))
                k = .2 * max(u.shape[1:]) ** .5
                for p, d in zip(ps, u):
                    p.mul_(1 - g["lr"] * g["decay"]).add_(d.reshape(p.shape), alpha=-g["lr"] * k)
            else:
                for p in ps:
                    s = self.state[p]; s["t"] += 1
                    s["m"].lerp_(p.grad, .1); s["v"].lerp_(p.grad ** 2, .02)
                    p.addcdiv_(s["m"] / (1 - .9 ** s["t"]), (s["v"] / (1 - .98 ** s["t"])).sqrt().add_(1e-8), value=-g["lr"])
