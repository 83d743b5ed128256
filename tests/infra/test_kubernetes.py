"""infra/kubernetes: rendered as `kubectl apply -k` renders it, and checked against KubeRay's and Kubernetes' fields."""

import json
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from conftest import ROOT
from kubernetes import client

from orchestrator import __version__
from orchestrator.spec.reading import load_spec

FOLDER = ROOT / "infra" / "kubernetes"
SCHEMA = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())


def rendered(folder: Path) -> dict[str, dict[str, Any]]:
    """Kind/name -> object."""
    if shutil.which("kubectl") is None:
        pytest.skip("needs kubectl (1.28 or newer) on PATH, to render the manifests; no pip or Debian package has it")
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
    return {f"{o['kind']}/{o['metadata']['name']}": o for o in yaml.safe_load_all(done.stdout)}


@pytest.fixture(scope="module")
def job() -> dict[str, Any]:
    return rendered(FOLDER)


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return rendered(FOLDER / "cluster")


def unknown(value: Any, kind: str, path: str) -> list[str]:
    """Fields that the kubernetes package's model of this kind has not."""
    if found := re.fullmatch(r"List\[(.+)\]", kind):
        return [bad for i, item in enumerate(value) for bad in unknown(item, found[1], f"{path}[{i}]")]
    if found := re.fullmatch(r"Dict\[str, (.+)\]", kind):
        return [bad for key, item in value.items() for bad in unknown(item, found[1], f"{path}.{key}")]
    model = getattr(client, kind, None)
    if model is None:
        plain = {"str": str, "int": int, "bool": bool, "float": int | float, "object": object, "IntOrString": object}
        return [] if isinstance(value, plain[kind]) else [f"{path} is no {kind}"]
    fields = {json_name: model.openapi_types[name] for name, json_name in model.attribute_map.items()}
    bad = [f"{path}.{key}" for key in value if key not in fields]
    return bad + [b for key in value if key in fields for b in unknown(value[key], fields[key], f"{path}.{key}")]


def spec_of(objects: dict[str, Any]) -> dict[str, Any]:
    """The cluster's, in either variant."""
    found = next(o for o in objects.values() if o["apiVersion"] == "ray.io/v1")
    return found["spec"].get("rayClusterSpec", found["spec"])


def test_every_field_is_one_of_kuberays_or_kubernetes_own(job: dict[str, Any], cluster: dict[str, Any]) -> None:
    """The job and the cluster against KubeRay's fields; pods, account and settings against Kubernetes'."""
    for objects in (job, cluster):
        for o in objects.values():
            if o["apiVersion"] == "ray.io/v1":
                jsonschema.validate(o, SCHEMA)
            else:
                assert unknown(o, f"V1{o['kind']}", o["kind"]) == []
        spec = spec_of(objects)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            assert unknown(group["template"], "V1PodTemplateSpec", "template") == []
        assert unknown(spec["autoscalerOptions"]["resources"], "V1ResourceRequirements", "resources") == []


def test_a_misspelt_field_is_found(job: dict[str, Any]) -> None:
    """The checks above can fail."""
    broken = json.loads(json.dumps(job["RayJob/grid"]))
    broken["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplica"] = 8
    with pytest.raises(jsonschema.ValidationError, match="maxReplica"):
        jsonschema.validate(broken, SCHEMA)
    template = spec_of(job)["headGroupSpec"]["template"] | {"spec": {"serviceAccount_name": "x", "containers": []}}
    assert unknown(template, "V1PodTemplateSpec", "template") == ["template.spec.serviceAccount_name"]


def test_image_bucket_and_node_type_come_from_one_place(job: dict[str, Any], cluster: dict[str, Any]) -> None:
    """What settings/kustomization.yaml says stands in both variants, and no placeholder is left."""
    settings = yaml.safe_load((FOLDER / "settings" / "kustomization.yaml").read_text())
    image = f"{settings['images'][0]['newName']}:{settings['images'][0]['newTag']}"
    values = dict(literal.split("=", 1) for literal in settings["configMapGenerator"][0]["literals"])
    for objects in (job, cluster):
        text = yaml.safe_dump_all(objects.values())
        assert "NODE-TYPE" not in text
        assert "RUNS" not in text
        spec = spec_of(objects)
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        assert {c["image"] for g in groups for c in g["template"]["spec"]["containers"]} == {image}
        worker = spec["workerGroupSpecs"][0]
        assert worker["labels"]["node-type"] == values["node-type"]
        assert worker["template"]["spec"]["nodeSelector"] == {"node.kubernetes.io/instance-type": values["node-type"]}
    assert job["RayJob/grid"]["spec"]["entrypoint"].endswith(f"--output {values['runs']}")
    assert settings["images"][0]["newTag"] == __version__


def test_workers_are_gpus_that_come_and_go(job: dict[str, Any], cluster: dict[str, Any]) -> None:
    """From none to eight; Ray is told of as much as the pod may use; the head runs no trial and says what may come."""
    for objects in (job, cluster):
        spec = spec_of(objects)
        (worker,) = spec["workerGroupSpecs"]
        limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert spec["enableInTreeAutoscaling"]
        assert worker["minReplicas"] == 0
        assert worker["rayStartParams"] == {"num-cpus": limits["cpu"], "num-gpus": limits["nvidia.com/gpu"]}
        assert spec["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}
        assert spec["headGroupSpec"]["labels"] == {
            "worker-nodes": str(worker["maxReplicas"]),
            "worker-cpus": limits["cpu"],
            "worker-gpus": limits["nvidia.com/gpu"],
            "worker-gpu-mb": "15000",  # of a T4, which the node type of `values` has
        }
        assert spec["rayVersion"] == version("ray")
        assert spec["authOptions"] == {"mode": "token"}
        for group in (spec["headGroupSpec"], worker):
            pod = group["template"]["spec"]
            assert pod["serviceAccountName"] == "batch-orchestrator"
            assert pod["securityContext"]["runAsNonRoot"]
            for container in pod["containers"]:
                assert set(container["resources"]) == {"requests", "limits"}
                assert all("value" in e and "SECRET" not in e["name"] for e in container["env"])
                assert container["envFrom"] == [{"secretRef": {"name": "bucket-keys", "optional": True}}]


def test_both_variants_are_the_same_cluster(job: dict[str, Any], cluster: dict[str, Any]) -> None:
    """But for the spec, which only the job mounts."""
    ours = json.loads(json.dumps(spec_of(job)))
    pod = ours["headGroupSpec"]["template"]["spec"]
    pod["volumes"] = [v for v in pod["volumes"] if v["name"] != "spec"]
    mounts = pod["containers"][0]["volumeMounts"]
    pod["containers"][0]["volumeMounts"] = [mount for mount in mounts if mount["name"] != "spec"]
    assert ours == spec_of(cluster)


def test_the_job_runs_the_spec_and_goes(job: dict[str, Any]) -> None:
    """The spec is a good one, is mounted where the command reads it, and the cluster ends with the job."""
    spec = job["RayJob/grid"]["spec"]
    load_spec(job["ConfigMap/spec"]["data"]["spec.yaml"])
    mounts = spec_of(job)["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert spec["entrypoint"].split()[3] == f"{next(m['mountPath'] for m in mounts if m['name'] == 'spec')}/spec.yaml"
    assert (spec["shutdownAfterJobFinishes"], spec["backoffLimit"]) == (True, 0)
    assert 0 < spec["ttlSecondsAfterFinished"] <= 3600
