"""Figures 1 to 3 of the paper, with their numbers against theory, into runs/figures.

The command does it in seven minutes: torchlimits figures all. Add --smoke to see in seconds that it
works, with numbers that mean little.
"""

import subprocess
import sys

subprocess.run([sys.executable, "-m", "torchlimits", "figures", "all", *sys.argv[1:]], check=True)
