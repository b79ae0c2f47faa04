"""`jobs/serve.py`: load the model, then answer HTTP requests until it is stopped."""

from __future__ import annotations

import contextlib
import socket
import sys
from typing import Any

from g3pt.training.exports import check_weights, read_export_config
from pipelines.cli.errors import UsageError, bad_input
from pipelines.serve.config import ServeConfig, is_loopback


def serve(config: ServeConfig) -> None:
    """Serve until Ctrl-C or SIGTERM."""
    try:
        import uvicorn

        from pipelines.serve.app import Service, application
    except ModuleNotFoundError as error:
        raise UsageError(f"the page needs {error.name}: pip install 'g3pt[page]'") from error
    from pipelines.serve.about import about

    with bad_input():
        if read_export_config(config.model)["kind"] != "car":
            raise ValueError(f"{config.model}: not a generator (car)")
        check_weights(config.model)
    listening = bound(config.host, config.port)
    model = loaded(config)
    facts = about(config.model, model) | {"max_upload_mb": config.max_upload_mb}
    service = Service(model, facts, config.max_waiting)
    app = application(service, config.max_upload_mb << 20, is_loopback(config.host))
    host, port = listening.getsockname()[:2]
    if not is_loopback(config.host):
        print(f"serve: {config.host} is open to the network, without a login", file=sys.stderr)
    shown = f"[{host}]" if ":" in host else host
    print(f"serve: http://{shown}:{port}/ (Ctrl-C stops it)", file=sys.stderr, flush=True)
    settings = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, lifespan="on")
    uvicorn.Server(settings).run(sockets=[listening])


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there. UsageError if the address is taken or foreign."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        raise UsageError(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
    return listening


def loaded(config: ServeConfig) -> Any:
    """The model on its device, after one sample, so that the first request waits for no compilation."""
    import torch

    from g3pt.models.car import G3PT

    has_gpu = torch.cuda.is_available()
    if config.device == "gpu" and not has_gpu:
        raise UsageError("--device gpu: torch finds no GPU")
    torch.set_num_threads(1)
    model = G3PT.from_pretrained(config.model).to("cuda" if has_gpu and config.device != "cpu" else "cpu").eval()
    codes_BS = model.sample_codes(["a chair"], [None], [0])
    with contextlib.suppress(ValueError):  # no surface: the kernels are compiled all the same
        model.decode_mesh(codes_BS[0], 32)
    return model
