"""The commands in the READMEs of PaddleViT's HVT, CvT and PiT, of official HVT, and of HRFormer, as people type them.

They are rewritten only where tools/ or run_scripts/ stands in front, and torch.distributed.launch main.py is
main_multi_gpu.py -nprocs. What `tiny` adds makes models, images and runs small; data and weights are made up.
"""

from __future__ import annotations

import json
import pickle
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import paddle
import pytest
from PIL import Image
from tiny import what_a_script_runs

from paddlevit.config import get_config
from paddlevit.models import build_model

ROOT = Path(__file__).resolve().parents[2]
PADDLEVIT = """CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6,7 \\
python {tool}.py \\
-cfg='./configs/{cfg}.yaml' \\
-dataset='imagenet2012' \\
-batch_size={batch_size} \\
-data_path='/dataset/imagenet' \\
{more}-amp
"""
EVAL = "-eval \\\n-pretrained='./{}.pdparams' \\\n"


def paddlevit(cfg, tool="main_multi_gpu", batch_size=256, pretrained=None, finetune=None):
    more = EVAL.format(pretrained) if pretrained else f"-pretrained='./{finetune}.pdparams' \\\n" if finetune else ""
    return PADDLEVIT.format(tool=tool, cfg=cfg, batch_size=batch_size, more=more)


COMMANDS = {
    "PaddleViT HVT, evaluate": paddlevit("hvt_s0_patch16_224", pretrained="hvt_s0_patch16_224"),
    "PaddleViT HVT, train": paddlevit("hvt_s0_patch16_224"),
    "PaddleViT HVT, first README": "python main_single_gpu.py -cfg='./configs/hvt_s2_patch16_224.yaml' "
    "-dataset='imagenet2012' -batch_size=16 -data_path='/dataset/imagenet' -eval -pretrained='./hvt_s2_patch16_224'",
    "PaddleViT CvT, evaluate": paddlevit("cvt-13-224x224", pretrained="cvt-13-224x224"),
    "PaddleViT CvT, train": paddlevit("cvt-13-224x224"),
    "PaddleViT PiT, evaluate": paddlevit("pit_b_224", pretrained="pit_b_224"),
    "PaddleViT PiT, distil": paddlevit("pit_b_distilled_224", "main_multi_gpu_distill"),
    "PaddleViT PiT, fine-tune": paddlevit(
        "pit_b_distilled_384", "main_multi_gpu_distill", batch_size=16, finetune="pit_b_distilled_224"
    ),
    "PaddleViT PiT, first README": "python main_single_gpu.py -cfg='./configs/pit_ti.yaml' -dataset='imagenet2012' "
    "-batch_size=16 -data_path='/dataset/imagenet' -eval -pretrained='./pit_ti'",
    "PaddleViT, evaluation script": "sh run_eval_multi.sh",
    "PaddleViT, training script": "sh run_train_multi.sh",
    "PaddleViT PiT, distillation script": "sh run_train_multi_distill.sh",
    "HVT, train": "python main_multi_gpu.py -nprocs 8 --config config/hvt-ti-1.json --data-set IMNET "
    "--data-path dataset/imagenet",
    "HVT, CIFAR-100": "python main_multi_gpu.py -nprocs 8 --config config/hvt-ti-1.json --data-set CIFAR "
    "--data-path dataset/cifar-100-python",
    "HVT, evaluate": "python main_single_gpu.py --config config/hvt-s-1.json --data-set IMNET "
    "--data-path dataset/imagenet --eval --resume hvt_s_1.pth",
    "HRFormer, evaluate": "bash run_eval.sh hrt/hrt_base hrt_base.pth dataset/imagenet",
    "HRFormer, train": "bash run_dist.sh hrt/hrt_small dataset/imagenet",  # and hrt_tiny, hrt_base
    "HRFormer, count": "bash run_flops.sh hrt/hrt_tiny dataset/imagenet imagenet2012",
}
WEIGHTS = {
    "hvt_s0_patch16_224.pdparams": "hvt_s0_patch16_224",
    "hvt_s2_patch16_224.pdparams": "hvt_s2_patch16_224",
    "hvt_s_1.pth": "hvt_s1_patch16_224",  # the content decides, not the suffix
    "cvt-13-224x224.pdparams": "cvt-13-224x224",
    "pit_b_224.pdparams": "pit_b_224",
    "pit_b_distilled_224.pdparams": "pit_b_distilled_224",
    "pit_ti.pdparams": "pit_ti_224",
    "pit_ti_224.pdparams": "pit_ti_224",
    "hrt_base.pth": "hrt_base",
}
SMALLER = {  # what there is of a model's width and depth
    "hvt": ["MODEL.EMBED_DIM", "24", "MODEL.NUM_HEADS", "3", "MODEL.DEPTH", "2"],
    "cvt": ["MODEL.DIM_EMBED", "[8,12,12]", "MODEL.DEPTH", "[1,1,1]"],
    "pit": ["MODEL.BASE_DIMS", "[4,4,4]", "MODEL.DEPTH", "[1,1,1]"],
    "hrt": [
        *("MODEL.HRT.STAGE2.NUM_BLOCKS", "[1,1]", "MODEL.HRT.STAGE3.NUM_BLOCKS", "[1,1,1]"),
        *("MODEL.HRT.STAGE4.NUM_BLOCKS", "[1,1,1,1]", "MODEL.HRT.STAGE3.NUM_MODULES", "1"),
        *("MODEL.HRT.STAGE4.NUM_MODULES", "1", "MODEL.HRT.STAGE2.NUM_CHANNELS", "[16,32]"),
        *("MODEL.HRT.STAGE3.NUM_CHANNELS", "[16,32,64]", "MODEL.HRT.STAGE4.NUM_CHANNELS", "[16,32,64,128]"),
    ],
}
SIDE = "64"


def tiny(command):
    """Flags that come behind a command; the last one of a name counts."""
    family = re.search(r"hvt|cvt|hrt|$", command)[0] or "pit"
    if "flops" in command:
        return []
    data = [] if "CIFAR" in command else ["-data_path", "dataset/imagenet"]
    # One distils with two processes; what several are to a run is the matter of tests/run/.
    processes = ["-nprocs", "2" if command == COMMANDS["PaddleViT PiT, distil"] else "1", "-device", "cpu"]
    length = [] if "eval" in command else ["TRAIN.NUM_EPOCHS", "1", "TRAIN.WARMUP_EPOCHS", "0"]
    sizes = ["-batch_size", "4", "-image_size", SIDE, "-num_workers", "0", "-output", "out"]
    teacher = ["-teacher", "regnety_160.yaml"] if "distill.py" in command or "distill.sh" in command else []
    return [*data, *processes, *sizes, *teacher, "-opts", *length, *SMALLER[family]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the READMEs suppose: data sets, and weights of 1,000 classes beside where one stands."""
    folder = tmp_path_factory.mktemp("readmes")
    rng = np.random.default_rng(0)
    imagenet, cifar = folder / "dataset" / "imagenet", folder / "dataset" / "cifar-100-python"
    for split in ("train", "val"):
        (imagenet / split).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (40, 40, 3), "uint8")).save(imagenet / split / f"{i}.JPEG")
        (imagenet / f"{split}_list.txt").write_text("".join(f"{split}/{i}.JPEG {142 * i + 5}\n" for i in range(8)))
    cifar.mkdir()
    for name in ("train", "test"):
        content = {b"data": rng.integers(0, 256, (8, 3072), "uint8"), b"fine_labels": [99, *range(7)]}
        (cifar / name).write_bytes(pickle.dumps(content, protocol=2))
    names = {b"fine_label_names": [f"fine {i}".encode() for i in range(100)]}
    (cifar / "meta").write_bytes(pickle.dumps(names, protocol=2))
    (folder / "data").symlink_to("dataset")
    teacher = folder / "regnety_160.yaml"  # of the name whose weights are looked for
    teacher.write_text("MODEL: {TYPE: regnet, WIDTHS: [16, 16], DEPTHS: [1, 1], GROUP_WIDTH: 8, STEM_WIDTH: 8}\n")
    for file, name in {**WEIGHTS, "regnety_160.pdparams": teacher}.items():
        config = get_config(name, ["DATA.IMAGE_SIZE", int(SIDE), *SMALLER.get(str(name)[:3], [])])
        paddle.save(build_model(config).state_dict(), str(folder / file))
    return folder


def run(command, tmp_path, monkeypatch):
    """The exit code of `command`, and of what a script comes to, in this process, as a start is dear."""
    words = [*shlex.split(command.replace("\\\n", "")), *tiny(command)]
    if words[0] in ("sh", "bash"):
        script = ROOT / "run_scripts" / words[1]
        words = ["python", *what_a_script_runs([script, *words[2:]], tmp_path, tmp_path)]
    program = words.index("python") + 1  # behind the variables of the environment
    monkeypatch.setattr(sys, "argv", words[program:])
    monkeypatch.setattr(sys, "path", sys.path[:])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / words[program]), run_name="__main__")
    return ended.value.code


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_command(name, folder, tmp_path, monkeypatch, capfd):
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    code, (stdout, stderr) = run(COMMANDS[name], tmp_path, monkeypatch), capfd.readouterr()
    assert code == 0, stdout[-2000:] + stderr[-2000:]
    out = tmp_path / "out"
    if "count" in name:
        assert re.search(r"total +8,035,820 ", stdout)
        assert stderr == (
            "counting needs no data: dataset/imagenet imagenet2012 is not read\n"
            "warning: 'hrt/hrt_tiny' means the variant hrt_tiny\n"
        )
    elif "eval" in COMMANDS[name]:
        assert json.loads((out / "eval.json").read_text())["num_images"] == 8
    else:
        assert (out / "best.pdparams").is_file()
    if "CIFAR" in name:
        assert "hvt_ti_1_cifar100" in (out / "config.yaml").read_text()
