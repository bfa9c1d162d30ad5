"""``python -m torchlimits`` is the `torchlimits` command."""

import sys

from torchlimits.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
