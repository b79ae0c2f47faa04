"""cluster.yaml against Ray's own schema, offline, and against what docs/guide/cluster.md promises of it."""

from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def config() -> dict:
    return yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())


def test_ray_accepts_it(config: dict) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(config))


def test_ray_refuses_a_broken_one(config: dict) -> None:
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError):
        validate_config(prepare_config({**config, "max_workers": "many"}))


def test_node_types(config: dict) -> None:
    types = config["available_node_types"]
    assert "GPU" not in types[config["head_node_type"]]["resources"]
    workers = [spec["resources"] for name, spec in types.items() if name != config["head_node_type"]]
    assert sorted("GPU" in resources for resources in workers) == [False, True]
    assert sum(spec.get("max_workers", 0) for spec in types.values()) <= config["max_workers"]


def test_installs_the_exact_versions(config: dict) -> None:
    assert any("constraints.txt" in command for command in config["setup_commands"])


def test_nodes_install_from_a_copy_of_their_own(config: dict) -> None:
    """pip writes into the folder it installs from, and the shared one is every node's."""
    installs = [command for command in config["setup_commands"] if "pip install" in command]
    assert installs and not any("/mnt/" in command for command in installs)
    assert any("cp -r" in command and "~/g3pt-code" in command for command in config["setup_commands"])


def test_a_gpu_is_there_for_device_auto(config: dict) -> None:
    assert all(
        spec["min_workers"] >= 1 for spec in config["available_node_types"].values() if "GPU" in spec["resources"]
    )


def test_token_on_every_start(config: dict) -> None:
    assert config["file_mounts"]["~/.ray/auth_token"]
    for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
        starts = [command for command in commands if "ray start" in command]
        assert starts
        assert all("RAY_AUTH_MODE=token" in command for command in starts)


def test_nothing_listens_to_the_world(config: dict) -> None:
    text = " ".join(config["head_start_ray_commands"])
    assert "mlflow server --host 127.0.0.1" in text
    assert "--dashboard-host=127.0.0.1" in text
    assert "0.0.0.0" not in str(config)
    assert config["provider"]["use_internal_ips"] is True


def test_one_path_for_shared_storage(config: dict) -> None:
    assert any("mount -t nfs4" in command and "/mnt/g3pt" in command for command in config["setup_commands"])
