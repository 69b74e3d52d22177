import base64
import contextlib
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import numpy as np
import pytest
from browsing import boxes, draw_a_one, says, shown
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

import mnist_flax
from mnist_flax import demo
from mnist_flax.errors import UserError
from mnist_flax.model import BLOCKS
from mnist_flax.reading import answers
from mnist_flax.views import app, page, server

EXAMPLES = page.PAGE / "examples"
THREE = EXAMPLES / "3-32.png"
PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
def network():
    return mnist_flax.load()


@contextlib.contextmanager
def serving(application):
    """Serves an application as the command does; its port."""
    with server.listen("127.0.0.1", 0) as listener:
        web_server = server.create_server(application)
        thread = threading.Thread(target=web_server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            web_server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def port(network):
    with serving(app.create_app(network)) as port:
        yield port


def ask(port, method="POST", path="/predict", body=None, headers=PNG):
    """Status, headers and content of an answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.headers, response.read()


def refusal(port, *arguments, **keywords):
    """Status and sentence of an answer that is no prediction."""
    status, headers, content = ask(port, *arguments, **keywords)
    assert headers.get_content_type() == "application/json"
    answer = json.loads(content)
    assert list(answer) == ["error"]
    assert re.fullmatch(r"[A-Z].*\.", answer["error"])
    return status, answer["error"]


def png(width, height):
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, format="PNG")
    return file.getvalue()


def test_the_answer_is_predicts_with_what_the_network_sees(port, network):
    status, _, content = ask(port, body=THREE.read_bytes())
    assert status == 200
    answer = json.loads(content)
    expected, _, _, page = answers.answer(network, THREE)
    [pixels] = answers.inputs(page)
    for key in ("digit", "verdict"):
        assert answer[key] == expected[key]
    assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)
    assert base64.b64decode(answer["pixels"]) == pixels.tobytes()
    activations = network.activations(pixels[None])
    assert [block["name"] for block in answer["maps"]] == list(BLOCKS)
    for block in answer["maps"]:
        [values] = activations[block["name"]]
        shown = np.frombuffer(base64.b64decode(block["values"]), np.uint8)
        shown = shown.reshape(block["channels"], block["height"], block["width"]).transpose(1, 2, 0)
        np.testing.assert_allclose(shown / 255 * values.max(), values, atol=values.max() / 500)


def test_what_has_no_ink_has_no_maps(port):
    answer = json.loads(ask(port, body=png(280, 280))[2])
    assert answer["verdict"] == "no ink"
    assert answer["hint"] == "the picture is almost black; more light would help"
    assert answer["digits"] == []
    assert [answer[key] for key in ("digit", "probabilities", "pixels", "maps")] == [None] * 4


def page_of(*files, gap=40, side=112):
    """Test images in a row, enlarged, as a PNG of width `gap` + (`side` + `gap`) for each."""
    sheet = Image.new("L", (gap + (side + gap) * len(files), 300))
    for i, file in enumerate(files):
        sheet.paste(Image.open(EXAMPLES / file).convert("L").resize((side, side)), (gap + (side + gap) * i, 90))
    file = io.BytesIO()
    sheet.save(file, format="PNG")
    return file.getvalue()


def test_several_digits_are_found_in_the_picture(port):
    answer = json.loads(ask(port, body=page_of("3-32.png", "7-34.png", "2-72.png"))[2])
    assert answer["verdict"] == "several digits"
    assert answer["digit"] is None
    assert [digit["digit"] for digit in answer["digits"]] == ["3", "7", "2"]
    for i, digit in enumerate(answer["digits"]):
        left, top, right, bottom = digit["box"]
        assert (40 + 152 * i) / 496 < left < right < (40 + 152 * i + 112) / 496
        assert 90 / 300 < top < bottom < 202 / 300
    # The input, the maps and the probabilities are the first one's.
    assert max(answer["probabilities"], key=answer["probabilities"].get) == "3"
    assert len(base64.b64decode(answer["pixels"])) == 784
    assert len(answer["maps"]) == len(BLOCKS)


def test_one_of_several_digits_is_shown(port):
    body = page_of("3-32.png", "7-34.png", "2-72.png")
    for number, digit in (("1", "7"), ("2", "2"), ("3", "3"), ("9" * 5000, "3")):
        answer = json.loads(ask(port, path=f"/predict?shown={number}", body=body)[2])
        assert max(answer["probabilities"], key=answer["probabilities"].get) == digit
        assert 0 < answer["novelty"] <= 1
    for wrong in ("-1", "x", "²", "1.5"):
        path = f"/predict?shown={urllib.parse.quote(wrong)}"
        assert refusal(port, path=path, body=body) == (400, "What is shown is the number of a digit, from 0.")


def test_examples_are_right_and_wrong(port):
    model = json.loads(ask(port, "GET", "/model")[2])
    assert model["accuracy"] == "validation accuracy 99.50% on mnist"
    hard = [example["hard"] for example in model["examples"]]
    assert (hard.count(False), hard.count(True)) == (10, 6)
    assert hard == sorted(hard)
    for example in model["examples"]:
        status, headers, content = ask(port, "GET", f"/{example['file']}")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        answer = json.loads(ask(port, body=content)[2])
        assert example["label"] == example["file"][len("examples/")]
        assert example["hard"] == (answer["digit"] != example["label"])


def test_another_networks_page(network):
    other = mnist_flax.Classifier(
        network.variables, {**network.card, "class_names": [*"abcdefghij"], "dataset": "letters", "val_accuracy": 0.5}
    )
    with serving(app.create_app(other, "runs/letters")) as port:
        model = json.loads(ask(port, "GET", "/model")[2])
    assert model["name"] == "runs/letters"
    assert model["accuracy"] == "validation accuracy 50.00% on letters"
    assert model["examples"] == []  # they are digits
    unmeasured = {name: value for name, value in network.card.items() if name != "val_accuracy"}
    assert page.describe(mnist_flax.Classifier(network.variables, unmeasured)) == "its accuracy was never measured"


@pytest.mark.parametrize(
    "path", ["/", "/demo.js", "/server.js", "/style.css", "/model", "/examples/3-32.png", "/nothing"]
)
def test_every_answer_has_security_headers(port, path):
    _, headers, _ = ask(port, "GET", path)
    assert "default-src 'none'; script-src 'self'" in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"


def test_the_page_asks_no_other_host():
    for path in page.PAGE.rglob("*.*"):
        if path.suffix != ".png":
            assert not re.search(r"https?:|//\w+\.", path.read_text()), path


BAD = {
    "no type": ({"headers": {}, "body": b"x"}, 415, "must be an image file"),
    "form": ({"headers": {"Content-Type": "application/x-www-form-urlencoded"}, "body": b"a=1"}, 415, "must be an im"),
    "empty": ({"body": b""}, 400, "cannot be used: it is not an image"),
    "text": ({"body": b"hello"}, 400, "cannot be used: it is not an image"),
    "truncated": ({"body": THREE.read_bytes()[:150]}, 400, "cannot be used: it is damaged"),
    "vector graphics": ({"body": b"<svg/>", "headers": {"Content-Type": "image/svg+xml"}}, 400, "not an image"),
    "bomb": ({"body": png(30000, 30000)}, 400, "has more than 25,000,000 pixels"),
    "large": ({"body": png(6000, 5000)}, 400, "it has 6000×5000 pixels, more than 25,000,000"),
    "heavy": ({"body": bytes(app.MAX_BYTES + 1)}, 413, "larger than 10 MB"),
    "heavy, in pieces": ({"body": iter([bytes(10**6)] * 11)}, 413, "larger than 10 MB"),
    "method": ({"method": "PUT"}, 405, "Method Not Allowed"),
    "preflight": ({"method": "OPTIONS"}, 405, "Method Not Allowed"),
    "path": ({"method": "GET", "path": "/nothing"}, 404, "no such page"),
    "traversal": ({"method": "GET", "path": "/../demo.py"}, 404, "no such page"),
    "encoded traversal": ({"method": "GET", "path": "/%2e%2e/demo.py"}, 404, "no such page"),
    "other origin": ({"headers": PNG | {"Origin": "http://evil.example"}}, 403, "not those of other origins"),
    "no origin": ({"headers": PNG | {"Origin": "null"}}, 403, "not those of other origins"),
    "other port": ({"headers": PNG | {"Origin": "http://127.0.0.1:1"}}, 403, "not those of other origins"),
    "rebound name": ({"headers": PNG | {"Host": "evil.example"}}, 403, "own name only"),
    "rebound page": ({"method": "GET", "path": "/", "headers": {"Host": "evil.example:8000"}}, 403, "own name only"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_are_refused_in_a_sentence(port, name):
    request, expected, sentence = BAD[name]
    status, said = refusal(port, **request)
    assert status == expected
    assert sentence in said


def test_its_own_page_may_ask_by_any_of_its_names(port):
    for host in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", f"LOCALHOST:{port}"):
        headers = PNG | {"Host": host, "Origin": f"http://{host}"}
        assert ask(port, body=THREE.read_bytes(), headers=headers)[0] == 200
    assert server.is_known("classroom.local:80", frozenset({"classroom.local"}))


@pytest.fixture(scope="module")
def proxied(network):
    with serving(app.create_app(network, allowed_hosts=["Digits.example.org"])) as port:
        yield port


NAMED = "digits.example.org"
BEHIND_A_PROXY = [  # Host and Origin as they arrive, and whether the request is answered
    (NAMED, None, True),
    (NAMED, f"https://{NAMED}", True),
    (NAMED, f"http://{NAMED}", True),
    (f"{NAMED}:8443", f"https://{NAMED}:8443", True),
    (NAMED, f"https://{NAMED}:8443", True),  # the proxy leaves the port out
    ("127.0.0.1:8000", f"https://{NAMED}", True),  # the proxy asks by the address it knows
    ("127.0.0.1:8000", "https://127.0.0.1:8000", True),
    (NAMED, "https://evil.example", False),
    (NAMED, f"https://{NAMED}.evil.example", False),
    (NAMED, f"https://evil.example/{NAMED}", False),
    (NAMED, f"ftp://{NAMED}", False),
    (NAMED, "null", False),
    (NAMED, "http://[", False),
    (f"www.{NAMED}", None, False),
    ("evil.example", f"https://{NAMED}", False),
    ("127.0.0.1:8000", "https://evil.example", False),
]


@pytest.mark.parametrize(("host", "origin", "answered"), BEHIND_A_PROXY)
def test_behind_a_proxy_it_answers_by_the_names_allowed(proxied, host, origin, answered):
    headers = PNG | {"Host": host} | ({"Origin": origin} if origin else {})
    status, _, content = ask(proxied, body=THREE.read_bytes(), headers=headers)
    assert status == (200 if answered else 403)
    if not answered:
        assert "start it with --allowed-host NAME." in json.loads(content)["error"]


def test_what_a_proxy_says_of_the_client_changes_nothing(port):
    forwarded = {"X-Forwarded-Host": "localhost", "Forwarded": "host=localhost", "X-Forwarded-Proto": "https"}
    status, sentence = refusal(port, body=THREE.read_bytes(), headers=PNG | {"Host": "evil.example"} | forwarded)
    assert status == 403
    assert "start it with --allowed-host NAME" in sentence


@pytest.mark.parametrize(
    "name", ["https://digits.example.org", "digits.example.org:443", "*", "", "a b", ".org", "a/b"]
)
def test_an_allowed_host_is_a_name(name):
    assert demo.parse(["--allowed-host", "a", "--allowed-host", "b.example.org"]).allowed_host == ["a", "b.example.org"]
    with pytest.raises(UserError, match=r"is not a host name such as digits\.example\.org"):
        demo.parse(["--allowed-host", name])


@given(st.text(max_size=40) | st.from_regex(r"(https?://)?[\w.\-:\[\]@%]{0,20}", fullmatch=True))
def test_no_origin_is_own_but_the_hosts_and_the_names_allowed(origin):
    assert not server.is_own(origin, "localhost:8000", frozenset()) or origin.endswith("://localhost:8000")


@given(st.one_of(st.text(max_size=40), st.from_regex(r"(https?://)?[\w.\-:\[\]@%]{0,20}", fullmatch=True)))
def test_no_host_header_is_known_but_addresses_and_names(host):
    known = server.is_known(host, frozenset({"localhost"}))
    assert not known or re.search(r"(^|@)(localhost|[\d.]+|\[?[\da-f:.%]+)", host.lower())


HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
PARTS = st.tuples(st.integers(0, 300), st.binary(max_size=60))


@given(
    st.sampled_from(["image/png", "image/", "IMAGE/PNG", "multipart/form-data; boundary=x"]) | HEADER,
    st.binary(max_size=400) | PARTS,
    st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "DELETE"]),
    st.just("/predict") | HEADER.map(lambda text: "/" + text.replace(" ", "")),
)
def test_fuzz_requests(port, content_type, body, method, path):
    if isinstance(body, tuple):  # a real image with some of its bytes replaced
        position, noise = body
        good = THREE.read_bytes()
        body = good[:position] + noise + good[position + len(noise) :]
    status, headers, content = ask(port, method, path, body, {"Content-Type": content_type})
    assert status == 200 or 400 <= status < 500
    assert headers["X-Content-Type-Options"] == "nosniff"
    if status != 200:
        assert json.loads(content)["error"].endswith(".")


def test_too_many_are_told_to_wait(network):
    with serving(app.create_app(network, rate=2.0)) as port:
        answers = [ask(port, body=THREE.read_bytes()) for _ in range(20)]
        assert [status for status, _, _ in answers[:2]] == [200, 200]
        status, headers, content = next(answer for answer in answers if answer[0] != 200)
        assert (status, headers["Retry-After"]) == (429, "1")
        assert json.loads(content)["error"] == "More than 2 predictions a second were asked for."
        time.sleep(1)
        assert ask(port, body=THREE.read_bytes())[0] == 200


def test_so_many_at_once_and_no_more(port, monkeypatch):
    monkeypatch.setattr(app, "MAX_IN_FLIGHT", 1)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as first:
        first.sendall(head)
        until = [refusal(port, body=b"") for _ in range(50)]
        assert until[-1] == (503, "Too many predictions are asked for at once.")
        first.sendall(b"no image!")
        assert first.recv(100).startswith(b"HTTP/1.1 400 ")
    assert ask(port, body=THREE.read_bytes())[0] == 200


def test_who_dawdles_is_hung_up_on(port, monkeypatch):
    monkeypatch.setattr(server, "SECONDS", 0.3)
    for sent, answer in (
        (b"", b""),
        (b"POST /predict HT", b""),
        (
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nContent-Type: image/png\r\n\r\nhalf",
            b"408",
        ),
    ):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(sent)
            received = b"".join(iter(lambda: connection.recv(4096), b""))  # to the end: it does not wait for the rest
            assert answer in received
            assert bool(answer) == bool(received)
    assert ask(port, body=THREE.read_bytes())[0] == 200


def test_a_taken_port(monkeypatch):
    with server.listen("127.0.0.1", 0) as taken:
        number = taken.getsockname()[1]
        monkeypatch.setattr(server, "PORT", number)
        with server.listen("127.0.0.1", None) as other:
            assert other.getsockname()[1] not in (0, number)
        with pytest.raises(UserError, match=rf"cannot listen on 127.0.0.1, port {number}: .*in use"):
            server.listen("127.0.0.1", number)
    with pytest.raises(UserError, match="between 0 and 65535"):
        server.listen("127.0.0.1", 65536)
    with pytest.raises(UserError, match=r"cannot listen on nowhere\.invalid"):
        server.listen("nowhere.invalid", None)


@pytest.fixture(scope="module")
def url():
    """The page of the command, run as a user would."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-m", "mnist_flax.demo", "--no-browser", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout.readline() == "the shipped weights: validation accuracy 99.50% on mnist\n"
            found = re.fullmatch(r"(http://127\.0\.0\.1:\d+) \(Ctrl-C ends it\)\n", process.stdout.readline())
            yield found[1]
            process.send_signal(signal.SIGINT)
            assert process.communicate(timeout=20) == ("", "")
            assert process.returncode == 0
        finally:
            process.kill()


@pytest.fixture
def browser(url, chromium):
    """The page in a browser, at a desktop's size."""
    chromium.get(url)
    WebDriverWait(chromium, 20).until(lambda browser: browser.find_elements(By.CSS_SELECTOR, "#examples img"))
    yield chromium
    assert chromium.get_log("browser") == []  # nothing failed, nothing was blocked
    loaded = chromium.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert loaded
    assert all(name.startswith(f"{url}/") for name in loaded)


def send_as(browser, event, file, kind="image/png"):
    """Drops or pastes a file."""
    script = """
        const [event, data, type] = arguments, bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([bytes], "digit", { type }));
        const options = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer };
        const target = document.getElementById("board");
        target.dispatchEvent(event === "drop" ? new DragEvent(event, options) : new ClipboardEvent(event, options));
    """
    browser.execute_script(script, event, base64.b64encode(file.read_bytes()).decode(), kind)


def test_drawing_is_answered_and_can_be_undone(browser):
    blocks, seen = shown(browser, "#maps canvas"), shown(browser, "#seen")
    assert len(blocks) == 8
    draw_a_one(browser)
    says(browser, "1")
    assert all(before != after for before, after in zip(blocks, shown(browser, "#maps canvas"), strict=True))
    assert seen != shown(browser, "#seen")
    meter = browser.find_element(By.CSS_SELECTOR, "[aria-label='Probability of 1']")
    assert float(meter.get_attribute("aria-valuenow")) > 0.6
    assert float(browser.find_element(By.ID, "detail").get_attribute("data-milliseconds")) > 0

    browser.find_element(By.ID, "clear").click()
    says(browser, "No ink")
    assert shown(browser, "#seen") == seen
    ActionChains(browser).key_down(Keys.CONTROL).send_keys("z").key_up(Keys.CONTROL).perform()  # the clearing
    says(browser, "1")
    browser.find_element(By.ID, "undo").click()  # the stroke
    says(browser, "No ink")
    assert browser.find_element(By.ID, "detail").text == "Draw a digit on the board."
    browser.find_element(By.ID, "redo").click()
    says(browser, "1")
    ActionChains(browser).key_down(Keys.CONTROL).send_keys("zy").key_up(Keys.CONTROL).perform()
    says(browser, "1")
    browser.find_element(By.ID, "clear").click()
    says(browser, "No ink")
    ActionChains(browser).move_to_element(browser.find_element(By.ID, "board")).click().perform()  # a dot
    WebDriverWait(browser, 20).until(lambda _: browser.find_element(By.ID, "answer").text != "No ink")


def test_files_are_opened_dropped_and_pasted(browser, tmp_path):
    browser.find_element(By.ID, "file").send_keys(str(THREE))
    says(browser, "3")
    send_as(browser, "drop", EXAMPLES / "7-34.png")
    says(browser, "7")
    send_as(browser, "paste", EXAMPLES / "2-72.png")
    says(browser, "2")
    send_as(browser, "drop", THREE, "")  # so a HEIC file comes where the system does not know the format
    says(browser, "3")
    send_as(browser, "drop", EXAMPLES / "7-34.png", "text/plain")
    problem = browser.find_element(By.ID, "problem")
    WebDriverWait(browser, 20).until(lambda _: problem.text == "That is not an image file.")
    send_as(browser, "paste", EXAMPLES / "2-72.png")
    says(browser, "2")
    # The server reads formats that the browser cannot show.
    Image.open(THREE).save(tmp_path / "three.tiff")
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "three.tiff"))
    says(browser, "3")
    (tmp_path / "torn.png").write_bytes(THREE.read_bytes()[:150])
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "torn.png"))
    says(browser, "Unreadable")
    assert "The picture cannot be used: it is damaged" in browser.find_element(By.ID, "problem").text
    log = browser.get_log("browser")  # the browser notes an answer of 400 here
    assert [entry["message"].count("status of 400") for entry in log] == [1]


def assert_shown(browser, name, number):
    """Waits until the page shows this one of three digits."""
    which = browser.find_element(By.CSS_SELECTOR, ".seen .which")
    WebDriverWait(browser, 20).until(lambda _: which.text == f"digit {number} of 3")
    meter = browser.find_element(By.CSS_SELECTOR, f"[aria-label='Probability of {name}']")
    assert float(meter.get_attribute("aria-valuenow")) > 0.6
    assert browser.find_element(By.CSS_SELECTOR, "#boxes [aria-pressed='true']").text == name


def test_several_digits_are_boxed(browser, tmp_path):
    (tmp_path / "page.png").write_bytes(page_of("3-32.png", "7-34.png", "2-72.png"))
    browser.find_element(By.ID, "file").send_keys(str(tmp_path / "page.png"))
    says(browser, "3 7 2")
    assert browser.find_element(By.ID, "detail").text.count("%") == 3
    assert browser.find_element(By.CSS_SELECTOR, ".seen .which").text == "digit 1 of 3"
    found = boxes(browser)
    assert [label for label, *_ in found] == ["3", "7", "2"]
    free = (1 - 300 / 496) / 2  # the picture is wider than it is high: strips above and below it
    for i, (_, left, right, top, bottom) in enumerate(found):
        assert (40 + 152 * i) / 496 < left < right < (40 + 152 * i + 112) / 496
        assert free + 90 / 496 < top < bottom < free + 202 / 496
    # By its label or its box, each digit can be looked at.
    browser.find_element(By.CSS_SELECTOR, "[aria-label='7: digit 2 of 3']").click()
    assert_shown(browser, "7", 2)
    assert browser.switch_to.active_element.text == "7"  # the keyboard's place is kept
    board = browser.find_element(By.ID, "board")
    middle = sum(found[2][1:3]) / 2 - 0.5
    ActionChains(browser).move_to_element_with_offset(board, middle * board.size["width"], 0).click().perform()
    assert_shown(browser, "2", 3)
    browser.find_element(By.ID, "clear").click()
    says(browser, "No ink")
    assert boxes(browser) == []
    draw_a_one(browser)
    says(browser, "1")
    assert boxes(browser) == []
    assert browser.find_element(By.CSS_SELECTOR, ".seen .which").text == ""


def test_a_test_image_it_gets_wrong(browser):
    browser.find_element(By.CSS_SELECTOR, "[data-file='examples/9-1232.png']").click()
    says(browser, "4")
    assert "Wrong: its label is 9" in browser.find_element(By.ID, "detail").text


def test_by_keyboard_alone(browser):
    board = browser.find_element(By.ID, "board")
    ActionChains(browser).send_keys(Keys.TAB).perform()
    assert browser.switch_to.active_element == board
    board.send_keys(Keys.SPACE, *[Keys.ARROW_DOWN] * 14, Keys.SPACE)
    says(browser, "1")
    WebDriverWait(browser, 5).until(lambda _: browser.find_element(By.ID, "spoken").text.startswith("1. "))
    board.send_keys(Keys.DELETE)
    says(browser, "No ink")


def test_a_pen_draws_whatever_the_palm_does(browser):
    """A palm is on the board before the pen, and again soon after it."""
    browser.execute_script("""
        const board = document.getElementById("board"), { left, top, width } = board.getBoundingClientRect();
        board.setPointerCapture = () => {};
        const send = (name, pointerType, pointerId, x, y) => board.dispatchEvent(new PointerEvent(`pointer${name}`,
          { pointerType, pointerId, clientX: left + x * width, clientY: top + y * width, button: 0 }));
        send("down", "touch", 1, 0.8, 0.9);
        send("move", "touch", 1, 0.7, 0.9);
        send("down", "pen", 2, 0.55, 0.2);
        for (const y of [0.3, 0.5, 0.7]) send("move", "pen", 2, 0.6 - 0.2 * y, y);
        send("up", "pen", 2, 0.46, 0.7);
        send("down", "touch", 3, 0.8, 0.9);
        send("move", "touch", 3, 0.7, 0.9);
        send("up", "touch", 3, 0.7, 0.9);""")
    says(browser, "1")
    assert boxes(browser) == []


def test_a_server_that_is_away_is_asked_again(browser):
    browser.execute_script("""
        const fetched = window.fetch;
        window.fetch = async () => { throw new TypeError("offline"); };
        window.comeBack = () => { window.fetch = fetched; };""")
    draw_a_one(browser)
    problem = browser.find_element(By.ID, "problem")
    WebDriverWait(browser, 20).until(lambda _: problem.text.startswith("The server does not answer"))
    working = browser.find_element(By.CSS_SELECTOR, ".waiting #working")
    WebDriverWait(browser, 20).until(lambda _: working.text == "Working…")
    browser.execute_script("comeBack()")
    says(browser, "1")
    assert problem.text == ""


@pytest.mark.parametrize(("width", "height"), [(844, 390), (640, 400)])  # a phone on its side, a laptop at 200 %
def test_where_there_is_little_height(browser, width, height):
    metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    draw_a_one(browser)
    says(browser, "1")
    assert browser.execute_script("return document.documentElement.scrollWidth") == width
    for part in ("board", "undo", "redo", "clear", "answer", "detail", "seen"):
        box = browser.find_element(By.ID, part).rect
        assert box["y"] + box["height"] <= height


def test_at_a_phones_width(browser):
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    draw_a_one(browser)
    says(browser, "1")
    assert browser.execute_script("return document.documentElement.scrollWidth") == 390
    for part in ("board", "undo", "clear", "answer", "seen"):  # all in sight together
        box = browser.find_element(By.ID, part).rect
        assert box["y"] + box["height"] <= 844
