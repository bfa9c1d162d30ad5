"""Random sequences of what a loop does with model, optimizer and tracker, beside a plain loop."""

import copy
import math

import torch
from hypothesis import event, given
from hypothesis import strategies as st
from interrupted_runs import FILES
from interrupts import _traced
from torch import nn

import torchlimits as tl


class Halving(torch.optim.Optimizer):
    """Moves the parameters once more after its inner optimizer has."""

    def __init__(self, inner):
        self.optimizer = inner
        super().__init__(inner.param_groups, {})

    def step(self, closure=None):
        self.optimizer.step()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(0.9)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "wrapper": lambda p: Halving(torch.optim.SGD(p, lr=0.1)),
}
KEYS = {"SGD": "momentum_buffer", "Adam": "exp_avg_sq"}


class Loop:
    """A training, its tracker, and the rows that a plain loop finds."""

    def __init__(self, kind, options):
        torch.manual_seed(0)
        self.kind, self.options = kind, options
        self.model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, momentum=0.3))
        self.optimizer = OPTIMIZERS[kind](self.model.parameters())
        self.rows, self.logged, self.shaky = [self.look()], {}, set()
        self.number, self.saved = 0, None
        self.tracker = self.tracked()

    def statistics(self):
        statistics = {
            "w": lambda p: p["0.weight"].flatten(),
            "mean": lambda p: p["1.running_mean"],
            "batches": lambda p: p["1.num_batches_tracked"],
            "g": lambda p: p["0.bias.grad"],
        }
        if self.kind in KEYS:
            statistics["state"] = lambda p: p[f"0.weight.{KEYS[self.kind]}"].sum()
        return statistics

    def tracked(self):
        return tl.track(self.model, self.optimizer, self.statistics(), **self.options)

    def look(self):
        """The row of now, as a plain loop would make it."""
        layer, norm = self.model
        gradient = layer.bias.grad
        if gradient is None:
            gradient = torch.full_like(layer.bias, math.nan)
        parts = [layer.weight.detach().flatten(), norm.running_mean]
        parts += [norm.num_batches_tracked.reshape(1).float(), gradient]
        if self.kind in KEYS:
            state = self.optimizer.state.get(layer.weight, {})
            found = state.get(KEYS[self.kind])
            parts.append(torch.zeros(1) if found is None else found.sum().reshape(1))
        return torch.cat(parts).double()

    def step(self):
        """One step, and the row after it; of a step that was interrupted the row may be missing."""
        self.optimizer.zero_grad()
        noise = torch.Generator().manual_seed(self.number)
        self.number += 1
        x = torch.randn(5, 3, generator=noise)
        (self.model(x).square() + x @ self.model[0].weight.T).sum().backward()
        before = self.model[0].weight.detach().clone()
        try:
            self.optimizer.step()
        finally:
            if not torch.equal(before, self.model[0].weight):
                self.rows.append(self.look())

    def log(self):
        self.shaky.add(("log", len(self.rows) - 1))
        self.tracker.log(loss=float(len(self.rows)))
        self.logged[len(self.rows) - 1] = float(len(self.rows))
        self.shaky.discard(("log", len(self.rows) - 1))

    def flush(self):
        self.tracker.flush()

    def look_up(self):
        self.tracker.trajectory().values.zero_()

    def transpose(self):
        """The weight at its address, the other way round."""
        self.model[0].weight.data = self.model[0].weight.data.t()
        # momentum and the like stay as they are laid out

    def move(self):
        for p in self.model.parameters():
            p.data = p.data.clone(memory_format=torch.preserve_format)

    def new_buffer(self):
        self.model[1].running_mean = self.model[1].running_mean.clone()

    def rate(self):
        for group in self.optimizer.param_groups:
            group["lr"] = 0.05 - group["lr"] / 4

    def save(self):
        self.saved = copy.deepcopy([
            self.tracker.state_dict(), self.model.state_dict(), self.optimizer.state_dict(),
            self.rows, self.logged, self.shaky, self.number,
        ])  # fmt: skip

    def go_back(self):
        """In a new tracker, as a program that is resumed."""
        if self.saved is None:
            return
        state, model, optimizer, *mine = copy.deepcopy(self.saved)
        self.tracker.remove()
        self.optimizer.zero_grad()
        self.tracker = self.tracked()
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        self.tracker.load_state_dict(state)
        self.rows, self.logged, self.shaky, self.number = mine

    def interrupted(self, name, at):
        """Do one of the above with a Ctrl-C at a line event, if there are so many."""
        count = 0

        def strike(_):
            nonlocal count
            count += 1
            if count == at:
                raise KeyboardInterrupt

        rows = len(self.rows)
        try:
            _traced(getattr(self, name), FILES, strike)
        except KeyboardInterrupt:
            event(f"interrupted {name}")
            self.shaky.add(len(self.rows) - 1)
            if name == "step" and len(self.rows) == rows:
                self.number -= 1  # it never came to its step

    def check(self):
        path = self.tracker.trajectory()
        steps = path.steps.tolist()
        assert steps == sorted(set(steps))
        missing = set(range(len(self.rows))) - set(steps)
        assert missing <= self.shaky, f"without a row: {sorted(missing)}"
        assert set(steps) <= set(range(len(self.rows)))
        expected = torch.stack(self.rows)[path.steps]
        width = expected.shape[1]
        torch.testing.assert_close(
            path.values[:, :width], expected, rtol=1e-5, atol=1e-6, equal_nan=True
        )
        for step, value in self.logged.items():
            if step in steps and ("log", step) not in self.shaky:
                assert float(path["loss"][steps.index(step)]) == value


PLAIN = [
    "step",
    "step",
    "step",
    "log",
    "flush",
    "look_up",
    "move",
    "transpose",
    "new_buffer",
    "rate",
]
STATES = ["save", "go_back"]
#: what may be interrupted: the user's own assignments are not ours, nor is going back
OURS = ["step", "log", "flush", "look_up"]


@given(
    kind=st.sampled_from(list(OPTIMIZERS)),
    max_bytes=st.sampled_from([None, 1, 500]),
    doings=st.lists(
        st.sampled_from([*PLAIN, *STATES]) | st.tuples(st.sampled_from(OURS), st.integers(1, 250)),
        max_size=25,
    ),
)
def test_rows_are_those_of_a_plain_loop(kind, max_bytes, doings):
    loop = Loop(kind, {} if max_bytes is None else {"max_bytes": max_bytes})
    for one in doings:
        if isinstance(one, tuple):
            loop.interrupted(*one)
        else:
            getattr(loop, one)()
    loop.check()
    loop.tracker.close()
    loop.check()


def test_the_check_sees_a_row_of_another_step(monkeypatch):
    """Negative control: buffers of the flush instead of those of the step."""
    from torchlimits.record.sources import Buffer, Source

    loop = Loop("SGD", {"max_bytes": 10_000})
    first = loop.model[1].running_mean.clone()
    monkeypatch.setattr(
        Buffer, "whole", lambda self: first if self.leaf == "running_mean" else Source.whole(self)
    )
    loop.step()
    try:
        loop.check()
    except AssertionError:
        return
    raise AssertionError("a wrong buffer was not seen")
