"""A problem as somebody else writes it: the soft committee machine, on public names alone.

K hidden units g(h) = erf(h / sqrt(2)) learn a teacher with M of them on standard normal data, the
outputs being the units' sums, by the squared loss; the teacher's has noise of standard deviation
sigma. Statistics: m = W T^T and Q = W W^T. Source: D. Saad and S. A. Solla, On-line learning in
soft committee machines, Phys. Rev. E 52, 4225 (1995).
"""

import math

import torch

import torchlimits as tl


def hidden(h):
    return torch.erf(h / 2**0.5)


class Student(torch.nn.Module):
    def __init__(self, *shape, generator=None, **place):
        super().__init__()
        start = torch.randn(*shape, generator=generator, **place) / shape[-1] ** 0.5
        self.weight = torch.nn.Parameter(start)

    def forward(self, x):
        return hidden(x @ self.weight.mT).sum(-1)


class Committee:
    def __init__(self, dim, width=2, teachers=1, noise=0.5):
        self.dim, self.width, self.noise, self.teacher = dim, width, noise, torch.eye(teachers, dim)
        m, Q = tl.statistics.overlaps("weight", self.teacher), tl.statistics.gram("weight")
        self.statistics = tl.SummaryStatistics(
            {"m": m, "Q": Q}, symmetric=["Q"], parameter_dims={"weight": 2}
        )
        self.names = self.statistics.names_of(dict(self.model().named_parameters()))

    def model(self, *, replicas=(), **options):
        return Student(*replicas, self.width, self.dim, **options)

    def sample(self, batch, *, replicas=(), **options):
        x, noise = (torch.randn(*replicas, batch, n, **options) for n in (self.dim, 1))
        return x, hidden(x @ self.teacher.to(x).mT).sum(-1) + self.noise * noise[..., 0]

    def loss(self, output, target):
        return (output - target).square().mean(-1).sum() / 2

    def describe(self):
        return {"dim": self.dim, "width": self.width, "noise": self.noise}

    def dynamics(self, optimizer=None, **options):
        return tl.EffectiveDynamics(Field(self), optimizer, **options)


class Field(tl.VectorField):
    def __init__(self, problem, nodes=2**13):
        super().__init__(problem.names, problem.dim)
        self.K, self.M, self.noise = problem.width, len(problem.teacher), problem.noise
        self.upper = torch.triu_indices(self.K, self.K).unbind()
        sobol = torch.quasirandom.SobolEngine(self.K + self.M + 1, scramble=True, seed=0)
        self.z = torch.special.ndtri(sobol.draw(nodes, dtype=torch.float64).clamp(1e-9, 1 - 1e-9))

    def moves(self, u):
        """Of one step over delta at each node, to first and to second order in the step."""
        K, M, (i, j) = self.K, self.M, self.upper
        place = torch.zeros(K, K, dtype=torch.long).index_put((i, j), torch.arange(len(i)))
        Q, m = u[..., K * M :][..., place.maximum(place.mT)], u[..., : K * M].unflatten(-1, (K, M))
        eye = torch.eye(M).to(u).expand(*u.shape[:-1], M, M)
        C = torch.cat([torch.cat([Q, m], -1), torch.cat([m.mT, eye], -1)], -2)  # of (W X, T X)
        (values, vectors), z = torch.linalg.eigh(C), self.z.to(u)
        h = z[:, :-1] @ (vectors * values.clamp_min(1e-12).sqrt()[..., None, :]).mT
        student, teacher = hidden(h[..., :K]).sum(-1), hidden(h[..., K:]).sum(-1)
        residual = (teacher + self.noise * z[:, -1] - student)[..., None]
        G = residual * (2 / math.pi) ** 0.5 * torch.exp(-(h[..., :K] ** 2) / 2)
        D, kick = G[..., :, None] * h[..., None, :], G[..., :, None] * G[..., None, :]
        dm, dQ = D[..., K:].flatten(-2), (D[..., :K] + D[..., :K].mT)[..., i, j]
        return torch.cat([dm, dQ], -1), torch.cat([0 * dm, kick[..., i, j]], -1)

    def terms(self, u):
        first, second = self.moves(u)
        return first.mean(-2), second.mean(-2)

    def increment_covariance(self, u, step_size):
        first, second = self.moves(u)
        move = first + step_size * second
        move = move - move.mean(-2, keepdim=True)
        return move.mT @ move / len(self.z)
