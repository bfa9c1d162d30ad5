"""How a reach script says and keeps what it found.

A script `scripts/reach_NAME.py` measures at full size what the tests measure at a small one. It has

* a docstring: what is measured, what it is held against, and when the script ends with an error;
* `parser(__doc__)`, to which it adds its own options;
* `keep(figures, options)`, which prints the figures as JSON with date and commit, and writes them
  to `--out`; results that are committed stand beside the script as `reach_NAME.json`;
* an error at the end, `sys.exit("what does not hold")`, after the figures are kept.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with `--out`."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, help="where to keep the figures, as JSON")
    return made


def keep(figures: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Print the figures with date and commit, and write them to `--out`."""
    found = {"date": datetime.date.today().isoformat(), "commit": commit(), **figures}
    text = json.dumps(found, indent=2)
    print(text)
    if options.out is not None:
        options.out.write_text(text + "\n")


def commit() -> str:
    """The commit that the figures are of, with "-dirty" where the program differs from it."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )

    # figures kept by the script before do not make a difference
    differs = git("diff", "--quiet", "HEAD", "--", "../torchlimits", "*.py").returncode
    return git("rev-parse", "--short", "HEAD").stdout.strip() + ("-dirty" if differs else "")
