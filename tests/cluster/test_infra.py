"""infra/ says what the code and each other's files say: images, versions, ports, metrics, secrets by reference.

That the Kubernetes manifests are valid against KubeRay's own schemas was checked by hand; the docs say when.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from annotator.metrics import COUNTERS, GAUGES
from annotator.session import KEEP_FREED

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
RAY = re.findall(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text(encoding="ascii"), re.M)[0]
DOCKERFILE = (INFRA / "docker" / "Dockerfile").read_text(encoding="ascii")


def load(name: str) -> Any:
    return yaml.safe_load((INFRA / name).read_text(encoding="ascii"))


# -- Kubernetes -----------------------------------------------------------------------------------


def cluster_spec(name: str) -> dict[str, Any]:
    spec = load(f"kuberay/{name}.yaml")["spec"]
    found: dict[str, Any] = spec.get("rayClusterSpec", spec)
    return found


def groups(name: str) -> list[dict[str, Any]]:
    spec = cluster_spec(name)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


@pytest.fixture(params=["rayjob", "raycluster"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_pods_run_the_ray_that_we_are_tested_with_guarded_by_a_token(name: str) -> None:
    spec = cluster_spec(name)
    assert spec["rayVersion"] == RAY
    assert spec["authOptions"] == {"mode": "token"}


def test_pods_are_confined_and_run_our_image_as_its_user(name: str) -> None:
    uid = int(re.findall(r"--uid (\d+)", DOCKERFILE)[0])
    for group in groups(name):
        pod = group["template"]["spec"]
        assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": uid, "runAsGroup": uid}
        (container,) = pod["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["image"] == "annotator:cuda"
        for first in pod.get("initContainers", []):
            assert first["command"] == ["chown", f"{uid}:{uid}", "/cache"]


def test_the_head_computes_nothing_and_workers_are_one_gpu_on_spot_nodes(name: str) -> None:
    head, worker = groups(name)
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in str(head)
    pod = worker["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "spot" in str(pod["nodeSelector"])
    assert {toleration["key"] for toleration in pod["tolerations"]} >= {"nvidia.com/gpu"}
    assert worker["minReplicas"] >= 1  # the driver ends where it finds no GPU at all
    assert worker["maxReplicas"] > worker["minReplicas"]


def test_checkpoints_are_cached_on_the_nodes_disk_where_the_image_looks_for_them(name: str) -> None:
    cache = re.findall(r"XDG_CACHE_HOME=(\S+)", DOCKERFILE)[0]
    pod = groups(name)[1]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    assert volumes[mounts[cache]]["hostPath"]["type"] == "DirectoryOrCreate"


def test_secrets_are_references(name: str) -> None:
    for group in groups(name):
        (container,) = group["template"]["spec"]["containers"]
        assert [list(source) for source in container["envFrom"]] == [["secretRef"]]
        assert "env" not in container


def test_a_job_may_be_tried_again_and_runs_a_command_of_ours() -> None:
    spec = load("kuberay/rayjob.yaml")["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["entrypoint"] == "annotator run /job/job.yaml --address auto"
    head = spec["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in head["containers"][0]["volumeMounts"]}
    assert "configMap" in {v["name"]: v for v in head["volumes"]}[mounts["/job"]]


# -- AWS ------------------------------------------------------------------------------------------


def test_ray_accepts_the_aws_cluster_and_installs_nothing_over_the_image() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(load("aws/cluster.yaml"))
    validate_config(config)
    assert config["head_setup_commands"] == config["worker_setup_commands"] == []


def test_on_aws_the_head_has_no_gpu_and_workers_are_spot() -> None:
    config = load("aws/cluster.yaml")
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in head["node_config"]
    for worker in types.values():
        assert worker["resources"]["GPU"] == 1
        assert worker["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
        assert 1 <= worker["min_workers"] < worker["max_workers"] <= config["max_workers"]
    assert "AWS_" not in str(config)  # rights come from the instance profile
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=" in command for command in commands if "ray start" in command)


# -- images, compose ------------------------------------------------------------------------------


def test_the_image_has_both_targets_no_root_and_extras_that_exist() -> None:
    assert re.findall(r"^FROM \S+ AS (\w+)", DOCKERFILE, re.M) == ["base", "cpu", "cuda"]
    stages = DOCKERFILE.split("\nFROM ")[2:]
    assert [re.findall(r"^USER (\w+)", stage, re.M)[-1] for stage in stages] == ["annotator", "annotator"]
    extras = re.findall(r"EXTRAS=(\S+)", DOCKERFILE)[0].split(",")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    packages = {extra: re.findall(rf"^{extra} = \[(.*)\]", project, re.M) for extra in extras}
    assert all(packages.values())
    assert "obstore" in str(packages)


def test_compose_names_our_image_its_own_services_and_a_job_that_exists() -> None:
    text = (INFRA / "compose.yaml").read_text(encoding="ascii")
    services = yaml.safe_load(text)["services"]
    assert set(services) == {"s3", "bucket", "head", "worker"}
    assert {services[name]["image"] for name in ("bucket", "head", "worker")} == {"annotator:cpu"}
    waits = {wanted for service in services.values() for wanted in service.get("depends_on", {})}
    assert waits <= set(services)
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))
    assert all((ROOT / job).exists() for job in re.findall(r"jobs/\w+\.yaml", text))
    workers = services["worker"]["deploy"]["replicas"]
    assert yaml.safe_load((ROOT / "jobs" / "compose.yaml").read_text(encoding="ascii"))["workers"] == workers


# -- the dashboard --------------------------------------------------------------------------------


def queries() -> list[str]:
    board = json.loads((INFRA / "grafana" / "dashboard.json").read_text(encoding="ascii"))
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def test_every_query_of_the_dashboard_names_metrics_that_exist_and_labels_that_they_have() -> None:
    known = {f"ray_{name}": labels for name, (_, labels) in {**COUNTERS, **GAUGES}.items()}
    for query in queries():
        names = re.findall(r"\bray_\w+", query)
        assert names
        assert set(names) <= set(known), query
        by = [label.strip() for group in re.findall(r"by \(([\w, ]+)\)", query) for label in group.split(",")]
        assert set(by) <= {label for name in names for label in known[name]}, query


def test_the_dashboard_shows_every_metric() -> None:
    shown = {name for query in queries() for name in re.findall(r"\bray_(annotator_\w+)", query)}
    assert {*COUNTERS, *GAUGES} - shown == set()


def test_what_only_grows_is_shown_as_a_rate_and_what_is_a_level_is_not() -> None:
    for query in queries():
        for name in re.findall(r"\bray_(annotator_\w+)", query):
            assert (f"rate(ray_{name}[" in query) == (name in COUNTERS), query


def test_names_and_units_follow_the_conventions_of_prometheus() -> None:
    assert [name for name in COUNTERS if not name.endswith("_total")] == []
    assert [name for name in GAUGES if name.endswith("_total")] == []
    assert [name for name in {**COUNTERS, **GAUGES} if re.search(r"_(ms|mb|gb|percent|millis)\b", name)] == []


def test_every_metric_and_label_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text(encoding="ascii")
    for name, (_, labels) in {**COUNTERS, **GAUGES}.items():
        (row,) = re.findall(rf"^\| `{name}` \| ([^|]*) \|", text, re.M) or [""]
        assert row.strip() == ", ".join(f"`{label}`" for label in labels), name


def test_processes_that_compute_on_the_cpu_keep_memory_in_the_same_way_everywhere() -> None:
    """Where Ray is not started by a run, somebody else has to set what it would set."""
    compose = yaml.safe_load((INFRA / "compose.yaml").read_text(encoding="ascii"))
    environment = compose["services"]["worker"]["environment"]
    assert {name: environment[name] for name in KEEP_FREED} == KEEP_FREED
    said = " ".join(f"{name}={value}" for name, value in KEEP_FREED.items())
    assert f"export {said}" in (ROOT / "docs" / "how-to" / "speed.md").read_text(encoding="ascii")
