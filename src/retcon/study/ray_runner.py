"""Run cells on a Ray cluster: a worker per place, each with its model loaded once.

Workers write the same folder, so it must be on a disk that all nodes share. A cell whose worker
died goes on from its last finished batch, on whichever worker takes it up.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from retcon.errors import InvalidSetting, RetconError
from retcon.registry import PLUGINS, loaded_plugins
from retcon.study.worker import CellTask, Ended, Worker

# Deaths of a worker, or of the node under it, after which a cell is given up.
_RETRIES = 3


def run_on_ray(
    tasks: Sequence[CellTask], *, threads: int, device: str, workers: int, deadline: float | None
) -> Iterator[Ended]:
    """Run the tasks on as many workers (0: as the cluster has room for), in the order they end.

    Joins the cluster at `RAY_ADDRESS`, or starts one on this machine.

    Raises:
        InvalidSetting: Ray is not installed, or the cluster has no room for one worker.
    """
    try:
        import ray
    except ImportError as error:
        raise InvalidSetting(
            "The executor ray needs the package: pip install 'retcon-llm[ray]'. Without it, "
            "--executor local runs the same cells here."
        ) from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False)
    places = min(len(tasks), workers or _room(ray.cluster_resources(), threads, device))
    if places < 1:
        raise InvalidSetting(
            f"The Ray cluster has no room for a worker of {threads} threads on {device}: it has "
            f"{ray.cluster_resources()}. Give a study fewer `threads`, or start larger nodes."
        )
    actor = ray.remote(
        num_cpus=threads,
        num_gpus=int(device.startswith("cuda")),
        max_restarts=-1,
        max_task_retries=_RETRIES,
        runtime_env={"env_vars": _environment()},
    )(Worker)
    everyone: list[Any] = [actor.remote(threads, device) for _ in range(places)]
    try:
        yield from _share_out(ray, list(map(_whole_path, tasks)), list(everyone), deadline)
    finally:
        for worker in everyone:
            ray.kill(worker)


def _share_out(
    ray: Any, waiting: list[CellTask], idle: list[Any], deadline: float | None
) -> Iterator[Ended]:
    """Give each worker that has nothing to do the next task."""
    running: dict[Any, tuple[Any, CellTask]] = {}
    while True:
        late = deadline is not None and time.monotonic() > deadline
        while idle and waiting and not late:
            worker, task = idle.pop(), waiting.pop(0)
            running[worker.run.remote(task)] = (worker, task)
        if not running:
            break
        (ready, *_), _ = ray.wait(list(running), num_returns=1)
        worker, task = running.pop(ready)
        idle.append(worker)
        try:
            yield ray.get(ready)
        except ray.exceptions.RayActorError as error:
            message = f"its worker died {_RETRIES + 1} times ({type(error).__name__})"
            yield Ended(task.cell.id, "failed", (message,))
        except ray.exceptions.RayTaskError as error:
            # As it was raised, not with the worker's traceback for a message.
            cause = getattr(error, "cause", None)
            raise (cause if isinstance(cause, RetconError) else error) from None


def _environment() -> dict[str, str]:
    """Environment that a worker inherits: this process's settings and loaded plugins."""
    own = {k: v for k, v in os.environ.items() if k.startswith("RETCON_")}
    return own | {PLUGINS: os.pathsep.join(map(str, loaded_plugins().values()))}


def _whole_path(task: CellTask) -> CellTask:
    """The task with whole paths, since a worker's own folder is another than this process's."""
    cell = task.cell
    if Path(cell.name).is_dir():
        cell = cell.model_copy(update={"name": str(Path(cell.name).absolute())})
    return task._replace(cell=cell, folder=task.folder.absolute())


def _room(resources: Mapping[str, float], threads: int, device: str) -> int:
    """Number of workers that fit."""
    places = int(resources.get("CPU", 0)) // threads
    if device.startswith("cuda"):
        return min(places, int(resources.get("GPU", 0)))
    return places
