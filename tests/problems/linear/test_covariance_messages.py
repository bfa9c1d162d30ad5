"""Messages of `Covariance.of` about arguments of another kind or of two readings."""

import pytest
import torch

import torchlimits as tl


def test_dim_is_an_int_and_square_spectra_are_told_what_to_do():
    with pytest.raises(ValueError, match=r"dim to be an int >= 1, got 4\.0"):
        tl.Covariance.of([(1.0, 1.0)], dim=4.0)
    with pytest.raises(ValueError, match=r"symmetric.*tl\.Covariance\(eigenvalues\)"):
        tl.Covariance.of(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), dim=2)
