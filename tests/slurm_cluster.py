"""A SLURM cluster of two virtual nodes on this machine: real daemons, GPUs that are only files."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

__all__ = ["DAEMONS", "SlurmCluster", "wait_until", "why_not"]

DAEMONS = ("munged", "slurmctld", "slurmd")
PLUGIN = "snakemake_executor_plugin_slurm"

CONF = """\
ClusterName=lti
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/run/munge.socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPort={ports[0]}
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdPidFile={base}/run/slurmd-%n.pid
SlurmdLogFile={base}/log/slurmd-%n.log
SlurmdSpoolDir={base}/spool/%n
StateSaveLocation={base}/state
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=100
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
KillWait={kill_wait}
SlurmdTimeout=30
GresTypes=gpu
AccountingStorageType=accounting_storage/none
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] \
CPUs=2 RealMemory=40000 Gres=gpu:2
PartitionName=gpu Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""
GRES = """\
AutoDetect=off
NodeName=n[1-2] Name=gpu File={base}/dev/nvidia[0-1]
"""
# The job step takes SLURM_* away before it calls srun.
SRUN = """\
#!/bin/sh
export SLURM_CONF={base}/etc/slurm.conf
exec {srun} "$@"
"""
# There is no accounting here: what the plugin asks sacct by name, squeue knows as well.
SACCT = """\
#!/bin/sh
name=
for argument in "$@"; do case "$argument" in --name=*) name="${{argument#--name=}}";; esac; done
SLURM_CONF={base}/etc/slurm.conf exec {squeue} --states=all --noheader --name="$name" \
--format='%i|%T'
"""


def why_not() -> str | None:
    """Return why no cluster can be started here, if so."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    missing = [name for name in (*DAEMONS, "sbatch") if shutil.which(name, path=path) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)"
    if importlib.util.find_spec(PLUGIN) is None:
        return f"not installed: {PLUGIN.replace('_', '-')} (the extra `slurm`)"
    if os.getuid():
        return "its daemons and device files need root"
    with tempfile.TemporaryDirectory() as folder:
        try:
            _make_device(Path(folder) / "device")
        except OSError as error:
            return f"device files cannot be made ({error})"
    return None


def _make_device(path: Path) -> None:
    """Make a character device: of a plain file SLURM sets no CUDA_VISIBLE_DEVICES."""
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))


class SlurmCluster:
    """Two nodes ``n1`` and ``n2`` with two processors, 40 GB and two GPUs each, as they say.

    Args:
        base: a new folder for everything; a short path, as sockets' are.
        kill_wait: seconds between a job's SIGTERM and its SIGKILL.
    """

    def __init__(self, base: Path, *, kill_wait: int = 20) -> None:
        self.base = base
        for name in ("etc", "run", "log", "spool", "state", "dev", "bin"):
            (base / name).mkdir(parents=True)
        facts = {
            "base": base,
            "host": socket.gethostname().split(".")[0],
            "ports": _free_ports(),
            "kill_wait": kill_wait,
            "srun": shutil.which("srun"),
            "squeue": shutil.which("squeue"),
        }
        (base / "etc/slurm.conf").write_text(CONF.format(**facts))
        (base / "etc/gres.conf").write_text(GRES.format(**facts))
        for name, text in (("srun", SRUN), ("sacct", SACCT)):
            script = base / "bin" / name
            script.write_text(text.format(**facts))
            script.chmod(0o755)
        for number in range(2):
            _make_device(base / f"dev/nvidia{number}")
        key = base / "etc/munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self.environment = {
            "SLURM_CONF": str(base / "etc/slurm.conf"),
            "PATH": f"{base / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def start(self) -> None:
        """Start all daemons and wait until both nodes are idle."""
        run = self.base / "run"
        self._daemon(
            "munged",
            f"--key-file={self.base}/etc/munge.key",
            f"--socket={run}/munge.socket",
            f"--pid-file={run}/munged.pid",
            f"--log-file={self.base}/log/munged.log",
            f"--seed-file={run}/munged.seed",
            "--force",
        )
        self._daemon("slurmctld", "-c")
        for node in ("n1", "n2"):
            self.start_node(node)
        wait_until(lambda: self.run("sinfo", "-h", "-N", "-o", "%T").split().count("idle") >= 2)

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        self._daemon("slurmd", "-N", node)

    def kill_node(self, node: str) -> None:
        """SIGKILL a node's daemon; its jobs' processes go on."""
        os.kill(self._pid(f"slurmd-{node}"), signal.SIGKILL)

    def run(self, *command: str) -> str:
        """Run a command of SLURM's and return its output."""
        return subprocess.run(
            command,
            env={**os.environ, **self.environment},
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout

    def jobs(self, *states: str) -> dict[str, str]:
        """Return the ids of jobs in some states, with their comments: ``rule_<name>...``."""
        lines = self.run("squeue", "-h", "-t", ",".join(states), "-o", "%i|%k").splitlines()
        return dict(line.split("|", 1) for line in lines)

    def stop(self) -> None:
        """Cancel all jobs, end all daemons, then whatever still runs with this cluster's files."""
        with contextlib.suppress(subprocess.SubprocessError):
            self.run("scancel", "--user=root")
        with contextlib.suppress(subprocess.SubprocessError, TimeoutError):
            wait_until(lambda: not self.run("squeue", "-h").strip(), seconds=40)
        for name in ("slurmd-n1", "slurmd-n2", "slurmctld", "munged"):
            with contextlib.suppress(OSError, ValueError):
                pid = self._pid(name)
                os.kill(pid, signal.SIGTERM)
                wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), seconds=20)
        for process in psutil.process_iter(["environ", "cmdline"]):
            own = (process.info["environ"] or {}).get("SLURM_CONF", "").startswith(f"{self.base}/")
            named = any(str(self.base) in part for part in process.info["cmdline"] or [])
            if (own or named) and process.pid != os.getpid():
                with contextlib.suppress(psutil.Error):
                    process.kill()

    def _pid(self, name: str) -> int:
        return int((self.base / f"run/{name}.pid").read_text())

    def _daemon(self, *command: str) -> None:
        subprocess.run(
            command,
            env={**os.environ, **self.environment},
            check=True,
            stdin=subprocess.DEVNULL,
            timeout=60,
        )


def wait_until(condition: Callable[[], object], *, seconds: float = 60) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not come true.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so within {seconds} s")
        time.sleep(0.2)


def _free_ports() -> list[int]:
    """Return a free port and two neighbours."""
    for first in range(17001, 18000, 10):
        sockets = [socket.socket() for _ in range(3)]
        try:
            for number, one in enumerate(sockets):
                one.bind(("127.0.0.1", first + number))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return [first, first + 1, first + 2]
    raise OSError("no free ports")
