"""Two agents of torchrun on one machine, as if they were on two."""

import os
import socket
import subprocess
import sys


def launched(folder, script, *arguments, processes=1, host=0):
    """Run a script under both, and return the exit code and the output of each agent.

    The agent ``host`` keeps the store at which both meet. Ranks are in the order of the agents.
    The output of an agent ends when all of its processes have.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--rdzv-backend=c10d"),
        *(f"--nproc-per-node={processes}", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=tests"),
    ]
    agents = [
        subprocess.Popen(
            [*command, f"--rdzv-conf=is_host={int(n == host)}", str(script), *map(str, arguments)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # the processes find the package where this one does
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        for n in range(2)
    ]
    outputs = [agent.communicate(timeout=1800)[0] for agent in agents]
    return [(agent.returncode, output) for agent, output in zip(agents, outputs, strict=True)]
