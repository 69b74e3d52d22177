"""The programs for TPUs and GPUs, where neither is: they lower and compile, and their arithmetic is the CPU's."""

import dataclasses
import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from conftest import to_float64

from benchmarks.compilers import hlo
from benchmarks.compilers.accelerators import PROGRAMS, mesh_for, trace
from mnist_flax.config import Config
from mnist_flax.data import Examples, Normalization
from mnist_flax.optim import make_optimizer
from mnist_flax.training import programs
from mnist_flax.training.mesh import BY_REPLICA, make_mesh, place, resources, to_host
from mnist_flax.training.programs import create_states, evaluation_program, step_options, training_program, zero_metrics

NORMALIZATION, STEPS = Normalization(0.1307, 0.3081), 3
CONFIG = Config(batch_size=32, optimizer="adam")
rng = np.random.RandomState(0)
EXAMPLES = Examples(rng.randint(0, 256, (96, 28, 28)).astype(np.uint8), rng.randint(0, 10, 96).astype(np.int32))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_lowers(program, platform, monkeypatch):
    """For both platforms, replicas side by side, without either compiler."""
    monkeypatch.setattr(programs, "sequential", lambda mesh: False)
    traced = trace(program, mesh_for(jax.devices()[:4], 2), dataclasses.replace(CONFIG, batch_size=64), 4)
    text = str(traced.lower(lowering_platforms=(platform,)).as_text())
    along_rows = "dim_numbers = [b, 0, f]x[0, i, o]->[b, 0, f]"
    assert (along_rows in text) == (platform == "tpu")


@pytest.fixture(scope="module")
def by_a_cpu():
    return trained()


@pytest.mark.parametrize("kind", ["tpu", "default"])
def test_what_accelerators_compute_is_what_a_cpu_computes(kind, by_a_cpu, monkeypatch):
    """Whole epochs in a dispatch, replicas by `vmap`, and the operations for other platforms, all on the CPU.

    In float64, but for the warp: its last bits differ by 1e-7 of the range, and Muon and Adam magnify that some
    fivefold a step. After three steps weights, statistics, losses and gradient norms agree to 1e-4.
    """
    monkeypatch.setattr(programs, "sequential", lambda mesh: False)
    monkeypatch.setattr(programs, "CPU_CHUNK", STEPS)
    monkeypatch.setattr(
        "jax.lax.platform_dependent",
        lambda *arguments, default=None, cpu=None, tpu=None: ((tpu if kind == "tpu" else None) or default)(*arguments),
    )
    for ours, theirs in zip(jax.tree.leaves(trained()), jax.tree.leaves(by_a_cpu), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def trained():
    """Two replicas after an epoch: their variables without what has no effect, totals, and evaluation."""
    config = dataclasses.replace(CONFIG, optimizer="muon")  # which moves all but the kernels by Adam
    with jax.enable_x64(True):
        mesh = make_mesh(config.batch_size, 1, 2)
        training = training_program(mesh, step_options(config, NORMALIZATION, 12), EXAMPLES)
        state = to_float64(create_states(np.arange(2, dtype=np.uint32), mesh, config, 12))
        state = state.replace(tx=make_optimizer(config.optimizer, 12, 0.01, clip_norm=1.0))
        totals, plan = to_float64(zero_metrics(2, mesh)), training.plan(state)
        state, totals = training(state, totals, plan, np.int32([STEPS, STEPS]))
        variables = to_host(state.variables)
    evaluation = evaluation_program(mesh, NORMALIZATION)
    single = jax.tree.map(lambda x: np.float32(x), variables)
    figures = evaluation(place(single, mesh, BY_REPLICA), evaluation.batches(EXAMPLES))
    # The bias before a BatchNorm has a gradient of pure rounding noise, which Adam normalises.
    del variables["params"]["channel_reduce"]["conv"]["bias"]
    del variables["batch_stats"]["channel_reduce"]["norm"]["mean"]
    return variables, to_host(totals), figures.losses, figures.accuracies


@pytest.mark.parametrize(("target", "package"), [("v5e:2x2", "libtpu"), ("h100:1", "jax_cuda13_plugin")])
def test_compiles(target, package, tmp_path):
    """Training and evaluation by the real compiler, in a process of its own."""
    if not importlib.util.find_spec(package):
        pytest.skip(f"no compiler for {target}: {package} is not installed")
    path, options = tmp_path / "figures.json", ["--targets", target, "--replicas", "1", "--batch", "64"]
    command = [sys.executable, "-m", "benchmarks.compilers.accelerators", *options, "--json", str(path)]
    subprocess.run([*command, "--programs", "training", "evaluation"], capture_output=True, check=True)
    training, evaluation = json.loads(path.read_text())["tpu" if target.startswith("v") else "gpu"]
    if target.startswith("v"):
        assert training["ms"] < 0.2  # 0.65 when the warp gathered its pixels
        assert evaluation["ms"] < 0.1
    else:
        assert training["kernels"] < 135  # 326 when parameters were many arrays
        assert evaluation["kernels"] < 50


def test_a_run_says_what_it_computes_with(monkeypatch):
    assert resources(make_mesh(8, 1)) == ""
    monkeypatch.setattr("mnist_flax.training.mesh.platform_of", lambda mesh: "gpu")
    assert resources(make_mesh(8, 1)) == "float32 products in TF32, where the card has it"
    with jax.default_matmul_precision("highest"):
        assert resources(make_mesh(8, 1)) == "float32 products in highest"


HLO = """HloModule m
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]) parameter(0)
  %x = f32[8]{0} get-tuple-element(%p), index=1
  %gemm_fusion_dot = f32[8]{0} fusion(%x), kind=kCustom, calls=%f, metadata={op_name="jit(m)/while/body/optimizer/dot"}
  %cudnn = (f32[8]{0}, u8[0]{0}) custom-call(%x), custom_call_target="__cudnn$convForward", \
metadata={op_name="jit(m)/while/body/jvp(MNISTNet)/conv"}
  %cublas = (f32[8]{0}, s8[0]{0}) custom-call(%x), custom_call_target="__cublas$lt$matmul"
  %all-reduce.1 = (f32[8]{0}, s32[2,3]{1,0}) all-reduce(%x, %x), to_apply=%sum
  %slice.1 = f32[8]{0} slice(%x), metadata={op_name="jit(m)/while/body/packing/slice"}
}
ENTRY %main (a: f32[8]) -> f32[8] {
  %a = f32[8]{0} parameter(0)
  %while.1 = (s32[], f32[8]{0}) while(%a), condition=%c, body=%body
}
"""


def test_reading_a_compiled_program():
    kernels = hlo.kernels(HLO)
    kinds = ["matrix product", "convolution", "matrix product", "all-reduce", "slice"]
    assert [hlo.kind_of(kernel) for kernel in kernels] == kinds
    assert [hlo.part_of(kernel) for kernel in kernels] == ["optimizer", "forward", "unnamed", "unnamed", "packing"]
    assert hlo.collectives(HLO) == (1, 8 * 4 + 6 * 4)


TPU_HLO = """HloModule m
ENTRY %main (images: u8[55000,896], i: s32[2]) -> f32[4] {
  %images = u8[55000,896]{1,0:T(8,128)} parameter(0)
  %i = s32[2]{0:T(128)S(1)} parameter(1)
  %gather_fusion = u8[2,896]{1,0:T(8,128)S(1)} fusion(%images, %i), kind=kCustom, calls=%f
  %fusion = f32[100]{0:T(128)S(1)} fusion(%gather_fusion), kind=kLoop, calls=%g
  %both = (f32[4]{0:T(128)}, f32[8]{0:T(128)S(1)}) fusion(%fusion), kind=kLoop, calls=%h
  ROOT %first = f32[4]{0:T(128)} get-tuple-element(%both), index=0
}
"""


def test_a_tpus_main_memory_is_told_from_that_on_the_chip():
    assert hlo.hbm_bytes(TPU_HLO) == 2 * 896 + 4 * 4


def test_what_is_not_installed_is_said(capsys, monkeypatch):
    from benchmarks.compilers import accelerators

    def missing(*arguments, **options):
        raise RuntimeError("not installed")

    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # which the command sets
    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    accelerators.devices_of.cache_clear()
    accelerators.main(["--targets", "v6e:2x2", "h100:8"])
    output = capsys.readouterr().out
    assert "v6e:2x2     skipped: no compiler for v6e:2x2 (pip install -e '.[tpu]'): not installed" in output
    assert "(pip install -e '.[cuda13]')" in output
