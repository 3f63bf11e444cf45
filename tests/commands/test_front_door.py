"""The command line before it works: what it answers at once, how it is called, and what its flags mean."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import paddlevit
from paddlevit.__main__ import COMMANDS
from paddlevit.__main__ import main as paddlevit_command
from paddlevit.commands import benchmark, export_model, train
from paddlevit.commands.models import figures
from paddlevit.commands.parser import Parser
from paddlevit.config import get_config

ROOT = Path(__file__).resolve().parents[2]
TOOLS = [*((f"tools/{path.name}",) for path in sorted((ROOT / "tools").glob("*.py")))]
PROGRAMS = [*TOOLS, *(("paddlevit/__main__.py", name) for name in COMMANDS)]
# Runs a program as if it were called by itself, once with each of the flags, and says what that took up to there.
RUN = """
import contextlib, io, json, runpy, sys, time
program, *words = sys.argv[1:]
for flags in (["-h"], ["--version"], ["-bach_size", "3"]):
    sys.argv, code, out, err = [program, *words, *flags], 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
    heavy = sorted({"paddle", "numpy", "PIL"} & set(sys.modules))
    print(json.dumps([code, out.getvalue().rstrip(), err.getvalue(), time.process_time(), heavy]))
"""


def python(code, **options):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, **options
    )


@pytest.mark.parametrize("words", PROGRAMS, ids=" ".join)
def test_help_version_and_a_typo_do_not_wait_for_paddle(words):
    command = [sys.executable, "-c", RUN, *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    helped, version, typo = map(json.loads, result.stdout.splitlines())
    code, out, _, seconds, heavy = helped
    assert (code, heavy) == (0, []) and "usage:" in out
    assert seconds < 0.3
    flags = re.findall(r"^  (-.*?)(?:  |$)", out, re.M)
    assert len({flag.split()[0] for flag in flags}) == len(flags) and "--" not in out, "each flag once"
    code, out, _, before, heavy = version
    assert (code, out, heavy) == (0, f"paddlevit {paddlevit.__version__}", [])
    code, _, err, seconds, heavy = typo
    assert code == 2 and "paddle" not in heavy and err.startswith("error: ")
    assert seconds - before < 0.3


def test_the_command_lists_its_commands_and_names_the_nearest(capsys):
    assert paddlevit_command([]) == 0
    listed = re.findall(r"^  (\w+) ", capsys.readouterr().out, re.M)
    assert listed == list(COMMANDS)
    assert paddlevit_command(["trian", "-cfg", "pit_digits"]) == 2
    assert capsys.readouterr().err == "error: there is no command 'trian'; did you mean train?\n"


def test_the_command_is_the_files_own_package_from_any_folder(tmp_path):
    """Also where another paddlevit is installed, or lies in the folder: the launcher's processes are one program."""
    (tmp_path / "paddlevit").mkdir()
    (tmp_path / "paddlevit" / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    for command in (["paddlevit/__main__.py", "models", "pit_ti_224"], ["tools/count_flops.py", "-version"]):
        words = [sys.executable, ROOT / command[0], *command[1:]]
        env = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
        result = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def test_paths_may_begin_at_home(monkeypatch):
    """Shells expand ~/ at the beginning of a word only."""
    monkeypatch.setenv("HOME", "/home/me")
    parser = Parser()
    parser.flag("output")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    args = parser.parse_args(["-output=~/run", "~/a.jpg", "b~/c.jpg"])
    assert (args.output, args.images) == ("/home/me/run", ["/home/me/a.jpg", "b~/c.jpg"])
    assert parser.parse_args(["a", "-output", "~/run"]).output == "/home/me/run"
    assert parser.parse_args(["a", "-output", "~"]).output == "~", "no value, in a configuration"


def test_models_shows_the_figures_of_the_readme(capsys):
    assert paddlevit_command(["models"]) == 0
    shown = dict(re.findall(r"^(\S+) +(.*?) *$", capsys.readouterr().out, re.M))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w-]*)` \| (\d{3} \| .*) \| [^|]* \|$", readme, re.M))
    assert len(rows) > 20
    for name, row in rows.items():
        assert figures(name) == tuple(row.split(" | "))
        assert shown[name].split() == " ".join(figures(name)).split()
    assert paddlevit_command(["models", "pit_t?_224"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert paddlevit_command(["models", "resnet*"]) == 2


def configured(*words, command="train", cfg="pit_ti_224"):
    args = train.parse_args(["-cfg", cfg, *map(str, words)], command)
    return train._configure(args, distill=command == "distill")


def test_flags_for_what_everybody_changes():
    flags = ["-epochs", 3, "-lr", "1e-3", "-warmup_epochs", 0.5, "-weight_decay", 0.1, "-freeze", "patch*", "blocks.0*"]
    key = configured(*flags).TRAIN
    assert (key.NUM_EPOCHS, key.BASE_LR, key.WARMUP_EPOCHS, key.WEIGHT_DECAY) == (3, 1e-3, 0.5, 0.1)
    assert key.FREEZE == ["patch*", "blocks.0*"]
    assert configured("-epochs", 3, "-opts", "TRAIN.NUM_EPOCHS", 4).TRAIN.NUM_EPOCHS == 4


def test_mistakes_with_flags_name_the_flag():
    with pytest.raises(ValueError, match="^-drop_path must be >= 0 and < 1, got 1.5$"):
        configured("-drop_path", 1.5)
    for words in (("--config", "pit_s_224"), ("-cfg", "pit_s_224")):
        with pytest.raises(ValueError, match="^-cfg is given twice, as pit_ti_224 and as pit_s_224$"):
            configured(*words)
    assert configured("--config", "pit_ti_224").MODEL.NAME == "pit_ti_224"
    with pytest.raises(ValueError, match="-cfg FILE is missing: .* or a resumed run's config.yaml"):
        train.parse_args(["-resume", "output/run"])


@pytest.mark.parametrize("words", [["-h"], ["benchmark", "-h"], ["compare", "-h"]])
def test_help_ends_with_examples(words, capsys):
    with contextlib.suppress(SystemExit):  # argparse's own help
        assert paddlevit_command(words) == 0
    assert re.search(r"\nexamples:\n +paddlevit \w+ .*\n +paddlevit", capsys.readouterr().out)


@pytest.mark.parametrize("command", ["flops", "convert", "benchmark model"])
def test_a_flag_that_is_needed_has_no_default(command, capsys):
    with contextlib.suppress(SystemExit):
        paddlevit_command([*command.split(), "-h"])
    said = " ".join(capsys.readouterr().out.split())
    assert "-cfg PATH yaml file, or a variant such as pit_ti_224 -" in said


def test_drop_path_is_the_familys_own_key():
    def rate(cfg, *opts):
        return configured("-drop_path", 0.3, "-opts", *opts, cfg=cfg).MODEL

    assert rate("pit_ti_224").DROPPATH == rate("hvt_ti_1_patch16_224").DROPPATH == 0.3
    assert rate("cvt-13-224x224").DROP_PATH_RATE == [0.0, 0.0, 0.3]
    assert rate("hrt_tiny").HRT.DROP_PATH_RATE == 0.3
    assert rate("pit_ti_224", "MODEL.DROPPATH", 0.2).DROPPATH == 0.2
    with pytest.raises(ValueError, match="-drop_path 0.3: regnet has no stochastic depth"):
        rate("regnety_160")


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--data-path=a-b/c_d"], "DATA.DATA_PATH", "a-b/c_d"),
        (["--batch-size", 4, "-num-workers=-1"], "DATA.BATCH_SIZE", 4),
        (["--data-set", "IMNET"], "DATA.DATASET", "imagenet2012"),
        (["-dataset", "folder"], "DATA.DATASET", "imagenet2012"),
        (["-dataset", "cifar10"], "DATA.DATASET", "cifar10"),
        (["--eval", "--resume", "a.pth"], "MODEL.PRETRAINED", "a.pth"),
        (["--resume", "a"], "MODEL.RESUME", "a"),
    ],
)
def test_other_spellings(words, key, value):
    assert f"\n{key.rsplit('.')[-1]}: {value}\n" in "\n" + configured(*words)[key.split(".")[0]].dump()


def test_the_json_of_official_hvt_with_its_flag_for_cifar(caplog):
    config = configured("--data-set", "CIFAR", cfg="config/hvt-ti-1.json")
    assert (config.MODEL.NAME, config.DATA.DATASET) == ("hvt_ti_1_cifar100", "cifar100")
    assert "taking the variant hvt_ti_1_cifar100" in caplog.text
    assert configured("--data-set", "IMNET", cfg="config/hvt-ti-1.json").MODEL.NAME == "hvt_ti_1_patch16_224"
    assert configured("--data-set", "CIFAR", cfg="pit_ti_224").MODEL.NAME == "pit_ti_224"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-ngpus", "2"], "there is no flag -ngpus; did you mean -nprocs?"),
        (["--nproc_per_node=2"], "did you mean -nprocs?"),
        (["-gpus", "2"], "did you mean -nprocs?"),
        (["-bach_size", "2"], "did you mean -batch_size?"),
        (["-epoch", "2"], "did you mean -epochs?"),
        (["-ecphs", "2"], "did you mean -epochs?"),  # nearer to a flag than to any key
        (["-seed=1", "-see", "2"], "did you mean -seed?"),
        (["-hangtimeout", "2"], "did you mean -hang_timeout?"),
        (["--model", "pit_ti"], "did you mean -cfg?"),
        (["-num_epochs", "2"], "did you mean -epochs?"),
        (["-TRAIN.NUM_EPOCHS", "2"], "did you mean -epochs?"),
        (["-mixup", "0"], "did you mean -opts TRAIN.MIXUP_ALPHA VALUE?"),
        (["--clip-grad", "1"], "did you mean -opts TRAIN.GRAD_CLIP VALUE?"),
        (["-ema", "1"], "did you mean -opts TRAIN.MODEL_EMA VALUE?"),
        (["-crop_pct", "1"], "did you mean -opts DATA.CROP_PCT VALUE?"),
        (["-reprob", "0"], "did you mean -opts TRAIN.RANDOM_ERASE_PROB VALUE?"),
        (["-optimizer", "sgd"], "did you mean -opts TRAIN.OPTIMIZER.NAME VALUE?"),
        (["-print_freq", "9"], "did you mean -opts REPORT_FREQ VALUE?"),
        (["-mixup_alpha", "0"], "did you mean -opts TRAIN.MIXUP_ALPHA VALUE?"),
        (["-warmup_start_lr", "0"], "did you mean -opts TRAIN.WARMUP_START_LR VALUE?"),
        (["-qqq"], "there is no flag -qqq (-h lists the flags)"),
        (["-epochs", "many"], "-epochs must be an integer, got 'many'"),
        (["-lr", "-1e-3"], "-lr: TRAIN.BASE_LR must be >= 0, got -0.001"),
        (["-lr", "high"], "-lr must be a number, got 'high'"),
        (["-eval", "-resume", "auto"], "-resume auto is for training; name the weights with -pretrained FILE"),
        (["-eval", "-resume", "a", "-pretrained", "b"], "name the weights once, got -pretrained b and -resume a"),
        (["-drop_path", "2"], "-drop_path must be >= 0 and < 1, got 2.0"),
    ],
)
def test_mistakes_name_what_is_meant(words, said, capsys):
    assert train.main(["-cfg", "pit_digits", *words]) == 2
    assert said in capsys.readouterr().err


def test_a_flag_of_another_command_is_not_what_is_meant(capsys):
    assert benchmark.main(["data", "-cfg", "pit_digits", "-batch_size", "4"]) == 2
    assert "no flag -batch_size; did you mean -opts DATA.BATCH_SIZE VALUE?" in capsys.readouterr().err
    assert export_model.main(["-tta", "flip"]) == 2, "which -opts would not take either"
    assert "there is no flag -tta (-h lists the flags)" in capsys.readouterr().err


def test_the_teacher_lies_in_the_folder_or_the_error_fetches_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=r"there is no ./regnety_160.pdparams: .*\n  curl -L -o regnety_160.pdparams http"
    ):
        configured(command="distill", cfg="pit_ti_distilled_224")
    (tmp_path / "regnety_160.pdparams").touch()
    assert configured(command="distill").TRAIN.TEACHER_MODEL_PATH == "./regnety_160.pdparams"
    with pytest.raises(ValueError, match="there is no ./regnet_digits.pdparams: name the teacher's weights") as error:
        configured("-teacher", "regnet_digits", command="distill")
    assert "curl" not in str(error.value)
    assert configured("-teacher_model_path", "own", command="distill").TRAIN.TEACHER_MODEL_PATH == "own"
    assert configured("-eval", command="distill", cfg="pit_ti_distilled_224").TRAIN.TEACHER_MODEL_PATH == ""


def test_the_processes_are_started_as_this_program_was():
    words = train._again(["distill", "-seed", "3"], get_config("pit_digits"))(False)
    assert words[1:] == [str(ROOT / "paddlevit" / "__main__.py"), "distill", "-seed", "3"]


def test_paddle_is_imported_when_it_is_needed_and_after_its_flags_are_set():
    result = python("""
import os, sys
os.environ.pop("FLAGS_use_stride_kernel", None)
import paddlevit
assert not {"paddle", "numpy"} & set(sys.modules)
assert os.environ["FLAGS_use_stride_kernel"] == "0"
assert paddlevit.build_model.__module__ == "paddlevit.models"
import paddle
assert not paddle.get_flags("FLAGS_use_stride_kernel")["FLAGS_use_stride_kernel"]
assert paddlevit.weights.load_weights and paddlevit.config.get_config("pit_ti_224")
""")
    assert (result.returncode, result.stderr) == (0, "")


def test_names_of_the_package():
    assert dir(paddlevit) == ["Classifier", "__version__", "build_model", "list_models", "train"]
    assert "pit_ti_224" in paddlevit.list_models("pit_*")
    with pytest.raises(AttributeError, match="has no attribute 'biuld_model'"):
        _ = paddlevit.biuld_model


@pytest.mark.parametrize(
    "code",
    ["import paddlevit; paddlevit.build_model", "from paddlevit.__main__ import main; main(['flops', '-cfg=x'])"],
)
def test_without_paddle_both_ways_to_install_it_are_named(code):
    result = python("import sys; sys.modules['paddle'] = None\n" + code)
    assert "pip install 'paddlepaddle>=3.0'" in result.stderr
    assert "paddlepaddle-gpu" in result.stderr


def test_importing_leaves_no_more_than_environment_variables():
    result = python("""
import ctypes, os, sys, warnings
filters, environment = warnings.filters[:], dict(os.environ)
class Refuse:
    def __getattr__(self, name):
        raise AssertionError(name)
ctypes.CDLL = lambda name: Refuse()
import paddlevit
assert warnings.filters == filters
print(sorted(set(os.environ) - set(environment)))
""")
    assert set(eval(result.stdout)) <= {"FLAGS_use_stride_kernel", "MKL_DEBUG_CPU_TYPE"}, result.stderr
