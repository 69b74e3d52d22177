import os
import subprocess
import sys

from mnist_flax.training.contents import events_in
from mnist_flax.training.tensorboard import TensorBoard


def test_tensorboard_does_not_load_pytorch(tmp_path):
    (tmp_path / "torch.py").write_text("raise RuntimeError('loaded')")
    program = f"""
import sys
from pathlib import Path
from mnist_flax.training.tensorboard import TensorBoard

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


def test_only_our_own_events_are_replaced(tmp_path):
    events = "events.out.tfevents.1.host"
    foreign = [
        tmp_path / name for name in (events, f"{events}.mnist_flax", f"hparams/{events}", f"another run/{events}")
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"somebody else's")
    for _ in range(2):
        board = TensorBoard(tmp_path, [])
        board.add_result({"seed": 1}, {"accuracy": 0.5})
        board.close()
        assert all(path.read_bytes() == b"somebody else's" for path in foreign)
        assert len(events_in(tmp_path)) == len(events_in(tmp_path / "hparams")) == 1
