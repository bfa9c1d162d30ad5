"""The probability that SGD on a mixture ends at an optimal classifier, as noise tends to 0."""

from __future__ import annotations

import math


def exact(means: int, width: int) -> float:
    r"""P(every mean has a neuron) if each of K neurons takes one of A means at random,

    .. math:: \sum_{j=0}^{A} (-1)^j \binom{A}{j} (1 - j/A)^K :

    :math:`1 - 2^{1-K}` for the binary mixture (A = 2), 3/32 for XOR (A = 4) at K = 4.

    Source: sections 4 and 5 of arXiv 2206.04030 for K = 2 and 4; surjections on A classes for
    any K.

    Args:
        means: A.
        width: K.

    Example:
        >>> exact(2, 2), exact(4, 4)
        (0.5, 0.09375)
    """
    terms = ((-1) ** j * math.comb(means, j) * (means - j) ** width for j in range(means + 1))
    return sum(terms) / means**width
