"""Where processes find room on a cluster, and a run in which nothing moves."""

import io
import signal
import socket
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.construct.conftest import settings
from tests.construct.scenes import write_folder
from training.base.errors import ConfigError
from training.construct.construct_config import CaptionConfig, EntityConfig, SegmentConfig
from training.construct.places import Room, place
from training.construct.ray_cluster import placed_pools


def nodes(*cpus, gpus=()):
    gpus = (*gpus, *[0.0] * (len(cpus) - len(gpus)))
    kinds = [frozenset({"A100"} if has else ()) for has in gpus]
    return [Room(f"n{i}", f"10.0.0.{i}", *rest) for i, rest in enumerate(zip(cpus, gpus, kinds, strict=True))]


def pools(*cpus, **more):
    kinds = {"caption": CaptionConfig, "entities": EntityConfig, "segment": SegmentConfig}
    sizes = (*cpus, *[0.1] * (3 - len(cpus)))
    return {
        name: kind(**{"cpus": size, **more.get(name, {})})
        for (name, kind), size in zip(kinds.items(), sizes, strict=True)
    }


def test_model_processes_are_packed_so_that_one_node_keeps_room_for_the_tasks():
    placed = place(pools(0.9, 0.1, 0.9), nodes(2.0, 2.0))
    used = dict.fromkeys(("n0", "n1"), 0.0)
    for name, cpus in (("caption", 0.9), ("entities", 0.1), ("segment", 0.9)):
        used[placed[name][0]] += cpus
    assert min(used.values()) <= 0.75, f"no node has 1.25 of its 2 cores left: {used}"
    assert max(used.values()) <= 2.0


def test_tasks_keep_away_from_the_node_whose_gpus_are_waited_for():
    gpu = {"gpus": 1.0, "accelerator": "A100", "workers": 2}
    placed = place(pools(1.0, 0.5, 0.5, segment=gpu), nodes(1.25, 4.0, gpus=(0.0, 2.0)))
    assert placed["segment"] == ["n1", "n1"]
    assert placed["caption"] == ["n1"], "the small node is kept for the tasks"


def test_tasks_have_the_node_with_the_most_cores_where_models_have_room_on_another():
    assert set(map(tuple, place(pools(1.0, 0.5, 0.5), nodes(2.0, 4.0)).values())) == {("n0",)}


@pytest.mark.parametrize(
    ("wanted", "has"),
    [
        (pools(1.2, 0.1, 1.1), nodes(2.0, 2.0)),  # three nodes, one of them lost
        (pools(3.0), nodes(2.0, 2.0, 2.0)),  # more than any node has
        (pools(), nodes(1.0, 1.0)),  # nothing left for the tasks on either
        (pools(segment={"gpus": 0.6, "workers": 2}), nodes(4.0, gpus=(1.0,))),
        (pools(segment={"gpus": 1.0, "accelerator": "H100"}), nodes(4.0, gpus=(1.0,))),
    ],
)
def test_pools_that_fit_the_cluster_but_no_node_are_refused_with_what_each_node_has(wanted, has):
    with pytest.raises(ConfigError, match=r"every process has to fit on one node.*10\.0\.0\.0 .* cpus.* add a node"):
        place(wanted, has)


def test_parts_of_a_core_fill_a_node_to_the_last():
    assert set(map(tuple, place(pools(0.1, 0.1, 0.1), nodes(1.25, 0.3)).values())) == {("n1",)}  # 0.3 - 0.1 - 0.1 < 0.1


@pytest.mark.parametrize(
    ("has", "workers", "asked", "share"),
    [(2, 2, None, 0.66), (4, 2, None, 1.0), (2, 2, 1.0, 0.5), (1, 7, None, 0.12), (0, 2, None, 0.0)],
)
def test_processes_that_say_nothing_of_gpus_share_what_the_others_leave(monkeypatch, has, workers, asked, share):
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": float(has), "CPU": 20.0})
    wanted = pools(caption={"workers": workers}, entities={"kind": "spacy"}, segment={"gpus": asked})
    found = placed_pools(SimpleNamespace(**wanted))
    given = [found[name].gpus for name in ("caption", "entities", "segment")]
    assert given == [share, 0.0, share if asked is None else asked]
    assert workers * share + given[2] <= has


def test_a_cluster_keeps_a_core_for_the_run_itself(monkeypatch):
    wanted = SimpleNamespace(**pools(1.0, 1.0, 1.0))
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 4.0})
    assert [pool.cpus for pool in placed_pools(wanted).values()] == [1.0, 1.0, 1.0]
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": 3.9})
    with pytest.raises(ConfigError, match=r"they need 3 cpus .*, the cluster has 2\.9; lower workers or cpus"):
        placed_pools(wanted)


def test_a_run_that_nothing_moves_in_says_what_is_missing_and_goes_on_when_it_is_there(
    ray_instance, run, tmp_path, monkeypatch
):
    from training.construct import stall
    from training.construct.driver import construct

    monkeypatch.setattr(stall, "EVERY", 0.2)
    monkeypatch.setattr(stall, "GRACE", 2.0)

    @ray_instance.remote(num_cpus=1.2)
    class Occupant:
        def there(self):
            return True

    occupant = Occupant.remote()
    ray_instance.get(occupant.there.remote())
    write_folder(tmp_path / "in", range(4))

    class Shown(io.StringIO):
        def write(self, text):
            if "No picture has left a stage" in text:
                ray_instance.kill(occupant)
            return super().write(text)

    shown = Shown()
    stats = construct(settings(tmp_path / "in", tmp_path / "out"), Console(file=shown, width=1000))
    assert stats["pictures"] == 4
    said = [line for line in shown.getvalue().splitlines() if "No picture has left" in line]
    assert said
    assert "no node has a whole core free" in said[0]
    assert "0.8 of 2" in said[0]


def test_what_is_waited_for_is_said_once_and_again_after_it_went_on(monkeypatch):
    from training.construct import stall

    monkeypatch.setattr(stall, "EVERY", 0.01)
    monkeypatch.setattr(stall, "GRACE", 0.05)
    monkeypatch.setattr(stall, "head_answers", lambda head: True)
    monkeypatch.setattr(stall, "what_is_missing", lambda: "a [core]")
    monkeypatch.setattr(stall.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="here"))
    shown, count = io.StringIO(), [0]

    def said(times):
        end = time.monotonic() + 20
        while shown.getvalue().count("for 0 s: a [core]") < times and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.15)  # and not once more
        return shown.getvalue().count("\n")

    with stall.Watch(Console(file=shown, width=1000)) as watch:
        watch.progress = lambda: count[0]
        assert said(1) == 1
        count[0] = 5
        assert said(2) == 2


def test_a_run_whose_head_is_gone_ends_with_the_way_on(ray_instance, monkeypatch):
    from training.construct import stall

    monkeypatch.setattr(stall, "EVERY", 0.05)
    monkeypatch.setattr(stall, "HEAD_GRACE", 0.2)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
    with socket.socket() as bound:  # nobody else takes the port, and nobody listens there
        bound.bind(("127.0.0.1", 0))
        watch = stall.Watch(Console(quiet=True))
        watch.head = f"127.0.0.1:{bound.getsockname()[1]}"
        said = r"has not answered .* finished shards are kept.*ray start"
        try:
            with pytest.raises(stall.ConstructionStopped, match=said), watch:
                time.sleep(20)
        finally:
            signal.signal(signal.SIGINT, handler)


def test_input_that_a_node_does_not_see_is_named_with_the_node(ray_instance, tmp_path, monkeypatch):
    from training.construct.input_shards import InputShard
    from training.construct.shared_disks import require_seen_by_all

    write_folder(tmp_path / "in", range(1))
    (tmp_path / "out").mkdir()
    config = settings(tmp_path / "in", tmp_path / "out")
    here = InputShard("a", str(tmp_path / "in"), ("0",), "f")
    require_seen_by_all(config, [here])
    monkeypatch.setattr("training.base.shared_folder.PATIENCE", 0.1)
    with pytest.raises(ConfigError, match=r"input: .*elsewhere is not there on \d+\.\d+\.\d+\.\d+;"):
        require_seen_by_all(config, [here, replace(here, path=str(tmp_path / "elsewhere"))])
    assert list((tmp_path / "out").iterdir()) == []
