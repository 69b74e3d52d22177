import hashlib
import os
import shutil
from pathlib import Path

# Before JAX starts: eight CPU devices, so that one-device and many-device meshes can be compared in one process.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import settings

settings.register_profile("default", deadline=None)
settings.register_profile("fuzz", deadline=None, max_examples=2000)
settings.load_profile("default")

GOLDEN = Path(__file__).parent / "golden"
LONGEST = {"test_train", "test_step", "test_distributed", "test_teachers", "test_report", "test_accelerators"}
LARGEST_CACHE = 2_000_000_000  # bytes


def _mnist_directory() -> Path | None:
    beside = Path(__file__).parents[2] / "shared" / "tfds"
    for directory in (os.environ.get("TFDS_DATA_DIR"), beside):
        if directory and (Path(directory) / "downloads/manual/train-images-idx3-ubyte.gz").exists():
            return Path(directory).absolute()
    return None


def pytest_collection_modifyitems(items):
    """Files that take minutes come first: whichever process is the last to end then has a short one."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def _cache_home(tmp_path_factory):
    """All tests, and the commands that they run, share their compiled programs, and not with the user's own.

    Most of their time is compilation, so the next run on such a processor finds them again: in a directory of
    $XDG_CACHE_HOME/mnist_flax_tests, which is emptied when it has grown beyond `LARGEST_CACHE`. Processes that run
    tests side by side have one directory.
    """
    from mnist_flax.cli import use_compilation_cache
    from mnist_flax.ops import library, native

    name = hashlib.sha256(library.processor().encode()).hexdigest()[:16]
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mnist_flax_tests" / name
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or none that can be written
        cache = tmp_path_factory.getbasetemp() / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        with FileLock(f"{cache}.lock"):
            if sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()) > LARGEST_CACHE:
                shutil.rmtree(cache / "mnist_flax")
            native.unavailable_reason()  # compiles the CPU kernels, unless a run before has
        use_compilation_cache()
        yield


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs():
    """Let go of a file's programs at its end: thousands of them in one process take gigabytes."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture(scope="session")
def cpu_kernels() -> None:
    """For tests of the CPU kernels, which skip where there is no C++ compiler."""
    from mnist_flax.ops import native

    if reason := native.unavailable_reason():
        pytest.skip(f"no CPU kernels: {reason}")


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """A TFDS data directory with MNIST's files; tests that need it skip where there is none."""
    directory = _mnist_directory()
    if directory is None:
        pytest.skip("needs MNIST: set TFDS_DATA_DIR to a TFDS data directory that holds its files")
    return directory


@pytest.fixture(scope="session")
def golden():
    """Loads a file of golden values computed by the PyTorch reference."""
    return lambda name: dict(np.load(GOLDEN / f"{name}.npz"))


@pytest.fixture(scope="session")
def golden_weights(golden):
    """Variables of a network that the PyTorch reference trained."""
    from mnist_flax.inference import interop

    return interop.from_pytorch(state_dict(golden("forward"), "weights/"))


@pytest.fixture(scope="session")
def card():
    """What goes with them, as a run on `digits` would say it."""
    from mnist_flax.config import Config

    return {
        "dataset": "digits",
        "class_names": [str(digit) for digit in range(10)],
        "normalization": {"mean": 0.1307, "std": 0.3081},
        "config": {**Config().to_json(), "val_size": 119},
        "val_accuracy": 0.5,
    }


@pytest.fixture
def chromium(tmp_path):
    """A browser without a window; tests that need it skip where there is none."""
    from selenium import webdriver

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        *("headless", "no-sandbox", "disable-gpu", "disable-quic", "disable-dev-shm-usage", "no-first-run"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
        *(f"user-data-dir={tmp_path}/browser", "window-size=1280,900"),
    ):
        options.add_argument(f"--{argument}")
    with webdriver.Chrome(options, webdriver.ChromeService(driver)) as browser:
        yield browser


def to_float64(tree):
    """Every float32 array in float64, for sums whose order must not matter."""
    import jax

    return jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, tree)


def fresh_variables(*seeds: int):
    """A network's variables before training; with several seeds, those of several networks along a leading axis.

    Compiled without optimizations, which takes a second and not half a minute.
    """
    import jax

    from mnist_flax.model import init_variables
    from mnist_flax.training.mesh import FAST_COMPILE

    keys = jax.vmap(jax.random.key)(np.array(seeds, np.uint32))
    variables = jax.jit(jax.vmap(init_variables), compiler_options=FAST_COMPILE)(keys)
    return jax.tree.map(lambda leaf: leaf[0], variables) if len(seeds) == 1 else variables


def logits_of(variables, images):
    """A network's answers, compiled as one program: each operation by itself is compiled too, and takes longer."""
    import jax

    from mnist_flax.model import MNISTNet
    from mnist_flax.training.mesh import FAST_COMPILE

    return jax.jit(MNISTNet().apply, compiler_options=FAST_COMPILE)(variables, images)


def normal(seed: int, *shape: int):
    """Normally distributed numbers. By NumPy: JAX compiles its own for every shape, which takes up to half a minute."""
    import jax.numpy as jnp

    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


def state_dict(arrays: dict, prefix: str) -> dict:
    """The entries `prefix/...` of a golden file, as a PyTorch state dict."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
