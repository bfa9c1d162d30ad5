"""Check that the given sdist and wheel hold what belongs there, and nothing else."""

import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGE = {path.as_posix() for path in Path("torchlimits").rglob("*.py")} | {"torchlimits/py.typed"}

for name in sys.argv[1:]:
    if name.endswith(".whl"):
        with zipfile.ZipFile(name) as archive:
            found = set(archive.namelist())
        info = {one for one in found if ".dist-info/" in one}
        assert any(one.endswith("licenses/LICENSE") for one in info), info
        others = {one for one in found - info if not one.startswith("torchlimits/")}
        assert not others, f"expected nothing but torchlimits in the wheel, got {sorted(others)}"
    else:
        with tarfile.open(name) as archive:
            members = archive.getnames()
        found = {member.partition("/")[2] for member in members}
        missing = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml"} - found
        assert not missing, f"expected the sdist to hold {sorted(missing)}"
    missing = PACKAGE - found
    assert not missing, f"expected {name} to hold {sorted(missing)}"
    strange = {one for one in found if one.endswith((".pyc", ".rows", ".log")) or ".venv" in one}
    assert not strange, f"expected nothing that is made by running, got {sorted(strange)}"
    print(f"{Path(name).name}: {len(found)} files")
