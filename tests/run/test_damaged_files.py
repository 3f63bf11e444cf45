"""Files of a run that were cut short or overwritten are read as far as they are sound, or refused by name."""

from __future__ import annotations

import contextlib
import functools
import io
import shutil

import pytest
from tiny import image_folder

from paddlevit.commands import compare_runs, predict
from paddlevit.commands.train import main
from paddlevit.config import get_config
from paddlevit.data.prepare import write_zips
from paddlevit.data.sources import open_imagenet
from paddlevit.errors import UserError

DAMAGES = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "half a line": lambda content: content[:-3],
    "no text": lambda content: content[: len(content) // 3] + b"\xff\xfe\0\x80\n" + content[len(content) // 3 :],
}
FILES = ("config.yaml", "metrics.jsonl", "class_names.txt", "best.pdparams", "epoch_002.pdparams", "epoch_002.pdstate")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return image_folder(tmp_path_factory.mktemp("pictures"), classes=2, train=8, val=4)


def train(pictures, folder, epochs, *flags):
    args = ["-cfg", "pit_digits", "-data_path", pictures, "-output", folder, "-batch_size", 4, "-num_workers", 0]
    return main([str(arg) for arg in (*args, "-epochs", epochs, *flags, "-opts", "TRAIN.WARMUP_EPOCHS", 0)], nprocs=1)


@pytest.fixture(scope="module")
def run(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(pictures, folder, 2) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_no_damage_ends_in_a_traceback(pictures, run, tmp_path, name, damage):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    (folder / name).write_bytes(DAMAGES[damage]((folder / name).read_bytes()))
    weights, image = str(folder / "best.pdparams"), str(pictures / "val/0/0.png")
    evaluate = functools.partial(train, pictures, tmp_path / "out", 2, "-eval", "-pretrained", weights)
    for reads, command in (
        ({"config.yaml", "metrics.jsonl"}, lambda: compare_runs.main([str(folder), str(run)])),
        ({"class_names.txt", "best.pdparams"}, evaluate),
        ({"config.yaml", "class_names.txt", "best.pdparams"}, lambda: predict.main(["-pretrained", weights, image])),
        ({name} - {"config.yaml", "best.pdparams"}, lambda: train(pictures, folder, 3, "-resume", "auto")),
    ):
        errors, out = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(out):
            code = command()
        said = errors.getvalue() + out.getvalue()
        assert code == 0 or (code == 2 and str(folder / name) in said), (code, said)
        if name not in reads:
            assert code == 0, said
        elif name.startswith("epoch"):
            assert code == 0 and f"skipping a checkpoint: {folder}/epoch_002" in said, said
    assert code or (folder / "epoch_003.pdstate").exists()


def test_metrics_are_kept_as_far_as_they_are_sound(pictures, run, tmp_path, capfd):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(True)
    (folder / "metrics.jsonl").write_bytes(
        b"".join([b"\xff\xfe\n", *lines, b"[1]\n", b'{"phase": "train"}\n', lines[0][:20]])
    )
    assert train(pictures, folder, 3, "-resume", "auto") == 0
    assert f"{folder}/metrics.jsonl: dropped 4 damaged lines" in capfd.readouterr().out
    kept = (folder / "metrics.jsonl").read_bytes().splitlines(True)
    assert kept[: len(lines) - 1] == lines[:-1], "all but the closing line of the finished run"


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_folders_in_the_place_of_files(pictures, run, tmp_path, capsys, name):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / name).mkdir()
    assert compare_runs.main([str(tmp_path / "run")]) == 2
    assert f"error: {tmp_path}/run/{name} cannot be read: Is a directory" in capsys.readouterr().err
    if name == "config.yaml":
        assert train(pictures, tmp_path / "run", 3, "-resume", "auto") == 2
        assert f"error: {tmp_path}/run/{name}: Is a directory" in capsys.readouterr().err


def test_a_configuration_that_is_cut_between_two_lines_is_refused(run, tmp_path):
    whole = (run / "config.yaml").read_text()
    assert get_config(run / "config.yaml").MODEL.NUM_CLASSES == 2
    (tmp_path / "config.yaml").write_text(whole[: whole.index("MODEL:")])
    with pytest.raises(UserError, match="config.yaml is cut short: its last line, '# end', is missing"):
        get_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("path", ["../outside.png", "train/../../outside.png", "..\\outside.png"])
def test_lists_do_not_lead_out_of_their_folder(tmp_path, path):
    folder = image_folder(tmp_path / "data", classes=2, train=4)
    shutil.copy(folder / "train/0/0.png", tmp_path / "outside.png")
    (folder / "train_list.txt").write_text(f"train/0/../0/0.png 0\n{path} 1\n")
    with pytest.raises(UserError, match=r"train_list.txt, line 2: '.*outside.png' leads out of .*data"):
        open_imagenet(folder, "train")


def test_members_of_zip_files_lie_below_where_they_are_unpacked(tmp_path):
    folder = image_folder(tmp_path / "data", classes=2, train=4)
    (folder / "train_list.txt").write_text(f"{folder}/train/0/0.png 0\n{folder}/train/1/1.png 1\n")
    write_zips(folder, tmp_path / "zips", bar=lambda names, desc: names)
    source = open_imagenet(tmp_path / "zips", "train")
    assert [source.relative_path(i)[0] for i in range(2)] == [str(tmp_path)[1]] * 2
    assert source.image(1).size == (32, 32)
