"""`asyncdni sample`, and what `asyncdni train` leaves to look at."""

from __future__ import annotations

from pathlib import Path

import pytest
from sampled import LAUNCH, autoencoder, circle, kept, letters, run_of

from asyncdni.__main__ import main
from asyncdni.cli.train import leave
from asyncdni.report import plots
from asyncdni.report.album import leave_samples

PNG = b"\x89PNG\r\n"
HISTORY = [
    {"samples": samples, "train_s": 1.0, "accuracy": None, "loss": loss}
    for samples, loss in ((100, 2.0), (200, 1.0))
]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without matplotlib."""
    monkeypatch.setattr(plots, "available", lambda: False)


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    code = main(["sample", *map(str, argv)])
    said = capsys.readouterr()
    assert code in (1, 2)
    assert said.out == ""
    assert said.err.startswith("asyncdni: ")
    assert said.err.count("\n") == 1
    return said.err


def test_a_text_goes_on_from_its_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept(letters(tmp_path / "text.txt", "to be or not to be. " * 30), tmp_path / "run")
    options = ["--prompt", "not to", "--length", "25", "--temperature", "0.5", "--seed", "4"]
    said = []
    for _ in range(2):
        assert main(["sample", str(tmp_path / "run"), *options]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert said[0].startswith("not to")
    assert len(said[0]) == len("not to") + 25 + 1


def test_a_curve_is_written_as_a_table_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    kept(circle(), tmp_path / "run")
    out = tmp_path / "pictures"
    assert main(["sample", str(tmp_path / "run"), "--length", "12", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("12 points from the first 5: mean absolute error 0.")
    assert len((out / "curve.csv").read_text().splitlines()) == 1 + 5 + 12
    assert (out / "curve.png").read_bytes().startswith(PNG)


def test_without_matplotlib_a_curve_is_a_table_and_a_line_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plain: None
) -> None:
    kept(circle(), tmp_path / "run")
    assert main(["sample", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.endswith(f"{plots.MISSING_EXTRA}\n")
    assert (tmp_path / "run" / "curve.csv").is_file()
    assert not (tmp_path / "run" / "curve.png").exists()


def test_an_autoencoder_draws_and_makes_again(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    kept(autoencoder(), tmp_path / "run")
    assert main(["sample", str(tmp_path / "run"), "--count", "7"]) == 0
    for name in ("prior.png", "reconstructions.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(PNG)


def test_images_need_matplotlib(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plain: None
) -> None:
    kept(autoencoder(), tmp_path / "run")
    assert "pip install 'asyncdni[plot]'" in refused(capsys, tmp_path / "run")


def test_flags_of_another_kind_of_run_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept(circle(), tmp_path / "run")
    said = refused(capsys, tmp_path / "run", "--count", 3)
    assert "--count: " in said
    assert "is a run of a curve, where it means nothing; expected --length" in said


def test_a_run_that_makes_nothing_by_itself_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    top = {"name": "top", "layers": [{"dense": 10}], "loss": "cross_entropy"}
    kept(run_of({"name": "digits"}, [top]), tmp_path / "run")
    said = refused(capsys, tmp_path / "run")
    assert "its data, digits, are neither a text nor a curve" in said


def test_a_folder_without_a_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is no run folder" in refused(capsys, tmp_path)


# --- at the end of training --------------------------------------------------------------------


def test_a_run_of_a_text_leaves_a_sample_of_it(tmp_path: Path, plain: None) -> None:
    run = kept(letters(tmp_path / "text.txt", "to be or not to be. " * 30), tmp_path / "run")
    (file,) = leave_samples(run)
    assert len(file.read_text()) == 501


def test_an_autoencoder_leaves_its_cost_and_its_images(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    run = autoencoder()
    run.summary["history"] = HISTORY
    files = leave_samples(kept(run, tmp_path / "run"))
    assert [file.name for file in files] == ["cost.png", "prior.png", "reconstructions.png"]


def test_without_matplotlib_training_ends_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], plain: None
) -> None:
    run = kept(autoencoder(), tmp_path / "run")
    leave(run, allow_import=False, quiet=False)
    assert capsys.readouterr().out == f"{plots.MISSING_EXTRA}\n"
    leave(run, allow_import=False, quiet=True)
    assert capsys.readouterr().out == ""


def test_a_run_that_is_over_does_not_fail_by_its_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = kept(letters(tmp_path / "text.txt", "to be or not to be. " * 30), tmp_path / "run")
    del run.weights["readout.0.bias"]
    leave(run, allow_import=False, quiet=False)
    said = capsys.readouterr().out
    assert said.startswith("No pictures of the run: weights of layer readout.0: bias is missing")


def test_training_leaves_pictures_in_its_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real processes: the images of Seo's recurrent network with their predicted classes."""
    pytest.importorskip("matplotlib")
    small = ["--set", "run.epochs=2", "--set", "data.examples=10", "--set", "run.split=[2]"]
    out = tmp_path / "run"
    assert main(["train", str(LAUNCH / "decoupled-rnn.toml"), *small, "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith("To look at: cost.png, predictions.png\n")
    for name in ("cost.png", "predictions.png"):
        assert (out / name).read_bytes().startswith(PNG)
