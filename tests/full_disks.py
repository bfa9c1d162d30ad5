"""Disks that are really full."""

import contextlib
import os
import resource
import subprocess

import pytest


@contextlib.contextmanager
def files_end_at(size):
    """No file of this process can grow beyond so many bytes: what is more is refused (EFBIG)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores the signal that goes with it
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class LimitedFiles:
    """Any disk; `fill` leaves files as long as they are, or shorter than ``room``."""

    def __init__(self, folder):
        self.folder, self._limit = folder, None

    def fill(self, room):
        self._limit = files_end_at(room)
        self._limit.__enter__()

    def free(self):
        if self._limit is not None:
            self._limit.__exit__(None, None, None)
            self._limit = None

    remove = free


class SmallDisk:
    """A file system of 4 MiB in memory; `fill` puts ballast on it and leaves ``room`` bytes."""

    def __init__(self, folder):
        self.folder = folder / "disk"
        self.folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=4M", "tmpfs", str(self.folder)]
        try:
            done = subprocess.run(command, capture_output=True, check=False)
        except FileNotFoundError:
            pytest.skip("needs the program mount")
        if done.returncode:
            pytest.skip(f"needs the right to mount a tmpfs: {done.stderr.decode().strip()}")

    def fill(self, room):
        found = os.statvfs(self.folder)
        with (self.folder / "ballast").open("wb") as ballast:
            ballast.write(b"x" * (found.f_bavail * found.f_frsize - room))

    def free(self):
        (self.folder / "ballast").unlink(missing_ok=True)

    def remove(self):
        # lazily: a file on it may be open or mapped still
        subprocess.run(["umount", "-l", str(self.folder)], check=True)
