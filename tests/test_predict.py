import json
import os
import subprocess
import sys

import pytest
from PIL import Image, ImageDraw

import mnist_flax
from mnist_flax import predict
from mnist_flax.reading import judge


def hostile(tmp_path):
    """Files that are no images, by the part of the answer that they must get."""
    one = Image.new("RGB", (640, 480), (250, 240, 200))
    ImageDraw.Draw(one).line([(400, 100), (380, 300)], fill=(20, 20, 90), width=12)
    one.save(tmp_path / "good.png")
    good = (tmp_path / "good.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(good[:300])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.jpg").touch()
    Image.new("1", (30000, 30000)).save(tmp_path / "bomb.png")
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    return {
        "truncated.png": "is damaged",
        "text.png": "not an image",
        "empty.jpg": "not an image",
        "bomb.png": "pixels",
        "large.png": "9000×9000 pixels",
        "missing.png": "No such file",
    }


def test_hostile_files_are_refused_and_the_others_answered(tmp_path):
    expected = hostile(tmp_path)
    command = [sys.executable, "-W", "error", "-m", "mnist_flax.predict"]
    done = subprocess.run(
        [*command, "--json", *(tmp_path / name for name in [*expected, "good.png"])], capture_output=True
    )
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for answer, (name, message) in zip(answers, expected.items(), strict=False):
        assert set(answer) == {"path", "digit", "probability", "probabilities", "verdict", "error"}
        assert (answer["path"], answer["digit"], answer["verdict"]) == (str(tmp_path / name), None, "unreadable")
        assert message in answer["error"]
    assert answers[-1]["digit"] == "1"
    assert sum(answers[-1]["probabilities"].values()) == pytest.approx(1, abs=1e-5)

    good = (tmp_path / "good.png").read_bytes()
    piped = subprocess.run([*command, "-", "--show-input"], input=good, capture_output=True, check=True)
    plain = subprocess.run(
        [*command, "-", "-", "--show-input"],
        input=good,
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (plain.returncode, plain.stdout.count(b"\n")) == (1, 15)
    assert plain.stderr.startswith(b"-: it is not an image")  # the second time there is nothing to read
    lines = piped.stdout.decode().splitlines()
    assert lines[0].startswith("-: 1 (")
    assert len(lines) == 1 + 14
    assert "█" in piped.stdout.decode()


def test_folders_are_searched_for_images(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in predict.find_files([str(tmp_path)])] == ["a.JPG", "b.png"]
    (tmp_path / "nothing").mkdir()
    assert list(predict.find_files([str(tmp_path / "nothing"), "-"])) == [tmp_path / "nothing", None]
    answer, _ = judge.answer(mnist_flax.load(), tmp_path / "nothing")
    assert answer["verdict"] == "unreadable"
    assert "no images are to be found" in answer["error"]
