"""The last step size of AdaGrad-Norm on least squares, against the equations for any spectrum."""

import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from torchlimits.problems.linear.final_rate import final_accumulator

#: eigenvalues and their fractions, all of mean 1
SPECTRA = [
    ([1.0], [1.0]),
    ([0.25, 1.0, 2.5], [0.4, 0.4, 0.2]),
    ([0.5, 1.5, 3.7, 0.1], [0.3, 0.3, 0.1, 0.3]),
]
#: the squared error from which v ends at 2.09958 with eta = trace = v_0 = 1
REFERENCE = 4 * (2.09958**0.5 - 1) - math.log(2.09958)


def integrated(spectrum, lr, initial, squared_error, batch_size=1):
    """v after a long time, of D_l and v as they stand, with the error spread evenly."""
    values, fractions = (np.array(x) for x in spectrum)

    def velocity(s, state):
        D, v = state[:-1], state[-1]
        risk, gamma = values @ D, lr / v**0.5
        kick = gamma**2 / batch_size * fractions * values * risk
        return [*(-2 * gamma * values * D + kick), values @ fractions / batch_size * risk]

    start = [*(squared_error * np.ones(len(values)) / len(values)), initial]
    path = solve_ivp(velocity, (0, 2000), start, method="DOP853", rtol=1e-11, atol=1e-14)
    assert path.y[:-1, -1].sum() < 1e-9 * squared_error
    return path.y[-1, -1]


@pytest.mark.parametrize("spectrum", SPECTRA)
def test_it_is_2_09958_for_three_spectra_of_one_trace(spectrum):
    assert np.dot(*spectrum) == pytest.approx(1.0, abs=1e-12)
    v = integrated(spectrum, 1.0, 1.0, REFERENCE)
    assert v == pytest.approx(2.09958, abs=1e-5)
    assert final_accumulator(1.0, 1.0, 1.0, REFERENCE) == pytest.approx(2.09958, abs=1e-12)
    # negative controls: without the corrector's logarithm, and with another trace
    assert abs(v - (1 + REFERENCE / 4) ** 2) > 0.1
    assert abs(v - final_accumulator(1.0, 1.05, 1.0, REFERENCE)) > 0.01


@pytest.mark.parametrize(
    ("lr", "initial", "squared_error", "batch_size"),
    [(0.4, 0.3, 2.0, 1), (1.5, 0.2, 0.7, 1), (1.0, 0.1, 3.0, 4)],
)
@pytest.mark.parametrize("spectrum", SPECTRA[1:])
def test_the_law_is_that_of_the_equations(spectrum, lr, initial, squared_error, batch_size):
    """The second one starts above the largest stable step size, 2/trace."""
    trace = float(np.dot(*spectrum))
    v = integrated(spectrum, lr, initial, squared_error, batch_size)
    found = final_accumulator(lr, trace, initial, squared_error, batch_size)
    assert found == pytest.approx(v, abs=1e-5)
    assert lr / found**0.5 < 2 * batch_size / trace


@pytest.mark.parametrize("lr", [1e-3, 0.3, 5.0])
@pytest.mark.parametrize("initial", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("squared_error", [1e-12, 1.0, 1e6])
def test_the_root_is_one_to_rounding(lr, initial, squared_error):
    v = final_accumulator(lr, 0.7, initial, squared_error)
    z = v**0.5 / initial**0.5 - 1
    terms = 4 * lr / 0.7 * initial**0.5 * z, -2 * lr**2 * math.log1p(z), -squared_error
    scale = max(abs(term) for term in terms) + 4 * lr / 0.7 * v**0.5 * 1e-3
    assert abs(sum(terms)) < 1e-12 * scale


def test_what_is_out_of_range_is_refused():
    assert final_accumulator(1.0, 1.0, 0.3, 0.0) == 0.3
    for place, name in enumerate(("lr", "trace", "initial", "squared_error")):
        numbers = [1.0] * 4
        numbers[place] = -1.0
        with pytest.raises(ValueError, match=f"expected {name}"):
            final_accumulator(*numbers)
