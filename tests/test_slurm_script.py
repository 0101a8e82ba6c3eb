"""Batch scripts as text: the examples, what is refused, and that no string of the user's is ever executed."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.slurm.command_line import checked_folder
from deploy.slurm.script import JobRequest, directive, quoted, render, seconds_of, share
from deploy.slurm.site import Pool, Site, line_of, parse_site, read_site
from taskgraph.__main__ import main

EXAMPLES = Path(__file__).parents[1] / "deploy" / "slurm" / "examples"

BASE = JobRequest(
    "/project/me/train.py", ("--epochs", "10"), time="4:00:00", folder="/project/me/taskgraph-%j", cpus_per_node=8
)

#: The rendered examples: of the example's site unless another is named.
SCRIPTS = {
    "cpu_and_gpu_nodes": replace(BASE, cpus_per_node=None, nodes=2, gpus=4),
    "one_node": replace(BASE, cpus_per_node=None, gpus=4, one_node=True),
    "cpu_nodes": replace(BASE, cpus_per_node=None, nodes=2),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_examples_are_what_is_rendered(name: str) -> None:
    text = render(read_site(EXAMPLES / "site.toml"), SCRIPTS[name])
    assert text == (EXAMPLES / f"{name}.sbatch").read_text()
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=True, capture_output=True).stderr == ""


def test_the_site_of_the_examples_is_read_whole() -> None:
    site = read_site(EXAMPLES / "site.toml")
    assert site.modules == ("gcc/13", "cuda/12.4")
    assert site.environment == {"OMP_PROC_BIND": "false"}
    assert site.cpu == Pool("compute", 64, "240GB", None, ("--exclusive",), ("--cpu-bind=none",))


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("1", 60), ("90", 5400), ("1:30", 90), ("1:00:00", 3600), ("100:00:00", 360000), ("1-0", 86400),
        ("1-12", 129600), ("2-0:30", 174600), ("1-00:00:01", 86401),
    ],
)  # fmt: skip
def test_times_of_slurm(time: str, seconds: int) -> None:
    assert seconds_of(time) == seconds


@pytest.mark.parametrize("time", ["", "0", "0:00", "UNLIMITED", "1h", "1:2:3:4", "-1", "1-", "1-2:3:4:5", "5\n", "٣"])
def test_no_times(time: str) -> None:
    with pytest.raises(ValueError, match="time limit"):
        seconds_of(time)


#: What is asked for, and what the person who did is told.
REFUSED = [
    ({"time": "2"}, "shorter than the save warning: 120 s before"),
    ({"time": "10", "warn_seconds": 541}, "541 s before"),
    ({"warn_seconds": 1}, "--warn-seconds is at least 2"),
    ({"time": "soon"}, "a time limit is MINUTES"),
    ({"cpus_per_node": None}, r"give --cpus-per-node N, or \[cpu\] cpus_per_node"),
    ({"gpus": 2, "cpus_per_node": 4}, r"leaves 0 core\(s\) for CPU workers.*each of 2 GPU\(s\) takes 2"),
    ({"gpus": 2, "nodes": 2}, "--gpu-partition NAME"),
    ({"gpus": 3, "gpu_nodes": 2, "gpu_partition": "gpu"}, "cannot be shared out among --gpu-nodes 2"),
    ({"gpus": -1}, "--gpus is at least 0"),
    ({"nodes": 0}, "--nodes is at least 1"),
    ({"gpu_nodes": 0}, "--gpu-nodes is at least 1"),
    ({"threads": 16}, r"leaves 8 core\(s\) for CPU workers, which take 16"),
    ({"partition": "cpu\n#SBATCH --wrap=x"}, "line break"),
    ({"name": "a\rb"}, "line break"),
    ({"folder": "here"}, "absolute path"),
    ({"folder": "/x/%u"}, "%j stands for the job's number"),
    ({"folder": "/x/\\j"}, "%j stands for the job's number"),
    ({"args": ("a\0b",)}, "NUL"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(Site(), replace(BASE, **changes))


@pytest.mark.parametrize(
    ("site", "message"),
    [
        (Site(modules=("-x",)), "would be an option of `module load`"),
        (Site(environment={"A;touch x;B": "1"}), "no name of an environment variable"),
        (Site(cpu=Pool(sbatch=("--wrap=a\nb",))), "line break"),
        (Site(cpu=Pool(sbatch=("-p other",))), "--NAME=VALUE"),
    ],
)
def test_sites_refused(site: Site, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(site, BASE)


#: A site file, the line of its mistake and the key.
MISTAKES = [
    ('acount = "p1"', 1, "acount"),
    ('account = "p1"\n\n# more\n[cpu]\nmemroy = "1GB"', 5, "cpu.memroy"),
    ('account = "p1"\ncpu.nodes = 3', 2, "cpu.nodes"),
    ('[gpu]\npartition = "g"\n[gpus]\npartition = "g"', 3, "gpus"),
    ("modules = [\n 'a',\n 'b',\n]\nmodule = 'c'", 5, "module"),
    ('note = """\naccount = 1\n"""', 1, "note"),
    ("account = 7", 1, "account"),
    ("modules = 'gcc'", 1, "modules"),
    ("modules = ['gcc', 1]", 1, "modules"),
    ('memory_flag = "rss"', 1, "memory_flag"),
    ("[cpu]\ncpus_per_node = 0", 2, "cpu.cpus_per_node"),
    ("[cpu]\ncpus_per_node = true", 2, "cpu.cpus_per_node"),
    ('[cpu]\nmemory = "much"', 2, "cpu.memory"),
    ("[environment]\nA = 1", 2, "environment.A"),
    ('[environment]\n"A B" = "1"', 2, "A B"),
    ("cpu = 3", 1, "cpu"),
]


@pytest.mark.parametrize(("text", "line", "key"), MISTAKES, ids=[key for _, _, key in MISTAKES])
def test_a_mistake_in_a_site_file_is_named_with_its_line(text: str, line: int, key: str, tmp_path: Path) -> None:
    file = tmp_path / "site.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=rf"^{re.escape(str(file))}: line {line}: .*'{re.escape(key)}'"):
        read_site(file)


def test_what_is_no_toml_is_named_with_its_line() -> None:
    with pytest.raises(ValueError, match="line 2"):
        parse_site("account = 'p'\naccount = \nqos = 'q'")


def test_line_of_a_table_that_is_opened_twice() -> None:
    assert line_of(("cpu", "memory"), "[cpu.x]\na = 1\n[cpu]\nmemory = '1'\n") == 4


@pytest.mark.parametrize(
    ("site", "changes", "lines", "no_lines"),
    [
        (Site(cpu=Pool(memory="8GiB")), {}, ["#SBATCH --mem=8192M", "--memory-limit 7730941132 \\"], ["--mem-per-cpu"]),
        (Site(cpu=Pool(memory="8GiB"), memory_flag="mem-per-cpu"), {}, ["#SBATCH --mem-per-cpu=1024M"], ["--mem=8"]),
        (Site(cpu=Pool(memory="8GiB"), memory_flag="none"), {}, ["--memory-limit 7730941132 \\"], ["#SBATCH --mem"]),
        (Site(), {}, [], ["#SBATCH --mem", "--memory-limit", "hetjob", "--gpu-step", "--account", "module"]),
        (Site(gpu=Pool(gpu_type="a100")), {"gpus": 2}, ["#SBATCH --gres=gpu:a100:2"], ["hetjob"]),
        (Site(), {"gpus": 4, "gpu_nodes": 2, "gpu_partition": "g"}, ["#SBATCH --gres=gpu:2", "--gpu-steps 4 \\"], []),
        (Site(), {"resume": True, "folder": "/r"}, ["--folder /r \\", "--resume \\"], ["JOB_ID"]),
        (Site(qos="q", account="p"), {}, ["#SBATCH --qos=q", "#SBATCH --account=p"], []),
        (Site(cpu=Pool(partition="c")), {"partition": "d"}, ["#SBATCH --partition=d"], ["--partition=c"]),
        (Site(gpu=Pool(partition="g")), {"gpus": 1, "one_node": True, "partition": "d"}, ["#SBATCH --partition=d"], []),
        (Site(), {"warn_seconds": 20}, ["--warn-seconds 20 \\", "--lifetime-margin 10 \\"], []),
    ],
)  # fmt: skip
def test_what_stands_in_the_script(
    site: Site, changes: dict[str, object], lines: list[str], no_lines: list[str]
) -> None:
    text = render(site, replace(BASE, **changes))
    assert not [line for line in lines if line not in map(str.strip, text.splitlines())], text
    assert not [part for part in no_lines if part in text], text


@given(cores=st.integers(1, 300), threads=st.none() | st.integers(1, 300), gpus=st.integers(0, 8), one=st.booleans())
def test_workers_never_take_more_cores_than_the_job_has(cores: int, threads: int | None, gpus: int, one: bool) -> None:
    request = replace(BASE, cpus_per_node=cores, threads=threads, gpus=gpus, one_node=one, gpu_partition="gpu")
    if cores - gpus * request.cpus_per_gpu * one < (threads or 1):
        with pytest.raises(ValueError, match="--cpus-per-node"):
            share(Site(), request)
        return
    shares = share(Site(), request)
    taken = shares.workers * shares.threads + gpus * request.cpus_per_gpu * shares.one_node
    assert 0 < shares.workers * shares.threads <= taken <= cores


# -- strings of the user's

#: Text as people, and attackers, write it: all of Unicode but NUL, which no argument of a process can hold.
CHARACTERS = st.sampled_from(list("'\"\\$`!*?[]{}()<>|&;#~%=: \n\r\t-1")) | st.characters(
    exclude_characters="\0", exclude_categories=["Cs"]
)

ATTACKS = (
    "$(touch canary)", "`touch canary`", "'; touch canary; '", "a\n#SBATCH --wrap='touch canary'", "\n#PBS -l x", "--",
    "", "\udcff", "$'\\n'", "\x7f1", "\x021",
)  # fmt: skip

HOSTILE = st.text(CHARACTERS, max_size=20) | st.sampled_from(ATTACKS)

#: What an option of sbatch may be: on one line.
ONE_LINE = HOSTILE.filter(str.isprintable)


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that prints its arguments, and the variable HOSTILE before them, each with a NUL behind it."""
    program = tmp_path_factory.mktemp("bin") / "echo arguments"
    program.write_text('#!/bin/bash\nprintf \'%s\\0\' "$HOSTILE" "$@"\n')
    program.chmod(0o700)
    return program


@settings(max_examples=150, deadline=None)
@given(args=st.lists(HOSTILE, max_size=4), value=HOSTILE, name=ONE_LINE, folder=ONE_LINE, interface=HOSTILE)
def test_bash_executes_no_string_of_the_user(
    echo: Path, args: list[str], value: str, name: str, folder: str, interface: str
) -> None:
    place = echo.parent / "place"
    place.mkdir(exist_ok=True)
    run_folder = f"{place}/{re.sub('[%/]', '_', folder.replace(chr(92), '_'))}-%j"
    site = Site(python=str(echo), environment={"HOSTILE": value}, interface=interface, gpu=Pool(srun=(value,)))
    request = replace(
        BASE, script="/x/" + value, args=tuple(args), name=name, folder=run_folder, gpus=1, gpu_partition=name or "g"
    )
    text = render(site, request)
    # Nothing of a string begins a line, which sbatch might read: there are as many as without them.
    plain = render(
        Site(python="p", environment={"HOSTILE": ""}, interface=interface and "i"),
        replace(request, script="x", args=(), name="n", folder="/f", gpu_partition="g"),
    )
    assert len(text.split("\n")) == len(plain.split("\n"))
    done = subprocess.run(
        ["bash", "-s"], input=text.encode(errors="surrogateescape"), capture_output=True, cwd=place, check=False,
        env={"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "7"},
    )  # fmt: skip
    found, *words = done.stdout.decode(errors="surrogateescape").split("\0")[:-1]
    assert found == value, done.stderr
    assert words[: words.index("--folder") + 2] == [
        "-P",
        "-m",
        "deploy.slurm.job",
        "--folder",
        run_folder.replace("%j", "7"),
    ]
    assert not interface or words[words.index("--interface") + 1] == interface
    end = len(words) - len(args) - 2
    assert words[end:] == ["--", "/x/" + value, *args]
    assert not list(place.iterdir()), "something was executed"


@settings(max_examples=300)
@given(ONE_LINE)
def test_sbatch_reads_what_was_meant(value: str) -> None:
    line = directive("comment", value)
    assert sbatch_words(line) == [f"--comment={value}"]
    assert not re.search("hetjob|packjob", line, re.IGNORECASE)


@pytest.mark.parametrize("value", ["hetjob", "my HetJob #1", "packjob\\", 'a"hetjobhetjob'])
def test_no_name_is_taken_for_a_border_of_components(value: str) -> None:
    line = directive("job-name", value)
    assert not re.search("hetjob|packjob", line, re.IGNORECASE)
    assert sbatch_words(line) == [f"--job-name={value}"]


def sbatch_words(line: str) -> list[str]:
    """How sbatch takes a line apart (tried on 22.05): quotes group, a backslash means the next character, and what
    follows a bare # is a comment."""
    assert line.startswith("#SBATCH ")
    words: list[str] = []
    word: str | None = None
    quote, escaped = "", False
    for c in line.removeprefix("#SBATCH ") + " ":
        if escaped:
            word, escaped = (word or "") + c, False
        elif c == "\\":
            escaped = True
        elif quote:
            word, quote = (word or "", "") if c == quote else ((word or "") + c, quote)
        elif c in "'\"":
            quote = c
        elif c == "#":
            break
        elif c == " ":
            words, word = words + ([word] if word is not None else []), None
        else:
            word = (word or "") + c
    return words


@pytest.mark.parametrize(
    ("text", "word"), [("", "''"), ("a\n1", "$'a\\n1'"), ("\x011", "$'\\0011'"), ("it's", "'it'\"'\"'s'")]
)
def test_words_of_bash(text: str, word: str) -> None:
    assert quoted(text) == word


# -- the run folder


def test_a_run_folder_that_exists_is_only_gone_on_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert checked_folder(None, resume=False) == f"{tmp_path}/taskgraph-%j"
    assert checked_folder("new", resume=False) == f"{tmp_path}/new"
    assert checked_folder("run", resume=True) == f"{tmp_path}/run"
    for folder, resume, message in [
        ("run", False, "exists: name another with --folder, or go on in it with --resume"),
        ("new", True, "there is no run folder"),
        (None, True, "name it with --folder"),
        ("none/new", False, "there is no folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            checked_folder(folder, resume)


def test_the_command_line_prints_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b.py").touch()
    (tmp_path / "site.toml").write_text("[cpu]\ncpus_per_node = 4\n")
    arguments = [
        "slurm",
        "script",
        "--site",
        "site.toml",
        "--time",
        "1:00:00",
        "--partition",
        "c",
        "a b.py",
        "--time",
        "2",
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "#SBATCH --partition=c\n" in done.output
    assert done.output.endswith(f"    -- '{tmp_path}/a b.py' --time 2\n")
    assert f"exec {sys.executable} -P -m deploy.slurm.job" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--time", "2"], "shorter than the save warning"),
        (["--time", "1:00:00", "--site", "bad.toml"], "bad.toml: line 1: the key 'acount' is not known"),
        (["--time", "1:00:00", "--folder", "."], "exists: name another"),
        (["--time", "1:00:00", "--nodez", "1"], "No such option"),
    ],
)
def test_the_command_line_refuses_in_a_sentence(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.py").touch()
    (tmp_path / "bad.toml").write_text("acount = 'p'\n")
    for what in ("script", "submit"):
        done = CliRunner().invoke(main, ["slurm", what, "--cpus-per-node", "4", *arguments, "a.py"])
        assert done.exit_code in (1, 2)
        assert message in done.output
        assert "Traceback" not in done.output
