"""What a person is told of the data."""

from training.engine.data_reports import DataReports


def _report(seen, bad=0, filtered=0):
    counts = {"web/size": 100, "web/seen": seen, "web/bad/corrupt picture": bad, "web/filtered/too small": filtered}
    return {name: count for name, count in counts.items() if count}


def test_the_end_of_an_epoch_is_told_once_with_the_counts_of_all_streams():
    told = DataReports()
    assert told.update([{"web/size": 100}, {"web/size": 100}]) == []
    assert told.update([_report(40, 1), _report(59, 2, 1)]) == []
    assert told.update([_report(41, 1), _report(60, 2, 1)]) == [
        "data: end of epoch 1 of web: 101 samples read, 3 unusable (corrupt picture 3), 1 left out (too small 1)"
    ]
    assert told.update([_report(50, 1), _report(70, 2, 1)]) == []
    assert told.update([_report(150), _report(170)])[0].startswith("data: end of epoch 3 of web: 320 samples")
    assert told.counts["web/size"] == 100


def test_a_resumed_run_does_not_tell_of_epochs_before_it():
    told = DataReports()
    assert told.update([_report(250)]) == []
    assert told.update([_report(299)]) == []
    assert told.update([_report(300)]) == ["data: end of epoch 3 of web: 300 samples read, all usable"]


def test_a_source_that_a_short_run_never_reached_is_told_as_unread():
    told = DataReports()
    told.update([{"web/size": 100}])
    assert told.summary("web") == "web: 0 samples read, all usable"
