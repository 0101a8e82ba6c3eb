"""A real SLURM on this machine for tests: munge, slurmctld and a slurmd a virtual node, in one private folder.

`SlurmSite()` is a context manager; the fixture `slurm` (conftest.py) shares one among all tests. Two nodes with CPUs,
`cpu0` and `cpu1`, and one with two GPUs, `gpu0`, of 4 CPUs and 4000 MB each. Partitions: `cpu` (the default), `gpu`,
`all`, and `spare` on all nodes, whose jobs those of the others preempt, after a warning by the job's own signal and a
grace of 30 s.

Everything runs in namespaces of its own, where the system allows it: nothing is left when this process is killed, the
host is called localhost, and other users can read the interpreter and this project wherever they lie (see `open_view`).
"""

from __future__ import annotations

import getpass
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

HERE = Path(__file__).resolve()

#: Accounts of every Debian that may own nothing: the users whose jobs must not see each other.
OTHER_USERS = ("daemon", "nobody")

NODES = ("cpu0", "cpu1", "gpu0")

#: Of a client's command; SLURM's own answer in a hundredth of it, but the machine may be busy.
COMMAND_TIMEOUT_S = 30

START_TIMEOUT_S = 60

CONF = """\
ClusterName=ci
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=500
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,bf_resolution=1,sched_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
KillWait=5
MinJobAge=3600
{nodes}
PartitionName=cpu Nodes=cpu0,cpu1 Default=YES MaxTime=60 DefaultTime=5 PriorityTier=2
PartitionName=gpu Nodes=gpu0 MaxTime=60 DefaultTime=5 PriorityTier=2
PartitionName=all Nodes=cpu0,cpu1,gpu0 MaxTime=60 DefaultTime=5 PriorityTier=2
PartitionName=spare Nodes=cpu0,cpu1,gpu0 MaxTime=60 DefaultTime=5 PriorityTier=1 GraceTime=30
"""

NODE = "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} Sockets=1 CoresPerSocket=4 \
ThreadsPerCore=1 CPUs=4 RealMemory=4000{gres}"


def missing() -> str | None:
    """Why there can be no SLURM here, or None."""
    programs = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "sinfo")
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    absent = [program for program in programs if shutil.which(program, path=path) is None]
    if absent:
        return f"SLURM is not installed: no {', '.join(absent)}"
    return None if os.geteuid() == 0 else f"slurmd runs jobs as root only, this is {getpass.getuser()}"


class Shell:
    """Commands of one user of the site.

    env: what they are started with: SLURM_CONF, and none of another SLURM's variables.
    folder: theirs, where jobs may write.
    """

    def __init__(self, env: Mapping[str, str], folder: Path, prefix: Sequence[str]) -> None:
        self.env = dict(env)
        self.folder = folder
        self._prefix = tuple(prefix)

    def run(
        self, *command: object, timeout: float = COMMAND_TIMEOUT_S, check: bool = True, **kwargs: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the user's folder (`cwd`) and give what it wrote; kwargs are `subprocess.run`'s.

        Raises AssertionError with its stderr where it fails, unless `check` is False.
        """
        # nsenter changes to the root directory.
        cwd = kwargs.pop("cwd", self.folder)
        done = subprocess.run(
            [*self._prefix, "env", f"--chdir={cwd}", *map(str, command)],
            **{"env": self.env, "capture_output": True, "text": True, "timeout": timeout} | kwargs,
        )
        if check and done.returncode:
            raise AssertionError(f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def submit(self, script: str, *arguments: object) -> int:
        """Submit the text of a batch script, with arguments of sbatch; the job's number."""
        return int(self.run("sbatch", "--parsable", *arguments, input=script).stdout.split(";")[0])

    def job(self, job: int) -> dict[str, str]:
        """What SLURM knows of a job; of a heterogeneous one, of its first component."""
        return self.components(job)[0]

    def components(self, job: int) -> list[dict[str, str]]:
        """What SLURM knows of each component of a job."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job).stdout
        return [fields(line) for line in shown.splitlines() if line.strip()]

    def wait(self, job: int, states: str | Collection[str], timeout: float = 30) -> dict[str, str]:
        """Poll until the job is in one of the states, such as "RUNNING"; the job then.

        Raises AssertionError, with all that SLURM says of the job, after `timeout` seconds.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        deadline = time.monotonic() + timeout
        while (found := self.job(job))["JobState"] not in wanted:
            if time.monotonic() > deadline:
                raise AssertionError(f"job {job} is not {' or '.join(sorted(wanted))} within {timeout} s: {found}")
            time.sleep(0.1)
        return found


def fields(line: str) -> dict[str, str]:
    """The pairs of one line of `scontrol --oneliner show`.

    >>> fields("JobId=7 Command=/a b.py JobState=RUNNING Reason=None")["Command"]
    '/a b.py'
    """
    return dict(re.findall(r"(?:^|(?<= ))([A-Z][\w:/]*)=(.*?)(?= [A-Z][\w:/]*=|\s*$)", line))


class SlurmSite(Shell):
    """The SLURM, as root's shell."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __init__(self) -> None:
        # Short, since its sockets' paths have at most 108 bytes, and passable for the jobs of other users.
        self.site = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.site.chmod(0o755)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_"))}
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        conf, dask_config = str(self.site / "slurm.conf"), str(self.site / "dask-config")
        env = inherited | {"PATH": path, "SLURM_CONF": conf, "DASK_CONFIG": dask_config}
        write_site(self.site)
        own = ("unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")
        self._private = subprocess.run([*own, "true"], capture_output=True).returncode == 0
        self._keeper = subprocess.Popen(
            [*(own if self._private else ()), sys.executable, "-I", HERE, self.site, str(int(self._private))],
            stdin=subprocess.PIPE,
            stdout=(self.site / "keeper.log").open("wb"),
            stderr=subprocess.STDOUT,
            env=env | {"SLURM_SITE_NEEDS": os.pathsep.join(needed())},
        )
        super().__init__(env, self._folder("root", "root"), ())
        try:
            self._until_ready()
        except BaseException:
            self.close()
            raise

    def _folder(self, user: str, name: str) -> Path:
        folder = self.site / "home" / name
        folder.mkdir(parents=True)
        folder.chmod(0o700)
        shutil.chown(folder, user)
        return folder

    def _until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not (self.site / "started").exists():
            self._still_starting(deadline)
        if self._private:
            [inside] = Path(f"/proc/{self._keeper.pid}/task/{self._keeper.pid}/children").read_text().split()
            self._prefix = ("nsenter", f"--target={inside}", "--mount", "--uts", "--pid")
            self._root = int(inside)
        else:
            self._root = self._keeper.pid
        # A node that is idle may still refuse its first job.
        check = ("srun", "--partition=all", "--nodes=3", "--mem=0", "--immediate=2", "true")
        while self.run(*check, check=False).returncode:
            self._still_starting(deadline)
        self._daemons = set(self._descendants())

    def _still_starting(self, deadline: float) -> None:
        logs = {path.name: path.read_text() for path in sorted(self.site.glob("*.log"))}
        died = self._keeper.poll() is not None or any("fatal:" in log for log in logs.values())
        if died or time.monotonic() > deadline:
            shown = "\n".join(f"{name}:\n{log[-2000:]}" for name, log in logs.items())
            raise RuntimeError(f"the tests' SLURM did not start within {START_TIMEOUT_S} s\n{shown}")
        time.sleep(0.02)

    def as_user(self, name: str) -> Shell:
        """The shell of another user, one of OTHER_USERS, whose jobs can run Python and import this project."""
        account = pwd.getpwnam(name)
        folder = self.site / "home" / name
        if not folder.exists():
            self._folder(name, name)
        env = {k: v for k, v in self.env.items() if k not in ("DASK_LOGGING", "TMPDIR")}  # root's files
        env |= {"HOME": str(folder), "USER": name, "LOGNAME": name}
        become = ("setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups")
        return Shell(env, folder, (*self._prefix, *become))

    def processes(self) -> dict[int, str]:
        """The command line of every process of a job, by its number on the host."""
        found = {}
        for pid in self._descendants():
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            if line and pid not in self._daemons and not line.startswith(("nsenter", "slurmstepd")):
                found[pid] = line
        return found

    def _descendants(self) -> list[int]:
        children: dict[int, list[int]] = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(stat.read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(parent, []).append(int(stat.parent.name))
        found = [self._root]
        for pid in found:
            found.extend(children.get(pid, ()))
        return found

    def listeners(self) -> set[str]:
        """The addresses, such as "127.0.0.1:8786", at which processes of jobs accept connections."""
        listening = {}
        for table in ("tcp", "tcp6"):
            for line in Path("/proc/net", table).read_text().splitlines()[1:]:
                entry = line.split()
                if entry[3] == "0A":
                    listening[f"socket:[{entry[9]}]"] = address(entry[1])
        found = set()
        for pid in self.processes():
            for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
                try:
                    found.add(listening.get(os.readlink(descriptor)))
                except (FileNotFoundError, ProcessLookupError):
                    continue
        return {one for one in found if one}

    def close(self) -> None:
        """End every process of the site and remove its folder."""
        assert self._keeper.stdin is not None
        self._keeper.stdin.close()
        try:
            self._keeper.wait(20)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait(10)
            raise
        finally:
            shutil.rmtree(self.site, ignore_errors=True)


def address(of_kernel: str) -> str:
    """A socket's address as people write it.

    >>> address("0100007F:2252"), address("00000000000000000000000000000000:0050")
    ('127.0.0.1:8786', '[::]:80')
    """
    host, port = of_kernel.split(":")
    words = b"".join(int(host[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(host), 8))
    if len(words) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, words)}:{int(port, 16)}"
    return f"[{socket.inet_ntop(socket.AF_INET6, words)}]:{int(port, 16)}"


def write_site(folder: Path) -> None:
    """The files of a site: slurm.conf, gres.conf, munge's key, the GPUs' device files."""
    for name in ("state", "dev", "dask-config"):
        (folder / name).mkdir()
    for name in NODES:
        (folder / "spool" / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    ctld_port, *ports = free_ports(1 + len(NODES))
    nodes = [
        NODE.format(name=name, port=port, gres=" Gres=gpu:2" if name.startswith("gpu") else "")
        for name, port in zip(NODES, ports, strict=True)
    ]
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, ctld_port=ctld_port, nodes="\n".join(nodes)))
    (folder / "gres.conf").write_text(f"AutoDetect=off\nNodeName=gpu0 Name=gpu File={device_files(folder / 'dev')}\n")


def device_files(folder: Path) -> str:
    """Two device files for SLURM's GPUs, which it only looks at: numbers of NVIDIA's, or what every system has."""
    try:
        for index in range(2):
            os.mknod(folder / f"nvidia{index}", 0o666 | 0o020000, os.makedev(195, index))
    except PermissionError:
        return "/dev/zero,/dev/full"
    return f"{folder}/nvidia[0-1]"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback device that nobody has now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def needed() -> set[str]:
    """Folders that a process of this interpreter and project reads, and where tests write."""
    paths = [sys.prefix, sys.base_prefix, HERE.parent.parent, tempfile.gettempdir(), *sys.path]
    return {os.path.realpath(path) for path in paths if path and os.path.isdir(path)}


# -- inside: the process that keeps the daemons, first of its namespace. It imports nothing but the standard library.

MS_BIND, MS_REC = 0x1000, 0x4000


def _mount(source: str, target: str, kind: str | None = None, flags: int = 0, data: str | None = None) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(*(x and os.fsencode(x) for x in (source, target, kind)), flags, data and os.fsencode(data)):
        raise OSError(ctypes.get_errno(), f"mount {source}: {os.strerror(ctypes.get_errno())}", target)


def _passable(path: Path) -> bool:
    return path.stat().st_mode & 0o005 == 0o005


def open_view(paths: Collection[str]) -> None:
    """Let every user pass to these folders, in this mount namespace alone.

    A folder on the way that only its owner may enter (as /root often is) is covered by an empty one, into which what
    is needed is bound; outside nothing changes.
    """
    covered: dict[Path, list[Path]] = {}
    for path in map(Path, sorted(paths)):
        closed = [step for step in (*reversed(path.parents), path) if not _passable(step)]
        if closed:
            covered.setdefault(closed[0], []).append(path)
    for cover, inside in covered.items():
        parts = [part for path in inside for part in ([path] if _passable(path) else path.iterdir())]
        links = {part: os.readlink(part) for part in parts if part.is_symlink()}
        kept = {part: os.open(part, os.O_PATH) for part in parts if part not in links}
        folders = {part for part in kept if part.is_dir()}
        _mount("tmpfs", str(cover), "tmpfs", data="mode=755")
        for part, descriptor in kept.items():
            if part.exists():
                continue  # within another part
            part.parent.mkdir(parents=True, exist_ok=True)
            part.mkdir() if part in folders else part.touch()
            _mount(f"/proc/self/fd/{descriptor}", str(part), flags=MS_BIND | MS_REC)
            os.close(descriptor)
        for part, target in links.items():
            if not part.is_symlink():
                part.symlink_to(target)


def keep(folder: Path, private: bool) -> None:
    """Start the daemons; end them and all jobs, and remove the folder, when stdin ends: when the tests have."""
    import ctypes
    import select
    import signal

    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans of jobs become children of this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is pytest's, which then closes stdin
    if private:
        socket.sethostname("localhost")
        open_view(os.environ.pop("SLURM_SITE_NEEDS").split(os.pathsep))
    conf = folder / "slurm.conf"
    munge = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in ("pid-file", "log-file", "seed-file")]
    commands = [
        ["munged", "--foreground", f"--socket={folder}/munge.sock", f"--key-file={folder}/munge.key", *munge],
        ["slurmctld", "-D", "-f", conf],
        *(["slurmd", "-D", "-N", name, "-f", conf] for name in NODES),
    ]
    for command in commands:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    (folder / "started").touch()
    while not select.select([sys.stdin], [], [], 0.2)[0]:
        _reap(os.WNOHANG)
    while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        for child in map(int, children):
            os.kill(child, signal.SIGKILL)
        _reap(0)
    shutil.rmtree(folder)


def _reap(option: int) -> None:
    """Take note of children that ended (waiting for one, unless the option is os.WNOHANG)."""
    try:
        while os.waitpid(-1, option)[0]:
            option = os.WNOHANG
    except ChildProcessError:
        pass


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2] == "1")
