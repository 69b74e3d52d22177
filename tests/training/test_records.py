import os
import subprocess
import sys


def test_tensorboard_does_not_load_pytorch(tmp_path):
    (tmp_path / "torch.py").write_text("raise RuntimeError('loaded')")
    program = f"""
import sys
from pathlib import Path
from mnist_flax.training.records import TensorBoard

TensorBoard(Path({str(tmp_path)!r}), []).close()
assert "torch" not in sys.modules
try:
    import torch
except RuntimeError as error:
    print(error)
"""
    path = os.pathsep.join([str(tmp_path), *sys.path])
    result = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (0, "loaded\n"), result.stderr
