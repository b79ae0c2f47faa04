"""The cost of Ray in preprocessing: the same meshes converted by a bare loop and by the job with one and two workers.

    python benchmarks/preprocess_ray.py --meshes FOLDER --output preprocess_ray.json
        (or G3PT_MESHES=FOLDER; without: made meshes)

There are five ways, each in its own process; every second round runs them in reverse order. `loop` calls the pipeline's
plain functions in one process. `child` adds the killable child process (`pipelines.preprocess.sandbox`). `ray-1` and
`ray-2` are jobs/preprocess.py with one and two workers. `loops-2` is two bare loops that share the shards: the most
that the machine allows. All ways must write shards with the same hashes.

Start-up (phases `plan`, `ray`, `workers`: imports, planning, Ray, compiled kernels) ends when every worker has
converted one small object. `end` (dataset.json, card, MLflow) begins when the last shard is written. `convert` is the
time between. CPU seconds are those of all processes of a way; `servers` are those of Ray's own processes, which grow
with wall time. All other CPU seconds are valid on a shared machine too. Wall seconds are not: `others` is the share of
all cores that other programs used. `at work` is the share of the workers' wall seconds spent on objects; the rest is
Ray, writing shards, and waiting for the last one.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks import machine, preprocess_meshes  # noqa: E402

WORKERS = {"loop": 1, "child": 1, "ray-1": 1, "ray-2": 2, "loops-2": 2}
PACKAGES = ("numpy", "numba", "pyarrow", "ray")
MAX_WARM_UPS = 10  # of workers that Ray does not start at once


# --------------------------------------------------------------------------------------------------------- in the child


class Clock:
    """Between marks: wall seconds, and CPU seconds of this process and its descendants and of the whole machine."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}
        self._last = self._now()

    def mark(self, phase: str) -> None:
        """End the phase that began at the previous mark."""
        now = self._now()
        wall, cpu, ray, whole = (new - old for new, old in zip(now, self._last, strict=True))
        self.phases[phase] = {
            "wall_s": wall,
            "cpu_s": cpu,
            "ray_s": ray,
            "others": max(0.0, whole - cpu) / (wall * os.cpu_count()),
        }
        self._last = now

    @staticmethod
    def _now() -> tuple[float, float, float, float]:
        family = machine.family(os.getpid())
        servers = sum(seconds for pid, seconds in family.items() if b"/site-packages/ray/" in machine.command_line(pid))
        return time.monotonic(), sum(family.values()), servers, machine.busy_seconds()


class InThisProcess:
    """Replaces the sandbox: calls the function in this process."""

    def call(self, function: str, arguments: dict[str, Any]) -> Any:
        from pipelines.preprocess.sandbox import Result, describe, resolve

        started = time.monotonic()
        try:
            table = resolve(function)(**arguments)
        except Exception as error:  # as in the child, a failed object is one row
            status, text = describe(error)
            return Result(status=status, error=text, seconds=time.monotonic() - started)
        return Result(status="ok", table=table, seconds=time.monotonic() - started)


def run_case(way: str, config: Any) -> dict[str, Any]:
    """Run one way: its phases, the hash of each shard, and the seconds of each object."""
    from pipelines.preprocess import shards as stage

    clock = Clock()
    if way.startswith("ray"):
        return _job(clock, config)
    tasks = list(_plan(config))
    clock.mark("plan")
    if way == "loops-2":
        return _side_by_side(clock, tasks, config)
    if way == "loop":
        stage._sandbox = lambda _: InThisProcess()
    _convert_one(config, 0)
    clock.mark("workers")
    sidecars = [finished["sidecar"] for finished in stage.map_here(tasks, config)]
    clock.mark("convert")
    return _found(clock, sidecars)


def _plan(config: Any) -> Sequence[Any]:
    from pipelines.preprocess.plan import make_plan
    from pipelines.preprocess.sources import Listing

    return make_plan(config, Listing(config)).tasks


def _found(clock: Clock, sidecars: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [value for sidecar in sidecars for value in sidecar["seconds"].values()]
    return {
        "phases": clock.phases,
        "shards": sorted(sidecar["sha256"] for sidecar in sidecars),
        "objects": len(seconds),
        "object_seconds": sum(seconds),
    }


def _small_task(config: Any, index: int) -> tuple[Any, Any]:
    """A shard of one procedural shape, which makes a worker import and compile, and its configuration."""
    from pipelines.preprocess.plan import ShardTask
    from pipelines.preprocess.sources import SourceObject

    item = SourceObject(id=f"box-{index:06d}", source="shapes", content_sha256="0")
    return ShardTask(index=index, num_shards=100, objects=[item], reason="new"), dataclasses.replace(
        config, source="shapes", output=f"{config.output}-warm"
    )


def _convert_one(config: Any, index: int) -> None:
    from pipelines.preprocess.shards import process_shard, warm_up

    warm_up()
    process_shard(*_small_task(config, index))


def _job(clock: Clock, config: Any) -> dict[str, Any]:
    """The work of jobs/preprocess.py, with marks when Ray has started, workers are ready,
    and the last shard is written.
    """
    from pipelines.cluster import session
    from pipelines.preprocess.job import preprocess
    from pipelines.preprocess.shards import map_on_ray

    sidecars = []

    def run_shards(tasks: Sequence[Any], config: Any) -> Iterator[dict[str, Any]]:
        clock.mark("plan")
        session.connect("local")
        clock.mark("ray")
        _make_workers_ready(config)
        clock.mark("workers")
        for finished in map_on_ray(tasks, config):
            sidecars.append(finished["sidecar"])
            yield finished
        clock.mark("convert")

    preprocess(config, run_shards)
    clock.mark("end")
    found = _found(clock, sidecars) | {"sandbox_children": len(_sandbox_children())}
    session.disconnect()
    return found


def _make_workers_ready(config: Any) -> None:
    """Convert small shards until every worker of the job has a sandbox child."""
    from pipelines.preprocess.shards import map_on_ray

    for _ in range(MAX_WARM_UPS):
        small = [_small_task(config, index) for index in range(config.num_workers)]
        list(map_on_ray([task for task, _ in small], small[0][1]))
        if len(_sandbox_children()) >= config.num_workers:
            return
    raise RuntimeError(f"Ray did not start {config.num_workers} workers")


def _sandbox_children() -> list[int]:
    return [
        pid
        for pid in machine.family(os.getpid())
        if b"pipelines.preprocess.sandbox" in machine.command_line(pid).split(b"\0")
    ]


def _side_by_side(clock: Clock, tasks: list[Any], config: Any) -> dict[str, Any]:
    """Two processes with the bare loop; each takes the next shard from a shared counter."""
    context = multiprocessing.get_context("spawn")
    taken, ready, done = context.Value("i", 0), context.Barrier(3), context.Queue()
    loops = [
        context.Process(target=_bare_loop, args=(number, tasks, config, taken, ready, done)) for number in range(2)
    ]
    for process in loops:
        process.start()
    ready.wait()
    clock.mark("workers")
    sidecars = [done.get() for _ in tasks]
    clock.mark("convert")
    for process in loops:
        process.join()
    return _found(clock, sidecars)


def _bare_loop(number: int, tasks: list[Any], config: Any, taken: Any, ready: Any, done: Any) -> None:
    from pipelines.preprocess import shards as stage

    stage._sandbox = lambda _: InThisProcess()
    _convert_one(config, number)
    ready.wait()
    while True:
        with taken.get_lock():
            at, taken.value = taken.value, taken.value + 1
        if at >= len(tasks):
            return
        done.put(stage.process_shard(tasks[at], config)["sidecar"])


# -------------------------------------------------------------------------------------------------------- in the parent


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Run every way --repeat times, in alternating order."""
    folder = Path(flags.meshes).resolve() if flags.meshes else preprocess_meshes.made()
    report: dict[str, Any] = {
        "meshes": str(flags.meshes or "made"),
        "resolution": flags.resolution,
        "machine": machine.about(*PACKAGES),
        "runs": [],
    }
    for turn in range(flags.repeat):
        for way in list(WORKERS)[:: 1 if turn % 2 == 0 else -1]:
            with tempfile.TemporaryDirectory(prefix="g3pt-ray-") as scratch:
                case = {
                    "input": str(folder),
                    "output": f"{scratch}/data",
                    "limit": flags.count,
                    "resolution": flags.resolution,
                    "num_workers": WORKERS[way],
                }
                row = {"way": way, "turn": turn, "load_average": os.getloadavg(), **child(way, case, scratch)}
            report["runs"].append(row)
            print(f"  {way} {turn}: {row['phases']}", file=sys.stderr, flush=True)
    report["machine"]["load_average_after"] = os.getloadavg()
    return report


def child(way: str, case: dict[str, Any], folder: str) -> dict[str, Any]:
    """The figures of a case that ran in its own process."""
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, __file__, "--case", way, json.dumps(case)],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | one_thread,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode != 0:
        raise RuntimeError(f"{way}: exit {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1]) | {"process_s": time.monotonic() - started}


def markdown(report: dict[str, Any]) -> str:
    """Markdown table of each way's cheapest convert phase, and the ratios between them."""
    about, runs = report["machine"], report["runs"]
    best = {
        way: min((run for run in runs if run["way"] == way), key=lambda run: run["phases"]["convert"]["wall_s"])
        for way in WORKERS
    }
    head = (
        f"{about['cpu']}, {about['cores']} cores, commit {about['commit']}, {best['loop']['objects']} objects of "
        f"{report['meshes']} at {report['resolution']} cells"
    )
    load = f"load {about['load_average'][0]:.1f} to {about['load_average_after'][0]:.1f}"
    lines = [
        "| way | start-up: s | CPU s | convert: s | CPU s | CPU ms an object | CPU above loop | servers | at work | "
        "others | end: s | CPU s |",
        "| --- |" + " --- |" * 11,
    ]
    lines += [_line(way, best[way], _cpu(runs, "loop") / best["loop"]["objects"], _cpu(runs, way)) for way in WORKERS]
    same = "the same shards by every way" if len({tuple(run["shards"]) for run in runs}) == 1 else "SHARDS DIFFER"
    return "\n\n".join([f"{head}, {load}", "\n".join(lines), *_ratios(best), same])


def _cpu(runs: list[dict[str, Any]], way: str) -> float:
    return min(run["phases"]["convert"]["cpu_s"] for run in runs if run["way"] == way)


def _line(way: str, run: dict[str, Any], loop_cpu_s: float, cpu_s: float) -> str:
    convert, end = run["phases"]["convert"], run["phases"].get("end")
    before = [phase for name, phase in run["phases"].items() if name in ("plan", "ray", "workers")]
    each = cpu_s / run["objects"]
    cells = [
        way,
        *(f"{sum(phase[unit] for phase in before):.1f}" for unit in ("wall_s", "cpu_s")),
        f"{convert['wall_s']:.1f}",
        f"{cpu_s:.1f}",
    ]
    servers = convert["ray_s"] / (loop_cpu_s * run["objects"])
    cells += [f"{1000 * each:.0f}", *(f"{100 * share:+.1f} %" for share in (each / loop_cpu_s - 1, servers))]
    cells += [f"{100 * share:.0f} %" for share in (_at_work(way, run), convert["others"])]
    return "| " + " | ".join([*cells, *(f"{end[unit]:.1f}" if end else "" for unit in ("wall_s", "cpu_s"))]) + " |"


def _at_work(way: str, run: dict[str, Any]) -> float:
    return run["object_seconds"] / (WORKERS[way] * run["phases"]["convert"]["wall_s"])


def _ratios(best: dict[str, dict[str, Any]]) -> list[str]:
    wall: Callable[[str], float] = lambda way: best[way]["phases"]["convert"]["wall_s"]  # noqa: E731
    shares = 2 * _at_work("ray-2", best["ray-2"]) / _at_work("ray-1", best["ray-1"])
    return [
        f"wall seconds of converting: ray-1 {100 * (wall('ray-1') / wall('loop') - 1):+.1f} % above loop",
        f"two workers convert {wall('ray-1') / wall('ray-2'):.2f} times as fast as one ({shares:.2f} by their shares "
        f"at work); two bare loops {wall('loop') / wall('loops-2'):.2f} times as fast as one",
    ]


def main() -> None:
    """Measure all ways; print a Markdown table and write JSON."""
    if sys.argv[1:2] == ["--case"]:
        from pipelines.preprocess.config import PreprocessConfig

        config = PreprocessConfig(source="dir", **json.loads(sys.argv[3]))
        print(json.dumps(run_case(sys.argv[2], config)))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--meshes", type=Path, default=os.environ.get("G3PT_MESHES"), help="folder of meshes; default made ones"
    )
    parser.add_argument("--count", type=int, default=200, help="meshes, those with the smallest sha256(id)")
    parser.add_argument("--resolution", type=int, default=128, help="grid cells along the box")
    parser.add_argument(
        "--repeat", type=int, default=1, help="runs of each way, of which the one that converts fastest counts"
    )
    parser.add_argument("--output", type=Path, default=Path("preprocess_ray.json"))
    flags = parser.parse_args()
    report = measure(flags)
    print(markdown(report))
    flags.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"result: {flags.output}")


if __name__ == "__main__":
    main()
