import json
import subprocess
import sys

from mnist_flax.inference import weights


def test_figures_and_pictures(golden_weights, card, tmp_path):
    file = tmp_path / "network.safetensors"
    weights.save(file, golden_weights, card)
    command = [sys.executable, "-W", "error", "-m", "mnist_flax.evaluate"]
    arguments = [file, "--json", "--save-plots", tmp_path / "new" / "pictures"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout)
    assert {"accuracy", "loss", "num_examples"} <= set(figures)
    assert {path.name for path in (tmp_path / "new" / "pictures").iterdir()} == {
        *("confusion-matrix.png", "reliability.png", "misclassified-images.png"),
        *("first-layer-filters.png", "activations.png"),
    }
    failed = subprocess.run([*command, tmp_path / "none"], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr.startswith("error: ")
    assert len(failed.stderr.splitlines()) == 1
