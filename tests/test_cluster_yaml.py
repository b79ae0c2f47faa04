"""cluster.yaml and deploy/cluster.local.yaml against Ray's own schema, offline, and against what the guides promise."""

import copy
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
FILES = {"aws": "cluster.yaml", "local": "deploy/cluster.local.yaml"}


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / FILES[name]).read_text())


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` makes of it; refused by Ray's schema if it is wrong."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    found = prepare_config(copy.deepcopy(config))
    validate_config(found)
    return found


@pytest.fixture(params=FILES)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read(request.param)


@pytest.fixture
def aws() -> dict[str, Any]:
    return read("aws")


def test_ray_accepts_it(config: dict[str, Any]) -> None:
    assert prepared(config)["cluster_name"] == "g3pt"


def test_ray_refuses_a_broken_one(config: dict[str, Any]) -> None:
    from jsonschema import ValidationError

    with pytest.raises(ValidationError):
        prepared({**config, "idle_timeout_minutes": "many"})


def test_node_types(aws: dict[str, Any]) -> None:
    types = aws["available_node_types"]
    assert "GPU" not in types[aws["head_node_type"]]["resources"]
    workers = [spec["resources"] for name, spec in types.items() if name != aws["head_node_type"]]
    assert sorted("GPU" in resources for resources in workers) == [False, True]
    assert sum(spec.get("max_workers", 0) for spec in types.values()) == aws["max_workers"]


def test_the_own_machines_all_belong_to_the_cluster() -> None:
    found = prepared(read("local"))
    (kind,) = found["available_node_types"].values()
    assert kind["min_workers"] == kind["max_workers"] == len(found["provider"]["worker_ips"])


def test_installs_the_exact_versions(config: dict[str, Any]) -> None:
    assert any("constraints.txt" in command for command in config["setup_commands"])


def test_nodes_install_from_a_copy_of_their_own(config: dict[str, Any]) -> None:
    """pip writes into the folder it installs from, and the shared one is every node's."""
    installs = [command for command in config["setup_commands"] if "pip install" in command]
    assert installs and not any("/mnt/" in command or "/shared/" in command for command in installs)
    copies = [command for command in config["setup_commands"] if "cp -r" in command and "~/g3pt-code" in command]
    names = copies[0].split("cp -r ")[1].split()[:-1]
    assert all((REPOSITORY / name).exists() for name in names)


def test_its_commands_are_shell(config: dict[str, Any]) -> None:
    kinds = ("setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    for command in [command for kind in kinds for command in config[kind]]:
        done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True, timeout=20)
        assert done.returncode == 0 and not done.stderr, command


def test_no_gpu_node_runs_without_work(aws: dict[str, Any]) -> None:
    """And none is started for CPU work: it offers few CPUs. `--device auto` counts it all the same."""
    from pipelines.cluster import waiting

    types = {name: spec for name, spec in aws["available_node_types"].items() if name != aws["head_node_type"]}
    assert all(spec["min_workers"] == 0 for spec in types.values())
    gpu = types["gpu"]["resources"]
    assert gpu["CPU"] == 2 * gpu["GPU"] < types["cpu"]["resources"]["CPU"]
    found = waiting.limits((REPOSITORY / FILES["aws"]).read_text(), set(types))
    assert found and max(kind.resources.get("GPU", 0) for kind in found) == gpu["GPU"]


def test_every_node_has_a_disk_and_a_role(aws: dict[str, Any]) -> None:
    """Without them: 8 GiB, which torch and Ray fill, and no bucket."""
    for name, spec in prepared(aws)["available_node_types"].items():
        node = spec["node_config"]
        assert node["BlockDeviceMappings"][0]["Ebs"]["VolumeSize"] >= 200, name
        assert node["IamInstanceProfile"]["Arn"].startswith("arn:aws:iam::"), name
    images = {name: spec["node_config"]["ImageId"] for name, spec in aws["available_node_types"].items()}
    assert images["gpu"] != images["head"], "only one has a driver"


def test_token_on_every_start(config: dict[str, Any]) -> None:
    assert config["file_mounts"]["~/.ray/auth_token"]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        starts = [command for command in commands if "ray start" in command]
        assert starts
        assert all("RAY_AUTH_MODE=token" in command for command in starts)


def test_nothing_listens_to_the_world(config: dict[str, Any]) -> None:
    text = " ".join(config["head_start_ray_commands"])
    assert "mlflow server --host 127.0.0.1" in text
    assert "--dashboard-host=127.0.0.1" in text
    assert "0.0.0.0" not in str(config)
    assert config["provider"].get("use_internal_ips", True) is True


@pytest.mark.parametrize(("name", "folder"), [("aws", "/mnt/g3pt"), ("local", "/shared")])
def test_the_shared_folder_holds_what_outlives_the_cluster(name: str, folder: str) -> None:
    config = read(name)
    assert any(f"mountpoint -q {folder}" in command for command in config["setup_commands"])
    server = next(command for command in config["head_start_ray_commands"] if "mlflow server" in command)
    assert f"sqlite:///{folder}/" in server and f"--artifacts-destination {folder}/" in server
