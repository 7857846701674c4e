"""The sweep of the learning rate: each rate once, what their losses speak for, and nothing left behind."""

import re

import pytest

from training import run
from training.engine.rate_sweep import smoothed, told
from training.engine.run_config import RateSweep


def test_a_sweep_tries_rising_rates_until_the_loss_has_doubled_and_leaves_nothing(smoke_stages, tmp_path, capsys):
    assert run.main(smoke_stages.arguments("lm", tmp_path / "run", "--find_rate", "1e-5:1e3:10")) == 0
    out = capsys.readouterr().out
    table = [(float(rate), float(loss)) for rate, loss in re.findall(r"^ +(\S+)  ([\d.]+)$", out, re.MULTILINE)]
    rates, losses = zip(*table, strict=True)
    assert rates[0] == 1e-5
    assert list(rates) == sorted(rates)
    assert rates[-1] < 1e3
    assert losses[-1] > 2 * min(losses) >= losses[-2]
    assert re.search(r"find_rate: the loss is lowest at \S+; a tenth of it, --optim.lr \S+, is", out)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([4.0, 3.0, 2.0, 3.0, 9.0], "lowest at 0.01; a tenth of it, --optim.lr 1.0e-03, is a usual peak"),
        ([4.0, 5.0, 6.0], "falls at no rate from 0.0001 on; sweep lower ones"),
        ([5.0, 4.0, 3.0, 2.0, 1.0], "still falls at 1; sweep higher rates too"),
    ],
)
def test_the_rate_of_the_lowest_loss_decides(losses, said):
    wanted = RateSweep.of("1e-4:1:5")
    assert wanted.rates() == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert said in told(wanted.rates()[: len(losses)], losses, wanted)[-1]


def test_smoothing_leans_to_no_side():
    assert smoothed([3.0] * 20) == pytest.approx([3.0] * 20)
    assert smoothed([1.0, 2.0]) == pytest.approx([1.0, (0.09 + 0.2) / 0.19])


@pytest.mark.parametrize(
    "options", [["1e-3"], ["1e-1:1e-6:10"], ["0:1:10"], ["1e-6:1:1"], ["a:b:c"], ["1e-6:inf:9"], ["1e-6:1:9", "auto"]]
)
def test_a_sweep_that_cannot_be_is_a_sentence(smoke_stages, tmp_path, capsys, options):
    words = [word for pair in zip(("--find_rate", "--resume"), options, strict=False) for word in pair]
    assert run.main(smoke_stages.arguments("lm", tmp_path / "run", *words)) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"error: --find_rate: .*(such as 1e-6:1e-1:100|leave out --resume auto)\.\n", err)


def test_a_sweep_in_the_folder_of_a_run_is_not_told_to_resume(smoke_stages, tmp_path, capsys):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / ".metadata").touch()
    assert run.main(smoke_stages.arguments("lm", tmp_path / "run", "--find_rate", "1e-6:1:2")) == 2
    err = capsys.readouterr().err
    assert "already holds a run (at step-00000002), and find_rate begins from `weights`; choose another folder" in err
    assert "--resume" not in err
    assert [*(tmp_path / "run").rglob("*.metadata")] == [checkpoint / ".metadata"]
