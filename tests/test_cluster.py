"""Ray's processes make the index of one process, also where they or the command are killed."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_pipeline import photo, save_pipeline
from tiny_shards import orphans, same, shard, workers_of
from tiny_store import s3 as s3

from fourm_lite.cluster import Cluster
from fourm_lite.errors import ConfigError, FourMError
from fourm_lite.search.embed_files import embed_to_file
from fourm_lite.search.gallery import Ingest, index_photos, open_index
from fourm_lite.search.index.index import Index
from fourm_lite.search.scale import Engine
from fourm_lite.search.spaces import open_space

pytestmark = pytest.mark.filterwarnings(  # Ray leaves sockets and files of processes open
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
slow = pytest.mark.slow  # Ray starts processes that import torch: half a minute and more
TWO = Cluster(workers=2, cpus=0.5)


@pytest.mark.parametrize("given", [{"workers": 0}, {"cpus": 0}, {"gpus": -1}])
def test_a_cluster_without_workers_is_refused(given):
    with pytest.raises(ConfigError, match="1 to 4096 workers"):
        Cluster(**given)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        (None, "Ray on this machine: The current node timed out.$"),
        ("h:1", "Ray at h:1: .*AUTH_MODE"),
    ],
)
def test_a_ray_that_does_not_start_is_told_in_a_sentence(monkeypatch, address, told):
    def init(**options):
        raise Exception("The current node timed out.\nMore of it.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=told):
        Cluster(address)._start(SimpleNamespace(init=init))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_pipeline(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for i in range(3):
        shard(folder / f"s-{i}.tar", range(10 * i, 10 * i + 6))
    (folder / "more").mkdir()
    for i in range(40, 44):
        photo(i).save(folder / "more" / f"{i}.png")
    return [folder / "s-{0..2}.tar", folder / "more"]


@pytest.fixture(scope="module")
def here(tmp_path_factory, model, sources):
    """The index that this process makes."""
    space = open_space(model)
    index = open_index(tmp_path_factory.mktemp("here") / "idx", space)
    index_photos(sources, index, space, Ingest(batch_size=4))
    return index


def on_two(index, sources, model, **options):
    opener = partial(open_space, model)
    engine = Engine(options.pop("cluster", TWO), opener)
    return index_photos(sources, index, opener(), Ingest(batch_size=4), engine=engine, **options)


@slow
def test_photos_texts_and_a_second_run(tmp_path, model, sources, here):
    ray = pytest.importorskip("ray")
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        space, opener = open_space(model), partial(open_space, model)
        there = open_index(tmp_path / "there", space)
        first, second = on_two(there, sources, model), on_two(there, sources, model)
        texts = tmp_path / "texts.txt"
        texts.write_text("".join(f"a red circle {n % 3}\n" for n in range(300)))
        for given, out in ((sources, "photos"), ([texts], "texts")):
            for name, engine in (("a", None), ("b", Engine(TWO, opener))):
                embed_to_file(given, tmp_path / f"{out}-{name}.npy", space, engine=engine)
        with pytest.raises(FourMError, match="more than the 2"):
            on_two(there, sources, model, cluster=Cluster(workers=3))
    finally:
        ray.shutdown()

    same(here, there)
    assert (first.added, second.added, second.unchanged) == (len(here), 0, len(here))
    assert len(first.unreadable) == 3
    assert not orphans(there)
    assert not list((tmp_path / "there" / "parts").glob("*"))
    for out in ("photos", "texts"):
        names = [(tmp_path / f"{out}-{n}.ids.jsonl").read_text() for n in "ab"]
        assert names[0] == names[1]
        vectors = [np.load(tmp_path / f"{out}-{n}.npy") for n in "ab"]
        assert np.abs(vectors[0] - vectors[1]).max() < 1e-6


COMMAND = [sys.executable, "-m", "fourm_lite"]


@slow
def test_the_command_makes_tokens_of_photos(tmp_path, sources):
    pytest.importorskip("ray")
    for name, words in (("a", []), ("b", ["--engine", "ray", "--workers", "2"])):
        more = ["--worker-cpus", "0.5"] if words else []
        command = ["tokenize", sources[1], "-t", "rgb_mini", "-o", tmp_path / name]
        subprocess.run([*COMMAND, *command, *words, *more], check=True, timeout=300)

    files = [
        sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*.tar")) for n in "ab"
    ]
    assert files[0] == files[1] != []
    for file in files[0]:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def run(source, out, model, **options):
    return subprocess.run(words(source, out, model), check=True, timeout=300, **options)


def words(source, out, model):
    how = ["--batch-size", "4", "--engine", "ray", "--workers", "2", "--worker-cpus", "0.5"]
    return [*COMMAND, "index", *map(str, source), "-o", str(out), "-m", str(model), *how]


@slow
def test_a_bucket_is_read_and_an_index_in_it_written(model, sources, here, s3):
    pytest.importorskip("ray")
    import s3fs

    files = s3fs.S3FileSystem()
    files.mkdir("shards")
    for path in sources[1].parent.glob("s-*.tar"):
        files.pipe(f"shards/{path.name}", path.read_bytes())

    run(["s3://shards/s-{0..2}.tar"], "s3://shards/idx", model)

    there = Index.open("s3://shards/idx")
    rows = there.rows.newest().handle.to_table()
    wanted = here.rows.newest().handle.to_table().slice(0, len(rows))
    assert rows["id"].to_pylist() == wanted["id"].to_pylist()
    vectors = [np.stack(t["vector"].to_pylist()) for t in (rows, wanted)]
    assert np.abs(vectors[0] - vectors[1]).max() < 1e-6
    assert len(rows) == 15
    assert not files.find("shards/idx/parts")


@slow
@pytest.mark.parametrize("who", ["worker", "driver"])
def test_whoever_is_killed_the_next_run_completes_it(tmp_path, model, sources, here, who):
    pytest.importorskip("ray")
    driver = subprocess.Popen(words(sources, tmp_path / "there", model), stderr=subprocess.DEVNULL)
    assert killed(driver, who, after=1.0)
    if who == "worker":
        assert driver.wait(240) == 0

    run(sources, tmp_path / "there", model)

    there = Index.open(tmp_path / "there")
    same(here, there)
    assert not orphans(there)
    assert not list((tmp_path / "there" / "parts").glob("*"))


def killed(driver, who, after):
    """Kills a process that embeds, or the command, so many seconds after the first embeds."""
    begun = None
    while driver.poll() is None:
        found = workers_of(driver.pid)
        begun = begun or (time.monotonic() if found else None)
        if begun is not None and time.monotonic() > begun + after and found:
            os.kill(found[0] if who == "worker" else driver.pid, signal.SIGKILL)
            if who == "driver":
                driver.wait()
            return True
        time.sleep(0.05)
    return False


@slow
def test_two_machines_share_the_work(tmp_path, model, sources, here):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as Machines

    machines = Machines(initialize_head=True, head_node_args={"num_cpus": 1})
    machines.add_node(num_cpus=1)
    try:
        ray.init(address=machines.address, log_to_driver=False)
        assert len([n for n in ray.nodes() if n["Alive"]]) == 2
        there = open_index(tmp_path / "there", open_space(model))
        on_two(there, sources, model, cluster=Cluster(workers=2))
    finally:
        ray.shutdown()
        machines.shutdown()
    same(here, there)
