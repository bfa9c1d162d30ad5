"""`equation`: the equations of optimizers that scale gradients, in markdown."""

from __future__ import annotations

from torchlimits.optim.gradient_map import GradientMap
from torchlimits.optim.moment_layout import MomentLayout
from torchlimits.optim.muon_settings import MuonSettings

#: the change of second moments
_CLOCKS = {
    "Adam": "log(1/beta2) (N/c) (Q - v)",
    "RMSprop": "log(1/alpha) (N/c) (Q - v)",
    "Adagrad": "(N/c) Q",
}


def equation(moments: MomentLayout, map: GradientMap | None, corrector: bool = True) -> str:
    """The equations solved.

    Args:
        moments: which parameters have second moments, and of what kind.
        map: what is done to gradients before.
        corrector: whether the corrector is in them.
    """
    muon = isinstance(moments.settings.get(moments.base.weight), MuonSettings)
    scales = ["D = 1/(sqrt(v^) + eps) where there are second moments v, else a constant"]
    if muon:
        scales.append("A = f(C/tr C)/sqrt(N tr C) of Muon, C the covariance of its buffer's rows")
    if moments.kind:
        scales.append("Q the mean of a batch's squared gradient")
    pair, mapped = "(1/(snr B)) E[g_i g_j]", ""
    if map is not None:
        facts = ", ".join(f"{k}={v}" for k, v in map.describe().items())
        pair = "E[C_ij]"
        mapped = (
            f" A batch's gradient is mapped by f before ({facts}): stand f(dl/dtheta), f(g_i), "
            "a_i g_i x_j and a_i g_i P_j for its parts, with a = E f'(s Z), C = E f f."
        )
    if muon:
        pulls = ["A_ik E[g_k x_j]", "A_ik E[g_k P_j] - A_jk E[g_k P_i]"]
        kick = f" + c (A {pair.replace('_ij', '').replace('g_i g_j', 'g g^T')} A)_ij"
    else:
        pulls = [
            "D_i (E[g_i x_j] + lambda m_ij)",
            "D_i (E[g_i P_j] + lambda R_ij) - D_j (E[g_j P_i] + lambda R_ij)",
        ]
        kick = f" + c D_i {pair} D_j"
    return "\n".join(
        [
            "Effective dynamics of h = W x + b, output = head(h), with g = dl/dh of one sample, "
            f"P = W_perp x, {', '.join(scales)}.{mapped}",
            "",
            "    dtheta/dt = - D (E[dl/dtheta] + lambda theta) - omega theta",
            "    db_i/dt   = - D (E[g_i] + lambda b_i) - omega b_i",
            f"    dm_ij/dt  = - {pulls[0]} - omega m_ij",
            f"    dR_ij/dt  = - {pulls[1]} - 2 omega R_ij{kick if corrector else ''}",
            *([f"    dv/dt     = {_CLOCKS[moments.kind]}"] if moments.kind else []),
        ]
    )
