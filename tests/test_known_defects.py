"""Defects of PaddleViT and traps of Paddle that users have met, and the tests that would catch each of them here.

What PaddleViT's recipes differ in stands in docs/recipes.md, Paddle's traps in CONTRIBUTING.md.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from paddlevit.config import get_config, variant_names

ROOT = Path(__file__).resolve().parents[1]
HERE, OTHER = "test_known_defects.py::", "test_defects_of_others.py::"

# fmt: off
CAUGHT_BY = {
    # Defects of PaddleViT's training of PiT, HVT and CvT
    "weight decay excludes nothing, or by whole names only": [
        "test_optim.py::test_decay_reaches_what_it_should_and_nothing_else",
        "test_recipes.py::test_who_does_not_decay"],
    "soft distillation has no gradient": ["test_objectives.py::test_soft_distillation_and_its_gradient"],
    "EMA begins before the given weights are loaded": [OTHER + "test_the_average_starts_from_the_given_weights"],
    "EMA follows every batch, though several make a step": [
        "test_engine.py::test_ema_follows_every_optimizer_step_and_warms_up"],
    "EMA on one process, or on the CPU": [
        "test_cli.py::test_two_processes_train_evaluate_and_agree",
        "test_nonfinite.py::test_no_step_waits_for_the_device"],
    "EMA is saved and never evaluated": ["test_cli.py::test_metrics_say_what_happened"],
    "first and last learning rate are scaled too": [
        "test_optim.py::test_linear_scaling_and_which_rates_it_reaches",
        "test_recipes.py::test_learning_rate_of_every_epoch"],
    "learning rate forgets accumulation or processes": [
        OTHER + "test_the_rate_follows_all_images_of_an_optimizer_step"],
    "mixup knows 1000 classes only; no flag for others": [
        "data_room/test_mixup.py::TestBuild::test_keys_are_passed_on",
        "data_room/test_mixup.py::TestTargets::test_any_number_of_classes_and_images",
        "test_cli.py::test_a_mistake_ends_with_a_message_and_code_2"],
    "odd batch, and the rest at the end of an epoch": [
        "data_room/test_mixup.py::TestMixup::test_images_and_targets_are_blended_alike",
        "data_room/test_samplers.py::test_a_step_has_the_same_samples_for_every_number_of_processes"],
    "schedule by epochs that begins one epoch late": [
        "test_recipes.py::test_learning_rate_of_every_epoch", "test_optim.py::test_schedule_of_the_official_recipes"],
    "evaluation counts padding, and takes means of means": [
        "test_parallel.py::test_evaluation_is_the_same_on_any_number_of_processes_and_with_any_batch_size",
        "data_room/test_samplers.py::test_evaluation_takes_every_image_once",
        "test_engine.py::test_evaluation_is_exact_whatever_the_batch_size"],
    "the host waits in every step; targets by a Python loop": [
        "test_nonfinite.py::test_no_step_waits_for_the_device", OTHER + "test_no_part_of_a_step_waits_for_the_device"],
    "three sums over all processes in every step": [OTHER + "test_processes_seldom_ask_each_other"],
    "one worker": ["data_room/test_loader.py::test_number_of_workers"],
    "workers without a switch for shared memory": [
        "data_room/test_loader.py::test_room_in_shared_memory",
        "data_room/test_stream.py::test_mistakes_of_the_program_keep_their_traceback"],
    "workers are started anew for every epoch": [OTHER + "test_workers_stay_over_epochs"],
    "workers without seeds": ["data_room/test_loader.py::test_training_batches_depend_on_seed_epoch_and_step_alone"],
    "needs a GPU; no launcher, no second machine": [
        "test_cli.py::test_two_processes_train_evaluate_and_agree",
        "test_several_processes.py::test_two_machines_stop_and_go_on_together",
        OTHER + "test_a_process_takes_the_gpu_of_its_machine"],
    "gradients are summed for every batch of a group": [OTHER + "test_processes_meet_once_per_optimizer_step"],
    "weights that do not fit are left out in silence": [
        "weights/test_load.py::test_errors_list_ten_names_with_shapes_and_the_number_of_the_rest",
        "weights/test_load.py::test_a_refused_file_leaves_the_network_as_it_was",
        HERE + "test_what_the_package_does_without"],
    "evaluation with a checkpoint crashes": [
        "test_cli.py::test_evaluation_of_best_gives_the_last_line_digit_for_digit",
        OTHER + "test_evaluation_does_not_resume"],
    "resuming needs an EMA in the file": [OTHER + "test_the_average_of_a_run_that_had_none"],
    "resuming forgets random numbers, EMA or optimizer": [
        "test_engine.py::test_a_stopped_and_restored_trainer_goes_on_bit_for_bit",
        "test_cli.py::test_killed_in_the_middle_of_an_epoch_and_resumed_bit_for_bit"],
    "resuming forgets the best": [
        OTHER + "test_a_resumed_run_knows_its_best",
        "test_cli.py::test_the_best_weights_are_not_forgotten_by_a_stop"],
    "the newest checkpoint cannot be found": [
        "test_checkpoint.py::test_newest_counts_epochs_and_steps_and_old_ones_go"],
    "distillation wants a student with two heads": ["test_objectives.py::test_hard_distillation"],
    "smoothing is not the configured one": [
        "data_room/test_mixup.py::TestBuild::test_keys_are_passed_on", OTHER + "test_smoothing_without_mixing"],
    "the log tells another learning rate": [OTHER + "test_the_rate_follows_all_images_of_an_optimizer_step"],
    "documented commands that cannot work, stray files": [
        "test_docs.py::test_command", "test_docs.py::test_scripts_have_defaults_and_pass_flags_on",
        "test_house.py::test_every_shipped_yaml_loads"],
    "HVT: all blocks have the same stochastic depth": [
        "test_pit_hvt.py::test_drop_path_schedules_are_the_official_ones"],
    "HVT: no bias of q, k and v is a bias all the same": [OTHER + "test_no_bias_where_none_is_asked_for"],
    "CvT: a batch of one image": ["test_cvt.py::test_any_size_and_batch_of_one"],
    "CvT: loading is made of calls that PyTorch has": [
        "weights/test_load.py::test_files_by_every_reader", "test_house.py::test_imports_point_down"],
    "PiT: starts as Paddle's layers do": ["test_pit_hvt.py::test_initialisation_of_pit_is_torchs_default"],
    "no repeated augmentation": [
        "data_room/test_samplers.py::test_train_order", "test_recipes.py::test_values",
        "data_room/test_samplers.py::test_copies_of_an_image_go_to_different_processes"],
    "RandAugment moves by pixels and fills with grey": [
        "data_room/test_augment.py::TestOperations::test_every_operation_at_every_level",
        "data_room/test_augment.py::test_the_fill_is_the_mean_colour",
        "data_room/test_augment.py::test_build_passes_the_keys_on"],
    "no DataParallel (its issue 94)": [
        OTHER + "test_several_processes_train_one_network", "test_parallel.py::test_two_processes_are_one"],
    "-amp has no effect (its pull request 101)": [OTHER + "test_amp_reaches_training_and_evaluation"],
    # What its recipes differ in
    "HVT: rates 24 and 400 times too high; decay 12 times": [
        "test_recipes.py::test_learning_rate_of_every_epoch", "test_recipes.py::test_values"],
    "HVT: 13 blocks between two poolings": [
        OTHER + "test_hvt_with_one_pooling_has_it_before_all_twelve_blocks"],
    "CvT: last and first rate times 8; PiT: last rate 0": ["test_recipes.py::test_learning_rate_of_every_epoch"],
    "CvT at 384: evaluation cuts the sides off": [
        "test_recipes.py::test_values", "data_room/test_transforms.py::TestEvaluation::test_squash",
        "data_room/test_transforms.py::TestBuild::test_what_the_keys_ask_for"],
    "CvT-21: RandAugment, no repeated augmentation": ["test_recipes.py::test_values"],
    "the cosine begins after the warm-up": ["test_recipes.py::test_epochs_0_1_2_5_100_299_in_figures"],
    "HRFormer without clipping": ["test_recipes.py::test_values"],
    # Traps of Paddle
    "optimizer state goes by Tensor.name": [
        "test_optim.py::test_state_goes_by_parameter_names_whatever_was_built_before",
        "test_optim.py::test_state_of_another_network_is_refused"],
    "clipping by groups of parameters": [
        "test_engine.py::test_gradients_are_clipped_by_one_norm_over_all_parameters",
        HERE + "test_what_the_package_does_without"],
    "NumPy 2.4 makes no number of a tensor with axes": [OTHER + "test_numbers_are_not_made_of_arrays"],
    "kl_div takes probabilities for logarithms": [
        "test_objectives.py::test_soft_distillation_and_its_gradient", HERE + "test_what_the_package_does_without"],
    "the decay filter is asked with Tensor.name": [
        "test_optim.py::test_decay_reaches_what_it_should_and_nothing_else",
        "test_optim.py::test_a_layers_learning_rate_reaches_update_and_decay"],
    "set_state_dict only warns, and refuses other types": [
        HERE + "test_what_the_package_does_without",
        "weights/test_load.py::test_values_are_cast_to_the_parameters_dtype"],
    "square weights load transposed": [
        "weights/test_convert.py::test_square_weights_alone_do_not_say_who_wrote_them",
        "weights/test_convert.py::test_linear_weights_are_transposed_by_layer_not_by_rank"],
    "DistributedBatchSampler pads and ignores the seed": [
        "data_room/test_samplers.py::test_train_order_differs_between_epochs_and_seeds",
        "data_room/test_samplers.py::test_going_on_within_an_epoch", HERE + "test_what_the_package_does_without"],
    "workers draw the same in every epoch or process": [
        "data_room/test_loader.py::test_training_batches_depend_on_seed_epoch_and_step_alone",
        "data_room/test_loader.py::test_processes_share_a_step", OTHER + "test_an_image_is_augmented_anew_every_time",
        OTHER + "test_processes_epochs_and_steps_draw_different_numbers"],
    "AMP does nothing on a CPU, in silence": [
        OTHER + "test_amp_reaches_training_and_evaluation", "test_gradients.py::test_dynamic_scaling_cancels_out"],
    "DataParallel and parameters without a gradient": [
        "test_golden_training.py::test_golden_training_run", "test_parallel.py::test_two_processes_are_one"],
    "DataParallel and PyLayer": ["test_parallel.py::test_two_processes_are_one"],
    "paddle.flops leaves out attention": [
        "test_flops.py::test_attention_products_are_counted", "test_flops.py::test_published_networks",
        HERE + "test_what_the_package_does_without"],
    "paddle2onnx installs packages while it runs": [HERE + "test_what_the_package_does_without"],
    "the CPU's Paddle replaces the GPU's; VisualDL wants 30 packages": [
        HERE + "test_what_is_installed", "test_docs.py::test_importing_without_paddle_names_both_ways_to_install_it"],
    "Paddle's layers start differently from PyTorch's": [
        "test_layers.py::test_default_of_torch", "test_hrformer.py::test_initialisation_is_torchs_default",
        "test_cvt.py::test_initialisation_is_the_official_one", "test_regnet.py::test_initialisation",
        "test_pit_hvt.py::test_initialisation_of_hvt_is_truncated_normal"],
    "paddle.load runs what a file says": [
        "weights/test_safety.py::test_code_in_a_file_is_refused_by_name_and_does_not_run",
        "test_checkpoint.py::test_a_pickle_in_a_state_file_is_not_run",
        "data_room/test_cifar.py::test_nothing_is_executed", HERE + "test_what_the_package_does_without"],
    "pickles of other protocols than 4": [
        OTHER + "test_weights_are_written_by_protocol_4", "weights/test_readers.py::test_files_of_paddle_save"],
    "async_save exchanges tensors under our hands": [HERE + "test_what_the_package_does_without"],
    "the loss scale is taken off more than once": [
        OTHER + "test_the_loss_scale_is_taken_off_once_per_optimizer_step",
        "test_nonfinite.py::test_a_bad_batch_spoils_the_whole_group_that_it_is_accumulated_with"],
    "O2: average, masters, gradients, losses in half precision": [
        OTHER + "test_half_precision_leaves_average_and_losses_alone"],
    "fused attention takes no scale; HRFormer's bias may get no gradient there": [
        OTHER + "test_fused_attention_is_the_plain_one", HERE + "test_hrformer_uses_no_fused_attention",
        "test_golden_training.py::test_golden_training_run"],
    "spawn; local_rank counts over all machines": [
        OTHER + "test_a_process_takes_the_gpu_of_its_machine", HERE + "test_what_the_package_does_without"],
    "/dev/shm is too small": ["data_room/test_loader.py::test_room_in_shared_memory"],
    "to_static may be slower": [HERE + "test_what_the_package_does_without"],
    "not the same bits again": [
        "test_cli.py::test_killed_in_the_middle_of_an_epoch_and_resumed_bit_for_bit",
        "test_engine.py::test_another_seed_draws_other_dropout"],
}
# fmt: on


def exists(name):
    file, *path = name.split("::")
    scope = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8")).body
    for part in path:
        found = next((node for node in scope if getattr(node, "name", None) == part), None)
        if found is None:
            return False
        scope = found.body
    return isinstance(found, ast.FunctionDef) and found.name.startswith("test_")


def test_every_defect_has_tests_that_exist():
    assert all(CAUGHT_BY.values())
    assert [name for names in CAUGHT_BY.values() for name in names if not exists(name)] == []
    assert not exists("test_optim.py::test_nothing") and not exists("test_optim.py::LAYERS")


# Patterns of expressions that never occur in the package, and one expression of each kind.
NEVER = {
    r"(.*\.)?(kl_div|KLDivLoss)": "F.kl_div(x, y)",
    r"(.*\.)?ClipGradBy\w+": "nn.ClipGradByGlobalNorm(5.0)",
    r"(?!optimizer\.).*\.set_state_dict": "model.set_state_dict(state)",
    r"(.*\.)?DistributedBatchSampler": "DistributedBatchSampler(data, 4)",
    r"paddle\.flops": "paddle.flops(model, [1, 3, 8, 8])",
    r"paddle2onnx\.export\((?!.*optimize_tool).*|.*polygraphy.*": "paddle2onnx.export(model, file)",
    r"(paddle|pickle|torch)\.loads?": "paddle.load(path)",
    r"(np|numpy)\.load\((?!.*allow_pickle=False).*": "np.load(path)",
    r"(.*\.)?async_save": "paddle.async_save(state, path)",
    r"(.*\.)?(spawn|local_rank)": "dist.spawn(train)",
    r".*\.squeeze\(\)|paddle\.squeeze\([^,]*\)": "x.squeeze()",
}
# The tools measure the first; the second is there to export, and in training where a key asks for it.
ONLY_IN = {
    r"(.*\.)?GradScaler": ("paddle.amp.GradScaler()", "commands/.*"),
    r"(.*\.)?to_static": ("paddle.jit.to_static(model)", "commands/.*|export/.*|run/build.py"),
}


def expressions(code):
    """Names, attributes and calls in a piece of Python, as text."""
    tree = ast.parse(code)
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Name, ast.Attribute, ast.Call))}


@pytest.fixture(scope="module")
def package():
    """The expressions of every file."""
    root = ROOT / "paddlevit"
    return {str(path.relative_to(root)): expressions(path.read_text("utf-8")) for path in root.rglob("*.py")}


@pytest.mark.parametrize("pattern", [*NEVER, *ONLY_IN], ids=lambda text: text[-20:])
def test_what_the_package_does_without(package, pattern):
    example, allowed = ONLY_IN.get(pattern) or (NEVER[pattern], "")
    assert any(re.fullmatch(pattern, text, re.S) for text in expressions(example))
    for name, found in package.items():
        if not re.fullmatch(allowed, name):
            assert not [text for text in found if re.fullmatch(pattern, text, re.S)], name


def test_training_is_eager_unless_a_key_asks_for_a_static_program():
    assert not any(get_config(name).TRAIN.TO_STATIC for name in variant_names())


def test_hrformer_uses_no_fused_attention(package):
    assert any("softmax" in text for text in package["hrformer/block.py"])
    assert not [text for text in package["hrformer/block.py"] if re.search("flash|scaled_dot", text)]


def test_what_is_installed():
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    (required,) = (node.value for node in ast.walk(tree) if getattr(node, "arg", None) == "install_requires")
    names = {re.match(r"[\w-]+", item).group() for item in ast.literal_eval(required)}
    assert not names & {"paddlepaddle", "paddlepaddle-gpu", "visualdl", "tensorboardX", "paddle2onnx"}
