"""Workers come and go with the nodes of a cluster: on several nodes of one machine, which are added and lost for real.

All is real but the worker itself: it computes nothing, takes its time, and notes where it was started and what it was
given. The pool's one long run, in which things happen one after the other, is made once; each test looks at it.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from annotator import cluster, session
from annotator.errors import JobError
from annotator.job import Job, WorkerRange
from annotator.shards import Shard, cut
from annotator.summary import Summary
from tests.chaos.cluster import Nodes, a_head

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180, method="thread")]

SHARD_S, LEISURE_S = 0.1, 0.4
"""What a shard takes; the latter while a job's folder says `leisure`, so that there is work left when a node joins."""

SLOW_S = 3.0
"""What a slow start takes: some fifteen shards of another worker."""

TOO_LARGE = 1000
"""A batch that no worker can be built for."""

SHARDS = cut("part-0-00000000", 120, 1)


class Idler:
    """Stands for a worker; each line that it notes is one write, so lines of several workers do not mix."""

    def __init__(self, job: Job) -> None:
        import ray

        self._folder = Path(job.output)
        self._node = ray.get_runtime_context().get_node_id()
        self._note("building")
        if job.batch_size == TOO_LARGE:
            raise JobError("the GPU's memory does not hold it; change this")
        if (self._folder / f"slow-{self._node}").exists():
            time.sleep(SLOW_S)
        self._note("built")

    def _note(self, *words: object) -> None:
        with (self._folder / "notes").open("a") as file:
            file.write(" ".join(map(str, (time.time(), self._node, *words))) + "\n")

    def __call__(self, shard: Shard) -> Summary:
        self._note("begun", shard.first)
        time.sleep(LEISURE_S if (self._folder / "leisure").exists() else SHARD_S)
        return Summary(shard=shard, created=("seg",), rows=1)

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Order(cluster._Order):
    """An order for a worker that idles."""

    def build(self) -> Any:
        return Idler(self.job)


@dataclass(frozen=True)
class Note:
    """A worker on a node was `building`, `built`, or had `begun` a shard."""

    at: float
    node: str
    what: str
    first: int


@dataclass
class Run:
    """One job on the cluster: its rounds, by the shards that they took on, the shards that came back, and notes."""

    job: Job
    rounds: list[int] = field(default_factory=list)
    came: list[int] = field(default_factory=list)

    def label(self, nodes: Nodes, count: int = len(SHARDS)) -> Iterator[int]:
        """Label so many shards, in rounds as a run does; yield how many are done."""
        with (
            pytest.MonkeyPatch.context() as patch,
            cluster.Cluster(self.job, address=nodes.address) as pool,
        ):
            patch.setattr(cluster, "_Order", Order)
            while left := [shard for shard in SHARDS[:count] if shard.first not in self.came]:
                self.rounds.append(len(left))
                for summary in pool.label(left, ("seg",), last_round=False):
                    self.came.append(summary.shard.first)
                    yield len(self.came)

    def notes(self, what: str) -> list[Note]:
        lines = [line.split() for line in (Path(self.job.output) / "notes").read_text().splitlines()]
        return [Note(float(at), node, word, int(*rest or ("-1",))) for at, node, word, *rest in lines if word == what]

    def slow(self, node: Any) -> None:
        """Have workers start slowly on this node."""
        (Path(self.job.output) / f"slow-{node.node_id}").touch()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster with a node of one CPU; its head computes nothing."""
    folder = tempfile.mkdtemp(prefix="el-")  # short: socket paths have 107 bytes
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        found = stack.enter_context(a_head(folder, num_cpus=0))
        found.add()
        yield found


def make_run(folder: Path, **settings: Any) -> Run:
    folder.mkdir(exist_ok=True)
    return Run(Job(manifest="/m", output=str(folder), tasks={"seg": {}}, **settings))


def look_for_nodes() -> None:
    """Have Ray Data look for nodes now, as it does by itself every 20 s."""
    import ray

    coordinator = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    ray.get(coordinator.get_reserved_resources.remote("nobody", recompute=True))


@dataclass(frozen=True)
class Story:
    """A run during which a second node joined, whose worker started slowly, labelled, and was lost."""

    run: Run
    first: str
    second: str
    joined: float
    lost: float


@pytest.fixture(scope="module")
def story(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Story:
    workers = WorkerRange(min=1, max=3)
    run = make_run(tmp_path_factory.mktemp("story"), workers=workers, gpus_per_worker=0)
    leisure = Path(run.job.output) / "leisure"
    leisure.touch()
    [first] = nodes.others
    second, joined, lost = None, 0.0, 0.0
    for done in run.label(nodes):
        if second is None and done == 5:
            second = nodes.add()
            run.slow(second)
            look_for_nodes()
            joined = time.time()
        elif second is not None and not lost:
            begun = [note for note in run.notes("begun") if note.node == second.node_id]
            if len(begun) >= 4:
                nodes.lose(second)
                leisure.unlink()
                lost = time.time()
    assert second is not None and lost
    return Story(run, first.node_id, second.node_id, joined, lost)


def test_a_node_that_joins_amid_a_run_gets_a_worker(story: Story) -> None:
    built = [note.node for note in story.run.notes("built")]
    assert built[0] == story.first
    assert story.second in built


def test_a_worker_that_starts_slowly_holds_up_nobody(story: Story) -> None:
    [building] = [note.at for note in story.run.notes("building") if note.node == story.second]
    meanwhile = [note for note in story.run.notes("begun") if building < note.at < building + SLOW_S]
    assert {note.node for note in meanwhile} == {story.first}
    assert len(meanwhile) > SLOW_S / LEISURE_S / 2


def test_a_lost_node_costs_its_shards_in_flight_and_no_others(story: Story) -> None:
    begun = Counter(note.first for note in story.run.notes("begun"))
    twice = {first for first, count in begun.items() if count > 1}
    assert len(twice) <= cluster.CALLS_PER_WORKER
    assert max(begun.values()) <= 2
    assert twice <= {note.first for note in story.run.notes("begun") if note.node == story.second}


def test_the_others_go_on_and_what_is_left_of_a_lost_node_takes_a_round_more_at_most(story: Story) -> None:
    assert sorted(story.run.came) == [shard.first for shard in SHARDS]
    first_round, *more = story.run.rounds
    assert first_round == len(SHARDS) and len(more) <= 1
    assert sum(more) <= 4 * cluster.CALLS_PER_WORKER  # under way, and waiting for it, until Ray noticed
    after = [note for note in story.run.notes("begun") if note.at > story.lost + 1]
    assert {note.node for note in after} == {story.first}
    assert len(after) > sum(more)


@pytest.fixture(scope="module")
def gpu_node(nodes: Nodes, story: Story) -> str:
    """A node that has a GPU, if Ray is to be believed, beside the one that has none."""
    return str(nodes.add(num_gpus=1).node_id)


@pytest.mark.parametrize(("share", "workers"), [(1, 1), (0.5, 2)])
def test_a_gpu_gets_the_workers_that_fit_and_nodes_without_one_get_none(
    share: float, workers: int, nodes: Nodes, gpu_node: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path, workers="auto", gpus_per_worker=share)
    assert list(run.label(nodes, 24))[-1] == 24
    assert Counter(note.node for note in run.notes("built")) == {gpu_node: workers}


def test_what_a_worker_can_not_be_started_with_ends_the_run_in_its_own_words(nodes: Nodes, tmp_path: Path) -> None:
    run = make_run(tmp_path, workers=1, gpus_per_worker=0, batch_size=TOO_LARGE)
    with pytest.raises(JobError, match=r"^the GPU's memory does not hold it; change this$"):
        list(run.label(nodes, 24))
    assert len(run.notes("building")) == 1


def test_a_round_that_ends_early_leaves_no_thread_of_ray_data_behind(nodes: Nodes, tmp_path: Path) -> None:
    """One that goes on while the session ends may abort the process."""
    run = make_run(tmp_path, workers=1, gpus_per_worker=0, batch_size=TOO_LARGE)
    with pytest.raises(JobError) as caught:
        list(run.label(nodes, 24))
    assert caught.tb is not None  # it holds what the round held
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"Prefetcher", "iter_threaded"}
    assert not any(name.startswith("StreamingExecutor") for name in names)


def test_no_time_out_of_ray_ends_a_slow_start_or_a_long_shard() -> None:
    from ray.data import DataContext

    session._configure()
    context = DataContext.get_current()
    assert context.wait_for_min_actors_s <= 0
    assert context.execution_no_progress_timeout_s == -1
    assert context.max_consecutive_actor_init_deaths == session.MAX_INIT_DEATHS
    assert context.max_errored_blocks == -1
