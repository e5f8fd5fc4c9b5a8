"""Ray: the same rows as here, whoever ran them, and whoever died on the way."""

import json
import os
import signal
import threading
import time
import warnings
from pathlib import Path

import psutil
import pytest

from retcon.errors import StorageError
from retcon.study.runner import run_cells, run_here
from retcon.study.spec import parse_spec
from retcon.study.worker import Worker
from tiny_study import FAST, task, write_model_and_facts

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one worker's size on this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.cluster_utils import Cluster

        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        made.add_node(num_cpus=1)
        ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def folder(tmp_path, entries):
    return write_model_and_facts(tmp_path)


def tasks(folder, name):
    schedules = ("sequential", "single", "sequential-batch:3")
    return [task(folder, f"{name}-{i}", schedule=s) for i, s in enumerate(schedules)]


def workers() -> list[int]:
    """The processes in which a worker is at work."""
    running = psutil.process_iter(["cmdline"])
    return [p.pid for p in running if (p.info["cmdline"] or [""])[0].startswith("ray::Worker.run")]


def done(one):
    return json.loads((one.folder / "done.json").read_text(encoding="utf-8"))


@pytest.mark.filterwarnings("ignore")
def test_rows_are_the_same_whoever_ran_them(cluster, folder):
    from retcon.study.ray_runner import run_on_ray

    here, there = tasks(folder, "here"), tasks(folder, "there")
    assert all(e.state == "done" for e in run_here(here, Worker(1), None, lambda *_: None))
    ended = run_on_ray(there, threads=1, device="cpu", workers=0, deadline=None)
    assert {e.state for e in ended} == {"done"}
    for one, other in zip(here, there, strict=True):
        assert done(one)["weights"] == done(other)["weights"]
        assert done(one)["files"]["rows.parquet"] == done(other)["files"]["rows.parquet"]


STUDY = f"""retcon_study: 1
name: tiny
threads: 1
model: ./model
data: {{cases: facts.jsonl, unique_subjects: true}}
tuning: {{ridges: [3, 30], n: 2}}
defaults: {{method: memit, layer: 1, n: 4, settings: {json.dumps(FAST)}}}
blocks:
  - {{name: batch, schedule: batch, batch_size: 2, settings: {{ridge: tuned}}}}
  - {{name: carried, schedule: sequential, settings: {{accumulate: [true, false]}}}}
"""


@pytest.mark.filterwarnings("ignore")
def test_a_whole_study_is_the_same_on_two_nodes(cluster, tmp_path, monkeypatch, entries):
    """Folders are relative here, and a worker's own folder is another."""
    monkeypatch.chdir(write_model_and_facts(tmp_path, paraphrased=True))
    spec = parse_spec(STUDY, Path("s.yaml"))
    here, there = run_cells(spec, Path("here")), run_cells(spec, Path("there"), executor="ray")
    assert here == there and here.done == here.cells and not here.failed
    for path in Path("here").glob("cells/*/done.json"):
        other = json.loads((Path("there") / path.relative_to("here")).read_text(encoding="utf-8"))
        one = json.loads(path.read_text(encoding="utf-8"))
        assert one["weights"] == other["weights"]
        assert one["files"]["rows.parquet"] == other["files"]["rows.parquet"]
    assert Path("here/tuned.json").read_bytes() == Path("there/tuned.json").read_bytes()
    assert Path("here/study.json").read_bytes() == Path("there/study.json").read_bytes()


@pytest.mark.filterwarnings("ignore")
def test_what_a_worker_cannot_write_is_told_in_one_line(cluster, folder):
    from retcon.study.ray_runner import run_on_ray

    (folder / "file").touch()
    one = task(folder, "file/cell")
    with pytest.raises(StorageError) as caught:
        list(run_on_ray([one], threads=1, device="cpu", workers=1, deadline=None))
    assert "could not be written" in str(caught.value) and "Traceback" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")
def test_a_worker_that_dies_is_replaced(cluster, folder):
    from retcon.study.ray_runner import run_on_ray

    whole, cut = task(folder, "whole"), task(folder, "cut")
    assert Worker(1).run(whole).state == "done"
    killed = []

    def kill_once() -> None:
        while not killed and not (cut.folder / "done.json").exists():
            if list(cut.folder.glob("step-*")):
                for worker in workers():
                    os.kill(worker, signal.SIGKILL)
                    killed.append(worker)
            time.sleep(0.002)

    thread = threading.Thread(target=kill_once)
    thread.start()
    (ended,) = run_on_ray([cut], threads=1, device="cpu", workers=1, deadline=None)
    thread.join()
    assert ended.state == "done" and killed
    assert done(cut)["weights"] == done(whole)["weights"]
    assert done(cut)["files"]["rows.parquet"] == done(whole)["files"]["rows.parquet"]
