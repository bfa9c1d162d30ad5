"""What counts as a step, whose steps are seen, and what interrupts do to their numbers."""

import functools
import gc
import sys
import threading

import pytest
import torch
from optimizers import SAM, Clipped, Halving, HooksOfItsOwn, LocalLike, PrivateLike
from torch import nn

import torchlimits as tl
from torchlimits.record import begun, limit_time, optimizer_hook

WEIGHT = {"w": lambda p: p["weight"]}
#: entries of the weight
K = 3


def started(make=lambda p: torch.optim.SGD(p, lr=0.1), **options):
    torch.manual_seed(0)
    model = nn.Linear(K, 1, dtype=torch.float64)
    optimizer = make(model.parameters())
    return model, optimizer, tl.track(model, optimizer, WEIGHT, **options)


def backward(model):
    model.zero_grad()
    model(torch.ones(2, K, dtype=torch.float64)).square().mean().backward()


def take(model, optimizer, count=1):
    for _ in range(count):
        backward(model)
        optimizer.step()


# --- which optimizer ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["accelerate", "fabric", "lightning"])
def test_wrappers_of_trainers_are_seen_through(kind):
    """The optimizer inside is the one that steps and is named."""
    model = nn.Linear(K, 1)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    if kind == "accelerate":
        outer = pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(inner)
    elif kind == "fabric":
        fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu")
        model, outer = fabric.setup(model, inner)
    else:
        module = pytest.importorskip("lightning.pytorch.core.optimizer")
        outer = module.LightningOptimizer(inner)
        outer._strategy = type("S", (), {"optimizer_step": lambda s, o, c, **k: o.step(c)})()
    tracker = tl.track(model, outer, WEIGHT)
    for _ in range(3):
        model(torch.ones(2, K)).square().mean().backward()
        outer.step()
    path = tracker.trajectory()
    assert path.steps.tolist() == [0, 1, 2, 3]
    weight = inner.param_groups[0]["params"][0]
    assert torch.equal(path.final.float(), weight.detach().flatten())
    assert path.metadata["parameters"]["optimizer"] == "SGD"


REFUSED = {
    "private": (PrivateLike, r"PrivateLike, .* track optimizer\.original_optimizer, the SGD"),
    "local": (LocalLike, r"LocalLike, .* track optimizer\.optim, the SGD that makes its steps"),
    "hooks of its own": (HooksOfItsOwn, r"track optimizer\._base_optimizer, the SGD"),
    "two around": (lambda o: LocalLike(PrivateLike(o)), r"optimizer\.optim\.original_optimizer"),
    "sharpness aware": (
        lambda o: SAM(o.param_groups[0]["params"], torch.optim.SGD, lr=0.1),
        r"SAM, which does so in \.second_step\(\) as well: track optimizer\.base_optimizer, the",
    ),
}


@pytest.mark.parametrize(("wrap", "message"), REFUSED.values(), ids=REFUSED)
def test_what_hides_its_steps_is_refused_with_the_one_to_track(wrap, message):
    model = nn.Linear(K, 1)
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=message):
        tl.track(model, optimizer, WEIGHT)


@pytest.mark.parametrize(("wrap", "attribute"), [
    (PrivateLike, "original_optimizer"), (LocalLike, "optim"), (HooksOfItsOwn, "_base_optimizer"),
])  # fmt: skip
def test_what_a_refusal_advises_works(wrap, attribute):
    model = nn.Linear(K, 1, dtype=torch.float64)
    optimizer = wrap(torch.optim.SGD(model.parameters(), lr=0.1))
    tracker = tl.track(model, getattr(optimizer, attribute), WEIGHT)
    take(model, optimizer, 3)
    assert tracker.trajectory().steps.tolist() == [0, 1, 2, 3]
    assert torch.equal(tracker.trajectory().final, model.weight.detach().flatten())


def test_the_other_advice_of_a_refusal_works():
    """Rows after what a wrapper without hooks does last."""
    model = nn.Linear(K, 1, dtype=torch.float64)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = LocalLike(inner)
    optimizer.step = lambda: (inner.step(), model.weight.data.mul_(0.5))
    tracker = tl.track(model, optimizer.optim, WEIGHT)
    tracker.remove()
    seen = [model.weight.detach().flatten().clone()]
    for _ in range(3):
        backward(model)
        optimizer.step()
        tracker.stepped()
        seen.append(model.weight.detach().flatten().clone())
    assert torch.equal(tracker.trajectory().values, torch.stack(seen))
    assert tracker.trajectory().times.tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert tracker.unseen() is None


@pytest.mark.filterwarnings("ignore")
def test_the_averaging_optimizer_of_torch_is_refused_with_the_one_to_track():
    """The very one that `LocalLike` is like."""
    optim = pytest.importorskip("torch.distributed.optim")
    averagers = pytest.importorskip(
        "torch.distributed.algorithms.model_averaging.averagers", exc_type=ImportError
    )

    class NoAverager(averagers.ModelAverager):
        def __init__(self):
            pass

        def average_parameters(self, params):
            pass

    model = nn.Linear(K, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = optim.PostLocalSGDOptimizer(sgd, NoAverager())
    with pytest.raises(ValueError, match=r"PostLocalSGDOptimizer, .* track optimizer\.optim, the"):
        tl.track(model, optimizer, WEIGHT)


def test_what_is_no_optimizer():
    model = nn.Linear(K, 1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)

    class Wrapper:
        def __init__(self):
            self.wrapped = sgd

    for given, error, message in [
        (None, TypeError, "expected optimizer to be a torch.optim.Optimizer, got NoneType"),
        (Wrapper(), TypeError, r"got Wrapper: track optimizer\.wrapped, the SGD"),
        ([sgd, 3], TypeError, r"expected optimizers\[1\] to be a torch.optim.Optimizer, got int"),
        ([], ValueError, "got an empty list"),
        ([sgd, sgd], ValueError, "one of them twice"),
    ]:
        with pytest.raises(error, match=message):
            tl.track(model, given, WEIGHT)
    with pytest.raises(TypeError, match=r"model to be a torch\.nn\.Module, got int"):
        tl.track(3, sgd, WEIGHT)


def test_a_list_names_all_its_optimizers():
    model = nn.Linear(K, 1)
    pair = [torch.optim.SGD([model.weight], lr=0.1), torch.optim.Adam([model.bias], lr=0.2)]
    facts = tl.track(model, pair, WEIGHT, time_of="bias").trajectory().metadata["parameters"]
    assert (facts["optimizer"], facts["lr"], facts["time_of"]) == ("SGD, Adam", 0.2, "bias")
    with pytest.raises(ValueError, match="expected one optimizer with a probe, got 2"):
        tl.track(model, pair, WEIGHT, probe=tl.Probe(lambda m, b: 0, lambda n, generator: 0))


# --- interrupts --------------------------------------------------------------------------------


class Stop(BaseException):
    pass


def interrupted(act, files, line):
    """Run `act` with an exception at the so many-th line traced in some files; whether it came."""
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            lines += 1
            if lines == line:
                raise Stop
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except Stop:
        return True
    finally:
        sys.settrace(before)
    return False


HOOKS = {module.__file__ for module in (optimizer_hook, begun, limit_time)}


class Rows(optimizer_hook.Steps):
    """Keeps (step, time, weight) of each step that it is told to record."""

    rows = ()

    def stepped(self):
        if self._advance():
            weight = self._model.weight.detach().clone()
            self.rows = (*self.rows, (self.step, self.time, weight))


OPTIMIZERS = {
    "plain": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5),
    "nested": lambda p: Clipped(p, lr=0.1),
    "fused": lambda p: torch.optim.SGD(p, lr=0.1, fused=True),
    "learning rate as a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
}


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_interrupt_at_any_line_of_the_hooks_shifts_no_number(make, every):
    """Rows after it have the numbers and times of the steps that the parameters have made."""
    check_interrupts(make, every, Rows)


def test_the_check_of_interrupts_sees_a_lost_step():
    """Negative control: a count by the hook after the step alone."""

    class Simple(Rows):
        def _settle(self, calls):
            return True

    with pytest.raises(AssertionError):
        check_interrupts(OPTIMIZERS["plain"], 1, Simple)


def check_interrupts(make, every, kind):
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)  # the base has hooks
    line, moved, lost, came = 0, 0, 0, True
    while came:
        line += 1
        torch.manual_seed(0)
        model = nn.Linear(K, 1, dtype=torch.float64)
        optimizer = make(model.parameters())
        steps = kind(model, optimizer, every)
        steps._attach()
        seen = [model.weight.detach().clone()]
        for count in range(6):
            backward(model)
            if count == 2:
                came = interrupted(optimizer.step, HOOKS, line)
            else:
                optimizer.step()
            if not torch.equal(seen[-1], model.weight):
                seen.append(model.weight.detach().clone())
                moved += came and count == 2
        assert steps.step == len(seen) - 1, line
        assert steps.time == pytest.approx(0.1 * steps.step)
        numbers = [step for step, _, _ in steps.rows]
        expected = set(range(every, len(seen), every))
        # at most the row of the interrupted step is missing
        assert numbers == sorted(expected & set(numbers))
        assert expected - set(numbers) <= {3}
        lost += expected != set(numbers)
        for step, time, weight in steps.rows:
            assert torch.equal(weight, seen[step]), (line, step)
            assert time == pytest.approx(0.1 * step)
    assert line > 20
    # there were interrupts after the step had been made
    assert moved > 5
    assert every == 2 or lost > 0


def test_the_last_step_before_a_checkpoint_is_counted_whatever_interrupted_its_hook():
    model, optimizer, tracker = started()
    take(model, optimizer, 2)
    backward(model)

    def fails(*arguments):
        raise Stop

    tracker.stepped = fails
    with pytest.raises(Stop):
        optimizer.step()
    del tracker.stepped
    assert tracker.step == 2
    assert tracker.state_dict()["step"] == 3
    assert tracker.state_dict()["time"] == pytest.approx(0.3)
    take(model, optimizer)
    assert tracker.trajectory().steps.tolist() == [0, 1, 2, 4]
    tracker.stepped = fails
    backward(model)
    with pytest.raises(Stop):
        optimizer.step()
    tracker.remove()
    assert tracker.step == 5


def test_a_step_that_fails_before_it_moves_anything_is_none():
    model, optimizer, tracker = started()

    def closure():
        backward(model)
        raise Stop

    for _ in range(3):
        take(model, optimizer)
        with pytest.raises(Stop):
            optimizer.step(closure)
        with pytest.raises(Stop):
            optimizer.step(closure=closure)
    assert tracker.step == 3
    assert tracker.trajectory().steps.tolist() == [0, 1, 2, 3]


def test_steps_by_hand_beside_those_that_are_seen():
    """After one that failed, as well, and after one whose hook was interrupted."""
    model, optimizer, tracker = started()

    def fails(*arguments):
        raise Stop

    take(model, optimizer)
    tracker.stepped()
    with pytest.raises(Stop):
        optimizer.step(fails)
    tracker.stepped()
    assert tracker.step == 3
    tracker.stepped, stepped = fails, tracker.stepped
    with pytest.raises(Stop):
        take(model, optimizer)
    tracker.stepped = stepped
    tracker.stepped()
    assert tracker.step == 5
    take(model, optimizer)
    assert tracker.trajectory().steps.tolist() == [0, 1, 2, 3, 5, 6]


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_scaler_skips_do_not_count_after_an_interrupt_either(fused):
    torch.manual_seed(0)
    model = nn.Linear(K, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    tracker = tl.track(model, optimizer, WEIGHT)
    count = 0
    for line in range(1, 40):
        before = model.weight.detach().clone()
        optimizer.zero_grad()
        loss = model(torch.ones(2, K)).square().mean() * (torch.inf if line % 2 else 1.0)
        scaler.scale(loss).backward()
        step = functools.partial(scaler.step, optimizer)
        interrupted(step, HOOKS, line if line % 4 == 1 else 0)
        for name in ("found_inf", "grad_scale"):
            optimizer.__dict__.pop(name, None)  # GradScaler does, if it gets that far
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        count += not torch.equal(before, model.weight)
    assert count > 15
    assert tracker.step == count


def test_a_state_asked_for_while_another_thread_steps():
    """A step that is under way is neither counted before its end nor twice."""
    model, optimizer, tracker = started()
    states = []

    def closure():
        # the parameter has moved, as in a line search
        with torch.no_grad():
            model.weight.mul_(1.0)
        thread = threading.Thread(target=lambda: states.append(tracker.state_dict()["step"]))
        thread.start()
        thread.join()
        states.append(tracker.state_dict()["step"])
        backward(model)

    for _ in range(3):
        optimizer.step(closure)
    assert states == [0, 0, 1, 1, 2, 2]
    assert tracker.trajectory().steps.tolist() == [0, 1, 2, 3]


def test_a_failing_step_of_a_subclass_does_not_stop_the_count():
    torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    model, optimizer, tracker = started(lambda p: Clipped(p, lr=0.1))
    for _ in range(3):
        backward(model)
        with pytest.raises(Stop):
            optimizer.step(lambda: (_ for _ in ()).throw(Stop))
        take(model, optimizer)
    assert tracker.trajectory().steps.tolist() == [0, 1, 2, 3]
    assert torch.equal(tracker.trajectory().final, model.weight.detach().flatten())


# --- steps that nobody sees --------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_a_loop_that_never_steps_the_tracked_optimizer(fused):
    model, _, tracker = started()
    other = torch.optim.AdamW(model.parameters(), lr=0.1, fused=fused)
    assert tracker.unseen() is None
    take(model, other, 5)
    message = tracker.unseen()
    assert message is not None
    assert message.startswith("no step of the optimizer was seen, but parameters that it holds")
    assert "(AdamW)" in message
    with pytest.warns(RuntimeWarning) as warned:
        tracker.close()
    assert [str(one.message) for one in warned] == [message]
    assert tracker.unseen() == message
    del other
    gc.collect()


def test_a_loop_that_goes_on_with_a_new_optimizer():
    model, optimizer, tracker = started()
    take(model, optimizer, 7)
    assert tracker.unseen() is None
    take(model, torch.optim.SGD(model.parameters(), lr=0.1), 40)
    assert tracker.unseen().startswith("no step of the optimizer was seen after step 7, but")
    assert "changed 40 times since: " in tracker.unseen()
    with pytest.warns(RuntimeWarning, match="no step of the optimizer was seen after step 7"):
        tracker.close()


def test_a_wrapper_that_the_loop_steps_past():
    """The tracked one moves what it wraps, and the loop steps that."""
    model = nn.Linear(K, 1, dtype=torch.float64)
    optimizer = Halving(torch.optim.SGD(model.parameters(), lr=0.1))
    tracker = tl.track(model, optimizer, WEIGHT)
    take(model, optimizer.optimizer, 3)
    assert tracker.unseen().endswith("track the SGD in the .optimizer of the Halving")


def load(model):
    model.load_state_dict({n: p.clone() + 1 for n, p in model.state_dict().items()})


ORDINARY = {
    "nothing": lambda model, optimizer: None,
    "loaded": lambda model, optimizer: load(model),
    "moved": lambda model, optimizer: model.float(),
    "loaded and trained": lambda model, optimizer: (load(model), take(model, optimizer, 3)),
    "best at the end": lambda model, optimizer: (take(model, optimizer, 3), load(model)),
    "clamped": lambda model, optimizer: [
        (take(model, optimizer), model.weight.data.clamp_(-1, 1)) for _ in range(20)
    ],
    "swapped": lambda model, optimizer: (
        take(model, optimizer, 3), [nn.init.normal_(model.weight) for _ in range(4)],
    ),
    "interrupted": lambda model, optimizer: (take(model, optimizer, 3), backward(model)),
}  # fmt: skip


@pytest.mark.parametrize("act", ORDINARY.values(), ids=ORDINARY)
def test_ordinary_loops_draw_no_warning(act):
    model, optimizer, tracker = started()
    act(model, optimizer)
    assert tracker.unseen() is None


def test_line_searches_change_parameters_many_times_a_step():
    model, optimizer, tracker = started(lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=20))

    def closure():
        backward(model)
        return model.weight.square().sum()

    for _ in range(3):
        optimizer.step(closure)
    assert tracker.unseen() is None


def test_what_happens_after_the_tracker_was_removed_is_not_its_business():
    model, optimizer, tracker = started()
    take(model, optimizer, 3)
    tracker.remove()
    take(model, optimizer, 50)
    tracker.remove()
    assert tracker.unseen() is None
