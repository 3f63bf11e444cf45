"""Every command, configuration and piece of Python that the documents show is parsed or run."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import paddle
import pytest
import yaml
from tiny import what_a_script_runs

from paddlevit.__main__ import COMMANDS
from paddlevit.__main__ import main as paddlevit_command
from paddlevit.commands.parser import Parser
from paddlevit.commands.train import parse_args
from paddlevit.config import get_config, update_config
from paddlevit.models import FAMILIES
from paddlevit.schema import FLAGS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*(ROOT / name for name in ("README.md", "README.zh-CN.md", "CONTRIBUTING.md", "benchmarks/README.md"))]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md"))
TRAINING_TOOLS = ("main_single_gpu.py", "main_multi_gpu.py", "main_multi_gpu_distill.py")


def blocks(language):
    for path in DOCUMENTS:
        for code in re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.S):
            yield path.name, code


def commands():
    for name, code in blocks("sh"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield pytest.param(words, id=f"{name}: {line.strip()[:70]}")


def check_training_command(words, command="train"):
    if "-cfg" not in words and "-pretrained output/" in " ".join(words):
        words = ["-cfg", "pit_photos", *words]  # which the config.yaml of the run stands for
    args = parse_args(words, command)
    config = update_config(get_config(), args)
    assert args.cfg == config.MODEL.NAME
    assert config.DATA.DATA_PATH.startswith("data/") or args.data_path is None


class Parsed(Exception):  # noqa: N818 - it says that all is well
    """Ends a tool as soon as its own parser has accepted the words."""


def parsed_words(module, words, monkeypatch):
    module = importlib.import_module(module)
    if hasattr(module, "parse_args"):  # which looks at values too
        return module.parse_args(words)
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)

        def stop(self, argv, parse=parse):
            raise Parsed(parse(self, argv))

        monkeypatch.setattr(Parser, name, stop)
    with pytest.raises(Parsed) as parsed:
        module.main(words)
    return parsed.value.args[0]


def check_other_command(module, words, monkeypatch):
    args = parsed_words(module, words, monkeypatch)
    if getattr(args, "cfg", None):
        assert args.cfg == get_config(args.cfg, getattr(args, "opts", None)).MODEL.NAME


def check_subcommand(name, words, monkeypatch):
    if COMMANDS[name][1] == "train":
        check_training_command(words, name)
    else:
        check_other_command(f"paddlevit.commands.{COMMANDS[name][1]}", words, monkeypatch)


@pytest.mark.parametrize("words", list(commands()))
def test_command(words, tmp_path, monkeypatch):
    if words[0] == "paddlevit":
        if words[1:]:
            check_subcommand(words[1], words[2:], monkeypatch)
        return
    if words[:2] == ["pip", "install"]:
        extras = re.findall(r"\[(\w+)\]", " ".join(words))
        assert all(f'"{extra}": ' in (ROOT / "setup.py").read_text() or extra == "test" for extra in extras)
        return
    if words[0] == "sh":
        assert (ROOT / words[1]).is_file()
        if words[1] in ("run_scripts/quickstart.sh", "run_scripts/test.sh"):
            return  # they install; the tests run inside the second one
        words = ["python", *what_a_script_runs(words[1:], tmp_path)]
    assert words[0] == "python", words
    if words[1:3] == ["-m", "paddle.distributed.launch"]:
        words = ["python", *words[next(i for i, word in enumerate(words) if word.endswith(".py")) :]]
    if words[1] == "-m":
        check_other_command(words[2], words[3:], monkeypatch)
        return
    tool = ROOT / words[1]
    assert tool.is_file()
    if tool.name in TRAINING_TOOLS:
        check_training_command(words[2:])
    else:
        check_other_command(f"paddlevit.commands.{tool.stem}", words[2:], monkeypatch)


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_in_the_help(name, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        paddlevit_command([name, "-h"])
    examples = re.findall(rf"^  (paddlevit {name}.*)", capsys.readouterr().out, re.M)
    assert len(examples) in (2, 3)
    for example in examples:
        check_subcommand(name, shlex.split(example)[2:], monkeypatch)


@pytest.mark.parametrize(("name", "code"), list(blocks("bash")), ids=lambda value: value[:30])
def test_shell_script(name, code):
    subprocess.run(["bash", "-n"], input=code, text=True, check=True)


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "run_scripts").glob("run_*.sh")))
@pytest.mark.parametrize("given", [(), ("pit_s_224",), ("pit_s_224", "a", "b", "c", "-seed", "3")])
def test_scripts_have_defaults_and_pass_flags_on(script, given, tmp_path):
    words = what_a_script_runs([f"run_scripts/{script}", *given], tmp_path)
    assert (ROOT / words[0]).is_file()
    if Path(words[0]).name not in TRAINING_TOOLS:
        return
    if len(given) > 1:  # as many as the script has positions; the rest are flags
        positions = 2 + ("distill" in script) + ("finetune" in script) + ("eval" in script)
        words = what_a_script_runs([f"run_scripts/{script}", *given[:positions], "-seed", "3"], tmp_path)
    args = parse_args(words[1:])
    assert args.cfg == (given[0] if given else args.cfg)
    assert get_config(args.cfg)
    assert args.eval == ("eval" in script)
    flags = what_a_script_runs([ROOT / "run_scripts" / script, *given[:1], "-seed", "3"], tmp_path, tmp_path)
    assert Path(flags[0]).is_file(), "called from any folder"
    assert (parse_args(flags[1:]).seed, parse_args(flags[1:]).cfg) == (3, args.cfg), "flags right after the cfg"
    if len(given) > 1:
        assert args.seed == 3
        data, weights = ("b", "a") if "eval" in script else ("a", None)
        assert (args.data_path, args.pretrained if args.eval else None) == (data, weights)


@pytest.mark.filterwarnings("ignore:Skip loading")  # the weights file that stands in for the published one is empty
@pytest.mark.parametrize(("name", "code"), list(blocks("python")), ids=lambda value: value[:30])
def test_python(name, code, tmp_path, monkeypatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for weights in re.findall(r"[\"']\./([\w-]+)\.pdparams", code):
        paddle.save({}, str(tmp_path / f"{weights}.pdparams"))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, name, "exec"), {})


@pytest.mark.parametrize(("name", "code"), list(blocks("py")), ids=lambda value: value[:30])
def test_python_that_needs_files_has_no_unknown_name(name, code):
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F", "-"]
    subprocess.run(command, input=code, text=True, check=True)
    imports = [node for node in ast.parse(code).body if isinstance(node, (ast.Import, ast.ImportFrom))]
    exec(compile(ast.Module(imports, []), name, "exec"), {})


@pytest.mark.parametrize(("name", "code"), list(blocks("yaml")), ids=lambda value: value[:30])
def test_configuration(name, code, tmp_path):
    content = yaml.safe_load(code)
    if {"BASE", "DATA", "MODEL", "TRAIN"} & set(content):
        (tmp_path / "own.yaml").write_text(code)
        get_config(tmp_path / "own.yaml")


def keys_of_all_families():
    configs = [get_config(None, ["MODEL.TYPE", family]) for family in FAMILIES]
    return {f"{part}.{key}" for config in configs for part in ("DATA", "MODEL", "TRAIN") for key in config[part]}


def test_every_key_and_flag_that_is_named_exists():
    keys = keys_of_all_families()
    flags = {*FLAGS, "cfg", "drop_path", "opts"}
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        if path.name == "coming-from.md":  # the first columns are theirs
            ours = [line.rstrip(" |").rsplit(" | ", 1)[-1] for line in text.splitlines() if line.startswith("|")]
            for flag in re.findall(r"`-([a-z_]+)", "\n".join(ours)):
                assert flag in flags, flag
            text = "\n".join(ours)
        named = re.findall(r"\b(?:DATA|MODEL|TRAIN)\.[A-Z_]+(?![a-zA-Z*{(])", text)
        assert [key for key in named if key not in keys] == [], path


def messages():
    """What the package may say, with … for what is filled in."""
    for path in (ROOT / "paddlevit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[-+.\d]*[sdfge]|%%", "…", node.value)


def test_messages_of_the_troubleshooting_page_are_real():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    ours, _, _ = text.partition("## Messages of PaddlePaddle")
    listed = re.findall(r"^\| `([^`]+)` \|", ours, re.M)
    said = list(messages())
    assert len(listed) > 40
    assert [message for message in listed if not any(message in text for text in said)] == []


@pytest.mark.slow
def test_the_site_builds_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    for path in tmp_path.rglob("*.html"):
        html = path.read_text(encoding="utf-8")
        assert not re.search(r"<(script|img|iframe)[^>]* src=\"?https?:|<link[^>]* href=\"?https?:", html), path
    assert "data:image/" in (tmp_path / "notebooks" / "4_look_inside.html").read_text(encoding="utf-8")
    assert 'href="notebooks/4_look_inside.html"' in (tmp_path / "notebooks.html").read_text(encoding="utf-8")
    reference = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name in ("config.get_config", "weights.load.load_weights", "training.engine.Trainer", "pit.model.PiT"):
        assert f'id="paddlevit.{name}"' in reference
    assert "The frozen configuration of a yaml file or a shipped variant." in reference


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(name):
    links = re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()] == []


def test_every_test_that_is_named_exists():
    named = {name for file in DOCUMENTS for name in re.findall(r"`(test_\w+)`", file.read_text(encoding="utf-8"))}
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    assert named and {name for name in named if f"def {name}(" not in sources} == set()


def test_the_two_readmes_say_the_same():
    """As far as can be told without reading Chinese: headings, commands, figures and links."""

    def outline(name):
        text = (ROOT / name).read_text(encoding="utf-8")
        marks = re.findall(r"^#+ |^```[^`]*^```|^\| `[^\n]*|\]\((?!README)[^)]*\)", text, re.M | re.S)
        return [re.sub(r" *#.*", "", mark) if mark.startswith("```") else mark for mark in marks]

    assert outline("README.md") == outline("README.zh-CN.md")


def test_the_page_of_keys_is_up_to_date():
    script = importlib.util.spec_from_file_location("keys", ROOT / "docs" / "keys.py")
    module = importlib.util.module_from_spec(script)
    script.loader.exec_module(module)
    assert (ROOT / "docs" / "keys.md").read_text(encoding="utf-8") == module.page(), "run python docs/keys.py"


def test_no_placeholder_is_left():
    for path in DOCUMENTS:
        found = re.search(r"TODO|FIXME|XXX|CI_TESTED|\bTABLE\b|^[A-Z][A-Z_]+$", path.read_text(encoding="utf-8"), re.M)
        assert not found, f"{path}: {found}"


def test_every_variant_is_in_the_readme():
    from paddlevit import list_models

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in list_models() if f"`{name}`" not in text] == []
