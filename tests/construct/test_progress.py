"""What a person sees while it runs: counts, rates and queues per stage."""

import io

from rich.console import Console

from training.construct.stage_progress import STAGES, StageBars, StageTally, summary


def test_chunk_that_is_repeated_after_a_crash_counts_once():
    tally = StageTally()
    for _ in range(3):
        tally.add("caption", 0, 0, 32)
    tally.add("caption", 0, 1, 8)
    tally.forget(0)
    tally.add("caption", 1, 0, 32)
    assert tally.read()["caption"] == 72


def test_bars_show_pictures_rate_and_those_waiting_for_each_stage():
    tally = StageTally()
    for number, stage in enumerate(STAGES):
        for chunk in range(6 - number):
            tally.add(stage, 0, chunk, 10)
    shown = io.StringIO()
    with StageBars(tally.read, Console(file=shown, force_terminal=True, width=120)) as bars:
        bars.shards = 1
        bars.update()
    lines = [line for line in shown.getvalue().splitlines() if "caption" in line]
    assert "40 pictures" in lines[-1]
    assert "10 waiting" in lines[-1]
    assert "/s" in lines[-1]
    assert "caption 40 (" in bars.line()


def test_counting_process_that_does_not_answer_stops_nothing():
    def gone():
        raise RuntimeError("the actor died")

    with StageBars(gone, Console(file=io.StringIO(), force_terminal=True)) as bars:
        bars.update()
    assert bars.tasks.keys() == set(STAGES)


def test_summary_names_every_reason_and_every_unreadable_shard():
    shown = io.StringIO()
    stats = {
        "shards": 2,
        "pictures": 120,
        "samples": 98,
        "entities": 210,
        "pictures_left_out": {"picture: corrupt": 22},
        "entities_left_out": {"entity: mask too small": 7},
        "shards_failed": {"00001": "ends early"},
    }
    Console(file=shown, width=100).print(summary(stats))
    for part in ("picture: corrupt", "22", "entity: mask too small", "00001: ends early"):
        assert part in shown.getvalue()


def test_names_from_data_are_neither_styles_nor_escape_codes_on_the_terminal():
    stats = dict.fromkeys(("shards", "pictures", "samples", "entities"), 0)
    for name in ("pictures_left_out", "entities_left_out", "files_left_out"):
        stats[name] = {"file: .[/red] is not read": 1}
    stats["shards_failed"] = {"x[/red]" + chr(27) + "[31m": "[b]damaged"}
    shown = io.StringIO()
    Console(file=shown, width=120).print(summary(stats))
    assert "x[/red]" + chr(92) + "x1b[31m: [b]damaged" in shown.getvalue()
    assert chr(27) not in shown.getvalue()
    assert shown.getvalue().count("file: .[/red] is not read") == 3
