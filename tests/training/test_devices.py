"""Environments of all sorts: the same results, or a sentence."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mnist_flax
from mnist_flax.augment import Augmentation, augment
from mnist_flax.errors import UserError
from mnist_flax.inference.formats import FORMATS, export
from mnist_flax.summary import layers
from mnist_flax.training.devices import usual_modes
from mnist_flax.training.mesh import FAST_COMPILE

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8)
MODES = {
    "double precision": lambda: jax.enable_x64(True),
    "operation by operation": jax.disable_jit,
    "strict types": lambda: jax.numpy_dtype_promotion("strict"),
    "strict ranks": lambda: jax.numpy_rank_promotion("raise"),
    "another generator": lambda: jax.default_prng_impl("rbg"),
    "the old bits": lambda: jax.threefry_partitionable(False),
    "no transfers": lambda: jax.transfer_guard("disallow"),
}


def answers():
    network = mnist_flax.load()
    with usual_modes():
        warp = jax.jit(augment, static_argnums=2, compiler_options=FAST_COMPILE)
        augmented = warp(jax.random.key(0), IMAGES, Augmentation())
    everything = network.predict(IMAGES), network.novelty(IMAGES), network.activations(IMAGES), augmented
    return [(x.dtype, x.tobytes()) for x in map(np.asarray, jax.tree.leaves(jax.device_get(everything)))]


@pytest.fixture(scope="module")
def expected():
    return answers()


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_jax_change_nothing(mode, expected):
    with MODES[mode]():
        assert answers() == expected
        assert sum(layer.num_params for layer in layers()) == 12_534


def test_export_is_in_single_precision(monkeypatch, tmp_path):
    def writer(network, path, kind):
        raise UserError(f"numbers are {jnp.zeros(()).dtype}")

    monkeypatch.setitem(FORMATS, "probe", writer)
    with jax.enable_x64(True), pytest.raises(UserError, match="numbers are float32"):
        export(mnist_flax.load(), "probe", tmp_path / "file")


def test_the_plain_model_takes_images_in_double_precision():
    model, variables, normalization = mnist_flax.load_pretrained()
    with jax.enable_x64(True):
        logits = jax.eval_shape(lambda images: model.apply(variables, normalization(images)), IMAGES)
    assert logits.dtype == np.float32


COMMANDS = """
import io, json, os, sys
from contextlib import redirect_stderr, redirect_stdout
import jax
from mnist_flax.__main__ import main

def run(*arguments):
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as err:
        try:
            main(arguments)
            status = 0
        except SystemExit as stopped:
            status = stopped.code
    return status, err.getvalue()

picture, folder, *settings = sys.argv[1:]
commands = {
    "train": ["--dataset", "digits", "--workdir", f"{folder}/run"],
    "evaluate": ["--dataset", "digits"],
    "predict": [picture],
    "export": ["--format", "safetensors", "--output", f"{folder}/file"],
    "demo": ["--no-browser", "--port", "0"],
    "summary": [],
}
answers = {}
for setting in settings:
    option, value = setting.split("=")
    os.environ[option.upper()] = value
    with redirect_stderr(io.StringIO()):
        jax.config.update(option, value)
    answers[setting] = {name: run(name, *rest) for name, rest in commands.items() if name == "predict" or not answers}
    jax.config.update(option, None)
    del os.environ[option.upper()]
print(json.dumps(answers))
"""


def test_a_platform_that_is_not_there(tmp_path):
    """Every command says so in a sentence; `summary` needs no device."""
    picture = f"{mnist_flax.__path__[0]}/views/demo/examples/5-52.png"
    settings = ["jax_platforms=nonsense", "jax_platforms=tpu", "jax_platforms=cuda", "jax_platform_name=gpu"]
    ran = subprocess.run(
        [sys.executable, "-c", COMMANDS, picture, tmp_path, *settings], capture_output=True, text=True, check=True
    )
    answers = json.loads(ran.stdout)
    assert answers[settings[0]].pop("summary") == [0, ""]
    assert len(answers[settings[0]]) == 5
    for setting, each in answers.items():
        name, value = setting.split("=")
        for status, err in each.values():
            assert status == 2
            assert err.startswith(f"error: {name.upper()}={value}: JAX finds no such device here (")
            assert "what it finds is cpu. Unset " + name.upper() in err
            assert err.count("\n") == 1


def test_a_value_that_jax_refuses_when_it_is_imported():
    ran = subprocess.run(
        [sys.executable, "-m", "mnist_flax", "summary"],
        env={**os.environ, "JAX_ENABLE_X64": "maybe"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert "'JAX_ENABLE_X64'" in ran.stderr
