import contextlib
import json
import os
import re
import subprocess
import sys

import pytest
from PIL import Image, ImageDraw

import mnist_flax
from mnist_flax import predict
from mnist_flax.reading import answers


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
        assert set(answer) == {"path", "digit", "probability", "probabilities", "verdict", "error", "digits"}
        assert (answer["path"], answer["digit"], answer["verdict"]) == (str(tmp_path / name), None, "unreadable")
        assert message in answer["error"]
    assert answers[-1]["digit"] == "1"
    [digit] = answers[-1]["digits"]
    assert (digit["digit"], digit["line"]) == ("1", 0)
    assert digit["probability"] == answers[-1]["probability"]
    assert digit["box"] == pytest.approx([374, 99, 406, 301], abs=5)  # the line itself
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


def row_of_ones(count, lines=1):
    """A page of upright strokes."""
    page = Image.new("L", (60 + 100 * count, 260 * lines), 240)
    for line in range(lines):
        for i in range(count):
            x, y = 80 + 100 * i, 60 + 260 * line
            ImageDraw.Draw(page).line([(x + 10, y), (x, y + 130)], fill=30, width=10)
    return page


def run(capsys, *arguments):
    """What the command prints on standard output and error."""
    with contextlib.suppress(SystemExit):
        predict.main([str(argument) for argument in arguments])
    return tuple(capsys.readouterr())


def test_several_digits_in_text_and_json(tmp_path, capsys):
    row_of_ones(3).save(tmp_path / "row.png")
    row_of_ones(2, lines=2).save(tmp_path / "two.png")
    out, _ = run(capsys, tmp_path / "row.png", tmp_path / "two.png")
    row, two = out.splitlines()
    assert re.fullmatch(r".*row\.png: 1 1 1 \(\d+\.\d%, \d+\.\d%, \d+\.\d%\)", row)
    assert re.fullmatch(r".*two\.png: 1 1 / 1 1 \((\d+\.\d%(, )?){4}\)", two)
    answer = json.loads(run(capsys, tmp_path / "two.png", "--json")[0])
    assert answer["verdict"] == "several digits"
    assert [answer[key] for key in ("digit", "probability", "probabilities", "error")] == [None] * 4
    assert [digit["line"] for digit in answer["digits"]] == [0, 0, 1, 1]
    assert answer["digits"][3]["box"] == pytest.approx([175, 315, 195, 455], abs=6)
    shown = run(capsys, tmp_path / "row.png", "--show-input")[0].splitlines()[1:]
    assert len(shown) == 28  # two side by side, the third below
    assert {len(line) for line in shown[:14]} == {58}
    assert {len(line) for line in shown[14:]} == {28}


def test_why_no_digit_is_named_is_said(tmp_path, capsys):
    Image.new("L", (200, 200), 230).save(tmp_path / "blank.png")
    Image.new("L", (200, 200), 5).save(tmp_path / "dark.png")
    star = Image.new("L", (300, 300), 255)
    for end in ((30, 150), (270, 150), (150, 30), (150, 270), (60, 60), (240, 240), (60, 240), (240, 60)):
        ImageDraw.Draw(star).line([(150, 150), end], fill=0, width=14)
    star.save(tmp_path / "star.png")
    star.resize((12, 12), Image.Resampling.BOX).crop((1, 1, 11, 11)).save(tmp_path / "tiny.png")
    out, _ = run(capsys, *(tmp_path / f"{name}.png" for name in ("blank", "dark", "star", "tiny")))
    blank, dark, star, tiny = out.splitlines()
    assert "blank.png: no ink (nothing is clearly darker or lighter than the paper;" in blank
    assert "dark.png: no ink (the picture is almost black; more light would help)" in dark
    assert re.search(r"star\.png: not like a digit; the nearest is \d \(crop the picture to the digits\)", star)
    assert re.search(r"pixels high; a larger picture would help\)", tiny)


def test_a_mistake_in_the_reader_costs_one_file_its_answer(tmp_path, capsys, monkeypatch):
    for name in ("a.png", "b.png"):
        row_of_ones(1).save(tmp_path / name)
    read = answers.read
    faults = [TypeError("no\nluck")]

    def fails_once(*arguments):
        if faults:
            raise faults.pop()
        return read(*arguments)

    monkeypatch.setattr(answers, "read", fails_once)
    out, err = run(capsys, tmp_path)
    assert err == f"{tmp_path}/a.png: it could not be read (TypeError: no); please report this picture\n"
    assert out.startswith(f"{tmp_path}/b.png: 1 (")


def test_folders_are_searched_for_images(tmp_path, capsys):
    inner = tmp_path / "inner" / "deep"
    inner.mkdir(parents=True)
    for path in (tmp_path / "b.png", tmp_path / "a.JPG", tmp_path / "notes.txt", inner / "c.gif", inner / "c.pdf"):
        path.touch()
    (tmp_path / ".hidden.png").touch()
    found = predict.find_files([str(tmp_path)])
    assert found == ([tmp_path / "a.JPG", tmp_path / "b.png"], 1, 1)
    assert predict.left_out(found) == (
        "1 file of another type was skipped; 1 sub-folder was not entered (--recursive enters them)"
    )
    found = predict.find_files([str(tmp_path)], recursive=True)
    assert found == ([tmp_path / "a.JPG", tmp_path / "b.png", inner / "c.gif"], 2, 0)
    _, err = run(capsys, tmp_path, "--recursive", "--json")
    assert err == "2 files of other types were skipped\n"
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert predict.find_files([str(nothing), "-"]) == ([nothing, None], 0, 0)
    assert predict.left_out(predict.find_files(["-"])) == ""
    answer = answers.answer(mnist_flax.load(), nothing).result
    assert answer["verdict"] == "unreadable"
    assert "no images are to be found" in answer["error"]


def test_annotated_pictures(tmp_path, capsys):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        row_of_ones(2).save(tmp_path / folder / "page.png")
    before = (tmp_path / "x" / "page.png").read_bytes()
    run(capsys, tmp_path / "x", tmp_path / "y", "--annotate", tmp_path / "new" / "pictures")
    written = sorted(path.name for path in (tmp_path / "new" / "pictures").iterdir())
    assert written == ["page-2.png", "page.png"]
    run(capsys, tmp_path / "x" / "page.png", "--annotate", tmp_path / "x")  # the input is not replaced
    assert (tmp_path / "x" / "page.png").read_bytes() == before
    assert (tmp_path / "x" / "page-2.png").exists()
