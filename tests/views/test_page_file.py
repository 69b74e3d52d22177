"""The page in a file answers as Python does, asks nobody, and holds whatever a network's classes are called."""

import re
import shutil

import jax
import numpy as np
import pytest
from browsing import boxes, draw_a_one, says, shown
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

import mnist_flax
from benchmarks.reading import page as bench
from benchmarks.reading.page import SCRIPT, evaluate
from mnist_flax import data, export
from mnist_flax.errors import UserError
from mnist_flax.files import SIGN
from mnist_flax.reading import answers
from mnist_flax.views import page, page_file

EXAMPLES = [np.asarray(Image.open(path).convert("L")) for path in sorted((page.PAGE / "examples").glob("*.png"))]


@pytest.fixture(scope="module")
def network():
    return mnist_flax.load()


@pytest.fixture
def node():
    """For tests that run JavaScript, which skip where there is no Node.js."""
    if not shutil.which("node"):
        pytest.skip("needs Node.js: apt-get install nodejs")


needs_node = pytest.mark.usefixtures("node")


@pytest.fixture(scope="module")
def text(network):
    return page_file.source(network, "the shipped weights")


@needs_node
def test_its_network_is_that_of_python(text, network):
    images = np.concatenate([data.load("digits", None, 0).test.images[:15], EXAMPLES, np.zeros((1, 28, 28), np.uint8)])
    found = evaluate(text, "mnistFlax.predict(pixels)", images.tobytes())
    # Eight at a time, for which a program is compiled anyway.
    probabilities, novelty = map(np.concatenate, zip(*map(network.judge, np.split(images, 4)), strict=True))
    assert [network.class_names.index(answer["digit"]) for answer in found] == probabilities.argmax(-1).tolist()
    np.testing.assert_allclose([answer["probabilities"] for answer in found], probabilities, atol=1e-3)
    np.testing.assert_allclose([answer["novelty"] for answer in found], novelty, atol=1e-2)


@needs_node
def test_it_reads_drawings_as_python_reads_plain_ink(text, network):
    boards = [*bench.boards(EXAMPLES, 14)]
    boards.append(255 - boards[0])  # dark on light
    verdicts = set()
    for answer, board in zip(bench.by_page(text, boards), boards, strict=True):
        page = bench.by_python(network, board)
        expected = answers.describe(network, page)
        assert bench.digits(answer) == bench.digits(expected)
        for digit, other in zip(answer["digits"], expected["digits"], strict=True):
            np.testing.assert_allclose(np.array(digit["box"]) * len(board), other["box"], atol=1e-6)
        pixels = np.reshape(answer["seen"], (-1, 28, 28))
        np.testing.assert_allclose(pixels, np.stack(answers.inputs(page)), atol=2)
        verdicts.add(answer["verdict"])
    assert verdicts == {"digit", "several digits", "not like a digit"}


@needs_node
def test_without_ink(text):
    look = "answers.look({ width: 28, height: 28, data: new Uint8Array(4 * 784).fill(30) }, 0)"
    answer = evaluate(text, look)
    assert (answer["verdict"], answer["digits"], answer["pixels"], answer["maps"]) == ("no ink", [], None, None)


@needs_node
@pytest.mark.parametrize("wrong", ["new Uint8Array(783)", "[0, 1]", "new Float32Array(784)", "undefined"])
def test_what_is_no_image_is_refused(text, wrong):
    attempt = f"(() => {{ try {{ mnistFlax.predict({wrong}); }} catch (error) {{ return error.message; }} }})()"
    assert evaluate(text, attempt) == "mnistFlax.predict takes a Uint8Array of 784 bytes for each image"
    assert evaluate(text, "mnistFlax.predict(new Uint8Array(0))") == []


def test_it_is_one_small_file_that_asks_nobody(text):
    assert len(text.encode()) <= 150_000
    assert SIGN in text
    assert not re.search(r"https?:|//\w+\.\w", re.sub('"floats": ".*?"|base64,[^"]*', "", text))
    assert set(re.findall(r'(?:src|href)="(.{5})', text)) == {"data:"}
    assert "default-src 'none'" in text


@pytest.fixture
def unseen(monkeypatch):
    """Networks that are not asked about examples, for which each would have to be compiled."""
    monkeypatch.setattr(page, "model", lambda network, name: {"name": name, "class_names": network.class_names, **NONE})


NONE = {"examples": []}
NAMES = (
    "</script><script>alert(1)</script>",
    "<!--",
    "__proto__",
    "constructor",
    '"',
    "'",
    "10",
    "2",
    "é\u2028",
    "\ud800",
)


@needs_node
def test_classes_of_any_name(network, unseen):
    named = mnist_flax.Classifier(network.variables, {**network.card, "class_names": [*NAMES]}, network.reference)
    text = page_file.source(named, "runs/<b>")
    assert len(SCRIPT.findall(text)) == 6  # two of data, four of programs
    text.encode()
    found = evaluate(text, "mnistFlax.predict(pixels)", np.stack(EXAMPLES[:8]).tobytes())
    labels = network.judge(EXAMPLES[:8])[0].argmax(-1)
    assert [answer["digit"] for answer in found] == [NAMES[label] for label in labels]
    assert evaluate(text, "mnistFlax.classNames") == [*NAMES]
    look = "answers.look({ width: 28, height: 28, data: pixels }, 0).probabilities"
    assert set(evaluate(text, look, np.repeat(EXAMPLES[0], 4).tobytes())) == {*NAMES}


@needs_node
def test_a_network_of_three_classes_without_a_score(network, unseen):
    few = mnist_flax.Classifier(network.variables, {**network.card, "class_names": ["a", "b", "c"]})
    found = evaluate(page_file.source(few, "few"), "mnistFlax.predict(pixels)", np.stack(EXAMPLES[:8]).tobytes())
    of_three = network.judge(EXAMPLES[:8])[0][:, :3]
    expected = of_three / of_three.sum(-1, keepdims=True)
    np.testing.assert_allclose([answer["probabilities"] for answer in found], expected, atol=1e-3)
    assert {answer["novelty"] for answer in found} == {None}


def test_what_is_not_ours_is_left_alone(network, text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page_file, "source", lambda network, name: text)
    path = tmp_path / "digits.html"
    export.main(["--format", "html", "--output", str(path)])
    assert capsys.readouterr().out == (
        f"{path}: {len(text.encode()):,} bytes, a page that needs no server: open it in a browser\n"
    )
    page_file.export(network, path, "again")  # over its own
    path.write_text("mine")
    with pytest.raises(UserError, match=r"digits\.html is there already, and mnist_flax did not write it"):
        page_file.export(network, path, "x")
    assert path.read_text() == "mine"
    with pytest.raises(UserError, match=r"digits\.txt must end in \.html, or browsers do not show it as a page"):
        page_file.export(network, path.with_suffix(".txt"), "x")
    with pytest.raises(UserError, match=r"--probabilities is for stablehlo and onnx: a html file always shows them"):
        export.parse(["--format", "html", "--output", str(path), "--probabilities"])
    assert [found.name for found in tmp_path.iterdir()] == ["digits.html"]


def test_weights_that_are_no_numbers(network):
    broken = jax.tree.map(np.array, network.variables)
    broken["params"]["block3"]["conv"]["kernel"][0, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="cannot be written as a page: some of its weights are NaN or infinite"):
        page_file.source(mnist_flax.Classifier(broken, network.card), "x")


@pytest.fixture
def firefox():
    """A browser without a window; tests that need it skip where there is none."""
    program = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)
    driver = shutil.which("geckodriver")
    if not program or not driver:
        pytest.skip("needs Firefox and geckodriver")
    options = webdriver.FirefoxOptions()
    options.binary_location = program
    options.add_argument("-headless")
    with webdriver.Firefox(options, webdriver.FirefoxService(driver)) as browser:
        yield browser


@pytest.fixture(params=["chromium", "firefox"])
def opened(request, text, tmp_path):
    """The page in a browser, opened from disk."""
    browser, path = request.getfixturevalue(request.param), tmp_path / "digits.html"
    path.write_text(text)
    browser.get(path.as_uri())
    WebDriverWait(browser, 20).until(lambda browser: browser.find_elements(By.CSS_SELECTOR, "#examples img"))
    return browser


def test_from_disk_it_reads_what_is_drawn_and_opened(opened, tmp_path):
    blocks = shown(opened, "#maps canvas")
    draw_a_one(opened)
    says(opened, "1")
    assert len(blocks) == 8
    assert all(before != after for before, after in zip(blocks, shown(opened, "#maps canvas"), strict=True))
    assert opened.find_element(By.ID, "novelty").text.startswith("Out-of-distribution score: 0.")
    detail = opened.find_element(By.ID, "detail")
    for example in opened.find_elements(By.CSS_SELECTOR, "#examples button"):
        example.click()
        label = example.find_element(By.TAG_NAME, "img").get_attribute("alt").removeprefix("A ")
        WebDriverWait(opened, 20).until(lambda _, label=label: re.search(rf"label(:| is) {label}", detail.text))
        assert ("Wrong" in detail.text) == ("hard" in example.get_attribute("class").split())
    sheet = Image.new("L", (900, 500), 255)  # dark ink on white paper, larger than the page works with
    for i, digit in enumerate(EXAMPLES[1:4]):
        sheet.paste(Image.fromarray(255 - digit).resize((224, 224)), (60 + 280 * i, 120))
    sheet.save(tmp_path / "sheet.png")
    opened.find_element(By.ID, "file").send_keys(str(tmp_path / "sheet.png"))
    says(opened, "1 2 3")
    assert [label for label, *_ in boxes(opened)] == ["1", "2", "3"]
    (tmp_path / "photo.tiff").write_bytes(b"II*\0")
    opened.find_element(By.ID, "file").send_keys(str(tmp_path / "photo.tiff"))
    says(opened, "Unreadable")
    assert opened.find_element(By.ID, "problem").text.startswith("This browser cannot show such a file")
    assert "For photographs install mnist_flax" in opened.find_element(By.ID, "note").text
    pixels = "mnistFlax.predict(new Uint8Array(2 * 784)).length"
    assert opened.execute_script(f"return {pixels}") == 2
    loaded = opened.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith("data:")] == []
