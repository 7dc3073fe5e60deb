"""The files of `launch/kubernetes/` are what Kubernetes takes, and fit each other and the code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncdni.cluster.engines import PORT, find_place

FOLDER = Path(__file__).parents[1] / "launch" / "kubernetes"


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """The resources by name of their files."""
    yaml = pytest.importorskip("yaml")
    return {path.stem: yaml.safe_load(path.read_text()) for path in FOLDER.glob("*.yaml")}


def test_they_fit_the_schemas_that_kubernetes_publishes(found: dict[str, Any]) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    for name, resource in found.items():
        if name != "kustomization":
            validate.validate(resource, validate.latest_version(), strict=True)


def test_all_files_are_named(found: dict[str, Any]) -> None:
    resources = {Path(name).stem for name in found["kustomization"]["resources"]}
    assert resources == set(found) - {"kustomization"}


def test_a_pod_finds_its_place(found: dict[str, Any]) -> None:
    """With the variables that Kubernetes sets in the pod of an index besides those of the file."""
    job, service = found["job"], found["service"]
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    own = {one["name"]: one["value"] for one in container["env"]}
    name = job["metadata"]["name"]
    set_there = {"JOB_COMPLETION_INDEX": "1", "HOSTNAME": f"{name}-1"}
    place = find_place({**own, **set_there})
    assert (place.rank, place.ranks) == (1, job["spec"]["completions"])
    assert job["spec"]["parallelism"] == place.ranks
    assert place.coordinator == f"tcp://{name}-0.{service['metadata']['name']}:{PORT}"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    ports = [one["port"] for one in service["spec"]["ports"]]
    assert ports == [PORT, PORT + 1] == [one["containerPort"] for one in container["ports"]]


def test_all_that_is_mounted_is_there(found: dict[str, Any]) -> None:
    pod = found["job"]["spec"]["template"]["spec"]
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert {one["name"] for one in pod["containers"][0]["volumeMounts"]} == set(volumes)
    made = found["kustomization"]
    assert volumes["keys"]["secret"]["secretName"] == made["secretGenerator"][0]["name"]
    assert volumes["experiment"]["configMap"]["name"] == made["configMapGenerator"][0]["name"]
    claim = volumes["runs"]["persistentVolumeClaim"]["claimName"]
    assert claim == found["volume"]["metadata"]["name"]
