"""The web page in a real Chromium: what a person types or a model answers never runs, columns, stop, key, keyboard."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ochat_train.serving.keys import Keys
from ochat_train.serving.page import content_security_policy, page, page_headers
from tests.support.browser import chromium
from tests.support.chat_stand_in import StandIn, served
from tests.support.scripted_engine import ScriptedEngine, serving
from tests.support.waiting import wait_for

ATTACK = """\
<script>window.ran = 1</script><img src=x onerror="window.ran = 2"><svg onload="window.ran = 3">
<iframe srcdoc="<script>parent.ran = 4</script>"></iframe><a href="javascript:window.ran = 5">a</a>
[link](javascript:window.ran=6) [data](data:text/html,<script>window.ran=7</script>) **<b onclick=x>bold</b>**
![picture](https://other.example/x.png) [[x](javascript:1)](https://other.example/"onmouseover="ran=8)

| <img src=x onerror="window.ran = 9"> | b |
|---|---|
| <style>*{display:none}</style> | `<script>window.ran = 10</script>` |

```<img src=x onerror="window.ran = 11">
</code></pre><img src=x onerror="window.ran = 12">
```
- <video src="https://other.example/v.mp4" onerror="window.ran = 13">
> <object data="https://other.example/"></object>
"""
MARKDOWN = """\
Some **bold** and *it* with `code` and [a](https://example.com/a_(b)), https://example.org/x.
a second line | with a bar

# Title #
1. one
2. two
  - nested

   still two
3. three

| a | b |
|---|:-:|
| 1 | x \\| y |
text after

~~~py
x = "```"

~~~
> quote
> - item

* * *
snake_case 2*3*4 **open
"""

Open = Callable[..., Any]
MILLISECONDS = 60_000  # more than anything takes, even on a busy machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def running() -> Iterator[StandIn]:
    with served(StandIn()) as stand_in:
        yield stand_in


@pytest.fixture
def server(running: StandIn) -> StandIn:
    """One server for all tests, because starting and ending one takes longer than most of them."""
    vars(running).update(vars(StandIn(url=running.url)))
    return running


@pytest.fixture
def opened(browser: Any, server: StandIn) -> Iterator[Open]:
    """Opens the server's page in a new profile; every error of its script fails the test."""
    contexts, errors = [], []

    def new(width: int = 1200, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 800}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(MILLISECONDS)
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(server.url)
        return tab

    yield new
    for context in contexts:
        context.close()
    assert errors == []


def ask(tab: Any, text: str) -> None:
    tab.locator(".column").first.wait_for()  # nothing can be sent before
    tab.locator("#input").fill(text)
    tab.locator("#input").press("Enter")


def answered(tab: Any, *, turns: int = 1, columns: int = 2) -> None:
    """Wait until the last answer of each column has ended."""
    for number in range(columns):
        column = tab.locator(".column").nth(number)
        column.locator("article").nth(turns - 1).locator(".again").wait_for()


def texts(tab: Any, selector: str) -> list[str]:
    return list(tab.locator(selector).all_inner_texts())


def test_what_a_person_types_or_a_model_answers_does_not_run(server: StandIn, opened: Open) -> None:
    server.script = lambda body: ["Answer:\n\n", *ATTACK.splitlines(keepends=True)]
    tab = opened()
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    ask(tab, ATTACK)
    answered(tab)
    assert tab.evaluate("window.ran") is None
    assert tab.locator("#columns").locator("script, img, svg, iframe, video, object, style, b, [onclick]").count() == 0
    hrefs = tab.locator("#columns a").evaluate_all("links => links.map(link => [link.protocol, link.rel])")
    assert hrefs
    assert all(href == ["https:", "noopener noreferrer"] for href in hrefs)
    assert asked
    assert all(url.startswith(server.url) for url in asked), "no other host is asked for anything"
    assert texts(tab, ".said")[0] == ATTACK, "all of it is shown as text"


@pytest.mark.parametrize("guarded", [False, True])
def test_the_attack_runs_in_a_page_that_reads_text_as_html(server: StandIn, browser: Any, guarded: bool) -> None:
    """The control. The same page also shows that the policy is a second wall."""
    append = "node.append(...children);"
    html = 'children.forEach(c => c.nodeType ? node.append(c) : node.insertAdjacentHTML("beforeend", c));'
    text = page().decode()
    assert append in text
    text = text.replace(append, html)
    server.page, server.headers = text.encode(), {"Content-Type": "text/html"}
    if guarded:
        server.headers = {**page_headers(), "Content-Security-Policy": content_security_policy(text)}
    server.script = lambda body: [ATTACK]
    with browser.new_context() as context:
        tab = context.new_page()
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        tab.goto(server.url)
        if guarded:
            wait_for(lambda: tab.evaluate("1") == 1 and any("TrustedHTML" in error for error in errors))
            assert tab.evaluate("window.ran") is None
        else:
            ask(tab, ATTACK)
            wait_for(lambda: tab.evaluate("window.ran") is not None)


def test_columns_stream_at_once_and_have_their_own_history(server: StandIn, opened: Open) -> None:
    server.gate = threading.Event()
    tab = opened()
    assert texts(tab, ".column select option:checked") == ["GPT4 Correct", "GPT3"]
    ask(tab, "first")
    for number, condition in enumerate(("GPT4 Correct", "GPT3")):
        part = tab.locator(".markdown").nth(number).get_by_text(f"{condition}: first", exact=True)
        part.wait_for()  # seen before the answer has ended
    server.gate.set()
    answered(tab)
    assert texts(tab, ".markdown") == ["GPT4 Correct: first after 0", "GPT3: first after 0"]
    assert all("4 tokens · " in facts and " s to the first" in facts for facts in texts(tab, ".foot .facts")[-2:])
    tab.locator("#target").select_option("1")
    ask(tab, "second")
    answered(tab, turns=2, columns=0)
    tab.locator(".column").nth(1).locator("article").nth(1).locator(".again").wait_for()
    assert texts(tab, ".column >> nth=0 >> .markdown") == ["GPT4 Correct: first after 0"]
    assert server.bodies[-1]["messages"] == [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "GPT3: first after 0"},
        {"role": "user", "content": "second"},
    ]
    for number in range(3, 7):  # as many as a browser has connections to one server
        assert tab.locator("#add").is_enabled()
        tab.locator("#add").click()
        assert tab.locator(".column").count() == number
    assert tab.locator("#add").is_disabled()
    assert "At most 6 columns" in (tab.locator("#add").get_attribute("title") or "")
    for number in range(5, 1, -1):
        tab.get_by_role("button", name="Remove column").nth(1).click()
        assert tab.locator(".column").count() == number
        assert tab.locator("#add").is_enabled()
    tab.reload()  # the conversation is still there
    tab.locator(".column").first.wait_for()
    assert texts(tab, ".markdown")[0] == "GPT4 Correct: first after 0"
    tab.locator("#clear").click()
    assert texts(tab, ".empty") == ["Answers appear here."] * 2


def test_models_and_conditions_are_named(server: StandIn, opened: Open) -> None:
    server.models = ("one", "one@A", "one@", "two@home", "two@home@<b>B</b>", "three")
    tab = opened()
    tab.locator(".column").nth(1).wait_for()
    assert texts(tab, ".column >> nth=0 >> option") == [
        "one: default condition",
        "one: A",
        "one: no condition",
        "two@home: default condition",
        "two@home: <b>B</b>",
        "three: default condition",
    ]
    assert [tab.locator(".column select").nth(number).input_value() for number in (0, 1)] == ["one@A", "one@"]


def test_settings_are_sent_and_the_prompt_is_shown(server: StandIn, opened: Open) -> None:
    tab = opened()
    tab.locator("#show-settings").click()
    tab.locator("#system").fill("Be brief.")
    tab.locator("#temperature").fill("0.7")
    tab.locator("#max-tokens").fill("9")
    tab.locator("#seed").fill("3")
    ask(tab, "hello")
    answered(tab)
    [body] = [body for body in server.bodies if body["model"].endswith("@GPT3")]
    assert body == {
        "model": "small@GPT3",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        "temperature": 0.7,
        "max_tokens": 9,
        "seed": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    tab.get_by_role("button", name="Prompt as sent").nth(1).click()
    tab.locator("#prompt-dialog[open]").wait_for()
    text = "system: Be brief.\nuser: hello\n"
    assert tab.locator("#prompt-text").text_content() == text
    assert tab.locator("#prompt-ids").text_content() == " ".join(map(str, range(len(text))))
    assert tab.locator("#prompt-ids b").get_attribute("title") == "<s>", "control tokens are marked"
    assert tab.locator("#prompt-facts").text_content() == f"{len(text)} tokens, condition GPT3"
    tab.keyboard.press("Escape")
    assert tab.locator("#prompt-dialog[open]").count() == 0
    tab.locator("#max-tokens").fill("-1")
    ask(tab, "not sent")
    assert len(server.bodies) == 2, "a value that is not valid is not sent"
    tab.locator("#max-tokens").fill("")
    tab.locator(".again").first.click()
    wait_for(lambda: tab.evaluate("columns[0].isBusy") is False)
    assert "max_tokens" not in server.bodies[-1]
    assert server.bodies[-1]["messages"] == body["messages"], "an answer is made again from the same messages"


@pytest.mark.parametrize("aborts", [True, False])
def test_stop_ends_the_request(server: StandIn, opened: Open, aborts: bool) -> None:
    """False is the control: a page that does not end the request leaves it to the server."""
    server.gate = threading.Event()
    if not aborts:
        text = page().decode().replace("signal: turn.abort.signal", "signal: undefined")
        server.page, server.headers = text.encode(), {"Content-Type": "text/html"}
    tab = opened()
    ask(tab, "hello")
    tab.locator(".markdown").nth(1).get_by_text("GPT3: hello").wait_for()
    assert server.num_running == 2
    tab.keyboard.press("Escape")
    if aborts:
        answered(tab)
        wait_for(lambda: server.num_running == 0)
        assert all("stopped" in facts for facts in texts(tab, ".foot .facts")[-2:])
        assert tab.locator("#stop").is_hidden()
        assert tab.evaluate("document.activeElement.id") == "input"
    else:
        tab.evaluate("fetch('v1/models').then(answer => answer.text())")
        assert server.num_running == 2
    server.gate.set()


def test_a_server_with_keys_asks_for_one(server: StandIn, opened: Open) -> None:
    server.keys = ("sk-right",)
    tab = opened()
    tab.locator("#key-dialog[open]").wait_for()
    assert tab.locator("#key-problem").is_hidden()
    tab.keyboard.type("sk-wrong")
    tab.keyboard.press("Enter")
    tab.locator("#key-problem").get_by_text("wrong key").wait_for()
    tab.keyboard.type("sk-right")
    tab.keyboard.press("Enter")
    tab.locator(".column").nth(1).wait_for()
    ask(tab, "hello")
    answered(tab)
    assert tab.evaluate("Object.values(sessionStorage).filter(text => text === 'sk-right').length") == 1
    assert tab.evaluate("JSON.stringify(localStorage) + document.cookie + location.href").count("sk-right") == 0
    server.keys = ("sk-new",)  # the old one counts no longer
    ask(tab, "again")
    tab.locator("#key-problem").get_by_text("wrong key").wait_for()
    tab.keyboard.type("sk-new")
    tab.keyboard.press("Enter")
    answered(tab, turns=2)
    assert texts(tab, ".markdown")[1] == "GPT4 Correct: again after 2", "what failed was asked again"
    assert opened().locator("#key-dialog[open]").count() == 1, "another tab does not have the key"


def test_errors_are_shown_where_the_answer_would_be(server: StandIn, opened: Open) -> None:
    tab = opened()
    server.refused = (400, "the prompt has <b>300</b> tokens, but 256 fit")
    ask(tab, "one")
    answered(tab)
    assert texts(tab, ".problem:visible") == ["the prompt has <b>300</b> tokens, but 256 fit"] * 2
    server.refused = (503, "the engine is not running")
    tab.locator(".again").first.click()
    tab.locator(".problem").get_by_text("the engine is not running\nTry again in 7 s.").wait_for()
    server.refused, server.breaks_off = None, True
    ask(tab, "two")
    answered(tab, turns=2)
    assert texts(tab, ".column >> nth=0 >> article >> nth=1 >> .markdown") == ["GPT4 Correct: two after 0"]
    left_out, broken = texts(tab, ".column >> nth=0 >> .problem")
    assert left_out.endswith("\nThis message is not part of the conversation.")
    assert "broke off" in broken
    assert server.bodies[-1]["messages"] == [{"role": "user", "content": "two"}], "what failed is not sent"
    server.breaks_off, server.refused = False, (503, "busy")
    tab.locator(".again").first.click()
    tab.locator(".problem").get_by_text("busy").wait_for()
    kept = texts(tab, ".column >> nth=0 >> article >> nth=1 >> .markdown")
    assert kept == ["GPT4 Correct: two after 0"], "the answer of before stays"
    server.refused = None
    tab.context.set_offline(True)
    ask(tab, "three")
    answered(tab, turns=3)
    assert "cannot be reached" in texts(tab, ".problem:visible")[-1]
    tab.context.set_offline(False)
    tab.locator(".again").first.click()
    tab.locator(".markdown").get_by_text("GPT4 Correct: three after 2").wait_for()


def test_a_pasted_book_is_sent_whole_and_drawn_when_asked_for(server: StandIn, opened: Open) -> None:
    """Placing letters of many scripts took a minute for 200 kB, in which nothing of the page moved."""
    tab, most = opened(), 10_000
    server.script = lambda body: ["read"]
    short, book = "x" * most, "x" * (most - 1) + "\U0001f642" + "word " * 3_000
    for turns, text in enumerate((short, book), 1):
        tab.locator(".column").first.wait_for()
        tab.evaluate("text => { $('input').value = text; $('input').oninput(); }", text)
        assert tab.evaluate("() => $('input').clientHeight / innerHeight") < 0.5
        tab.locator("#input").press("Enter")
        answered(tab, turns=turns)
    assert texts(tab, ".said")[0] == short, "the control: all of it"
    said = tab.locator(".said").nth(1)
    assert said.inner_text() == f"{'x' * (most - 1)}… Show all {len(book.encode('utf-16-le')) // 2:,} characters"
    assert server.bodies[-1]["messages"][-1]["content"] == book
    said.locator("button").click()
    assert said.evaluate("node => node.textContent") == book
    tab.locator(".column").first.get_by_role("button", name="Prompt as sent").nth(1).click()
    tab.locator("#prompt-dialog[open]").wait_for()
    assert len(tab.locator("#prompt-text").text_content()) < most + 100
    ids = tab.locator("#prompt-ids")
    assert "more ids" in ids.text_content()
    assert ids.locator("span, b").count() == 4000


def test_a_phone_has_no_horizontal_scroll(server: StandIn, opened: Open) -> None:
    server.script = lambda body: [
        "x" * 300,
        f"\n\n```\n{'y' * 300}\n```\n\n",
        f"|{'a' * 60}|b|c|\n|-|-|-|\n|{'d ' * 90}|e|f|\n",
    ]
    tab = opened(width=400)
    ask(tab, "w" * 300)
    answered(tab)
    tab.locator("#show-settings").click()
    parts = "[document.documentElement, document.body, document.querySelector('#columns')]"
    is_wide = f"{parts}.some(node => node.scrollWidth > node.clientWidth)"
    for width in (400, 320):  # 320: 1,280 at a zoom of 400 %
        tab.set_viewport_size({"width": width, "height": 800})
        assert tab.evaluate(is_wide) is False, width
        assert tab.evaluate("document.querySelector('h1').clientWidth") > 50, "the name can be read"
    tab.get_by_role("button", name="Prompt as sent").first.click()
    tab.locator("#prompt-dialog[open]").wait_for()
    assert tab.evaluate(is_wide) is False
    tab.evaluate("document.body.append(Object.assign(document.createElement('pre'), {textContent: 'z'.repeat(300)}))")
    assert tab.evaluate(is_wide) is True, "the control"


def test_everything_can_be_done_with_the_keyboard(server: StandIn, opened: Open) -> None:
    tab = opened(permissions=["clipboard-read", "clipboard-write"])
    tab.locator(".column").nth(1).wait_for()
    assert tab.evaluate("document.activeElement.id") == "input", "a person can type at once"
    tab.keyboard.type("one")
    tab.keyboard.press("Shift+Enter")
    tab.keyboard.type("two")
    tab.keyboard.press("Enter")
    answered(tab)
    assert server.bodies[0]["messages"][-1]["content"] == "one\ntwo"
    assert tab.locator("#input").input_value() == ""
    assert texts(tab, "#spoken p")[-1].endswith("one two after 0"), "an answer is read out when it has ended"
    seen = []
    for _ in range(40):
        tab.keyboard.press("Shift+Tab")
        seen.append(tab.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent"))
        if seen[-1] == "Copy":
            break
    tab.keyboard.press("Enter")
    tab.get_by_role("button", name="Copied").wait_for()
    assert tab.evaluate("navigator.clipboard.readText()") == "GPT3: one\ntwo after 0"
    for _ in range(40):
        tab.keyboard.press("Shift+Tab")
        seen.append(tab.evaluate("document.activeElement.ariaLabel || document.activeElement.textContent"))
        if seen[-1] == "Add column":
            break
    expected = ["Regenerate", "Prompt as sent", "Copy", "Remove column", "Clear", "Model and condition"]
    order = [name for name in seen if name in (*expected, "Dark", "Settings", "Clear all", "Add column")]
    assert order == [*expected, *expected, "Dark", "Settings", "Clear all", "Add column"]


def test_the_theme_follows_the_system_until_it_is_chosen(opened: Open) -> None:
    tab = opened(color_scheme="dark")
    ground = "getComputedStyle(document.body).backgroundColor"
    dark = tab.evaluate(ground)
    tab.locator("#theme").click()
    light = tab.evaluate(ground)
    tab.reload()
    assert (dark, light, tab.evaluate(ground)) == ("rgb(21, 25, 26)", "rgb(246, 247, 247)", light)


def test_an_answer_that_grows_looks_like_the_whole_one(opened: Open) -> None:
    """Blocks that are drawn once are those of the whole text, wherever it is cut."""
    tab = opened()
    rng = random.Random(0)
    cuts = [sorted(rng.sample(range(len(MARKDOWN)), 25)) for _ in range(30)]
    cuts.append(list(range(len(MARKDOWN))))
    differing = tab.evaluate(
        """([text, cuts]) => {
          const whole = make("div", {}, ...render(linesOf(text))).innerHTML;
          const drawn = places => {
            const node = make("div"), view = new GrowingMarkdown(node, () => {});
            let from = 0;
            for (const to of [...places, text.length]) { view.text += text.slice(from, to); view.draw(); from = to; }
            return node.innerHTML;
          };
          return [cuts.filter(places => drawn(places) !== whole), whole];
        }""",
        [MARKDOWN, cuts],
    )
    assert differing[0] == []
    whole = differing[1]
    for part in (
        "<strong>bold</strong> and <em>it</em> with <code>code</code>",
        'href="https://example.com/a_(b)"',
        '<h3>Title</h3><ol start="1"><li>',
        "<ul><li>nested",
        '<td style="text-align: center;">x | y</td>',
        'x = "```"\n',
        "<blockquote><p>quote</p><ul><li>item</li></ul></blockquote><hr>",
        "snake_case 2*3*4 **open",
    ):
        assert part in whole, json.dumps([part, whole])


def test_hostile_markdown_is_drawn(opened: Open) -> None:
    """Nothing in it takes quadratic time; a page that hangs would end at the time limit."""
    tab = opened()
    texts = ["*a **" * 4000, "[" * 20_000, "`" * 9_999 + " `` " * 3000, "> " * 5000 + "x", "- " * 5000 + "x"]
    texts += ["_a_b" * 5000, "| " * 9000 + "x", "\\" * 20_001, "http://" * 3000, "![](" * 5000, "# " * 9000]
    draw = "text => make('div', {}, ...render(linesOf(text))).textContent.length"
    assert min(tab.evaluate(draw, text) for text in texts) > 0


def test_the_page_works_with_the_real_server(browser: Any) -> None:
    """`ochat serve` with a key: its page, its conditions, its prompts, and stop reaches its engine."""
    engine = ScriptedEngine()
    with serving(engine, keys=Keys(["sk-right"])) as running, browser.new_context() as context:
        tab = context.new_page()
        tab.set_default_timeout(MILLISECONDS)
        errors: list[str] = []
        tab.on("pageerror", lambda error: errors.append(str(error)))
        response = tab.goto(running.url)
        assert response.status == 401
        tab.locator("#key").fill("sk-right")
        tab.keyboard.press("Enter")
        ask(tab, "<|end_of_turn|> hi")
        answered(tab)
        assert texts(tab, ".markdown") == ["Hello there"] * 2
        options = tab.locator(".column").first.locator("option").all_inner_texts()
        assert options == ["GPT4 Correct (default)", "GPT4 Correct", "GPT3"]
        assert [settings.temperature for _, settings in engine.asked] == [0.0, 0.0]
        tab.get_by_role("button", name="Prompt as sent").nth(1).click()
        tab.locator("#prompt-dialog[open]").wait_for()
        text = "<s>GPT3 User: <|end_of_turn|> hi<|end_of_turn|>GPT3 Assistant:"
        assert tab.locator("#prompt-text").text_content() == text
        ids = [ids for ids, _ in engine.asked if " ".join(map(str, ids)) == tab.locator("#prompt-ids").text_content()]
        assert len(ids) == 1, "the ids that are shown are those that the engine got"
        assert tab.locator("#prompt-ids b").count() == 2, "what a person types is not a control token"
        tab.keyboard.press("Escape")
        engine.script = lambda prompt_ids, settings: [" never", *[" ends"] * 200]
        engine.pause_s = 0.05
        ask(tab, "again")
        tab.locator(".markdown").get_by_text("never ends").nth(1).wait_for()
        tab.keyboard.press("Escape")
        wait_for(lambda: engine.num_running == 0)
        assert engine.num_closed == 2
        assert errors == []
