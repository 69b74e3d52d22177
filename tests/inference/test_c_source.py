"""The C program gives the logits of the NumPy twin, to the bit: whatever the network, the compiler and the machine."""

import re
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

import mnist_flax
from mnist_flax import data, export
from mnist_flax.data import Examples
from mnist_flax.errors import UserError
from mnist_flax.inference import c_source, integers
from mnist_flax.inference.card import MAXIMA
from mnist_flax.inference.classifier import Classifier

CHIP = Path(__file__).parent / "chip"
DOCS = Path(__file__).parents[2] / "docs/deploy.md"
STRICT = ("-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror")
SANITIZED = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
FIGURES = {"images": 359, "named_as_in_float32": 357}


@pytest.fixture(scope="module")
def shipped():
    return mnist_flax.load()


@pytest.fixture(scope="module")
def images():
    """Digits, noise and extremes."""
    rng = np.random.RandomState(0)
    extremes = np.stack([np.zeros((28, 28), np.uint8), np.full((28, 28), 255, np.uint8)])
    noise = rng.randint(0, 256, (2, 28, 28), np.uint8)
    return np.concatenate([data.load("digits", None, 0).test.images[:4], extremes, noise])


def programs(*names):
    """The paths of programs; the test skips where one is missing."""
    paths = [shutil.which(name) for name in names]
    if missing := [name for name, path in zip(names, paths, strict=True) if path is None]:
        pytest.skip(f"needs {' and '.join(missing)}")
    return paths


def write(network, directory):
    """Both files; the network in integers."""
    in_integers = integers.from_network(network)
    figures = {**c_source.sizes(in_integers), **FIGURES}
    for suffix, text in c_source.sources(network, in_integers, "digits", figures).items():
        (directory / f"digits{suffix}").write_text(text)
    return in_integers


def build(directory, *command):
    """The program that answers images; no warning is let pass."""
    files = [directory / "digits.c", CHIP / "host.c"]
    subprocess.run([*command, *STRICT, f"-I{directory}", *files, "-o", directory / "program"], check=True)
    return directory / "program"


def compare(in_integers, images, *command):
    """Runs the program, and returns the names that it has of the classes."""
    done = subprocess.run(command, input=images.tobytes(), capture_output=True, check=True)
    found, logits = np.array([line.split() for line in done.stdout.splitlines()], np.int64), in_integers.logits(images)
    np.testing.assert_array_equal(found[:, 1:], logits)
    np.testing.assert_array_equal(found[:, 0], logits.argmax(-1))
    return done.stderr.decode().split("\0")[:-1]


@pytest.mark.parametrize("options", [("-O1",), ("-O3",), SANITIZED, ("-O2", "-x", "c++")], ids=" ".join)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_on_this_machine(shipped, images, tmp_path, compiler, options):
    programs(compiler)
    language = [] if "c++" in options else ["-std=c99"]
    in_integers = write(shipped, tmp_path)
    assert compare(in_integers, images, build(tmp_path, compiler, *language, *options)) == list("0123456789")


@pytest.mark.parametrize("machine", ["s390x", "riscv64"])
def test_on_other_machines(shipped, images, tmp_path, machine):
    """The first is big-endian."""
    compiler, emulator = programs(f"{machine}-linux-gnu-gcc", f"qemu-{machine}")
    in_integers = write(shipped, tmp_path)
    compare(in_integers, images, emulator, build(tmp_path, compiler, "-static", "-O2"))


@pytest.mark.parametrize("level", ["-Os", "-O2"])
@pytest.mark.parametrize(
    ("cpu", "board", "megahertz", "most"),
    [("cortex-m0plus", "microbit", 16, 8), ("cortex-m3", "mps2-an385", 25, 5.5), ("cortex-m4", "mps2-an386", 25, 4.5)],
)
def test_on_chips(shipped, images, tmp_path, cpu, board, megahertz, most, level):
    """As large and as fast as docs/deploy.md says, whose figures `pytest -rP` prints."""
    compiler, size, emulator = programs("arm-none-eabi-gcc", "arm-none-eabi-size", "qemu-system-arm")
    in_integers = write(shipped, tmp_path)
    (tmp_path / "images").write_bytes(images.tobytes())

    def run(*command):
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120).stdout

    chip = (compiler, f"-mcpu={cpu}", "-mthumb", "-std=c99", level, *STRICT, "-ffunction-sections")
    files = "digits.c", CHIP / "cortex_m.c"
    try:
        run(*chip, "-I.", "-c", *files)
    except subprocess.CalledProcessError as error:
        if "string.h: No such file" in error.stderr:
            pytest.skip("needs a C library for arm-none-eabi-gcc (Debian's libnewlib-arm-none-eabi)")
        raise
    linked = (*chip, "-nostdlib", "digits.o", "cortex_m.o", "-lgcc")
    # Only what the function needs.
    run(*linked, "-Wl,--gc-sections,--entry=mnist_flax_classify", "-o", "alone")
    text, initialised, zeroed = map(int, run(size, "alone").splitlines()[1].split()[:3])
    assert text + initialised <= (14_500 if level == "-Os" else 14_700)
    assert initialised + zeroed == c_source.sizes(in_integers)["ram_bytes"] <= 4_500

    run(*linked, f"-T{CHIP / 'cortex_m.ld'}", "-o", "whole")
    # An instruction takes a nanosecond, and SysTick counts the board's cycles meanwhile.
    counting = ("-icount", "shift=0", "-semihosting-config", "enable=on,target=native")
    run(emulator, "-M", board, "-nographic", *counting, "-kernel", "whole")
    answers = np.fromfile(tmp_path / "answers", "<i4").reshape(len(images), -1)
    logits = in_integers.logits(images)
    np.testing.assert_array_equal(answers[:, :-1], np.column_stack([logits.argmax(-1), logits]))
    instructions = answers[:, -1].max() * 1000 / megahertz
    each = instructions / c_source.sizes(in_integers)["multiply_adds"]
    assert each <= most
    print(
        f"{cpu} {level}: {text + initialised:,} bytes of flash, {zeroed:,} of RAM, "
        f"{instructions / 1e6:.1f} million instructions, {each:.1f} a multiply-add"
    )


def changed(network, change, **card):
    """The network with `change` applied to its flat weights, by name."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(network.variables)
    names = ["/".join(entry.key for entry in path) for path, _ in leaves]
    values = [
        np.array(change(name, np.asarray(leaf)), np.float32) for name, (_, leaf) in zip(names, leaves, strict=True)
    ]
    return Classifier(jax.tree.unflatten(structure, values), {**network.card, **card})


def random_weights(name, value):
    rng = np.random.RandomState(len(name))
    drawn = rng.standard_normal(value.shape)
    return np.abs(drawn) if name.endswith("var") else drawn


def zero_channels(name, value):
    """Some channels see nothing, and a block passes on nothing."""
    return value * (np.arange(value.shape[-1]) > 2) if "block2" in name or "block6/norm/scale" in name else value


STRANGE = {
    "random": random_weights,
    "all zero": lambda name, value: value * 0,
    "zero channels": zero_channels,
    "dead block": lambda name, value: value - 1e3 if name.endswith("block3/norm/bias") else value,
    "large bias": lambda name, value: value + 1e6 if "bias" in name else value,
    "large weights": lambda name, value: value * 1e3 if "kernel" in name else value,
    "small variance": lambda name, value: value * 0 if name.endswith("var") else value,
}


@pytest.mark.parametrize("kind", STRANGE)
def test_of_any_network(shipped, images, tmp_path, kind):
    """Nothing overflows, and nothing is undefined. Names of classes end neither a string nor a comment."""
    programs("gcc")
    names = ['"', "*/ int x; /*", "\\", "??/\n", "nought\x00"[:-1], "é七"]
    network = changed(shipped, STRANGE[kind], class_names=names, dataset="photos/\\\n*??/")
    network.card[MAXIMA] = integers.maxima(network, Examples(images, np.arange(len(images))))
    in_integers = write(network, tmp_path)
    assert compare(in_integers, images, build(tmp_path, "gcc", "-std=c99", *SANITIZED)) == names


SKETCH = """
#include <cstdio>
struct {
    void begin(long) {}
    size_t readBytes(uint8_t *to, size_t n) { return std::fread(to, 1, n, stdin); }
    void println(const char *text) { std::puts(text); }
} Serial;
"""


def test_the_sketch_in_the_docs(shipped, images, tmp_path):
    (compiler,) = programs("g++")
    sketch = re.findall(r"```cpp\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)[0]
    in_integers = write(shipped, tmp_path)
    main = f"int main() {{ setup(); for (int i = 0; i < {len(images)}; i++) loop(); }}"
    (tmp_path / "sketch.cpp").write_text(f'#include "digits.h"\n{SKETCH}{sketch}{main}')
    command = [compiler, *STRICT, tmp_path / "sketch.cpp", tmp_path / "digits.c", "-o", tmp_path / "program"]
    subprocess.run(command, check=True)
    printed = subprocess.run([tmp_path / "program"], input=images.tobytes(), capture_output=True, check=True).stdout
    assert printed.decode().split() == [str(digit) for digit in in_integers.logits(images).argmax(-1)]


def test_the_command_writes_both_files(tmp_path, capsys):
    for _ in range(2):  # over its own files too
        export.main(["--format", "c", "--output", str(tmp_path / "net-1.c")])
    assert (
        "12,304 bytes of weights, 968 of other constants, 4,368 of RAM; of 359 real digits 357"
        in capsys.readouterr().out
    )
    assert {path.name for path in tmp_path.iterdir()} == {"net-1.c", "net-1.h"}
    assert '#include "net-1.h"' in (tmp_path / "net-1.c").read_text()


def test_a_header_of_somebody_else_stays(shipped, tmp_path):
    (tmp_path / "digits.h").write_text("#define DIGITS 10\n")
    with pytest.raises(UserError, match=r"digits\.h is there already, and mnist_flax did not write it"):
        c_source.export(shipped, tmp_path / "digits.c")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["#define DIGITS 10\n"]


@pytest.mark.parametrize("name", ["digits", "digits.h", 'a"b.c', ".c"])
def test_a_name_that_no_include_can_hold(shipped, tmp_path, name):
    with pytest.raises(UserError, match=r"must end in \.c"):
        c_source.export(shipped, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_a_network_lacks_is_measured_or_named(golden_weights, card, tmp_path, monkeypatch):
    monkeypatch.setattr(integers, "MEASURED_ON", 50)
    network = Classifier(golden_weights, card)
    measured = integers.maxima(network, data.load("digits", None, 119).train)
    expected = integers.quantize(network, measured)
    jax.tree.map(np.testing.assert_array_equal, integers.from_network(network), expected)

    def load(*_):
        raise UserError("not here")

    with pytest.raises(UserError, match=r"no activation_maxima, and digits's .* \(not here\); --data-dir says where"):
        c_source.export(network, tmp_path / "digits.c", None, load)
    lost = changed(network, lambda name, value: value * np.nan)
    with pytest.raises(UserError, match="NaN or infinite"):
        c_source.export(lost, tmp_path / "digits.c")
    assert not list(tmp_path.iterdir())
