"""`torchlimits run network --spectrum`: what it takes, what it refuses, and what a run leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import torchlimits as tl
from torchlimits.cli.main import main
from torchlimits.cli.problems import options_of
from torchlimits.cli.spectra import spectrum_of

SMALL = ["--head", "tanh", "--width", "2", "--classes", "2", "--dim", "60", "--time", "1"]
LEVELS = "0.5:0.4,1:0.4,4:0.2"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_forms_of_a_spectrum():
    levels = spectrum_of(LEVELS, 10).eigenvalues[0]
    assert levels.tolist() == [0.5] * 4 + [1.0] * 4 + [4.0] * 2
    power = spectrum_of("power:1.5", 50).eigenvalues[0]
    expected = torch.tensor([i**-1.5 for i in range(1, 51)]).double()
    torch.testing.assert_close(power, expected / expected.mean(), rtol=1e-6, atol=0)
    matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    torch.save(matrix, "matrix.pt")
    np.save("spectrum.npy", [3.0, 1.0])
    np.savez("one.npz", spectrum=[3.0, 1.0])
    for file in ("matrix.pt", "spectrum.npy", "one.npz"):
        torch.testing.assert_close(
            spectrum_of(file, 2).eigenvalues, torch.tensor([[3.0, 1.0]]).double()
        )
    assert spectrum_of("matrix.pt", 2).basis is not None


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--spectrum", "0.5:0.4,1"], "eigenvalue:fraction"),
        (["--spectrum", "0.5:0.4,one:0.6"], "'one' is no number"),
        (["--spectrum", "power:nan"], "'nan' is no number"),
        (["--spectrum", "power:-1"], "exponent >= 0"),
        (["--spectrum", "0.5:0.4,1:0.4"], "the sum 0.8"),
        (["--spectrum", "0.5:0.4,-1:0.6"], "positive definite"),
        (["--spectrum", "none.npy"], "there is no such file"),
        (["--spectrum", "text.npy"], "cannot be read"),
        (["--spectrum", "two.npz"], "one array in two.npz for --spectrum, got 2: a, b"),
        (["--spectrum", "flat.npy"], "got shape (2, 3)"),
        (["--spectrum", "short.npy"], "got shape (3,)"),
        (["--blocks", "4"], "together with --spectrum"),
        (["--spectrum", "power:1", "--blocks", "1"], "blocks >= 2"),
        (["--spectrum", "power:1", "--step-size", "0.5", "--band", "law"], "grouped into blocks"),
        (["--spectrum", LEVELS, "--trained-by", "adam"], "--trained-by sgd"),
        (["--spectrum", "1:0.9,100:0.1", "--step-size", "4"], "lr lambda_max"),
    ],
)
def test_what_no_covariance_is_is_said_in_one_line_before_a_folder_is_made(given, says, capsys):
    Path("text.npy").write_text("1 2 3")
    np.savez("two.npz", a=[1.0], b=[2.0])
    np.save("flat.npy", np.ones((2, 3)))
    np.save("short.npy", np.ones(3))
    assert main(["run", "network", *SMALL, *given]) == 1
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.filterwarnings("ignore:lr lambda_max")
@pytest.mark.parametrize(
    ("spectrum", "blocks", "dim"),
    [(LEVELS, 3, "60"), pytest.param("power:1", 16, "300", marks=pytest.mark.slow)],
)
def test_a_run_on_a_spectrum_is_drawn_beside_its_theory(spectrum, blocks, dim, capsys):
    arguments = ["--spectrum", spectrum, "--step-size", "1", "--runs", "4", "--dim", dim]
    assert main(["run", "network", *SMALL, *arguments]) == 0
    (folder,) = Path("runs/network").iterdir()
    assert folder.name.endswith(f"-spectrum{spectrum.translate({58: '_', 44: '_'})}")
    measured, predicted = (
        tl.Trajectory.load(folder / f"{side}.npz") for side in ("measured", "predicted")
    )
    assert measured.names == predicted.names
    assert sum(name.endswith(",0,0]") and name[0] == "R" for name in measured.names) == blocks
    # the means are eigenvectors: one overlap with each
    assert sum(name[0] == "m" for name in measured.names) == 4
    assert predicted.std is not None
    # runs share the start, so that they are inside the band
    assert float(tl.compare(measured, predicted).inside.mean()) > 0.85
    said = capsys.readouterr().out
    assert "accuracy: " in said
    assert (folder / "overlay.png").read_bytes().startswith(b"\x89PNG")
    assert [*(folder / "measured").rglob("events*")]
    assert [*(folder / "predicted").rglob("events*")]


def test_a_file_is_found_again_from_another_folder(monkeypatch):
    np.save("spectrum.npy", np.linspace(0.5, 1.5, 30))
    options = options_of(
        {"problem": "network", "dim": 30, "spectrum": "spectrum.npy", "blocks": "all"}
    )
    told = json.loads(json.dumps(options.described()))
    monkeypatch.chdir("/")
    again = options_of(told).problem("cpu")
    assert sum(name.endswith(",0,0]") and name[0] == "R" for name in again.names) == 30
    assert options_of(told).label.endswith("spectrumspectrum.npy-blocksall")
