"""Do statistics close? Reports on problems where the answer is known, both ways."""

import pytest
import torch

import torchlimits as tl
from torchlimits.estimation.conditions import power_law
from torchlimits.estimation.conditions.localizability import _moments
from torchlimits.statistics import overlaps, second_layer, squared_lengths

DIMS = [100, 200, 400, 800]
SIZES = {"samples": 4096, "points": 2, "remainders": 8}


def mixture(n, sampler=None, statistics=None):
    problem = tl.GaussianMixture.binary(n, width=2, snr=1.0, ridge=0.05)
    model = problem.model(generator=torch.Generator().manual_seed(n))
    return tl.SizedProblem(
        model, problem.loss, sampler or problem.sample, statistics or problem.statistics,
        step_size=1 / n, dim=n, weight_decay=0.05,
    )  # fmt: skip


def sparse(n):
    """Noise of the same variance, 0 in nine entries of ten: not Gaussian along an axis."""
    problem = tl.GaussianMixture.binary(n, width=2, snr=1.0)

    def sampler(batch, generator=None):
        y = torch.randint(0, 2, (batch,), generator=generator).float()
        sign = torch.randint(0, 2, (batch, n), generator=generator) * 2 - 1
        there = torch.rand(batch, n, generator=generator) < 0.1
        noise = sign * there * 10**0.5
        return (2 * y - 1)[:, None] * problem.directions.float() + noise, y

    return sampler


@pytest.mark.slow
def test_the_mixture_closes():
    report = tl.closability(mixture, DIMS, **SIZES)
    assert not report.fails, report
    # the corrector is well enough told for a verdict
    assert all(report[f"corrector, {kind}"].holds for kind in ("random", "aligned", "run")), report
    assert "n = 800" in str(report)


@pytest.mark.slow
def test_without_the_angle_between_neurons_it_does_not():
    def problem_at(n):
        e = torch.eye(1, n)
        statistics = tl.SummaryStatistics(
            {
                "v": second_layer("second.weight"),
                "m": overlaps("first.weight", e),
                "R": squared_lengths("first.weight", e),
            }
        )
        return mixture(n, statistics=statistics)

    report = tl.closability(problem_at, DIMS, **SIZES)
    for quantity in ("drift", "diffusion"):
        assert report[f"{quantity}, random"].fails, report
    assert not report["corrector, random"].holds, report  # 4 % only
    assert "exponent" in report["drift, random"].verdict
    assert not report.holds


def test_without_the_radius_matrix_pca_does_not():
    """The drift differs by about as much as it is, at every n, and from one lift to the next."""

    def problem_at(n):
        problem = tl.SpikedTensor(dim=n, order=2, snr=2.0)

        def lift(u, generator=None):
            r2 = 2 * float(torch.rand((), generator=generator))
            return problem.lift(torch.tensor([float(u[0]), r2]), generator)

        start = problem.model(at=(0.6, 0.5), generator=torch.Generator().manual_seed(n))
        overlap = tl.SummaryStatistics({"m": problem.statistics.functions["m"]})
        return tl.SizedProblem(
            start, problem.loss, problem.sample, overlap, 1 / n, n, lift=lift
        )  # fmt: skip

    report = tl.closability(problem_at, [50, 200], samples=512, points=1)
    assert report["drift, lifted"].fails, report
    assert abs(report["drift, lifted"].law.exponent) < 0.1
    # negative control: both statistics
    whole = lambda n: tl.SizedProblem.of(tl.SpikedTensor(dim=n, order=2, snr=2.0), step_size=1.0)  # noqa: E731
    report = tl.closability(whole, [50, 200], samples=512, points=1)
    assert not report.fails, report


@pytest.mark.slow
def test_sparse_noise_closes_for_spread_out_weights_only():
    report = tl.closability(lambda n: mixture(n, sparse(n)), DIMS, **SIZES)
    for quantity in ("drift", "corrector", "diffusion"):
        assert report[f"{quantity}, aligned"].fails, report
        assert not report[f"{quantity}, random"].fails, report


@pytest.mark.slow
def test_a_run_from_an_aligned_start_is_seen_to_differ():
    def problem_at(n):
        triple = mixture(n, sparse(n))
        u = torch.tensor([1.0, -1.0, 0.3, -0.3, 1.0, 0.0, 1.0]).double()
        start = tl.Lift(triple.model, triple.statistics, remainder="aligned")(u)
        with torch.no_grad():
            for name, parameter in triple.model.named_parameters():
                parameter.copy_(start[name])
        return triple

    report = tl.closability(problem_at, DIMS, samples=8192, points=2, remainders=6, time=0.02)
    assert report["drift, run"].fails, report
    assert report["corrector, run"].fails, report


def test_what_is_no_function_and_no_dimensions():
    with pytest.raises(TypeError, match=r"expected problem_at as a function of n, got NoneType"):
        tl.closability(None, [10, 20])
    with pytest.raises(TypeError, match=r"expected dims as several ints, got int"):
        tl.localizability(mixture, 10)
    with pytest.raises(ValueError, match=r"expected increasing dims, got \[20, 10\]"):
        tl.critical_step_size(mixture, [20, 10])


def test_one_lift_of_ones_own():
    problem = tl.SpikedTensor(dim=50, order=2, snr=2.0)
    report = tl.closability(
        lambda n: tl.SizedProblem.of(tl.SpikedTensor(dim=n, order=2, snr=2.0), step_size=0.5),
        [50, 400], samples=512, points=2, remainders=4,
    )  # fmt: skip
    assert report.conditions[0].name == "drift, lifted"
    assert not report.fails, report
    with pytest.raises(ValueError, match="drawn from the generator"):
        tl.closability(
            lambda n: tl.SizedProblem(
                problem.model(), problem.loss, problem.sample, problem.statistics, 0.01, n,
                lift=lambda u: problem.lift(u),
            ),
            [50, 51],
        )  # fmt: skip


@pytest.mark.slow
def test_localizability_of_the_mixture():
    report = tl.localizability(mixture, DIMS)
    assert report.holds, report
    # exact: grad^2 u has norm 2 (R_ii), and |grad H|^2 is |X|^2 times a number: power n
    assert report["|grad^2 u|"].values == pytest.approx([2.0] * 4)
    assert report["E|grad H|^3"].law.exponent == pytest.approx(1.5, abs=0.1)
    assert report["E|grad H|^8"].law.exponent == pytest.approx(4.0, abs=0.3)
    assert report["E<grad^2 u, grad H x grad H - V>^2"].law.exponent == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize(
    ("statistic", "failing"),
    [
        (lambda n: lambda p: n * p["x"][0] ** 2, {"|grad^2 u|", "E<grad H, grad u>^4"}),
        (lambda n: lambda p: n**0.5 * p["x"][0] ** 3, {"|grad^3 u|"}),
        (lambda n: lambda p: p["x"].square().sum(), set()),
    ],
)
def test_localizability_fails_where_it_should(statistic, failing):
    """n m^2 bends too much, sqrt(n) m^3 too abruptly; |x|^2 is fine."""

    def problem_at(n):
        problem = tl.SpikedTensor(dim=n, order=2, snr=2.0)
        return tl.SizedProblem(
            problem.model(at=(0.5, 1.0), generator=torch.Generator().manual_seed(n)),
            problem.loss, problem.sample, tl.SummaryStatistics({"u": statistic(n)}),
            step_size=0.5 / n, dim=n,
            lift=lambda u, generator=None: problem.lift(torch.tensor([0.5, 1.0]), generator),
        )  # fmt: skip

    report = tl.localizability(problem_at, [50, 100, 200, 400], points=1)
    assert {c.name for c in report.conditions if c.fails} == failing, report


def test_the_critical_step_size():
    """1/n, by the corrector of R; of sqrt(n) m too, by its diffusion; O(1) for m alone."""
    found = tl.critical_step_size(mixture, DIMS)
    assert abs(found.exponent - 1) < 0.1
    assert "corrector of R" in found.driver

    def spiked(statistics):
        def problem_at(n):
            problem = tl.SpikedTensor(dim=n, order=2, snr=2.0)
            model = problem.model(at=(0.5, 1.0))
            lift = lambda u, generator=None: problem.lift(torch.tensor([0.5, 1.0]), generator)  # noqa: E731
            functions = tl.SummaryStatistics(statistics(n))
            return tl.SizedProblem(
                model, problem.loss, problem.sample, functions, 0.5 / n, n, lift=lift
            )

        return tl.critical_step_size(problem_at, [50, 100, 200, 400], points=1)

    R2 = 1.25
    radius = spiked(lambda n: {"r2": lambda p: p["x"][1:].square().sum()})
    # Lgen r2 = 4 k R^(2k-2) (n - 1) + ..., k = 2
    assert radius.exponent == pytest.approx(1, abs=0.05)
    assert radius.constant == pytest.approx(1 / (8 * R2), rel=0.2)
    scaled = spiked(lambda n: {"sqrt(n) m": lambda p: n**0.5 * p["x"][0]})
    assert scaled.exponent == pytest.approx(1, abs=0.05)
    assert scaled.driver == "diffusion of sqrt(n) m"
    assert scaled.constant == pytest.approx(1 / (8 * R2 + 8 * 0.25), rel=0.2)
    assert spiked(lambda n: {"m": lambda p: p["x"][0]}).exponent == pytest.approx(0, abs=0.05)


# --- the words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "error", "needed", "word"),
    [
        ([1.0, 1.0, 1.0], 0.01, 0.0, "holds"),
        ([1.0, 2.0, 4.0], 0.01, 0.0, "fails"),
        ([1.0, 1.1, 1.3], 0.4, 0.0, "undecided"),
        ([0.0, 0.0, 0.0], 0.0, 0.0, "holds"),
        ([1.0, 3.0, 1.0], 0.01, 0.0, "undecided"),
    ],
)
def test_growth(values, error, needed, word):
    condition = power_law.at_most("y", [100, 200, 400], values, [error * v for v in values], needed)
    assert condition.verdict.startswith(word), condition


def test_growth_strictly_slower():
    values = [1.0, 2.0, 4.0]
    at = power_law.at_most("y", [1, 2, 4], values, [0.01] * 3, 1.0, strict=True)
    assert at.verdict.startswith("undecided")
    assert power_law.at_most("y", [1, 2, 4], values, [0.01] * 3, 2.0, strict=True).holds


@pytest.mark.parametrize(
    ("squares", "error", "word"),
    [
        ([0.04, 0.04, 0.04], 0.002, "fails"),
        ([0.04, 0.02, 0.01], 0.0005, "holds"),
        ([0.0, 0.001, -0.001], 0.001, "holds"),
        ([0.0, 0.001, -0.001], 0.1, "undecided"),
        ([0.0, 0.0, 0.04], 0.002, "undecided"),
        ([0.01, 0.02, 0.04], 0.0005, "fails"),
    ],
)
def test_vanishing(squares, error, word):
    # rows of that mean and error
    at_n = [power_law.Squares([s - error, s + error], error) for s in squares]
    condition = power_law.vanishes("y", [100, 200, 400], at_n, 0.1)
    assert condition.verdict.startswith(word), condition
    assert str(condition).startswith(f"y: {word}")


def test_rows_that_differ_alike_at_all_n_are_no_error():
    """Sizes of 0.5 to 2, the same at every n: significant, and of exponent 0."""
    scatter = [0.1, 4.0, 0.5, 2.5, 0.05, 1.0]
    at_n = [power_law.Squares([s + 0.01 * i for s in scatter], 0.01) for i in range(3)]
    assert at_n[0].error > at_n[0].mean / 3  # which was taken for insignificant
    condition = power_law.vanishes("y", [100, 200, 400], at_n, 0.1)
    assert condition.fails
    assert condition.law.standard_error < 0.05
    # negative control: as large, with noise as large
    noisy = [power_law.Squares(s.rows, 1.0) for s in at_n]
    assert "more samples would tell" in power_law.vanishes("y", [1, 2, 4], noisy, 0.1).verdict
    shrinking = [power_law.Squares([s / n for s in scatter], 0.01) for n in (1, 2, 4)]
    assert power_law.vanishes("y", [100, 200, 400], shrinking, 0.1).holds


def test_power_laws_have_right_errors():
    """200 fits to noisy data: the true exponent is inside 95 % intervals 90 to 99 % of the time."""
    generator = torch.Generator().manual_seed(0)
    dims = [100, 200, 400, 800]
    true = torch.tensor([2 * n**-0.5 for n in dims]).double()
    inside = 0
    for _ in range(200):
        noise = torch.randn(4, generator=generator, dtype=torch.float64)
        y = true * (1 + 0.05 * noise)
        law = power_law.fit(dims, y.tolist(), (0.05 * true).tolist())
        inside += abs(law.exponent + 0.5) < 1.96 * law.standard_error
    assert 180 <= inside <= 198


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dims": []}, "increasing"),
        ({"dims": [200, 100]}, "increasing"),
        ({"remainders": 2}, "at least 3"),
        ({"samples": 0}, "samples"),
        ({"time": 0.0}, "time"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        tl.closability(mixture, options.pop("dims", [20, 40]), **options)


def test_wrong_triples():
    with pytest.raises(TypeError, match=r"tl\.SizedProblem"):
        tl.closability(lambda n: None, [20, 40])
    with pytest.raises(ValueError, match="dim to be 20"):
        tl.closability(lambda n: mixture(n + 1), [20, 40])
    with pytest.raises(ValueError, match="lift of your own"):
        tl.closability(lambda n: mixture(n, statistics=tl.SummaryStatistics(
            {"norm": lambda p: p["first.weight"].norm()})), [20, 40])  # fmt: skip
    report = tl.closability(mixture, [20, 40], samples=64, points=1, remainders=3)
    with pytest.raises(ValueError, match="expected one of"):
        report["drift"]


def test_autocast_does_not_enter_moments():
    triple = mixture(50)
    parameters = {n: p.detach() for n, p in triple.model.named_parameters()}
    found = []
    for on in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=on):
            found.append(_moments(triple, parameters, samples=256, seed=0))
    assert found[0] == found[1]
