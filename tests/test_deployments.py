"""Recipes for other deployments: units, manifests and command lines that Dask would take, with keys in each."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from distributed.cli.dask_scheduler import main as dask_scheduler
from distributed.cli.dask_worker import main as dask_worker

from deploy.tls import CERTIFICATE, KEY, make_keys

ROOT = Path(__file__).parents[1]
UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
MANIFEST = ROOT / "deploy" / "kubernetes" / "mixed.yaml"
PAGE = ROOT / "docs" / "deployments.md"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployments") / "tls"
    make_keys(folder)
    return folder


def parsed(words: list[str]) -> tuple[str, dict[str, Any]]:
    """Which of Dask's commands this is, and its options as the command itself reads them: it takes files that exist."""
    assert Path(words[0]).name == "dask"
    command: click.Command = {"scheduler": dask_scheduler, "worker": dask_worker}[words[1]]
    return words[1], command.make_context(words[1], words[2:]).params


def check_options(name: str, options: dict[str, Any]) -> None:
    """What every process of ours is started with."""
    assert options["preload"] == {"scheduler": ("scheduler_plugins",), "worker": ("workers.plugin",)}[name]
    if name == "scheduler":
        assert options["protocol"] == "tls"
    else:
        assert options["scheduler"].startswith("tls://")
        assert options["dashboard_address"].startswith("127.0.0.1:")
        assert options["local_directory"]
        assert int(options["nthreads"]) > 0


# -- systemd -----------------------------------------------------------------------------------------------------------


class Unit:
    """A unit file: sections of keys, each with all its values."""

    def __init__(self, path: Path) -> None:
        self.values: dict[tuple[str, str], list[str]] = {}
        section = ""
        for line in re.sub(r"\\\n\s*", "", path.read_text()).splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith("#"):
                key, equals, value = line.partition("=")
                assert equals, f"{path.name}: {line}"
                self.values.setdefault((section, key), []).append(value)

    def __call__(self, key: str, section: str = "Service") -> list[str]:
        return self.values.get((section, key), [])


def example_environment() -> dict[str, str]:
    lines = (ROOT / "deploy" / "systemd" / "cluster.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def test_there_are_units() -> None:
    assert [path.name for path in UNITS] == [
        "dask-taskgraph-gpu@.service", "dask-taskgraph-scheduler.service", "dask-taskgraph-worker.service",
    ]  # fmt: skip


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_starts_what_dask_understands(path: Path, keys: Path) -> None:
    unit = Unit(path)
    [line] = unit("ExecStart")
    environment = example_environment() | {"CREDENTIALS_DIRECTORY": str(keys)}
    line = re.sub(r"\$\{(\w+)\}", lambda found: environment[found[1]], line)
    line = line.replace("%H", "host").replace("%i", "0")
    assert not re.search(r"[$%]", line), line
    name, options = parsed(shlex.split(line))
    check_options(name, options)
    assert options["dashboard_address"].startswith("127.0.0.1:")
    assert options["host"] == environment["ADDRESS"]
    assert (options["tls_ca_file"], options["tls_key"]) == (str(keys / CERTIFICATE), str(keys / KEY))
    if "gpu" in path.name:
        assert options["nthreads"] == 1
        assert "CUDA_VISIBLE_DEVICES=%i" in " ".join(unit("Environment")).split()


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_a_unit_may_little_and_comes_back(path: Path) -> None:
    unit = Unit(path)
    assert {section for section, _ in unit.values} == {"Unit", "Service", "Install"}
    fixed = {
        "Restart": "always", "User": "dask", "NoNewPrivileges": "yes", "CapabilityBoundingSet": "", "UMask": "0077",
        "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateTmp": "yes", "StateDirectoryMode": "0700",
    }  # fmt: skip
    assert {key: unit(key) for key in fixed} == {key: [value] for key, value in fixed.items()}
    assert sorted(unit("LoadCredential")) == [f"{name}:/etc/dask-taskgraph/tls/{name}" for name in (CERTIFICATE, KEY)]
    assert "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION=True" in unit("Environment")
    assert unit("PrivateDevices") == ([] if "gpu" in path.name else ["yes"])
    assert unit("StartLimitIntervalSec", "Unit") == ["0"]
    assert unit("WantedBy", "Install") == ["multi-user.target"]


# -- Kubernetes --------------------------------------------------------------------------------------------------------

#: What the manifest may say, of what dask-kubernetes 2026.3 and Kubernetes 1.30 know: keys, and types of values.
NAMES = {"*": str}
RESOURCES = {"requests": NAMES, "limits": NAMES}
LABELS = {"matchLabels": NAMES}
CONTAINER = {
    "name": str,
    "image": str,
    "args": [str],
    "env": [{"name": str, "value": str}],
    "ports": [{"name": str, "containerPort": int, "protocol": str}],
    "readinessProbe": {"httpGet": {"port": str, "path": str}, "initialDelaySeconds": int, "periodSeconds": int},
    "resources": RESOURCES,
    "securityContext": {
        "allowPrivilegeEscalation": bool, "readOnlyRootFilesystem": bool, "capabilities": {"drop": [str]},
    },
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool}],
}  # fmt: skip
POD = {
    "automountServiceAccountToken": bool,
    "securityContext": {
        "runAsNonRoot": bool, "runAsUser": int, "runAsGroup": int, "fsGroup": int, "seccompProfile": {"type": str},
    },
    "containers": [CONTAINER],
    "volumes": [{"name": str, "secret": {"secretName": str, "defaultMode": int}, "emptyDir": {}}],
}  # fmt: skip
WORKER = {"replicas": int, "spec": POD}
SERVICE = {
    "type": str,
    "selector": NAMES,
    "ports": [{"name": str, "protocol": str, "port": int, "targetPort": str}],
}
SPECS = {
    ("kubernetes.dask.org/v1", "DaskCluster"): {"worker": WORKER, "scheduler": {"spec": POD, "service": SERVICE}},
    ("kubernetes.dask.org/v1", "DaskWorkerGroup"): {"cluster": str, "worker": WORKER},
    ("networking.k8s.io/v1", "NetworkPolicy"): {
        "podSelector": LABELS,
        "policyTypes": [str],
        "ingress": [
            {
                "from": [{"podSelector": LABELS, "namespaceSelector": LABELS}],
                "ports": [{"protocol": str, "port": int}],
            }
        ],
    },
}


def against(shape: Any, value: Any, where: str = "") -> None:
    """Fail, saying where, for a key that is not known, or a value of another type."""
    if isinstance(shape, dict):
        assert isinstance(value, dict), where
        for key, inner in value.items():
            assert key in shape or "*" in shape, f"{where}: {key}"
            against(shape.get(key, shape.get("*")), inner, f"{where}.{key}")
    elif isinstance(shape, list):
        assert isinstance(value, list), where
        for i, inner in enumerate(value):
            against(shape[0], inner, f"{where}[{i}]")
    else:
        assert type(value) is shape, f"{where}: {value!r}"


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(MANIFEST.read_text()))


def test_the_manifest_has_the_schema(documents: list[dict[str, Any]]) -> None:
    assert [(document["apiVersion"], document["kind"]) for document in documents] == list(SPECS)
    for document in documents:
        kind = document["apiVersion"], document["kind"]
        shape = {"apiVersion": str, "kind": str, "metadata": {"name": str}, "spec": SPECS[kind]}
        against(shape, document, document["kind"])
    with pytest.raises(AssertionError, match=r"DaskCluster\.spec: workers"):
        against({"spec": SPECS["kubernetes.dask.org/v1", "DaskCluster"]}, {"spec": {"workers": {}}}, "DaskCluster")


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    cluster, group, _ = (document["spec"] for document in documents)
    yield "scheduler", cluster["scheduler"]["spec"]
    yield "worker", cluster["worker"]["spec"]
    yield "gpu", group["worker"]["spec"]


def test_its_pods_have_keys_and_few_rights(documents: list[dict[str, Any]]) -> None:
    for what, pod in pods(documents):
        [container] = pod["containers"]
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        name, options = parsed(container["args"])
        check_options(name, options)
        tls = "DASK_DISTRIBUTED__COMM__TLS"
        assert environment["DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION"] == "True"
        assert environment[f"{tls}__CA_FILE"] == environment[f"{tls}__{name.upper()}__CERT"] == f"/tls/{CERTIFICATE}"
        assert environment[f"{tls}__{name.upper()}__KEY"] == f"/tls/{KEY}"
        mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
        assert mounts["tls"] == {"name": "tls", "mountPath": "/tls", "readOnly": True}
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert set(volumes) == set(mounts)
        assert volumes["tls"]["secret"]["defaultMode"] & 0o007 == 0
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        rights = container["securityContext"]
        assert (rights["allowPrivilegeEscalation"], rights["capabilities"]) == (False, {"drop": ["ALL"]})
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (what == "gpu")
        assert (environment.get("TASKGRAPH_DEVICE") == "gpu") == (what == "gpu")


def test_its_parts_find_each_other(documents: list[dict[str, Any]]) -> None:
    cluster, group, policy = documents
    name = cluster["metadata"]["name"]
    assert group["spec"]["cluster"] == name
    service = cluster["spec"]["scheduler"]["service"]
    assert service["type"] == "ClusterIP"
    labels = {"dask.org/cluster-name": name}
    assert service["selector"] == labels | {"dask.org/component": "scheduler"}
    assert policy["spec"]["podSelector"]["matchLabels"] == labels
    [container] = cluster["spec"]["scheduler"]["spec"]["containers"]
    assert {port["name"] for port in container["ports"]} == {port["targetPort"] for port in service["ports"]}
    for _, pod in list(pods(documents))[1:]:
        assert pod["containers"][0]["args"][2] == f"tls://{name}-scheduler:8786"


# -- command lines -----------------------------------------------------------------------------------------------------


def command_lines() -> list[str]:
    text = "\n".join(re.findall(r"^```\n(.*?)^```", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE))
    lines = re.sub(r"\s*\\\n\s*", " ", text).splitlines()
    return [line for line in lines if re.match(r"(\w+=\S* )*dask ", line)]


def test_command_lines_of_the_page(keys: Path) -> None:
    lines = command_lines()
    assert len(lines) == 3
    for line in lines:
        words = [word for word in shlex.split(line.replace("tls/", f"{keys}/")) if not re.match(r"[A-Z_]+=", word)]
        name, options = parsed(words)
        check_options(name, options)
        assert (options["tls_cert"], options["tls_key"]) == (str(keys / CERTIFICATE), str(keys / KEY))
        assert options["host"].startswith("10.")
