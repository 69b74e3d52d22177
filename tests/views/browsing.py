"""What a user of the demo's page does and sees, through a browser's driver."""

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait


def says(browser, answer):
    """Waits for an answer."""
    element = browser.find_element(By.ID, "answer")
    WebDriverWait(browser, 20).until(lambda _: element.text == answer, f"it says {element.text}, not {answer}")


def shown(browser, canvases):
    """What is drawn on some canvases."""
    script = "return [...document.querySelectorAll(arguments[0])].map(canvas => canvas.toDataURL())"
    return browser.execute_script(script, canvases)


def draw_a_one(browser):
    board = browser.find_element(By.ID, "board")
    third = board.size["height"] // 3
    pen = ActionChains(browser, duration=50).move_to_element_with_offset(board, 10, -third).click_and_hold()
    pen.move_by_offset(-10, third).move_by_offset(-10, third).release().perform()


def boxes(browser):
    """The labels over the board, and where their boxes lie, as shares of the board."""
    script = """
        const board = document.getElementById("board").getBoundingClientRect();
        return [...document.querySelectorAll("#boxes div")].map((frame) => {
          const box = frame.getBoundingClientRect();
          return [frame.textContent, ...[box.left, box.right].map((x) => (x - board.left) / board.width),
                  ...[box.top, box.bottom].map((y) => (y - board.top) / board.height)];
        });"""
    return browser.execute_script(script)
