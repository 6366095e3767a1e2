"""The page in a real browser, used as a person with a keyboard uses it: drive.py KVANT FOLDER.

Starts `kvant serve --model tiny`; screenshots go to FOLDER. What the built-in model cannot say (markup, thoughts, calls of
tools) comes from `stream`, in place of the server's answer.
"""

import contextlib
import json
import pathlib
import subprocess
import sys
import threading
import urllib.request

import axe_playwright_python
from playwright.sync_api import expect, sync_playwright

KVANT, OUT = sys.argv[1], pathlib.Path(sys.argv[2])
AXE = (pathlib.Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 780}
CHAT = "**/v1/chat/completions"
expect.set_options(timeout=20_000)


@contextlib.contextmanager
def serving(port="0", flags=()):
    """A server on a free port; its address."""
    command = [KVANT, "serve", "--model", "tiny", "--port", port, *flags]
    with open(OUT / "serve.log", "a") as log, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as child:
        try:
            line = child.stdout.readline()
            assert line.startswith("listening on "), f"the server did not start; see {OUT}/serve.log"
            yield line.removeprefix("listening on ").strip()
        finally:
            child.kill()


def fetch(url, body=None):
    """What the server says to us, beside the page."""
    request = urllib.request.Request(url, body and json.dumps(body).encode(), {"content-type": "application/json"})
    return urllib.request.urlopen(request).read().decode()


def metric(address, name):
    return sum(float(line.rsplit(" ", 1)[1]) for line in fetch(f"{address}/metrics").splitlines() if line.startswith(name + "{"))


class Tab:
    """A tab with its own storage. Whatever the console, another host or an uncaught error has to say is kept."""

    def __init__(self, browser, address, scheme="light", size=WIDE):
        self.address, self.said, self.refused = address, [], 0
        self.context = browser.new_context(color_scheme=scheme, viewport=size)
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.said.append(f"uncaught: {error}"))
        self.page.on("console", self.hear)
        self.page.on("request", self.watch)
        self.page.add_init_script(AXE)

    def hear(self, message):
        # The browser says so of every status from 400 on; that the page shows them is what is tested.
        if "Failed to load resource: the server responded" in message.text:
            if "/admin/status" not in message.location["url"]:
                self.refused += 1
        elif message.type in ("error", "warning"):
            self.said.append(message.text)

    def watch(self, request):
        if not request.url.startswith((self.address + "/", "data:")):
            self.said.append(f"asked {request.url}")

    def open(self):
        self.page.goto(self.address + "/")
        expect(self.page.locator("#health")).to_have_text("ready")
        return self.page

    def close(self, refused=0):
        assert not self.said, self.said
        assert self.refused == refused, f"{self.refused} requests were refused, {refused} should be"
        self.context.close()

    def slow(self, bytes_a_second):
        """A thin line, so that there is time to look at an answer as it comes."""
        session = self.context.new_cdp_session(self.page)
        session.send("Network.enable")
        conditions = {"offline": False, "latency": 0, "uploadThroughput": -1}
        session.send("Network.emulateNetworkConditions", {**conditions, "downloadThroughput": bytes_a_second})

    def send(self, text):
        self.page.locator("#prompt").focus()
        self.page.keyboard.type(text)
        self.page.keyboard.press("Enter")

    def shot(self, name):
        self.page.screenshot(path=OUT / f"{name}.png")

    def accessible(self, what):
        """No finding of axe-core in any of its rules."""
        found = self.page.evaluate("async () => (await axe.run()).violations")
        told = [f"{rule['id']}: {node['target']} {node['failureSummary']}" for rule in found for node in rule["nodes"]]
        assert not told, what + ":\n" + "\n".join(told)


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.tagName")


def stream(*deltas, finish="stop", tokens=9):
    """An answer of ours."""
    choices = [{"delta": delta, "finish_reason": None} for delta in deltas] + [{"delta": {}, "finish_reason": finish}]
    chunks = [{"choices": [{"index": 0, **choice}]} for choice in choices]
    chunks.append({"choices": [], "usage": {"completion_tokens": tokens}})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    return lambda route: route.fulfill(body=body, content_type="text/event-stream")


def facts_of_the_model(browser, address):
    tab = Tab(browser, address)
    page = tab.open()
    card = json.loads(fetch(f"{address}/v1/models"))["data"][0]
    cache = card["kv_cache"]
    assert focused(page) == "prompt" and page.title() == f"Kvant · {card['id']}"
    expect(page.locator("#facts")).to_contain_text(f"{card['max_model_len']:,} tokens of context")
    expect(page.locator("#bits")).to_have_text(f"{round(cache['bits_per_element'], 2):g} of 16")
    expect(page.locator("#per_token")).to_have_text(f"{cache['bytes_per_token']:,}")
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#layers tr").all()]
    assert rows and all(len(row) == 4 for row in rows), rows
    told = [f"{layers} {format} {size}/token {reason}".split() for layers, format, size, reason in rows]
    assert told == [line.split() for line in cache["layers"]], (told, cache["layers"])
    status = {
        "version": "0.1.0", "now": 1_800_007_300, "started": 1_800_000_000, "model": {"device": "cpu"},
        "memory": {"weight_bytes": 2_099_456, "cache_bytes": 26_214_400, "cache_used_bytes": 0},
    }
    page.route("**/admin/status", lambda route: route.fulfill(json=status))
    page.reload()
    expect(page.locator("#machine dd")).to_have_count(5)
    rows = [page.locator(f"#machine {kind}").all_inner_texts() for kind in ("dt", "dd")]
    assert dict(zip(*rows)) == {
        "Device": "cpu", "Version": "0.1.0", "Up for": "2 h 1 min", "Weight memory": "2.0 MiB", "Cache memory": "25.0 MiB",
    }, rows
    tab.accessible("an empty page")
    tab.shot("empty")
    tab.close()


def a_stream_that_is_stopped(browser, address):
    tab = Tab(browser, address)
    page = tab.open()
    tab.slow(8000)
    # The same text each time, which does not end by itself before it is stopped.
    more = {"seed": 7, "ignore_eos": True}
    page.route(CHAT, lambda route: route.continue_(post_data=route.request.post_data_json | more))
    tab.send("Call me Ishmael.")
    text = page.locator(".answer .text")
    expect(text).not_to_be_empty()
    expect(page.locator("#send")).to_have_text("Stop")
    before = text.inner_text()
    page.wait_for_function("length => document.querySelector('.answer .text').innerText.length > length", arg=len(before) + 20)
    tab.accessible("an answer as it comes")
    tab.shot("streaming")
    page.keyboard.press("Escape")
    expect(page.locator(".answer .under")).to_contain_text("stopped")
    expect(page.locator("#send")).to_have_text("Send")
    expect(page.locator("#told")).to_have_text("Answer stopped.")
    stopped = text.inner_text()
    # A line that was about to break is shown without its end.
    assert stopped.startswith(before.rstrip()), (before, stopped)
    assert focused(page) == "prompt", focused(page)
    tab.slow(-1)
    # The next figures come over the same line: had the stream gone on, its text would have too.
    written = page.locator("#written").inner_text()
    tab.send("Again")
    page.wait_for_function("before => document.getElementById('written').innerText !== before", arg=written)
    assert page.locator(".answer .text").first.inner_text() == stopped
    page.locator("#fresh").focus()
    page.keyboard.press("Enter")
    expect(page.locator("article")).to_have_count(0)
    expect(page.locator("#empty")).to_be_visible()
    assert focused(page) == "prompt"
    tab.close()


def settings_reach_the_server(browser, address):
    tab = Tab(browser, address)
    page = tab.open()
    page.locator("#settings summary").focus()
    page.keyboard.press("Enter")
    for name, value in [("system", "Speak as a whale."), ("temperature", "0.5"), ("max_tokens", "12")]:
        page.keyboard.press("Tab")
        assert focused(page) == name
        page.keyboard.type(value)
    expect(page.locator("#chosen")).to_have_text("system prompt · temperature 0.5 · 12 tokens")
    page.locator("#prompt").focus()
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Two")
    with page.expect_request(CHAT) as sent:
        page.keyboard.press("Enter")
    body = sent.value.post_data_json
    messages = [{"role": "system", "content": "Speak as a whale."}, {"role": "user", "content": "One\nTwo"}]
    assert body["messages"] == messages and body["model"] == "tiny" and body["stream"] is True, body
    assert (body["temperature"], body["max_tokens"]) == (0.5, 12), body
    assert "authorization" not in sent.value.headers
    under = page.locator(".answer .under")
    expect(under).to_contain_text("12 tokens")
    expect(under).to_contain_text("reached the token limit")
    with page.expect_request(CHAT) as sent:
        tab.send("Three")
    said = page.locator(".answer .text").first.inner_text()
    roles = [turn["role"] for turn in sent.value.post_data_json["messages"]]
    assert roles == ["system", "user", "assistant", "user"] and said, roles
    expect(under).to_have_count(2)
    with page.expect_request(CHAT) as sent:
        page.locator(".answer .again").last.click()
    assert len(sent.value.post_data_json["messages"]) == 4
    expect(under).to_have_count(2)
    page.reload()
    expect(page.locator("#system")).to_have_value("Speak as a whale.")
    tab.close()


def live_figures(browser, address):
    tab = Tab(browser, address)
    page = tab.open()
    expect(page.locator("#running")).to_have_text("0")
    expect(page.locator("#pages")).to_contain_text("0 of ")
    stop = threading.Event()

    def load():
        while not stop.is_set():
            fetch(f"{address}/v1/completions", {"prompt": "The sea", "max_tokens": 1500, "ignore_eos": True})

    clients = [threading.Thread(target=load) for _ in range(6)]
    for client in clients:
        client.start()
    try:
        page.wait_for_function("""() => {
            const of = (id) => parseFloat(document.getElementById(id).innerText.replaceAll(",", ""));
            const meter = Number(document.getElementById("meter").getAttribute("aria-valuenow"));
            return of("running") > 0 && of("rate") > 0 && of("pages") > 0 && of("bytes") > 0 && meter === of("pages")
                && document.getElementById("line").getAttribute("d").length > 300;
        }""", timeout=60_000)
        tab.shot("load")
    finally:
        stop.set()
        for client in clients:
            client.join()
    expect(page.locator("#running")).to_have_text("0")
    expect(page.locator("#rate")).to_have_text("0")
    expect(page.locator("#written")).to_have_text(f"{metric(address, 'vllm:generation_tokens_total'):,.0f}")
    expect(page.locator("#peak")).to_contain_text("peak ")
    tab.close()


def errors_are_told_and_nothing_is_lost(browser, address):
    tab = Tab(browser, address)
    page = tab.open()
    long = "the whale " * 3000
    page.locator("#prompt").fill(long)
    page.keyboard.press("Enter")
    error = page.locator("#error")
    expect(error).to_contain_text("this model's context is 2048 tokens")
    expect(error).to_contain_text("(400)")
    expect(page.locator("#prompt")).to_have_value(long.strip())
    expect(page.locator("article")).to_have_count(0)
    tab.accessible("an error")
    tab.shot("error")
    page.locator("#dismiss").click()
    expect(error).to_be_hidden()
    broken = 'data: {"choices": [{"delta": {"content": "So far"}}]}\n\ndata: {"error": {"message": "the engine has stopped"}}\n\n'
    page.route(CHAT, lambda route: route.fulfill(body=broken, content_type="text/event-stream"))
    page.locator("#prompt").fill("")
    tab.send("Go on")
    expect(error).to_contain_text("the engine has stopped")
    expect(page.locator(".answer .text")).to_have_text("So far")
    expect(page.locator(".answer .under")).to_contain_text("ended early")
    page.unroute(CHAT)
    page.locator(".answer .again").click()
    expect(error).to_be_hidden()
    expect(page.locator("#told")).to_have_text("Answer complete.")
    tab.close(refused=1)


def a_key_is_asked_for_and_kept_in_the_tab(browser):
    made = subprocess.run([KVANT, "key", "--name", "reader"], capture_output=True, text=True, check=True)
    keys, key = OUT / "keys", made.stderr.strip()
    keys.write_text(made.stdout)
    with serving(flags=["--keys", keys]) as address:
        a_key_is_asked_for(browser, address, key)


def a_key_is_asked_for(browser, address, key):
    tab = Tab(browser, address)
    page = tab.open()
    error = page.locator("#error")
    expect(error).to_contain_text("this server wants a key")
    expect(error).to_contain_text("(401)")
    expect(page.locator("#rate")).to_have_text("–")
    page.locator("#unlock").focus()
    page.keyboard.press("Enter")
    assert focused(page) == "key"
    page.keyboard.type("mellon")
    page.keyboard.press("Enter")
    expect(error).to_contain_text("the key is not one of this server's (401)")
    expect(page.locator("#layers tr")).to_have_count(0)
    tab.shot("key")
    page.locator("#unlock").click()
    page.keyboard.press("ControlOrMeta+A")
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    expect(error).to_be_hidden()
    expect(page.locator("#layers tr")).not_to_have_count(0)
    expect(page.locator("#rate")).not_to_have_text("–")
    tab.send("Hello")
    expect(page.locator(".answer .text")).not_to_be_empty()
    assert page.evaluate("sessionStorage.getItem('key')") == key
    elsewhere = page.evaluate("[localStorage.length, document.cookie, location.href]")
    assert elsewhere == [0, "", address + "/"], elsewhere
    tab.close(refused=2)


def what_a_model_says_stays_text(browser, address):
    text = """**Codes** and `tiles`. <img src=x onerror="document.title='broken'"><script>document.title='broken'</script>

# What a page holds
- 64 tokens of every layer

```rust
fn bits() -> f64 { 6.25 } // <b>not bold</b>
```
Done."""
    thought = "The user wants <i>facts</i>."
    call = {"index": 0, "id": "a", "function": {"name": "read_file", "arguments": '{"path": '}}
    rest = {"index": 0, "function": {"arguments": '"<b>.md"}'}}
    pieces = [{"content": text[start : start + 9]} for start in range(0, len(text), 9)]
    deltas = [{"role": "assistant", "content": ""}, {"reasoning_content": thought}, *pieces, {"tool_calls": [call]}, {"tool_calls": [rest]}]
    for scheme, size in [("light", WIDE), ("dark", WIDE), ("dark", NARROW)]:
        tab = Tab(browser, address, scheme, size)
        page = tab.open()
        page.route(CHAT, stream(*deltas, finish="tool_calls", tokens=180))
        tab.send("What does a page hold?")
        answer = page.locator(".answer")
        expect(answer.locator(".under")).to_contain_text("180 tokens")
        expect(answer.locator(".under")).to_contain_text("tool calls")
        assert answer.locator("strong").all_inner_texts() == ["Codes", "What a page holds"]
        assert answer.locator("p code").all_inner_texts() == ["tiles"]
        assert answer.locator(".text pre").all_inner_texts() == ["fn bits() -> f64 { 6.25 } // <b>not bold</b>"]
        expect(answer.locator(".text p").first).to_contain_text("<img src=x onerror=")
        assert json.loads(answer.locator(".call pre").inner_text()) == {"path": "<b>.md"}
        expect(answer.locator(".call b")).to_have_text("read_file")
        assert answer.locator("img, script, i, .text b").count() == 0 and page.title() == "Kvant · tiny"
        summary = answer.locator(".thought summary")
        expect(summary).to_contain_text("Thought for ")
        summary.focus()
        page.keyboard.press("Enter")
        expect(answer.locator(".thought div")).to_have_text(thought)
        tab.accessible(f"an answer, {scheme}")
        tab.shot(f"answer-{scheme}-{size['width']}")
        tab.close()


def light_and_dark(browser, address):
    grounds = {}
    for scheme in ["light", "dark"]:
        tab = Tab(browser, address, scheme)
        page = tab.open()
        page.locator("#settings summary").click()
        tab.accessible(f"settings, {scheme}")
        tab.shot(f"settings-{scheme}")
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        grounds[scheme] = sum(int(part) for part in colour[4:-1].split(","))
        tab.close()
    assert grounds["light"] > 600 and grounds["dark"] < 150, grounds


def every_control_is_reached_by_tab_and_seen(browser, address):
    tab = Tab(browser, address)
    page = tab.open()
    page.locator("#settings summary").click()
    page.locator("#fresh").focus()
    page.keyboard.press("Shift+Tab")
    assert focused(page) == "BODY", "something comes before the first button"
    page.locator("#fresh").focus()
    page.keyboard.press("Shift")
    order = []
    for index in range(10):
        if index:
            page.keyboard.press("Tab")
        order.append(focused(page))
        ring = page.evaluate("""() => {
            const node = document.activeElement;
            const seen = node.id === "prompt" ? node.form : node;
            const style = getComputedStyle(seen);
            return parseFloat(style.outlineWidth) > 0 && style.outlineStyle !== "none" || style.boxShadow !== "none";
        }""")
        assert ring, f"{order} shows no focus"
    wanted = ["fresh", "toggle", "log", "prompt", "send", "SUMMARY", "system", "temperature", "max_tokens", "key"]
    assert order == wanted, order
    tab.close()


def small_screens(browser, address):
    tab = Tab(browser, address, "light", {"width": 320, "height": 568})
    page = tab.open()
    wide = "document.documentElement.scrollWidth > innerWidth"
    expect(page.locator("#panel")).to_be_hidden()
    assert not page.evaluate(wide)
    tab.send("Hello")
    expect(page.locator(".answer .under")).to_be_visible()
    assert not page.evaluate(wide)
    page.locator("#toggle").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#panel")).to_be_visible()
    assert page.evaluate("document.getElementById('chat').inert") and not page.evaluate(wide)
    tab.accessible("the panel of a small screen")
    tab.shot("panel-320")
    page.keyboard.press("Escape")
    expect(page.locator("#panel")).to_be_hidden()
    assert focused(page) == "toggle" and not page.evaluate("document.getElementById('chat').inert")
    tab.close()


def a_server_that_goes_is_told(browser):
    tab = None
    with serving() as address:
        tab = Tab(browser, address)
        page = tab.open()
    health = page.locator("#health")
    expect(health).to_have_text("unreachable")
    tab.send("Hello?")
    expect(page.locator("#error")).to_contain_text("The server cannot be reached.")
    expect(page.locator("#prompt")).to_have_value("Hello?")
    with serving(address.rsplit(":", 1)[1]):
        expect(health).to_have_text("ready")
        page.keyboard.press("Enter")
        expect(page.locator(".answer .text")).not_to_be_empty()
        expect(page.locator("#error")).to_be_hidden()
    tab.context.close()


def main():
    checks = [
        facts_of_the_model, a_stream_that_is_stopped, settings_reach_the_server, live_figures, errors_are_told_and_nothing_is_lost,
        what_a_model_says_stays_text, light_and_dark,
        every_control_is_reached_by_tab_and_seen, small_screens,
    ]
    alone = [a_key_is_asked_for_and_kept_in_the_tab, a_server_that_goes_is_told]
    with sync_playwright() as playwright, serving() as address:
        # Root has no sandbox in a container; the only pages opened are this server's.
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for check in checks:
            check(browser, address)
            print(f"page: {check.__name__}", flush=True)
        for check in alone:
            check(browser)
            print(f"page: {check.__name__}", flush=True)
        print(f"page: {len(checks) + len(alone)} checks passed with Chromium {browser.version}")
        browser.close()


main()
