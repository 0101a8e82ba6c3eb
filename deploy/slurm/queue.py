"""What SLURM answers: jobs as data, and every bad answer as one clear sentence."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

#: Of one command of SLURM's. Its own patience with a controller that does not answer is about 20 s (measured).
COMMAND_TIMEOUT_S = 60

#: Variables of SLURM that say which SLURM is meant. All others are those of the job in which this process may run, and
#: would make its job's options the new one's.
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")


class SlurmError(RuntimeError):
    """What SLURM refuses or does not answer, in one sentence."""


class NoAnswer(SlurmError):
    """SLURM's controller cannot be reached just now."""


@dataclass(frozen=True)
class Job:
    """One job as `scontrol` shows it; of a heterogeneous one, its first component with the other's troubles.

    exit_code: of the batch script, as a shell gives it (128 + signal). start: when it began, or is expected to, as
    SLURM writes it; None where it does not know. restarts: how often it went back into the queue. batch_host: the node
    on which the script runs. output: the log, an absolute path. components: how many it has.
    """

    number: int
    state: str
    reason: str
    exit_code: int
    restarts: int
    start: str | None
    limit: str
    partition: str
    nodes: str
    batch_host: str
    output: str
    components: int = 1

    @property
    def waits(self) -> bool:
        return self.state in WAITING

    @property
    def ended(self) -> bool:
        return self.state in ENDINGS


#: States from which a job may still begin.
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD")

#: How a job can end, and what to say of it.
ENDINGS = {
    "COMPLETED": "is done",
    "FAILED": "failed with exit code {exit_code}: its log says why ({output})",
    "CANCELLED": "was cancelled",
    "TIMEOUT": "was killed at its time limit of {limit}: ask for more time, or have it save in time (--warn-seconds)",
    "NODE_FAIL": "was lost with a node that failed ({nodes})",
    "OUT_OF_MEMORY": "was killed because a node's memory did not suffice: ask for more, or for more nodes",
    "PREEMPTED": "was ended in favour of a job of higher priority",
    "BOOT_FAIL": "was lost, since a node could not be booted ({nodes})",
    "DEADLINE": "was ended at its deadline",
    "REVOKED": "went to another cluster of the federation",
}

#: Why a job waits: SLURM's word, and what it means for the person who waits. The first row that matches the whole word.
REASONS = (
    ("None|", "SLURM has not looked at it yet"),
    ("Priority", "jobs of higher priority are before it"),
    ("Resources", "what it asks for is in use by other jobs"),
    ("BeginTime", "SLURM does not let it start before {start}"),
    (
        "JobHeldUser|job_requeued_in_held_state|launch_failed_requeued_held",
        "it is held: `scontrol release {number}` lets it go",
    ),
    ("JobHeldAdmin", "an administrator of the cluster holds it: ask them"),
    ("ReqNodeNotAvail.*", "a node that it asks for is down, drained or reserved{detail}"),
    (
        "Nodes_required_for_job_are_DOWN.*|NodeDown|FrontEndDown",
        "too many nodes of partition {partition} are down, drained or reserved: `sinfo -R` says why",
    ),
    ("PartitionDown|PartitionInactive", "partition {partition} is closed: `sinfo -s` shows the others"),
    ("Dependency", "it waits for another job to end"),
    ("Licenses", "a licence that it asks for is in use"),
    ("Reservation", "it waits for its reservation to begin"),
    ("Cleaning|Prolog|.*Rebooting.*|ResourcesPowering.*|NodesPowering.*", "its nodes are being prepared"),
    ("SchedDefer|BackfillTest|JobArrayTaskLimit", "the scheduler puts it off"),
    ("InvalidAccount", "SLURM does not know its account, or it has no access to the partition: give --account"),
    ("InvalidQOS", "SLURM does not know its QOS, or its account may not use it"),
    ("DependencyNeverSatisfied", "the job for which it waits ended in another way, so it can never start"),
    (
        "PartitionTimeLimit",
        "it asks for more time ({limit}) than partition {partition} allows, so it cannot start: give a shorter --time",
    ),
    (
        "PartitionNodeLimit|PartitionConfig",
        "it asks for more nodes, cores, GPUs or time than partition {partition} has, so it cannot start: `sinfo -s` "
        "shows what there is",
    ),
    ("BadConstraints", "no node is as it asks for, so it cannot start"),
    ("ReservationDeleted", "its reservation is gone, so it cannot start"),
    ("DeadLine", "it can no longer end before its deadline"),
    ("AccountNotAllowed|Account.*", "partition {partition} does not take jobs of its account"),
    ("QOSNotAllowed|QOSJobLimit.*", "its QOS does not allow it in partition {partition}"),
    (
        "QOS.*",
        "a limit of its QOS is reached ({reason}): it starts when other jobs of the QOS end; see `sacctmgr show qos`",
    ),
    (
        "Assoc.*|Max.*|.*Limit",
        "a limit of its account or user is reached ({reason}): it starts when other jobs of theirs end",
    ),
)

#: Reasons that do not pass by waiting.
_NEVER = re.compile(
    "DependencyNeverSatisfied|Partition(Time|Node)Limit|PartitionConfig|BadConstraints|ReservationDeleted"
)

#: Reasons for which a heterogeneous job may wait though there is nothing wrong.
_PLAIN = ("None", "", "Priority", "Resources")

BACKFILL = (
    "a job of several components is started by the backfill scheduler alone, which often takes a minute or more even "
    "where the nodes are free"
)

#: What to do about a refusal, by a word of SLURM's message.
HINTS = (
    ("job violates", "fewer nodes, less time or fewer jobs at once may be allowed"),
    ("invalid partition", "`sinfo -s` shows the partitions"),
    ("invalid account", "`sacctmgr show associations user=$USER` shows your accounts; give --account"),
    ("invalid qos", "`sacctmgr show qos` shows what there is"),
    ("time limit|TimeLimit", "`sinfo -s` shows the limit of each partition"),
    ("generic resource|gres", "`sinfo -o '%P %G'` shows the GPUs of each partition"),
    ("memory specification", "`sinfo -o '%P %m'` shows the memory of each partition's nodes, in MB"),
    (
        "node configuration|node count|cpu count|more processors",
        "`sinfo -o '%P %D %c %m %G'` shows nodes, cores, MB and GPUs",
    ),
    ("not permitted|access.*denied", "ask the administrators of the cluster for access, or take another partition"),
    ("heterogeneous|het ?job", "this SLURM may not allow jobs of several components: try --one-node"),
)


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The variables with which SLURM is asked: without those of a job in which this process may run.

    >>> environment({"HOME": "/home", "SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ID": "7", "SBATCH_ACCOUNT": "p1"})
    {'HOME': '/home', 'SLURM_CONF': '/etc/slurm.conf', 'SBATCH_ACCOUNT': 'p1'}
    """
    return {k: v for k, v in given.items() if k in _KEPT or not k.startswith(("SLURM_", "SRUN_"))}


def ask(*command: str, text: str = "", timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """What a command of SLURM's prints, given a text on its stdin.

    Raises SlurmError: one sentence with SLURM's own message, where it fails; NoAnswer where SLURM cannot be reached.
    """
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, errors="surrogateescape", timeout=timeout_s,
            env=environment(os.environ),
        )  # fmt: skip
    except FileNotFoundError:
        raise SlurmError(f"there is no {command[0]!r} here: SLURM is asked on a node where it is installed") from None
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"{command[0]} did not answer within {timeout_s:.0f} s") from None
    if done.returncode:
        raise refusal(command[0], done.stderr or done.stdout)
    return done.stdout


def submit(script: str) -> int:
    """Give SLURM a batch script; the number of the job.

    Raises SlurmError for what SLURM refuses, and for what it takes but can never start, which is cancelled.
    """
    number = parse_number(ask("sbatch", "--parsable", text=script))
    try:
        job = look(number)
    except NoAnswer:
        return number  # who follows it asks again
    if never(job):
        ask("scancel", str(number))
        raise SlurmError(f"the job is cancelled, since {why(job)}; SLURM says: {_slurms_own(job, script)}")
    return number


def _slurms_own(job: Job, script: str) -> str:
    """Why SLURM cannot start a job that it has taken: the message that it keeps to itself, or else its one word."""
    try:
        ask("sbatch", "--test-only", text=script)
    except SlurmError as error:
        return str(error)
    return job.reason


def look(number: int) -> Job:
    """The job as it is now. Raises SlurmError where SLURM does not know it (any more)."""
    return parse_job(ask("scontrol", "show", "job", str(number)))


def parse_number(answer: str) -> int:
    """The job's number of what `sbatch --parsable` prints.

    >>> parse_number("17;cluster\\n")
    17
    """
    found = re.match(r"\s*(\d+)(?:;.*)?\s*$", answer)
    if not found:
        raise SlurmError(f"sbatch answers with no number of a job: {answer.strip()!r}")
    return int(found[1])


def parse_job(answer: str) -> Job:
    """The job that `scontrol show job` prints, in paragraphs of one a component."""
    components = [_fields(paragraph) for paragraph in re.split(r"\n\s*\n", answer) if "JobId=" in paragraph]
    if not components:
        raise SlurmError(f"scontrol shows no job: {answer.strip()!r}")
    first = components[0]
    code, _, signal = first.get("ExitCode", "0:0").partition(":")
    reasons = [c.get("Reason", "None") for c in components]
    start = first.get("StartTime", "Unknown")
    return Job(
        number=int(first.get("HetJobId", first["JobId"])),
        state=first["JobState"],
        reason=next((r for r in reasons if r not in _PLAIN), next((r for r in reasons if r != "None"), "None")),
        exit_code=128 + int(signal) if int(signal or 0) else int(code),
        restarts=int(first.get("Restarts", 0)),
        start=None if start in ("Unknown", "N/A") else start,
        limit=first.get("TimeLimit", "?"),
        partition=",".join(dict.fromkeys(c["Partition"] for c in components if "Partition" in c)),
        nodes=",".join(c["NodeList"] for c in components if c.get("NodeList", "(null)") != "(null)"),
        batch_host=first.get("BatchHost", ""),
        output=first.get("StdOut", ""),
        components=len(components),
    )


def _fields(paragraph: str) -> dict[str, str]:
    """Names and values. A value may hold blanks only where it is the last of its line, as names and paths are."""
    found: dict[str, str] = {}
    for line in map(str.strip, paragraph.splitlines()):
        if whole := re.match(r"(Command|WorkDir|Std\w+|\w*Comment)=(.*)", line):
            found[whole[1]] = whole[2]
            continue
        pairs, _, name = line.partition("JobName=")
        found |= dict(re.findall(r"(?:^|(?<= ))([\w/:]+)=(\S*)", pairs)) | ({"JobName": name} if name else {})
    return found


def described(job: Job) -> str:
    """One sentence on where the job stands, and on what to do where it needs something."""
    title = f"job {job.number}"
    restarts = f" (start {job.restarts + 1})" if job.restarts else ""
    if job.ended:
        how = ENDINGS[job.state].format(**vars(job))
        return f"{title} {how}{restarts}"
    if not job.waits:
        on = f" on {job.nodes}" if job.nodes and job.nodes != "(null)" else ""
        doing = {"RUNNING": "runs", "COMPLETING": "is ending", "SUSPENDED": "is suspended"}
        return f"{title} {doing.get(job.state, 'is ' + job.state.lower())}{on}{restarts}"
    more = f"; {BACKFILL}" if job.components > 1 and job.reason in _PLAIN else ""
    expected = (
        f"; expected to start at {job.start}" if job.start and job.reason != "BeginTime" and not never(job) else ""
    )
    again = f", to start for the {job.restarts + 1}. time" if job.restarts else ""
    return f"{title} waits{again}: {why(job)}{more}{expected}"


def why(job: Job) -> str:
    """Why the job waits. A word of SLURM's that is not known is shown as it is."""
    for pattern, sentence in REASONS:
        if re.fullmatch(pattern, job.reason):
            nodes = job.reason.partition("UnavailableNodes:")[2]
            return sentence.format(
                **vars(job) | {"detail": f": {nodes}" if nodes else "", "start": job.start or "later"}
            )
    return f"SLURM's reason is {job.reason.replace('_', ' ')!r}"


def never(job: Job) -> bool:
    """Whether waiting is in vain: the job, as it is, can never start."""
    return job.waits and _NEVER.fullmatch(job.reason) is not None


def refusal(program: str, message: str) -> SlurmError:
    """The error for what a command of SLURM's wrote before it failed: its message and what to do about it.

    >>> print(refusal("sbatch", "sbatch: error: Batch job submission failed: Invalid partition name specified"))
    SLURM refuses the job: Invalid partition name specified (`sinfo -s` shows the partitions)
    """
    said = slurms_words(message)
    if re.search("unable to contact|connect failure|timed out|connection refused", said, re.IGNORECASE):
        return NoAnswer(f"SLURM does not answer: {said}")
    if re.search("invalid job id", said, re.IGNORECASE):
        return SlurmError(f"SLURM knows no such job: {said} (it forgets jobs minutes after they ended)")
    hint = next((hint for word, hint in HINTS if re.search(word, said, re.IGNORECASE)), None)
    what = "SLURM refuses the job" if program == "sbatch" else f"{program} fails"
    return SlurmError(f"{what}: {said}" + (f" ({hint})" if hint else ""))


def slurms_words(message: str) -> str:
    """The lines of an error message without what every one of them begins with, each but once."""
    lines: list[str] = []
    for line in map(str.strip, message.splitlines()):
        line = re.sub(r"^(?:\w+: (?:error: |fatal: )?)?", "", line)
        line = re.sub(r"^(?:Batch job submission failed|allocation failure|\w+ error): ", "", line)
        if line and line not in lines:
            lines.append(line)
    return "; ".join(lines) or "it gives no message"
