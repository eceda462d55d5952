"""A browser, and servers of the bundled and of a tiny chat model, for all tests of the page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browsing import CHROMIUM, FLAGS, WATCH, serving
from tiny import write_dream_folder

import softmask


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    with serving(softmask.load(device="cpu")) as address:
        yield address


@pytest.fixture(scope="session")
def chat_address(model) -> Iterator[str]:
    with serving(softmask.load(model, device="cpu")) as address:
        yield address


@pytest.fixture(scope="session")
def chat_checkpoint(tmp_path_factory):
    """A random model of 128 positions with a chat template."""
    folder = write_dream_folder(tmp_path_factory.mktemp("model") / "chat", chat=True)
    return softmask.load(folder, device="cpu")


@pytest.fixture(scope="session")
def tool_checkpoint(tmp_path_factory):
    """A random model whose chat template knows tools."""
    folder = tmp_path_factory.mktemp("model") / "tools"
    write_dream_folder(folder, tools=True, max_position_embeddings=1024)
    return softmask.load(folder, device="cpu")


# A server of the file's own model, in a thread, and OpenAI's client of it. Files have another
# `checkpoint`, or a `url` of a server with other settings.


@pytest.fixture(scope="module")
def checkpoint(chat_checkpoint):
    return chat_checkpoint


@pytest.fixture(scope="module")
def url(checkpoint) -> Iterator[str]:
    import test_server  # not before it is collected, or its assertions would say nothing

    with test_server.serving(checkpoint) as (address, _service):
        yield address


@pytest.fixture(scope="module")
def client(url):
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def chromium():
    # For a session it would leave its event loop to the tests that have one of their own.
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no {CHROMIUM}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium):
    """Makes pages; none of them may have thrown an error or met its own policy."""
    contexts, errors = [], []

    def make(width: int = 1200, height: int = 900, **more):
        context = chromium.new_context(viewport={"width": width, "height": height}, **more)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)  # against hanging
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.add_init_script(WATCH)
        return page

    yield make
    violations = [page.evaluate("window.violations") for c in contexts for page in c.pages]
    for context in contexts:
        context.close()
    assert not errors
    assert not any(violations)


@pytest.fixture
def page(new_page, address):
    page = new_page()
    page.goto(address)
    return page


@pytest.fixture
def chat(new_page, chat_address):
    """The page of a chat model, with short answers."""
    page = new_page(reduced_motion="reduce")
    page.goto(chat_address)
    page.eval_on_selector("[name='max_tokens']", "(field) => (field.value = 24)")
    return page
