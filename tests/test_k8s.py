"""deploy/k8s as kubectl renders it: Kubernetes' own schemas, Ray's own reader of a RayCluster, our parser of commands.

KubeRay's definitions of RayCluster and RayJob are not checked here: `kubectl apply --dry-run=server` does, see
docs/guide/kubernetes.md. The pods in them are, and so is every field that Ray's autoscaler reads.
"""

import copy
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from tests import job_lines

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDER = REPOSITORY / "deploy" / "k8s"
JOBS = ("preprocess", "train", "sweep", "generate")
KUBERNETES = "1.32"
SWITCH = "components: [../storage/pvc]"

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl renders these files")


def rendered(folder: Path) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=True)
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module", params=["pvc", "bucket"])
def objects(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict]]:
    """Every folder that is applied, rendered with the storage of the parameter; only the switch differs."""
    copied = shutil.copytree(FOLDER, tmp_path_factory.mktemp(request.param) / "k8s")
    settings = copied / "settings" / "kustomization.yaml"
    assert SWITCH in settings.read_text()
    settings.write_text(settings.read_text().replace(SWITCH, f"components: [../storage/{request.param}]"))
    return {name: rendered(copied / name) for name in ("cluster", "mlflow", *(f"jobs/{job}" for job in JOBS))}


def of_kind(objects: dict[str, list[dict]], kind: str) -> list[dict]:
    return [one for several in objects.values() for one in several if one["kind"] == kind]


def clusters(objects: dict[str, list[dict]]) -> list[dict]:
    """The specification of each Ray cluster: the one that stays and one per job."""
    specs = [one["spec"] for one in of_kind(objects, "RayCluster")]
    return specs + [one["spec"]["rayClusterSpec"] for one in of_kind(objects, "RayJob")]


def templates(spec: dict) -> Iterator[dict]:
    yield spec["headGroupSpec"]["template"]
    yield from (group["template"] for group in spec["workerGroupSpecs"])


def check(one: dict[str, Any]) -> None:
    """Refuses what Kubernetes does not know; unknown fields too."""
    kubernetes_validate.validate(one, KUBERNETES, strict=True)


def check_pods(template: dict[str, Any]) -> None:
    check({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": template})


def test_kubernetes_knows_every_object_and_pod(objects: dict[str, list[dict]]) -> None:
    native = [one for several in objects.values() for one in several if not one["apiVersion"].startswith("ray.io/")]
    assert {one["kind"] for one in native} == {"Service", "Deployment", "StatefulSet"}
    for one in [*native, yaml.safe_load((FOLDER / "storage/pvc/claim.yaml").read_text())]:
        check(one)
    pods = [template for spec in clusters(objects) for template in templates(spec)]
    assert len(pods) == 3 * (1 + len(JOBS))
    for template in pods:
        check_pods(template)


def test_a_misspelt_field_is_found(objects: dict[str, list[dict]]) -> None:
    template = copy.deepcopy(next(templates(clusters(objects)[0])))
    template["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(kubernetes_validate.ValidationError):
        check_pods(template)


def test_ray_s_autoscaler_reads_the_cluster(objects: dict[str, list[dict]]) -> None:
    for spec in clusters(objects):
        found = _derive_autoscaling_config_from_ray_cr(
            {"metadata": {"name": "g3pt", "namespace": "g3pt"}, "spec": spec}
        )
        types = found["available_node_types"]
        assert types["headgroup"]["resources"]["CPU"] == 0
        assert "GPU" not in types["cpu"]["resources"] and types["gpu"]["resources"]["GPU"] == 8
        assert all(types[name]["min_workers"] == 0 < types[name]["max_workers"] for name in ("cpu", "gpu"))
        assert found["idle_timeout_minutes"] == 10
        assert spec["enableInTreeAutoscaling"] is True and spec["authOptions"] == {"mode": "token"}
        assert spec["rayVersion"] == pinned("ray")


def pinned(package: str) -> str:
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    return next(line.split("==")[1] for line in lines if line.startswith(f"{package}=="))


def test_gpu_nodes_are_selected_and_tolerated(objects: dict[str, list[dict]]) -> None:
    for spec in clusters(objects):
        gpu = next(group for group in spec["workerGroupSpecs"] if group["groupName"] == "gpu")["template"]["spec"]
        assert gpu["nodeSelector"] and {one["key"] for one in gpu["tolerations"]} == {"nvidia.com/gpu"}
        limits = gpu["containers"][0]["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == gpu["containers"][0]["resources"]["requests"]["nvidia.com/gpu"]


def test_a_job_s_cluster_is_the_one_that_stays_and_ends_with_it(objects: dict[str, list[dict]]) -> None:
    assert [one["metadata"]["name"] for one in of_kind(objects, "RayJob")] == list(JOBS)
    assert len(of_kind(objects, "RayCluster")) == 1
    first, *others = clusters(objects)
    assert all(other == first for other in others)
    for job in of_kind(objects, "RayJob"):
        assert job["spec"]["shutdownAfterJobFinishes"] is True and job["spec"]["submissionMode"] == "K8sJobMode"


def test_its_commands_are_understood(objects: dict[str, list[dict]]) -> None:
    """Datasets are in the chosen storage, everything else is on the volume."""
    jobs = {one["metadata"]["name"]: job_lines.parsed(one["spec"]["entrypoint"]) for one in of_kind(objects, "RayJob")}
    assert {name: job for name, (job, _) in jobs.items()} == {
        "preprocess": "preprocess.py",
        "train": "train_cvq.py",
        "sweep": "scaling_sweep.py",
        "generate": "generate.py",
    }
    in_bucket = any("envFrom" in template["spec"]["containers"][0] for template in templates(clusters(objects)[0]))
    dataset = "s3://BUCKET/objaverse" if in_bucket else "/shared/objaverse"
    assert jobs["preprocess"][1].output == jobs["train"][1].data == jobs["sweep"][1].data == dataset
    assert all(jobs[name][1].output.startswith("/shared/") for name in ("train", "sweep", "generate"))
    for name in ("train", "sweep"):
        assert jobs[name][1].device == "gpu", "without GPU nodes yet, auto would train on CPUs"


def test_its_study_can_be_planned(capsys: pytest.CaptureFixture[str]) -> None:
    """Two of its sizes, to save time: flags that do not go together are refused all the same."""
    line = yaml.safe_load((FOLDER / "jobs/sweep/rayjob.yaml").read_text())["spec"]["entrypoint"]
    sizes = "--sizes nano,1.5M,micro,10M,small,base"
    assert sizes in line
    job_lines.rehearsed(line.replace(sizes, "--sizes nano,micro"))
    assert "6 runs" in capsys.readouterr().out


def test_every_pod_has_the_volume_and_no_root(objects: dict[str, list[dict]]) -> None:
    pods = [template["spec"] for spec in clusters(objects) for template in templates(spec)]
    pods += [one["spec"]["template"]["spec"] for one in of_kind(objects, "Deployment")]
    for pod in pods:
        assert [one for one in pod["volumes"] if one.get("persistentVolumeClaim") == {"claimName": "g3pt"}]
        assert {"name": "shared", "mountPath": "/shared"} in pod["containers"][0]["volumeMounts"]
    for pod in [*pods, *(one["spec"]["template"]["spec"] for one in of_kind(objects, "StatefulSet"))]:
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_secrets_are_named_and_not_written(objects: dict[str, list[dict]]) -> None:
    assert of_kind(objects, "Secret") == []
    for spec in clusters(objects):
        variables = {one["name"]: one for one in next(templates(spec))["spec"]["containers"][0]["env"]}
        assert variables["MLFLOW_TRACKING_PASSWORD"]["valueFrom"]["secretKeyRef"] == {
            "name": "mlflow",
            "key": "password",
        }


def test_mlflow_s_pods_reach_it_under_an_allowed_name(objects: dict[str, list[dict]]) -> None:
    """MLflow refuses requests whose Host it does not expect."""
    server = of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0]
    allowed = server["args"][0].split("--allowed-hosts ")[1].split()[0].split(",")
    variables = {
        one["name"]: one.get("value") for one in next(templates(clusters(objects)[0]))["spec"]["containers"][0]["env"]
    }
    assert variables["MLFLOW_TRACKING_URI"].removeprefix("http://") in allowed
    service = next(one for one in of_kind(objects, "Service") if one["metadata"]["name"] == "mlflow")
    assert variables["MLFLOW_TRACKING_URI"] == f"http://mlflow:{service['spec']['ports'][0]['port']}"
