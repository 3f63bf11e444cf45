"""tools/compare_runs.py: the table in the terminal and the page, against the lines of made-up runs."""

from __future__ import annotations

import re

import pytest
from run_pages import CONFIG, Page, run_folder, train, val

from paddlevit.commands.compare_runs import main
from paddlevit.report.comparison import difference_table, result_table
from paddlevit.report.history import read_run


def config(**values):
    keys = {"BASE_LR": 0.001, **CONFIG["TRAIN"], **values}
    return {**CONFIG, "TRAIN": keys, "OUTPUT": f"out/{values}"}


def make(folder, lines, **values):
    folder.mkdir(parents=True)
    return run_folder(folder, lines, config(**values))


@pytest.fixture
def runs(tmp_path):
    """A finished run with an EMA, one that was broken off, and one that has no evaluation yet and a loss of null."""
    plain = make(
        tmp_path / "plain",
        [
            *(train(epoch, loss=3.0 - epoch, images_per_sec=1000.0 * epoch, seconds=50.0) for epoch in (1, 2, 3)),
            *(val(1, 50.0), val(1, 60.0, "ema"), val(2, 70.0), val(2, 90.0, "ema"), val(3, 80.0), val(3, 85.0, "ema")),
            val(2, 90.0, "ema", best=True),
        ],
    )
    fast = make(tmp_path / "fast", [train(1, loss=0.75), val(1, 65.5), train(2, 5, loss=0.5)], BASE_LR=0.01)
    young = make(tmp_path / "young", [train(1, 5, loss=None)], BASE_LR=0.01, NUM_EPOCHS=9, GRAD_CLIP=None)
    return [plain, fast, young]


def compare(capsys, *argv, code=0):
    assert main([str(word) for word in argv]) == code
    return capsys.readouterr()


def page_of(capsys, tmp_path, runs):
    output = tmp_path / "compare.html"
    assert f"written to {output}" in compare(capsys, *runs, "-output", output).out
    return Page(output.read_text(encoding="utf-8"))


HEAD = ["run", "model", "epochs", "best top-1", "weights", "last top-1", "macro F1", "training loss", "images/s"]
HEAD += ["training time"]
RESULTS = [
    ["plain", "pit_digits", "3 of 3", "90.00 %", "ema, epoch 2", "85.00 %", "–", "0", "2,000", "02:30"],
    ["fast", "pit_digits", "1.5 of 3", "65.50 %", "model, epoch 1", "65.50 %", "–", "0.5", "1,000", "–"],
    ["young", "pit_digits", "0.5 of 9", "–", "–", "–", "–", "–", "1,000", "–"],
]
DIFFERENCES = [
    ["key", "plain", "fast", "young"],
    ["TRAIN.BASE_LR", "0.001", "0.01", "0.01"],
    ["TRAIN.GRAD_CLIP", "–", "–", "null"],
    ["TRAIN.NUM_EPOCHS", "3", "3", "9"],
]


def test_tables_equal_the_lines(runs):
    read = [read_run(folder) for folder in runs]
    assert result_table(read) == [HEAD, *RESULTS]
    assert difference_table(read) == DIFFERENCES


def test_terminal_shows_both_tables(runs, capsys):
    told = compare(capsys, *runs)
    results, differences = told.out.rstrip("\n").split("\n\n")
    rows = [[re.split(r"  +", line) for line in text.splitlines()] for text in (results, differences)]
    assert rows == [[HEAD, *RESULTS], DIFFERENCES]
    starts = [line.index(cell) for line, cell in zip(results.splitlines(), ["best top-1", "90.00 %", "65.50 %"])]
    assert len(set(starts)) == 1 and told.err == ""


def test_page_shows_both_tables_and_every_curve(runs, capsys, tmp_path):
    page = page_of(capsys, tmp_path, runs)
    assert page.tables == [[HEAD, *RESULTS], DIFFERENCES]
    assert "3 training runs compared" in page.text and "Not finished: fast, young." in page.text
    told = [title for title in page.titles if "%" in title]
    assert told == [
        *(f"epoch {epoch}: plain {value} %" for epoch, value in ((1, "50.00"), (2, "70.00"), (3, "80.00"))),
        "epoch 1: fast 65.50 %",
        *(f"epoch {epoch}: plain {value} %" for epoch, value in ((1, "60.00"), (2, "90.00"), (3, "85.00"))),
    ]
    loss = page.source.split("<h3>Training loss</h3>")[1].split("</figure>")[0]
    assert re.findall(r"epoch [\d.]+: \w+ [\d.]+", loss) == [
        *("epoch 1: plain 2", "epoch 2: plain 1", "epoch 3: plain 0", "epoch 1: fast 0.75", "epoch 1.5: fast 0.5"),
    ]
    assert "young" not in loss, "null is no point"
    assert "nan" not in page.source.lower()
    assert not re.search("https?:", page.source) and not page.attributes("link")


def test_a_run_has_one_colour_in_the_table_and_in_all_charts(runs, capsys, tmp_path):
    page = page_of(capsys, tmp_path, runs)
    table, *charts = page.source.split("<figure")
    keys = re.findall(r'class="key (run\d)".*?<bdi>(\w+)</bdi>', table)
    assert keys == [("run1", "plain"), ("run2", "fast"), ("run3", "young")]
    for chart in charts:
        legend = re.findall(r'class="key (run\d)".*?</svg>(\w+) <b>', chart)
        assert set(legend) <= set(keys) and legend
        assert re.findall(r'<g class="curve (run\d)">', chart) == [style for style, _ in legend]
    assert all(f".run{i} " in page.source and f"--run{i}:" in page.source for i in range(1, 9))


def test_many_runs_are_told_apart(capsys, tmp_path):
    folders = [make(tmp_path / f"{i}", [train(1), val(1, 50.0)], BASE_LR=i / 8) for i in range(20)]
    rows = compare(capsys, *folders).out.split("\n\n")[1].splitlines()
    assert [row.split() for row in rows[:2]] == [["key", "TRAIN.BASE_LR"], ["0", "0.0"]], "a row per run is narrower"
    page = page_of(capsys, tmp_path, folders)
    chart = page.source.split("<figure")[1]
    styles = re.findall(r'<g class="curve ([^"]*)">', chart)
    assert len(set(styles)) == 20 and styles[8] == "run1 dashed" and styles[16] == "run1 dotted"


def test_same_names_get_the_folders_above(tmp_path, capsys):
    folders = [make(tmp_path / name / "run", [train(1)]) for name in ("a", "b")]
    told = compare(capsys, *folders).out
    assert [line.split()[0] for line in told.splitlines()[1:3]] == ["a/run", "b/run"]
    assert "The configurations are the same." in told


def test_one_run_and_the_same_one_twice(runs, capsys, tmp_path):
    told = compare(capsys, runs[0], runs[0]).out
    assert len(told.splitlines()) == 2
    page = page_of(capsys, tmp_path, runs[:1])
    assert "One training run" in page.text and len(page.tables) == 1


def test_folders_without_a_run_are_named_and_left_out(runs, capsys, tmp_path):
    (tmp_path / "evaluated").mkdir()
    told = compare(capsys, tmp_path / "evaluated", *runs, tmp_path / "none", code=2)
    errors = told.err.splitlines()
    assert [line.split("/metrics.jsonl")[0] for line in errors] == [
        f"error: {tmp_path}/{n}" for n in ("evaluated", "none")
    ]
    assert [line.split()[0] for line in told.out.splitlines()[1:4]] == ["plain", "fast", "young"]
    assert compare(capsys, tmp_path / "none", code=2).out == ""


def test_page_that_cannot_be_written(runs, capsys, tmp_path):
    assert "error: cannot write" in compare(capsys, *runs, "-output", tmp_path / "no" / "x.html", code=2).err


def test_names_and_values_are_escaped(tmp_path, capsys):
    odd = "<b>&'\""
    folders = [make(tmp_path / f"{odd}{i}", [train(1), val(1, 1.0)], OPTIMIZER=f"{odd}{i}") for i in (1, 2)]
    page = page_of(capsys, tmp_path, folders)
    assert [row[0] for row in page.tables[0][1:]] == [f"{odd}1", f"{odd}2"]
    assert ["TRAIN.OPTIMIZER", f"{odd}1", f"{odd}2"] in page.tables[1]


def test_long_values_are_cut_in_the_terminal_only(tmp_path, capsys):
    folders = [make(tmp_path / f"{i}", [train(1)], LIST=list(range(i, 60))) for i in (1, 2)]
    assert max(map(len, compare(capsys, *folders).out.splitlines())) < 150
    page = page_of(capsys, tmp_path, folders)
    assert str(list(range(1, 60))) in page.tables[1][1]
