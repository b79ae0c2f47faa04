"""Runs lines from stdin, each in a fork of this process, which has imported everything.

A line is JSON: {"program": "jobs/x.py" or "-m package.module", "args": [...], "output": FILE} or {"code": ...,
"output": FILE}; it is run like `python PROGRAM ARGS` or `python -c CODE`, with stdout and stderr in FILE. The answer is
its exit code. Importing torch, Ray and MLflow would take longer than most of the lines.
"""

import json
import os
import runpy
import sys
import traceback
from typing import Any

sys.path.insert(0, os.getcwd())

import mlflow  # noqa: E402, F401
import ray.data  # noqa: E402, F401
import ray.train  # noqa: E402, F401
import torch  # noqa: E402
import torch._dynamo  # noqa: E402  # with an optimiser
import trimesh  # noqa: E402, F401
from transformers import CLIPTextConfig, CLIPTextModel  # noqa: E402, F401  # by name: `transformers` imports nothing itself


def run(line: dict[str, Any]) -> int:
    """Run one line in this process and return its exit code."""
    try:
        if "code" in line:
            exec(compile(line["code"], "<page>", "exec"), {"__name__": "__main__"})
            return 0
        program = line["program"].removeprefix("-m ")
        sys.argv = [program, *line["args"]]
        if line["program"].startswith("-m "):
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(program, run_name="__main__")
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def in_a_copy(line: dict[str, Any]) -> int:
    """Run one line in a fork of this process and return its exit code."""
    child = os.fork()
    if child == 0:
        file = os.open(line["output"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = run(line)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    for text in sys.stdin:
        print(in_a_copy(json.loads(text)), flush=True)
