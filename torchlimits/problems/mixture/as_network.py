"""`as_network`: a mixture's problem as one of any head, for optimizers that need its gradients."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from torchlimits.optim.limit import OptimizerLimit
from torchlimits.problems.mixture.field import MixtureField
from torchlimits.problems.network.field import NetworkField
from torchlimits.problems.network.head import Head
from torchlimits.problems.network.kinks import Kinks
from torchlimits.problems.network.labels import ComponentLabels
from torchlimits.problems.network.resolution import resolution
from torchlimits.problems.network.sample_loss import SampleLoss
from torchlimits.problems.network.setting import Setting
from torchlimits.problems.two_layer import logistic_loss

#: the gradients of ReLU jump in h, and nowhere else
_KINKS = Kinks(in_h=True, steps_in_h=False, in_theta=False, in_labels=False)


def as_network(field: MixtureField, limit: OptimizerLimit, nodes: int) -> NetworkField:
    """The field of the same statistics, under the same names, by sums over nodes.

    Its head is relu and a second layer without a bias. Closed forms have no gradients of single
    samples, which second moments and maps of gradients are averages of.

    Args:
        field: the field of the mixture, at a finite snr.
        limit: what the optimizer does.
        nodes: the number of nodes of the Gaussian integrals, for each component.

    Example:
        >>> from torchlimits.optim.sgd import SGDSettings
        >>> from torchlimits.optim.sgd_limit import SGDLimit
        >>> from torchlimits.problems.mixture.relu_field import ReluField
        >>> place = {"width": 2, "snr": 2.0, "dim": 100}
        >>> field = ReluField(torch.eye(2).double(), torch.tensor([0.0, 1.0]).double(), **place)
        >>> limit = SGDLimit(SGDSettings(step_size=1.0))
        >>> as_network(field, limit, nodes=2**10).names == field.names
        True
    """
    A, d = field.coordinates.shape
    equal = torch.full_like(field.labels, 1 / A)
    setting = Setting(
        layout=field.layout, head=Head(_two_layers(field.width), "first"),
        losses=SampleLoss(logistic_loss), labels=ComponentLabels(field.labels),
        coordinates=field.coordinates, shares=equal if field.weights is None else field.weights,
        reads=field.coordinates.new_zeros(0, d), snr=field.snr,
    )  # fmt: skip
    setting, rule = resolution(setting, _KINKS, limit, nodes=nodes)
    return NetworkField(setting, dim=field.dim, rule=rule, kinks=_KINKS)


def _two_layers(width: int) -> nn.Module:
    """A `TwoLayerNetwork` of linear layers, with v = 1, made without random numbers."""
    first = nn.utils.skip_init(nn.Linear, 1, width, bias=False)
    second = nn.utils.skip_init(nn.Linear, width, 1, bias=False)
    parts = {"first": first, "relu": nn.ReLU(), "second": second, "logit": nn.Flatten(0)}
    network = nn.Sequential(OrderedDict(parts))
    for weight in network.parameters():
        nn.init.ones_(weight)
    return network
