"""Ray Train's torch backend, which also catches SIGTERM in each worker's main thread: training itself runs in another
thread.

Imports Ray at the top: `pipelines.train.run` imports this module where it starts Ray Train.
"""

from typing import Any

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from pipelines.cluster.stopping import catch_sigterm


class Backend(_TorchBackend):
    """Torch's own backend with one more call on start; `execute` runs in a worker's main thread."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        super().on_start(worker_group, backend_config)
        worker_group.execute(catch_sigterm)


class Config(TorchConfig):
    """Selects `Backend`."""

    @property
    def backend_cls(self) -> type[Backend]:
        return Backend
