"""TensorBoard's address for what was written, and TensorBoard itself in the browser."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from pathlib import Path

from torchlimits.cli.programs import program

#: Custom Scalars, where the bands are, without the smoothing that bends curves
VIEW = "?smoothing=0#custom_scalars&_smoothingWeight=0"
_PORT = 6006
#: seconds that TensorBoard may take to answer
_PATIENCE = 120.0


def address(port: int = _PORT) -> str:
    """Return the address of Custom Scalars without smoothing.

    Args:
        port: TensorBoard's port.

    Example:
        >>> address()
        'http://localhost:6006/?smoothing=0#custom_scalars&_smoothingWeight=0'
    """
    return f"http://localhost:{port}/{VIEW}"


def how_to_open(logdir: Path) -> str:
    """Return the command that starts TensorBoard, and the address to open then.

    Args:
        logdir: the experiment's folder.
    """
    return f"TensorBoard: {program('tensorboard')} --logdir {logdir}\nThen open {address()}"


def check_browser() -> None:
    """Raise RuntimeError if no browser can be opened here."""
    shown = sys.platform != "linux" or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    )
    try:
        if shown:
            webbrowser.get()
            return
    except webbrowser.Error:
        pass
    raise RuntimeError(
        "expected a display and a browser for --open, got none: leave --open out, and open the "
        "address that is printed at the end"
    )


def show_in_browser(logdir: Path) -> None:
    """Start TensorBoard, open the browser, and wait for an interrupt.

    Args:
        logdir: the experiment's folder.

    Raises:
        RuntimeError: if TensorBoard does not start.
    """
    port = _free_port()
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)]
    server = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for(server, port)
        webbrowser.open(address(port))
        print(f"TensorBoard runs until Ctrl-C: {address(port)}", flush=True)
        server.wait()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"TensorBoard has ended; all is saved in {logdir}") from None
    finally:
        server.terminate()
        server.wait()


def _free_port() -> int:
    """TensorBoard's own port, or any other that is free."""
    for port in (_PORT, 0):
        with socket.socket() as probe:
            try:
                probe.bind(("localhost", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise RuntimeError("expected a free port for TensorBoard, got none")


def _wait_for(server: subprocess.Popen[bytes], port: int) -> None:
    """Return when the server answers."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://localhost:{port}/", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise RuntimeError(
        "expected TensorBoard to start, but it did not: start it by the command above to see why"
    )
