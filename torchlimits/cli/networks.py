"""Problems of ``torchlimits run`` with any head: `Network`, `TeacherStudent`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torchlimits.cli.options import Options
from torchlimits.cli.spectra import is_file, spectrum_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from torchlimits.dynamics.effective_dynamics import EffectiveDynamics
    from torchlimits.problems.network import teacher_student
    from torchlimits.problems.network.problem import NetworkProblem


@dataclass(kw_only=True)
class Network(Options):
    """Train a network with a head of your choice on Gaussian classes with orthonormal means.

    The first layer is linear with biases, the loss cross-entropy. Every parameter of the head is
    predicted besides the overlaps and lengths of the first layer's rows, and so are the risk and
    the accuracy.
    """

    band: Literal["law", "linear", "none"] = "linear"
    """What tells where 95 % of runs at this dimension are: the linear approximation, or their law,
    by 2000 paths of the exact chain, which is right near saddles too (minutes)."""
    step_size: float = 4.0
    time: float = 20.0
    head: Literal["mlp", "gelu", "relu", "tanh"] = "mlp"
    """What follows the first layer: GELU and a second hidden layer of 5 tanh units for mlp, one
    activation for the others; then the outputs."""
    trained_by: Literal["sgd", "adam", "adamw", "rmsprop", "sign"] = "sgd"
    """The optimizer, with its defaults but for the learning rate and the ridge, and on the CPU if
    it is not SGD. A --step-size of 1 suits the others."""
    classes: int = 3
    """The number of classes."""
    snr: float = 4.0
    """The signal-to-noise ratio lambda."""
    width: int = 4
    """The number K of neurons of the first layer."""
    ridge: float = 0.01
    """The ridge alpha, which is the weight decay of SGD."""
    spectrum: str | None = None
    """The eigenvalues of the inputs' covariance, all 1 by default: 0.5:0.4,1:0.4,4:0.2, which is
    eigenvalue:fraction; power:1, where the i-th is i^(-1), scaled to mean 1; or a file .npy, .npz
    or .pt with a spectrum (N,) or a matrix (N, N). The means of the classes are eigenvectors then,
    evenly spaced from the first to the last."""
    blocks: int | Literal["all"] | None = None
    """The number of blocks of eigenvalues that have statistics of their own. By default each of up
    to 16 eigenvalues has one, and more are grouped into 16; all gives one to each."""

    @property
    def title(self) -> str:
        """The title of pictures, with the head."""
        by = "" if self.trained_by == "sgd" else f", {self.trained_by}"
        return f"{self.name}, head {self.head}{by}"

    def described(self) -> dict[str, Any]:
        """Return the options; a file is found again from other folders."""
        found = super().described()
        if self.spectrum is not None and is_file(self.spectrum):
            found["spectrum"] = str(Path(self.spectrum).absolute())
        return found

    def check(self) -> None:
        """Raise ValueError for numbers that no training can have, before a folder is made."""
        super().check()
        from torchlimits import _checks

        _checks.positive_int("width", self.width)
        if self.classes < 2:
            raise ValueError(f"expected classes as an int >= 2, got {self.classes}")
        if self.trained_by != "sgd" and self.band == "law":
            raise ValueError(
                f"expected --band linear or none with --trained-by {self.trained_by}, got law: no "
                "chain of its steps is known"
            )
        if self.dim < self.classes + self.width:
            raise ValueError(
                f"expected dim >= classes + width = {self.classes + self.width}, got {self.dim}: "
                "give a larger --dim"
            )
        self._check_spectrum()

    def _check_spectrum(self) -> None:
        """Raise ValueError for what is not known of inputs with a spectrum."""
        if self.spectrum is None:
            if self.blocks is not None:
                raise ValueError("expected --blocks together with --spectrum, got it alone")
            return
        if self.trained_by != "sgd":
            raise ValueError(
                f"expected --trained-by sgd with --spectrum, got {self.trained_by}: its limit is "
                "known for isotropic inputs alone"
            )
        from torchlimits.problems.network.block_layout import BlockLayout

        # refuses a number of blocks and a learning rate that do not fit
        problem = self.problem("cpu")
        problem.dynamics(step_size=self.step_size)
        layout = problem.layout
        if self.band == "law" and isinstance(layout, BlockLayout) and layout.blocks.grouped:
            raise ValueError(
                "expected --band linear or none where eigenvalues are grouped into blocks, got "
                "law: the chain of such steps is not known"
            )

    def problem(self, device: str) -> NetworkProblem:
        """Make the problem.

        Args:
            device: where its data and models are.
        """
        import torch

        from torchlimits.problems.network.problem import NetworkProblem

        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            head = self._head()
        means, covariance = torch.eye(self.classes, self.dim), None
        if self.spectrum is not None:
            covariance = spectrum_of(self.spectrum, self.dim)
            middle = (2 * torch.arange(self.classes) + 1) * self.dim // (2 * self.classes)
            means = covariance.vectors(torch.eye(self.dim, dtype=torch.float64)[middle])
        return NetworkProblem(
            dim=self.dim, width=self.width, head=head, loss=torch.nn.functional.cross_entropy,
            means=means, labels=torch.arange(self.classes), snr=self.snr, ridge=self.ridge,
            covariance=covariance, blocks=self.blocks, device=device,
        )  # fmt: skip

    def optimizer(self) -> Callable[[Any], Any] | None:
        """What makes the optimizer of parameters; None stands for SGD."""
        if self.trained_by == "sgd":
            return None
        import torch

        from torchlimits.optim.sign_sgd import SignSGD

        kind = {
            "adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop,
            "sign": SignSGD,
        }[self.trained_by]  # fmt: skip
        return partial(kind, lr=self.step_size / self.dim, weight_decay=self.ridge)

    def _head(self) -> nn.Module:
        from torch import nn

        K, C = self.width, self.classes
        if self.head == "mlp":
            return nn.Sequential(nn.GELU(), nn.Linear(K, 5), nn.Tanh(), nn.Linear(5, C))
        kinds = {"gelu": nn.GELU, "relu": nn.ReLU, "tanh": nn.Tanh}
        return nn.Sequential(kinds[self.head](), nn.Linear(K, C))

    def performance(self, dynamics: EffectiveDynamics) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return risk and accuracy.

        Args:
            dynamics: the problem's dynamics.
        """
        from torchlimits.problems.network.dynamics import NetworkDynamics

        assert isinstance(dynamics, NetworkDynamics)
        return {"risk": dynamics.risk, "accuracy": dynamics.accuracy}


@dataclass(kw_only=True)
class TeacherStudent(Options):
    """Train a two-layer student on the outputs of a two-layer teacher for normal inputs.

    Students wait on a symmetric plateau until their neurons specialise (Saad and Solla, 1995). The
    loss is half the mean squared error; the learning rate eta of the literature is step_size.
    """

    dim: int = 400
    band: Literal["law", "linear", "none"] = "linear"
    """What tells where 95 % of runs at this dimension are: the linear approximation, or their law,
    by 2000 paths of the exact chain, which is right near saddles too (minutes)."""
    time: float = 50.0
    width: int = 2
    """The number K of the student's neurons."""
    teacher_width: int = 2
    """The number M of the teacher's neurons, whose rows are orthonormal."""
    activation: Literal["erf", "relu", "square", "linear"] = "erf"
    """The activation of both; erf is erf(x / sqrt 2)."""
    noise: float = 0.0
    """The standard deviation of the label noise."""
    train_second_layer: bool = False
    """Train the student's second layer too; otherwise its weights are 1, as the teacher's are."""

    def check(self) -> None:
        """Raise ValueError for numbers that no training can have, before a folder is made."""
        super().check()
        from torchlimits import _checks

        _checks.positive_int("width", self.width)
        _checks.positive_int("teacher_width", self.teacher_width)
        _checks.non_negative("noise", self.noise, "it is a standard deviation")
        if self.dim < self.teacher_width + self.width:
            raise ValueError(
                f"expected dim >= teacher_width + width = {self.teacher_width + self.width}, got "
                f"{self.dim}: give a larger --dim"
            )

    def problem(self, device: str) -> teacher_student.TeacherStudent:
        """Make the problem.

        Args:
            device: where its data and models are.
        """
        from torchlimits.problems.network.teacher_student import TeacherStudent

        ones = None if self.start == "random" else [1.0] * self.width
        return TeacherStudent(
            dim=self.dim, width=self.width, teacher_width=self.teacher_width,
            activation=self.activation, noise=self.noise, second_layer=ones,
            train_second_layer=self.train_second_layer, device=device,
        )  # fmt: skip

    def performance(self, dynamics: EffectiveDynamics) -> dict[str, Callable[[Tensor], Tensor]]:
        """Return the generalization error.

        Args:
            dynamics: the problem's dynamics.
        """
        from torchlimits.problems.network.dynamics import NetworkDynamics

        assert isinstance(dynamics, NetworkDynamics)
        return {"generalization error": lambda u: dynamics.risk(u) - self.noise**2 / 2}
