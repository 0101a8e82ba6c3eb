"""What SLURM answers, as recorded from 22.05: jobs as data, and one clear sentence for every bad answer."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from deploy.slurm import follow, queue
from deploy.slurm.command_line import slurm_commands
from deploy.slurm.queue import NoAnswer, SlurmError, described, never, parse_job, parse_number, refusal
from deploy.tls import make_keys

#: One component of a job as `scontrol show job` prints it; the blanks, and quotes in the paths, are SLURM's own.
RECORD = """\
JobId={number}{het} JobName=my JobState=x train
   UserId=me(1000) GroupId=me(1000) MCS_label=N/A
   Priority=4294901755 Nice=0 Account=(null) QOS=(null)
   JobState={state} Reason={reason} Dependency=(null)
   Requeue=1 Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode={code}
   RunTime=00:00:09 TimeLimit=00:02:00 TimeMin=N/A
   SubmitTime=2026-11-24T14:03:49 EligibleTime=2026-11-24T14:03:49
   AccrueTime=2026-11-24T14:03:49
   StartTime={start} EndTime=2026-11-24T14:03:59 Deadline=N/A
   SuspendTime=None SecsPreSuspend=0 LastSchedEval=2026-11-24T14:03:50 Scheduler=Backfill
   Partition={partition} AllocNode:Sid=localhost:3258
   ReqNodeList=(null) ExcNodeList=(null)
   NodeList={nodes}
{host}   NumNodes=1 NumCPUs=8 NumTasks=1 CPUs/Task=8 ReqB:S:C:T=0:0:*:*
   TRES=cpu=8,mem=3000M,node=1,billing=8
   Command=/project/me/a Reason=None b.sh
   WorkDir=/project/me
   StdErr=/project/me/taskgraph-{number}.log
   StdIn=/dev/null
   StdOut=/project/me/o t"'$(x) Reason=x #hetjob-{number}.log
   Power=
   TresPerNode=gres:gpu:2
   

"""  # noqa: W293


def record(**given: object) -> str:
    """A recorded answer with other words in it."""
    usual: dict[str, object] = {
        "number": 7, "het": "", "state": "PENDING", "reason": "None", "restarts": 0, "code": "0:0",
        "start": "Unknown", "partition": "cpu", "nodes": "", "host": "",
    }  # fmt: skip
    return RECORD.format(**usual | given)


def test_a_job_is_read_whole() -> None:
    running = record(
        state="RUNNING", start="2026-11-24T14:03:50", nodes="cpu[0-1]", host="   BatchHost=cpu0\n", restarts=2
    )
    job = parse_job(running)
    assert (job.number, job.state, job.reason, job.partition, job.restarts) == (7, "RUNNING", "None", "cpu", 2)
    assert (job.nodes, job.batch_host, job.start) == ("cpu[0-1]", "cpu0", "2026-11-24T14:03:50")
    assert job.output == """/project/me/o t"'$(x) Reason=x #hetjob-7.log"""
    assert described(job) == "job 7 runs on cpu[0-1] (start 3)"


def test_a_heterogeneous_job_is_one_job() -> None:
    """Known by the number of its first component, with the trouble of any."""
    first = record(number=60, het=" HetJobId=60 HetJobOffset=0", reason="Resources")
    second = record(number=61, het=" HetJobId=60 HetJobOffset=1", partition="gpu", reason="PartitionDown")
    job = parse_job(first + second)
    assert (job.number, job.components, job.reason, job.partition) == (60, 2, "PartitionDown", "cpu,gpu")
    assert job.output.endswith("#hetjob-60.log")


@pytest.mark.parametrize(
    ("code", "state", "shell"),
    [
        ("0:0", "COMPLETED", 0), ("3:0", "FAILED", 3), ("0:9", "FAILED", 137), ("0:15", "CANCELLED", 143),
        ("0:0", "CANCELLED", 1), ("0:0", "NODE_FAIL", 1),
    ],
)  # fmt: skip
def test_the_exit_code_is_a_shells(code: str, state: str, shell: int) -> None:
    assert follow.ended_with(parse_job(record(state=state, code=code))) == shell


#: SLURM's word for why a job waits, and the sentence of ours.
WAITS = [
    ("None", "SLURM has not looked at it yet"),
    ("Priority", "jobs of higher priority are before it"),
    ("Resources", "what it asks for is in use by other jobs"),
    ("JobHeldUser", "it is held: `scontrol release 7` lets it go"),
    ("job_requeued_in_held_state", "it is held: `scontrol release 7` lets it go"),
    ("launch_failed_requeued_held", "it is held: `scontrol release 7` lets it go"),
    ("JobHeldAdmin", "an administrator of the cluster holds it: ask them"),
    ("ReqNodeNotAvail,_UnavailableNodes:cpu0", "a node that it asks for is down, drained or reserved: cpu0"),
    ("ReqNodeNotAvail", "a node that it asks for is down, drained or reserved"),
    (
        "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions",
        "too many nodes of partition cpu are down, drained or reserved: `sinfo -R` says why",
    ),
    ("PartitionDown", "partition cpu is closed: `sinfo -s` shows the others"),
    ("Dependency", "it waits for another job to end"),
    (
        "PartitionTimeLimit",
        "it asks for more time (00:02:00) than partition cpu allows, so it cannot start: give a shorter --time",
    ),
    (
        "PartitionNodeLimit",
        "it asks for more nodes, cores, GPUs or time than partition cpu has, so it cannot start: `sinfo -s` shows what "
        "there is",
    ),
    ("BadConstraints", "no node is as it asks for, so it cannot start"),
    ("InvalidAccount", "SLURM does not know its account, or it has no access to the partition: give --account"),
    (
        "QOSMaxCpuPerUserLimit",
        "a limit of its QOS is reached (QOSMaxCpuPerUserLimit): it starts when other jobs of the QOS end; see "
        "`sacctmgr show qos`",
    ),
    (
        "AssocGrpGRES",
        "a limit of its account or user is reached (AssocGrpGRES): it starts when other jobs of theirs end",
    ),
    (
        "MaxJobsPerAccount",
        "a limit of its account or user is reached (MaxJobsPerAccount): it starts when other jobs of theirs end",
    ),
    ("A_new_reason", "SLURM's reason is 'A new reason'"),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "sentence"), WAITS, ids=[reason[:30] for reason, _ in WAITS])
def test_why_a_job_waits_is_one_sentence(reason: str, sentence: str) -> None:
    assert described(parse_job(record(reason=reason))) == f"job 7 waits: {sentence}"


def test_a_reason_that_is_its_own_row_is_reached() -> None:
    """No row of the table hides behind one above it that takes the same words."""
    for i, (pattern, _) in enumerate(queue.REASONS):
        words = [word.replace(".*", "") for word in pattern.split("|")]
        for word in words:
            first = next(j for j, (other, _) in enumerate(queue.REASONS) if re.fullmatch(other, word))
            assert first == i, f"{word} is taken by {queue.REASONS[first][0]}"


def test_a_job_of_several_components_may_wait_for_backfill() -> None:
    first = record(number=60, het=" HetJobId=60 HetJobOffset=0", reason="Resources", start="2026-11-24T14:15:48")
    second = record(number=61, het=" HetJobId=60 HetJobOffset=1", partition="gpu")
    why = f"what it asks for is in use by other jobs; {queue.BACKFILL}"
    assert described(parse_job(first + second)) == f"job 60 waits: {why}; expected to start at 2026-11-24T14:15:48"
    held = [part.replace("Reason=Resources", "Reason=JobHeldUser") for part in (first, second)]
    assert "backfill" not in described(parse_job("".join(held)))


def test_a_requeued_job_says_when_it_goes_on() -> None:
    requeued = parse_job(record(reason="BeginTime", restarts=1, start="2026-11-24T14:14:55"))
    assert described(requeued) == (
        "job 7 waits, to start for the 2. time: SLURM does not let it start before 2026-11-24T14:14:55"
    )


@pytest.mark.parametrize("reason", ["PartitionNodeLimit", "PartitionTimeLimit", "PartitionConfig", "BadConstraints"])
def test_what_can_never_start_is_known(reason: str) -> None:
    assert never(parse_job(record(reason=reason)))
    assert not never(parse_job(record(reason=reason, state="RUNNING")))


@pytest.mark.parametrize("reason", ["Resources", "JobHeldUser", "PartitionDown", "QOSMaxJobsPerUserLimit", "None"])
def test_what_may_pass_is_waited_for(reason: str) -> None:
    assert not never(parse_job(record(reason=reason)))


@pytest.mark.parametrize("state", queue.ENDINGS)
def test_every_end_is_one_sentence(state: str) -> None:
    job = parse_job(record(state=state, code="3:0", nodes="cpu0"))
    assert job.ended
    assert not job.waits
    sentence = described(job)
    assert sentence.startswith("job 7 ")
    assert "{" not in sentence
    assert "\n" not in sentence


#: What SLURM wrote to stderr, and what the user reads.
REFUSALS = [
    (
        "sbatch: error: invalid partition specified: nowhere\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n",
        "SLURM refuses the job: invalid partition specified: nowhere; Invalid partition name specified "
        "(`sinfo -s` shows the partitions)",
    ),
    (
        "sbatch: error: Memory specification can not be satisfied\n"
        "sbatch: error: Batch job submission failed: Requested node configuration is not available\n",
        "SLURM refuses the job: Memory specification can not be satisfied; Requested node configuration is not "
        "available (`sinfo -o '%P %m'` shows the memory of each partition's nodes, in MB)",
    ),
    (
        "sbatch: error: Batch job submission failed: Requested node configuration is not available\n",
        "SLURM refuses the job: Requested node configuration is not available (`sinfo -o '%P %D %c %m %G'` shows "
        "nodes, cores, MB and GPUs)",
    ),
    (
        "sbatch: error: Invalid generic resource (gres) specification\n",
        "SLURM refuses the job: Invalid generic resource (gres) specification (`sinfo -o '%P %G'` shows the GPUs of "
        "each partition)",
    ),
    (
        "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified\n",
        "SLURM refuses the job: Invalid account or account/partition combination specified (`sacctmgr show "
        "associations user=$USER` shows your accounts; give --account)",
    ),
    (
        "sbatch: error: Batch job submission failed: Invalid feature specification\n",
        "SLURM refuses the job: Invalid feature specification",
    ),
    (
        "sbatch: unrecognized option '--frobnicate'\nTry \"sbatch --help\" for more information\n",
        "SLURM refuses the job: unrecognized option '--frobnicate'; Try \"sbatch --help\" for more information",
    ),
    (
        "sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates "
        "accounting/QOS policy (job submit limit, user's size and/or time limits)\n",
        "SLURM refuses the job: QOSMaxSubmitJobPerUserLimit; Job violates accounting/QOS policy (job submit limit, "
        "user's size and/or time limits) (fewer nodes, less time or fewer jobs at once may be allowed)",
    ),
    ("", "SLURM refuses the job: it gives no message"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "sentence"), REFUSALS, ids=range(len(REFUSALS)))
def test_a_refusal_shows_slurms_own_message(message: str, sentence: str) -> None:
    assert str(refusal("sbatch", message)) == sentence


def test_a_controller_that_is_away_is_no_refusal() -> None:
    error = refusal("scontrol", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
    assert isinstance(error, NoAnswer)
    assert str(error) == "SLURM does not answer: Unable to contact slurm controller (connect failure)"


def test_a_job_that_slurm_forgot() -> None:
    error = refusal("scontrol", "slurm_load_jobs error: Invalid job id specified\n")
    assert str(error) == "SLURM knows no such job: Invalid job id specified (it forgets jobs minutes after they ended)"
    assert not isinstance(error, NoAnswer)


@pytest.mark.parametrize("answer", ["", "Submitted batch job", "\n"])
def test_an_answer_without_a_number(answer: str) -> None:
    with pytest.raises(SlurmError, match="no number"):
        parse_number(answer)


def test_no_slurm_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="there is no 'scontrol' here"):
        queue.look(7)


def test_a_command_that_hangs_ends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "scontrol"
    program.write_text(f"#!{sys.executable}\nimport signal\nsignal.pause()\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    began = time.monotonic()
    with pytest.raises(NoAnswer, match="did not answer within 0 s"):
        queue.ask("scontrol", "ping", timeout_s=0.3)
    assert time.monotonic() - began < 10


# -- following, with a SLURM that answers as told


class Answers:
    """`scontrol` that gives one answer after the other; an exception is raised."""

    def __init__(self, *answers: str | Exception) -> None:
        self.left = list(answers)

    def __call__(self, *command: str, **_: object) -> str:
        answer = self.left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def followed(monkeypatch: pytest.MonkeyPatch, log: Path, *answers: str | Exception) -> tuple[int, list[str], str]:
    """The exit code, what was said and what of the log was shown."""
    monkeypatch.setattr(queue, "ask", Answers(*answers))
    said: list[str] = []
    shown: list[str] = []
    code = follow.follow(7, said.append, follow.Log(str(log)), shown.append, poll_s=0.0)
    return code, said, "".join(shown)


def test_following_tells_each_change_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_bytes("Übung\n".encode())
    gone = NoAnswer("SLURM does not answer: Unable to contact slurm controller (connect failure)")
    running = record(state="RUNNING", nodes="cpu0")
    code, said, shown = followed(
        monkeypatch, log, record(), record(), gone, gone, running, running, record(state="FAILED", code="3:0")
    )
    assert code == 3
    assert shown == "Übung\n"
    assert said == [
        "job 7 waits: SLURM has not looked at it yet",
        f"{gone}; asked again until it does",
        "job 7 runs on cpu0",
        """job 7 failed with exit code 3: its log says why (/project/me/o t"'$(x) Reason=x #hetjob-7.log)""",
    ]


def test_following_stays_with_a_job_that_goes_on_after_its_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    again = {"restarts": 1, "nodes": "cpu0"}
    code, said, _ = followed(
        monkeypatch,
        tmp_path / "x.log",
        record(state="RUNNING", nodes="cpu0"),
        record(state="COMPLETING", nodes="cpu0"),
        record(reason="BeginTime", restarts=1, start="2026-11-24T14:14:55"),
        record(state="RUNNING", **again),
        record(state="COMPLETED", **again),
    )
    assert code == 0
    assert said == [
        "job 7 runs on cpu0",
        "job 7 is ending on cpu0",
        "job 7 waits, to start for the 2. time: SLURM does not let it start before 2026-11-24T14:14:55",
        "job 7 runs on cpu0 (start 2)",
        "job 7 is done (start 2)",
    ]


def test_status_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "ask", Answers(record(reason="JobHeldAdmin")))
    done = CliRunner().invoke(slurm_commands, ["status", "7"])
    assert done.output == "job 7 waits: an administrator of the cluster holds it: ask them\n"


def test_following_what_can_never_start_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SlurmError, match="queued in vain; `scancel 7` removes it"):
        followed(monkeypatch, tmp_path / "x.log", record(reason="PartitionTimeLimit"))


def test_an_interrupt_leaves_the_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(queue, "ask", interrupted)
    said: list[str] = []
    assert follow.follow(7, said.append, follow.Log("/x"), poll_s=0.0) == 130
    assert said == ["job 7 goes on without you: `taskgraph slurm follow 7` follows it again, `scancel 7` ends it"]


def test_a_slurm_that_stays_away_ends_following(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(follow, "AWAY_S", -1.0)
    with pytest.raises(NoAnswer, match="does not answer"):
        followed(monkeypatch, tmp_path / "x.log", NoAnswer("SLURM does not answer: x"))


def test_a_log_grows_amid_a_character(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = follow.Log(str(path))
    assert log.more() == ""
    path.write_bytes(b"a\xc3")
    assert log.more() == "a"
    with path.open("ab") as file:
        file.write(b"\xa9\xff")
    assert log.more() == "é�"
    assert follow.Log.end_of(str(path), 1).more() == "�"


@pytest.mark.parametrize(
    ("tested", "words"),
    [
        (refusal("sbatch", "allocation failure: Node count specification invalid"), "Node count specification invalid"),
        ("sbatch: Job 8 to start at 2026-11-24T14:11:44", "SLURM says: PartitionNodeLimit$"),
    ],
)
def test_what_is_impossible_is_cancelled_at_submit(
    tested: str | SlurmError, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers("7\n", record(reason="PartitionNodeLimit"), "", tested)
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(queue, "ask", lambda *command, **_: asked.append(command) or answers())
    with pytest.raises(SlurmError, match=f"^the job is cancelled, since it asks for more nodes.*{words}"):
        queue.submit("#!/bin/bash\n")
    assert asked[1:3] == [("scontrol", "show", "job", "7"), ("scancel", "7")]


# -- connecting


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The run folder of a running job, with keys and nothing else."""
    folder = tmp_path / "run"
    folder.mkdir(0o700)
    make_keys(folder / "tls")
    answer = record(state="RUNNING", nodes="cpu0", host="   BatchHost=cpu0\n")
    answer = re.sub("StdOut=.*", lambda _: f"StdOut={folder}.log", answer)
    monkeypatch.setattr(queue, "ask", lambda *command, **_: answer)
    return folder


def test_a_scheduler_that_cannot_be_reached_is_an_error_in_time(running: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"tls://127.0.0.1:{nobody.getsockname()[1]}"
        (running / "scheduler.json").write_text(json.dumps({"address": address}))
        with pytest.raises(SlurmError, match=f"job 7 at {address} cannot be reached from .*`interface`"):
            follow.connect(7, timeout_s=1)


def test_a_scheduler_that_does_not_come_up_is_an_error_in_time(running: Path) -> None:
    with pytest.raises(SlurmError, match=f"job 7 runs, but its {running}/scheduler.json is not there after 0 s"):
        follow.connect(7, timeout_s=0.2)


def test_keys_that_others_can_read_are_refused(running: Path) -> None:
    (running / "scheduler.json").write_text(json.dumps({"address": "tls://127.0.0.1:1"}))
    (running / "tls").chmod(0o755)
    with pytest.raises(PermissionError, match="is open to others"):
        follow.connect(7)
    done = CliRunner().invoke(slurm_commands, ["connect", "7"])
    assert (done.exit_code, "is open to others" in done.output) == (1, True)


def test_no_client_of_a_job_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "ask", Answers(record(reason="JobHeldUser")))
    with pytest.raises(SlurmError, match="only a running job has a cluster, and job 7 waits: it is held"):
        follow.connect(7)


def test_a_log_of_another_kind_names_no_run_folder() -> None:
    with pytest.raises(SlurmError, match="name its run folder"):
        follow.run_folder(parse_job(record().replace("-7.log", "-7.out")))


def test_connect_opens_python_with_a_client(running: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        def __enter__(self) -> Stub:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def scheduler_info(self) -> dict[str, object]:
            return {"services": {"dashboard": 4321}}

    monkeypatch.setattr(follow, "connect", lambda number, folder: Stub())
    done = CliRunner().invoke(slurm_commands, ["connect", "7"], input="print(type(client).__name__, tg.__name__)\n")
    assert "Stub taskgraph" in done.output
    assert "ssh -N -L 4321:127.0.0.1:4321 cpu0" in done.output
    assert done.exit_code == 0
