"""The built-in page in a real browser: what is typed is answered, shown, stopped."""

import pytest

import chromium
from server_process import ECHO, served

pytestmark = pytest.mark.skipif(chromium.find() is None, reason="no Chromium; apt install chromium")


@pytest.fixture(scope="module")
def server():
    with served([*ECHO, "--slow", "0.005"]) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with chromium.page() as page:
        yield page


@pytest.fixture
def page(browser, server):
    browser.requests.clear()
    browser.open(f"{server.url}/")
    browser.until("document.getElementById('model').textContent === 'echo'")
    browser.evaluate("document.getElementById('question').focus()")
    return browser


def _set(page, **settings):
    for name, value in settings.items():
        page.evaluate(
            f"(() => {{ const box = document.getElementById('{name}'); box.value = '{value}';"
            " box.dispatchEvent(new Event('change')); })()"
        )


def _ask(page, text):
    page.write(text)
    page.press_enter()


ANSWER = "document.querySelector('article.assistant:last-of-type .answer')?.textContent"
NOTE = "document.querySelector('article.assistant:last-of-type .note')?.textContent"


def test_a_question_is_answered_piece_by_piece_and_counted(page, server, tmp_path):
    _set(page, max_tokens=60)
    _ask(page, "hello ")
    first = page.until(ANSWER)
    assert len(first) < 60
    page.until(f"{NOTE}?.includes('60 tokens')")
    assert page.evaluate(ANSWER) == "hello" * 12
    page.screenshot(tmp_path / "page.png")
    assert all(url.startswith(server.url) for url in page.requests if url != "data:,")
    assert page.requests


def test_thoughts_stand_apart_from_the_answer(page):
    text = "<think>hm</think>yes"
    _set(page, max_tokens=len(text))
    _ask(page, text)
    page.until(f"{NOTE}?.includes('tokens')")
    assert page.evaluate(ANSWER) == "yes"
    assert page.evaluate("document.querySelector('.thought').textContent") == "hm"


def test_text_of_the_model_is_never_markup(page):
    text = "<img src=x onerror=document.title=1>"
    _set(page, max_tokens=len(text))
    _ask(page, text)
    page.until(f"{NOTE}?.includes('tokens')")
    assert page.evaluate(ANSWER) == text
    assert page.evaluate("document.querySelectorAll('main img').length") == 0
    assert page.evaluate("document.title") == "echo"


def test_stop_ends_the_computation(page, server):
    _set(page, max_tokens=4000)
    _ask(page, "abc")
    page.until(ANSWER)
    page.evaluate("document.getElementById('stop').click()")
    page.until(f"{NOTE} === 'stopped'")
    page.until(
        "fetch('/metrics').then(r => r.text()).then(t => t.includes('llm_infer_open_answers 0.0'))"
    )
    assert page.evaluate("getComputedStyle(document.getElementById('send')).display") != "none"


def test_an_error_of_the_server_is_shown(page):
    _ask(page, "fail")
    assert "log says why" in page.until(f"{NOTE}?.includes('failed') && {NOTE}")
