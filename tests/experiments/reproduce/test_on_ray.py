"""Jobs on Ray: with the calls of its interface written out, and with Ray itself where it is installed."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest

from dise_experiments.reproduce import on_ray
from dise_experiments.reproduce.on_ray import RayEngine
from dise_experiments.run.config import ExperimentError


class RayError(Exception):
    pass


class FakeRay:
    """What `RayEngine` uses of Ray; a task runs when it is waited for."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, cpus=4):
        self.cpus, self.calls, self.tasks, self.cancelled = cpus, [], {}, []

    def init(self, **options):
        self.calls.append(options)

    def cluster_resources(self):
        return {"CPU": float(self.cpus), "memory": 1e9}

    def put(self, value):
        return value

    def remote(self, **options):
        self.calls.append(options)

        def of(function):
            def submit(*args):
                self.tasks[len(self.tasks)] = (function, args)
                return len(self.tasks) - 1

            return SimpleNamespace(remote=submit)

        return of

    def wait(self, references, num_returns, timeout):
        return references[:num_returns], references[num_returns:]

    def get(self, reference):
        function, args = self.tasks[reference]
        return function(*args)

    def cancel(self, reference, force):
        self.cancelled.append((reference, force))

    def shutdown(self):
        self.calls.append("shutdown")


@pytest.fixture
def fake(monkeypatch):
    """Ray as a fake, and jobs that say who they are."""
    ray, done = FakeRay(), []

    def job(cell, work):
        if cell == "lost":
            raise RayError("the worker died\nof something")
        done.append((cell, work))

    ray.done = done
    monkeypatch.setattr(on_ray, "_ray", lambda: ray)
    monkeypatch.setattr(on_ray, "carry_out", job)
    return ray


def test_a_cluster_of_its_own_has_the_workers_processors(fake, work, tmp_path):
    engine = RayEngine(2, work(tmp_path)._replace(threads=3), None)
    options, of_tasks = fake.calls
    assert (options["address"], options["num_cpus"]) == ("local", 6)
    assert of_tasks == {"num_cpus": 3, "num_gpus": 0, "max_retries": 0}
    assert engine.workers == 2


@pytest.mark.parametrize(("workers", "threads", "expected"), [(None, 1, 4), (None, 3, 1), (None, 8, 1), (7, 1, 7)])
def test_a_given_cluster_decides_on_the_workers(fake, work, tmp_path, workers, threads, expected):
    engine = RayEngine(workers, work(tmp_path)._replace(threads=threads), "auto")
    assert fake.calls[0]["address"] == "auto"
    assert "num_cpus" not in fake.calls[0]
    assert engine.workers == expected


def test_jobs_end_one_by_one_and_lost_ones_say_why(fake, work, tmp_path):
    engine = RayEngine(2, work(tmp_path), None)
    for cell in ("a", "lost", "b"):
        engine.submit(cell)
    assert engine.finished(1) == [("a", None)]
    assert engine.finished(1) == [("lost", "Ray: RayError: the worker died")]
    engine.close()
    assert fake.done == [("a", work(tmp_path))]
    assert fake.cancelled == [(2, True)]
    assert fake.calls[-1] == "shutdown"


def test_gpus_are_asked_for_where_jobs_use_them(fake, work, tmp_path):
    RayEngine(1, work(tmp_path)._replace(device="gpu"), None)
    assert fake.calls[1]["num_gpus"] == 1


def test_an_address_without_a_cluster_is_one_line(fake, work, tmp_path, monkeypatch):
    def refuse(**options):
        raise ConnectionError("nobody there")

    monkeypatch.setattr(fake, "init", refuse)
    with pytest.raises(ExperimentError, match=r"^address: no Ray cluster answers at 'auto' \(nobody there\)$"):
        RayEngine(1, work(tmp_path), "auto")


def test_without_ray_it_is_said_how_to_get_it(work, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExperimentError, match=r"ray is not installed; pip install 'dise-experiments\[ray\]'"):
        RayEngine(1, work(tmp_path), None)


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_ray_has_the_same_results(unbroken, carried_out, work, results, tmp_path):
    assert carried_out(tmp_path, RayEngine(2, work(tmp_path), None)).failed == {}
    assert results(tmp_path) == results(unbroken)
