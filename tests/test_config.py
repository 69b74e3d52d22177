import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_flax.config import Config
from mnist_flax.errors import UserError
from mnist_flax.presets import DEFAULTS, PRESETS
from mnist_flax.train import parse
from mnist_flax.training.run_directory import refuse_changes


def test_the_reference_is_the_original_recipe():
    config = parse(["--preset", "reference"])
    assert parse([]) == Config()
    assert (config.optimizer, config.augmentation_fade) == ("adam", 0)
    assert (config.blur, config.gamma) == (0, 0)
    assert (config.batch_size, config.max_lr, config.label_smoothing, config.clip_norm) == (124, 0.01, 0.1, 1.0)
    assert (config.rotation, config.translation, config.scale_min, config.scale_max) == (18.0, 0.1, 0.8, 1.2)
    assert DEFAULTS == {"epochs": 10, "patience": 5}


def test_a_preset_sets_defaults_that_flags_override():
    assert parse(["--preset", "reference"]) == PRESETS["reference"]
    assert (PRESETS["reference"].val_size, PRESETS["reference"].target_accuracy) == (0, 0.994)
    assert parse(["--preset=reference", "--val-size", "100"]).val_size == 100


def test_every_option_is_a_flag():
    values = {
        "preset": "reference",
        "optimizer": "adam",
        "dataset": "digits",
        "kernels": "xla",
        "workdir": "elsewhere",
        "data_dir": "there",
        "epochs": "3",
    }
    values |= {"label_smoothing": "0.2", "target_accuracy": "0.9", "scale_min": "0.5", "scale_max": "3"}
    for field in dataclasses.fields(Config):
        flag = "--" + field.name.replace("_", "-")
        arguments = [flag] if isinstance(field.default, bool) else [flag, values.get(field.name, "7e-1")]
        if isinstance(field.default, int) or field.name in {"val_size", "patience", "num_devices"}:
            arguments[1:] = arguments[1:] and ["7"]
        assert getattr(parse(arguments), field.name) != field.default, field.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs is 0; it must be at least 1"),
        (["--epochs", "x"], "--epochs: invalid int value: 'x'"),
        (["--batch-size", "0"], "--batch-size is 0"),
        (["--max-lr", "-1"], "--max-lr is -1.0; it must be a positive number"),
        (["--max-lr", "nan"], "--max-lr is nan"),
        (["--val-size", "-1"], "--val-size is -1"),
        (["--seed", "-1"], "--seed is -1"),
        (["--rotation", "181"], "--rotation is 181.0"),
        (["--translation", "2"], "--translation is 2.0"),
        (["--scale-min", "1.5"], "--scale-min is 1.5"),
        (["--label-smoothing", "1"], "--label-smoothing is 1.0"),
        (["--clip-norm", "0"], "--clip-norm is 0.0"),
        (["--patience", "-1"], "--patience is -1"),
        (["--target-accuracy", "99.4"], "--target-accuracy is 99.4; it must be a fraction, e.g. 0.994"),
        (["--num-devices", "0"], "--num-devices is 0"),
        (["--preset", "worst"], "--preset: invalid choice: 'worst'"),
        (["--epoch", "3"], "unrecognized arguments: --epoch 3"),
    ],
)
def test_impossible_values_are_refused_in_one_sentence(arguments, message):
    with pytest.raises(UserError) as raised:
        parse(arguments)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_json_round_trip():
    config = Config(seed=3, data_dir=Path("data"), val_size=7)
    assert Config.from_json({**config.to_json(), "of another version": 1}) == config
    assert Config.from_json({}) == Config()


def test_a_changed_configuration_is_spelled_out():
    stored = Config(seed=1).to_json()
    refuse_changes(stored, Config(seed=1, data_dir=None, overwrite=True, num_devices=2, kernels="xla"))
    with pytest.raises(UserError, match=r"--max-lr was 0.01, is now 0.03; --seed was 1, is now 0"):
        refuse_changes(stored, Config(max_lr=0.03))


def test_a_run_that_kept_a_relative_path_is_the_same_run(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    refuse_changes(Config(dataset="own").to_json(), Config(dataset=str(tmp_path / "own")))
    with pytest.raises(UserError, match="--dataset was"):
        refuse_changes(Config(dataset="other").to_json(), Config(dataset=str(tmp_path / "own")))


def test_a_run_of_another_version_is_not_resumed_and_told_so():
    """Nobody can repeat an option that there is not."""
    stored = {name: value for name, value in Config().to_json().items() if name != "blur"}
    for recorded, change in (
        (stored, r"--blur is now 0.0, which that run's version did not have"),
        (Config().to_json() | {"slant": 0.15}, r"--slant was 0.15, which this version does not have"),
    ):
        with pytest.raises(UserError, match=rf"\({change}\): resume it with the version that started it, or choose"):
            refuse_changes(recorded, Config())


def test_help_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['train', '--help']\n"
        "import mnist_flax.train\n"
        "try: mnist_flax.train.main()\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'jax', 'flax', 'tensorflow_datasets', 'orbax'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--batch-size" in out
    assert "HEAVY []" in out
