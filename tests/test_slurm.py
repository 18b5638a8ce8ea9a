"""The workflow on a real SLURM: its daemons run on this machine, on two virtual nodes."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from slurm_cluster import DAEMONS, SlurmCluster, wait_until, why_not
from workflow_runner import VICTIMS, Checkout, finished_checkout

from lti.files import read_arrays

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=f"no SLURM here: {REASON}")

HEAVY = ("fit_projection", "compute_gradients", "train_inverter", "train_generator", "run_attack")
OPTIONS = (
    *("--profile", "workflow/profiles/slurm"),
    *("--set-threads", *(f"{rule}=1" for rule in HEAVY)),  # as the local run has
    *("--seconds-between-status-checks", "1", "--slurm-init-seconds-before-status-checks", "1"),
    *("--latency-wait", "10", "--slurm-keep-successful-logs"),
)
STAGE = "train-inverter"
LONG = {"inverters.tuned.epochs": 800}


@pytest.fixture(scope="module")
def cluster() -> Iterator[SlurmCluster]:
    base = Path(tempfile.mkdtemp(prefix="slurm"))  # short: sockets' paths may not be long
    cluster = SlurmCluster(base / "c")
    try:
        try:
            cluster.start()
        except (OSError, subprocess.SubprocessError) as error:  # confined containers
            pytest.skip(f"SLURM's daemons do not start here: {error}")
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Checkout:
    return finished_checkout(tmp_path_factory)


def start(checkout: Checkout, cluster: SlurmCluster, *targets: str, **environment: str):
    return checkout.start(*OPTIONS, "--", *targets, **{**cluster.environment, **environment})


def end(process: subprocess.Popen[str], cluster: SlurmCluster) -> str:
    """End Snakemake and all jobs, and return what it said."""
    process.kill()  # not SIGINT, which is ignored below a shell's background job
    output, _ = process.communicate(timeout=60)
    cluster.run("scancel", "--user=root")
    wait_until(lambda: not cluster.run("squeue", "-h").strip(), seconds=90)
    return output


def log_of(checkout: Checkout, rule: str) -> str:
    return "".join(p.read_text() for p in checkout.folder.glob(f"logs/slurm/*{rule}*/**/*.log"))


def test_an_experiment_gives_the_same_bytes_as_on_one_machine(cluster, finished, tmp_path):
    checkout = finished.blank(tmp_path / "checkout")
    with start(checkout, cluster, "tiny") as process:
        output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    files = [
        "results/experiments/tiny/summary.csv",
        f"results/metrics/{VICTIMS}/lenet/b1/sign/ig.csv",
        *(str(finished.inverter(defense)) for defense in ("sign", "gauss")),
    ]
    for file in files:
        assert (checkout.folder / file).read_bytes() == (finished.folder / file).read_bytes(), file
    # Jobs see the GPUs that they asked for, by their index on the node, and others see none.
    for rule in ("compute_gradients", "train_inverter", "run_attack"):
        assert re.search(r"GPU [01] was granted", log_of(checkout, rule)), rule
    assert "was granted" not in log_of(checkout, "observe")
    # Short ones go to one job.
    assert len(list(checkout.folder.glob("logs/slurm/group_measurement*/*.log"))) < 4


def test_faults_end_in_a_resumed_and_identical_result(cluster, finished, tmp_path):
    reference = finished.copy(tmp_path / "reference")
    reference.configure(LONG)
    target = str(reference.inverter("gauss"))
    reference.run(target, LTI_CHECKPOINT_SECONDS="3600")
    checkout = finished.copy(tmp_path / "checkout")
    checkout.configure(LONG)

    def running() -> str | None:
        jobs = cluster.jobs("RUNNING")
        return next((job for job, comment in jobs.items() if "train_inverter" in comment), None)

    def position() -> int:
        saved = list(checkout.results.glob("checkpoints/inverter-*.safetensors"))
        return read_arrays(saved[0])[1]["position"] if saved else 0

    def progressed(*, after: str | None = None) -> str:
        """Wait for the next job to go on from what was saved."""
        wait_until(lambda: running() not in (None, after), seconds=180)
        found, since = running(), position()
        assert found is not None
        wait_until(lambda: position() > since)
        return found

    with start(checkout, cluster, target, LTI_CHECKPOINT_SECONDS="0") as process:
        try:
            first = progressed()
            cluster.run("scancel", first)
            second = progressed(after=first)
            cluster.run("scontrol", "update", f"JobId={second}", "TimeLimit=1")  # a minute
            (stage,) = trainers(checkout)
            stage.suspend()  # so that it has something left to do then
            wait_until(lambda: state(cluster, second) != "RUNNING", seconds=180)
            with contextlib.suppress(psutil.NoSuchProcess):
                stage.resume()
            third = progressed(after=second)
            node = cluster.run("squeue", "-h", "-j", third, "-o", "%N").strip()
            cluster.kill_node(node)
            at = position()
            wait_until(lambda: position() > at)  # the job does not notice
            cluster.start_node(node)
            cluster.run("scontrol", "requeue", third)  # as preemption does: the same job again
            wait_until(lambda: "PENDING" in state(cluster, third) or not running())
            assert progressed() == third
            output, _ = process.communicate(timeout=300)
        except BaseException:
            print(end(process, cluster))
            raise
    assert process.returncode == 0, output
    assert state(cluster, first) == "CANCELLED" and state(cluster, second) == "TIMEOUT"
    assert (checkout.folder / target).read_bytes() == (reference.folder / target).read_bytes()
    assert not list(checkout.results.glob("checkpoints/*"))


@pytest.mark.parametrize("command", [["scancel"], ["scancel", "--signal=USR1", "--full"]], ids=str)
def test_a_job_that_is_told_to_leave_saves_first(cluster, finished, tmp_path, command):
    checkout = finished.copy(tmp_path / "checkout")
    checkout.configure({"inverters.tuned.epochs": 100_000})
    target = str(checkout.inverter("gauss"))
    # Nothing is saved but at a signal.
    with start(checkout, cluster, target, LTI_CHECKPOINT_SECONDS="3600") as process:
        try:
            wait_until(lambda: trainers(checkout), seconds=120)
            (stage,) = trainers(checkout)
            wait_until(lambda: stage.cpu_times().user > 8)  # it trains
            (job,) = cluster.jobs("RUNNING")
            cluster.run(*command, job)
            saved = checkout.results / "checkpoints"
            wait_until(lambda: list(saved.glob("inverter-*.safetensors")), seconds=20)
            wait_until(lambda: not stage.is_running() or stage.status() == "zombie", seconds=20)
        finally:
            print(end(process, cluster))
    (checkpoint,) = saved.glob("inverter-*.safetensors")
    assert read_arrays(checkpoint)[1]["position"] > 0


def trainers(checkout: Checkout) -> list[psutil.Process]:
    """The Python processes that train."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if process.info["cwd"] == str(checkout.folder)
        and (process.info["cmdline"] or [])[1:4] == ["-m", "lti", STAGE]
    ]


def state(cluster: SlurmCluster, job: str) -> str:
    return cluster.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T").strip()


def test_no_daemon_outlives_its_cluster():
    base = Path(tempfile.mkdtemp(prefix="slurm"))
    cluster = SlurmCluster(base / "c")
    daemons: list[psutil.Process] = []
    try:
        try:
            cluster.start()
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"SLURM's daemons do not start here: {error}")
        daemons = [psutil.Process(int(p.read_text())) for p in (base / "c/run").glob("*.pid")]
        assert sorted(process.name() for process in daemons) == [*DAEMONS, "slurmd"]
    finally:
        cluster.stop()
        shutil.rmtree(base)
    assert not psutil.wait_procs(daemons, timeout=10)[1]
