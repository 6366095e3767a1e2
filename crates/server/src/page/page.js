// Chat with this server, and what its memory does. Whatever a model or a server says becomes text
// nodes, never markup; the page's policy lets no script but this one run.

const $ = (id) => document.getElementById(id);
const number = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function rounded(amount) {
  return number.format(Number(amount.toFixed(amount < 100 ? 1 : 0)));
}

function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const unit = count < 1 ? 0 : Math.min(Math.floor(Math.log2(count) / 10), units.length - 1);
  return `${(count / 1024 ** unit).toFixed(unit ? 1 : 0)} ${units[unit]}`;
}

// ── Settings ────────────────────────────────────────────────────────────────────────────────────

const SETTINGS = ["system", "temperature", "max_tokens", "key"];

function value(name) {
  return $(name).value.trim();
}

function showChosen() {
  const chosen = [];
  if (value("system")) chosen.push("system prompt");
  if (value("temperature")) chosen.push(`temperature ${value("temperature")}`);
  if (value("max_tokens")) chosen.push(`${value("max_tokens")} tokens`);
  $("chosen").textContent = chosen.join(" · ");
}

for (const name of SETTINGS) {
  $(name).value = sessionStorage.getItem(name) ?? "";
  $(name).addEventListener("input", () => {
    sessionStorage.setItem(name, value(name));
    showChosen();
  });
}
$("key").addEventListener("change", () => connect());
$("choices").addEventListener("submit", (event) => {
  event.preventDefault();
  $("key").blur();
});
showChosen();

// ── Server ──────────────────────────────────────────────────────────────────────────────────────

/** A request with the key; what is not 2xx is thrown with the server's own words. */
async function call(path, init = {}) {
  const headers = { ...init.headers };
  if (value("key")) headers.authorization = `Bearer ${value("key")}`;
  const response = await fetch(path, { ...init, headers, cache: "no-store" });
  if (response.ok) return response;
  const body = await response.text();
  let message = body.slice(0, 500) || response.statusText;
  try {
    message = JSON.parse(body).error.message ?? message;
  } catch {
    // Something between the server and us has answered; its words are shown.
  }
  throw Object.assign(new Error(message), { status: response.status });
}

/** What is shown of an error of any kind. */
function words(error) {
  if (error.status) return `${error.message} (${error.status})`;
  if (error.name === "TypeError") return "The server cannot be reached.";
  return error.message;
}

// ── Chat ────────────────────────────────────────────────────────────────────────────────────────

/** What was said, as the API takes it. */
let turns = [];
/** The answer under way. */
let current = null;

const STOPPED = "stopped";
const FENCE = /^\s*(?:```+|~~~+)/;

/** Cuts a text into paragraphs and fenced code; the last may be unfinished. */
function blocks(text) {
  const found = [];
  let lines = [];
  let code = false;
  const close = () => {
    if (code || lines.join("").trim()) found.push({ code, text: lines.join("\n") });
    lines = [];
  };
  for (const line of text.split("\n")) {
    if (FENCE.test(line)) {
      close();
      code = !code;
    } else if (!code && !line.trim()) {
      close();
    } else {
      lines.push(line);
    }
  }
  if (lines.length) close();
  return found;
}

const INLINE = /(`[^`\n]+`|\*\*[^*\n]+\*\*|^#{1,6} .+$)/m;

function paragraph(text) {
  const node = make("p");
  for (const part of text.split(INLINE)) {
    if (/^`[^`\n]+`$/.test(part)) node.append(make("code", "", part.slice(1, -1)));
    else if (/^\*\*[^*\n]+\*\*$/.test(part)) node.append(make("strong", "", part.slice(2, -2)));
    else if (/^#{1,6} /.test(part)) node.append(make("strong", "", part.replace(/^#+ /, "")));
    else node.append(part);
  }
  return node;
}

function fenced(text) {
  const node = make("pre");
  // Wide code scrolls, and what scrolls must be reached by keyboard.
  node.tabIndex = 0;
  node.append(make("code", "", text));
  return node;
}

/** Makes a node show a text; blocks that are as before stay, so that a selection does too. */
function show(node, text) {
  const wanted = blocks(text);
  wanted.forEach((block, index) => {
    const key = `${block.code}${block.text}`;
    const before = node.children[index];
    if (before?.source === key) return;
    const after = block.code ? fenced(block.text) : paragraph(block.text);
    after.source = key;
    if (before) before.replaceWith(after);
    else node.append(after);
  });
  while (node.children.length > wanted.length) node.lastChild.remove();
}

function atEnd() {
  const log = $("log");
  return log.scrollHeight - log.scrollTop - log.clientHeight < 60;
}

function toEnd() {
  $("log").scrollTop = $("log").scrollHeight;
}

function turn(role, name) {
  const node = make("article", role);
  node.setAttribute("aria-label", name);
  $("empty").hidden = true;
  $("log").append(node);
  return node;
}

/** An answer as it comes. */
class Answer {
  content = "";
  reasoning = "";
  calls = [];
  finish = null;
  usage = null;
  started = performance.now();
  first = null;
  stopping = new AbortController();

  constructor() {
    this.node = turn("answer busy", "Answer");
    this.text = make("div", "text");
    this.node.append(this.text);
  }

  take(chunk) {
    if (chunk.error) throw new Error(chunk.error.message);
    this.usage = chunk.usage ?? this.usage;
    const [choice] = chunk.choices ?? [];
    if (!choice) return;
    const { delta = {}, finish_reason } = choice;
    this.finish = finish_reason ?? this.finish;
    this.content += delta.content ?? "";
    this.reasoning += delta.reasoning_content ?? "";
    for (const part of delta.tool_calls ?? []) {
      const known = (this.calls[part.index ?? 0] ??= { name: "", arguments: "" });
      known.name += part.function?.name ?? "";
      known.arguments += part.function?.arguments ?? "";
    }
    if (this.content || this.reasoning || this.calls.length) this.first ??= performance.now();
    this.frame ??= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.frame = null;
    const follow = atEnd();
    if (this.reasoning) this.drawThought();
    show(this.text, this.content);
    this.drawCalls();
    if (follow) toEnd();
  }

  drawThought() {
    if (!this.thought) {
      this.thought = make("details", "thought");
      this.thought.open = true;
      this.thought.append(make("summary", "", "Thinking"), make("div"));
      this.node.prepend(this.thought);
    }
    this.thought.lastChild.textContent = this.reasoning.trim();
    if (this.content.trim() && !this.thoughtDone) {
      this.thoughtDone = true;
      this.thought.open = false;
      const seconds = (performance.now() - this.started) / 1000;
      this.thought.firstChild.textContent = `Thought for ${seconds.toFixed(1)} s`;
    }
  }

  drawCalls() {
    this.calls.forEach((call, index) => {
      if (!call.node) this.node.append((call.node = make("div", "call")));
      let shown = call.arguments;
      try {
        shown = JSON.stringify(JSON.parse(shown), null, 2);
      } catch {
        // Not all of it has come.
      }
      const title = make("p", "", "Calls ");
      title.append(make("b", "", call.name || `tool ${index + 1}`));
      call.node.replaceChildren(title, fenced(shown));
    });
  }

  /** The last state: figures, and what can be done with it. */
  end(note) {
    cancelAnimationFrame(this.frame);
    const follow = atEnd();
    this.draw();
    this.node.classList.remove("busy");
    const under = make("div", "under");
    for (const figure of this.figures()) under.append(make("span", "", figure));
    if (note) under.append(make("span", note === STOPPED ? "" : "cut", note));
    const copy = make("button", "", "Copy");
    copy.addEventListener("click", () => this.copy(copy));
    const again = make("button", "again", "Try again");
    again.addEventListener("click", () => retry());
    for (const button of [copy, again]) button.type = "button";
    under.append(copy, again);
    this.node.append(under);
    if (follow) toEnd();
  }

  figures() {
    const figures = [];
    const tokens = this.usage?.completion_tokens;
    if (tokens !== undefined) figures.push(`${number.format(tokens)} tokens`);
    if (this.first) {
      const seconds = (performance.now() - this.first) / 1000;
      if (tokens > 1) figures.push(`${rounded((tokens - 1) / seconds)} tokens/s`);
      figures.push(`first after ${((this.first - this.started) / 1000).toFixed(2)} s`);
    }
    if (this.finish === "length") figures.push("reached the token limit");
    else if (this.finish && this.finish !== "stop") figures.push(this.finish.replace("_", " "));
    return figures;
  }

  async copy(button) {
    try {
      await navigator.clipboard.writeText(this.content);
      button.textContent = "Copied";
    } catch {
      // Pages without TLS have no clipboard: the text is selected instead.
      getSelection().selectAllChildren(this.text);
      button.textContent = "Selected";
    }
  }
}

/** The objects of a stream of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value: text, done } = await reader.read();
    if (done) return;
    const lines = (rest + text).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const event = line.slice(5).trim();
      if (event === "[DONE]") return;
      yield JSON.parse(event);
    }
  }
}

function body() {
  const messages = value("system") ? [{ role: "system", content: value("system") }] : [];
  const stream_options = { include_usage: true };
  const order = { model, messages: [...messages, ...turns], stream: true, stream_options };
  for (const name of ["temperature", "max_tokens"]) {
    if (value(name)) order[name] = Number(value(name));
  }
  return JSON.stringify(order);
}

/** Asks for the next turn. Whether the server took the request. */
async function answer() {
  clearError();
  const mine = new Answer();
  current = mine;
  showBusy(true);
  toEnd();
  let note = "";
  try {
    const headers = { "content-type": "application/json" };
    const init = { method: "POST", body: body(), headers, signal: mine.stopping.signal };
    const response = await call("v1/chat/completions", init);
    mine.taken = true;
    for await (const chunk of events(response.body)) mine.take(chunk);
    if (!mine.finish) note = "ended early";
  } catch (error) {
    const stopped = error.name === "AbortError";
    note = stopped ? STOPPED : "ended early";
    if (!stopped && current === mine) showError(error);
  }
  if (current !== mine) return true;
  current = null;
  showBusy(false);
  if (!mine.taken && note !== STOPPED) {
    mine.node.remove();
    return false;
  }
  mine.end(note);
  turns.push({ role: "assistant", content: mine.content });
  $("told").textContent = note ? `Answer ${note}.` : "Answer complete.";
  return true;
}

async function send() {
  const text = value("prompt");
  if (!text || current) return;
  const node = turn("user", "You");
  node.append(make("div", "text", text));
  turns.push({ role: "user", content: text });
  $("prompt").value = "";
  if (await answer()) return;
  // Nothing is lost: what was refused goes back to where it can be changed.
  turns.pop();
  node.remove();
  $("empty").hidden = turns.length > 0;
  $("prompt").value ||= text;
}

async function retry() {
  if (current) return;
  const [old] = turns.splice(-1);
  const node = $("log").lastChild;
  node.remove();
  $("prompt").focus();
  if (await answer()) return;
  turns.push(old);
  $("log").append(node);
}

function fresh() {
  current?.stopping.abort();
  current = null;
  turns = [];
  for (const node of document.querySelectorAll("#log > article")) node.remove();
  $("empty").hidden = false;
  clearError();
  showBusy(false);
  $("prompt").focus();
}

function showBusy(busy) {
  $("send").textContent = busy ? "Stop" : "Send";
  $("send").classList.toggle("stop", busy);
  $("log").setAttribute("aria-busy", busy);
  if (busy) $("told").textContent = "Answering.";
}

function showError(error) {
  $("error").hidden = false;
  $("error").firstElementChild.textContent = words(error);
  $("unlock").hidden = error.status !== 401;
}

function clearError() {
  $("error").hidden = true;
}

function showPanel(open) {
  $("panel").hidden = !open;
  $("toggle").setAttribute("aria-expanded", open);
  // On a small screen the panel covers the chat.
  $("chat").inert = open && narrow.matches;
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (current) current.stopping.abort();
  else send();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (current) current.stopping.abort();
  else if (narrow.matches && !$("panel").hidden) {
    showPanel(false);
    $("toggle").focus();
  }
});
$("log").addEventListener("scroll", () => ($("latest").hidden = atEnd()));
$("latest").addEventListener("click", toEnd);
$("fresh").addEventListener("click", fresh);
$("dismiss").addEventListener("click", () => {
  clearError();
  $("prompt").focus();
});
$("unlock").addEventListener("click", () => {
  clearError();
  showPanel(true);
  $("settings").open = true;
  $("key").focus();
});
$("toggle").addEventListener("click", () => showPanel($("panel").hidden));

const narrow = matchMedia("(max-width: 860px)");
const fit = () => showPanel(!narrow.matches);
narrow.addEventListener("change", fit);
fit();

// ── Model and memory ────────────────────────────────────────────────────────────────────────────

let model;
/** Whether the figures may be asked for: not without a key where one is wanted. */
let open = false;
let detailed = false;

async function connect() {
  open = false;
  try {
    const { data } = await (await call("v1/models")).json();
    showModel(data[0]);
    open = true;
    if ($("unlock").hidden === false) clearError();
  } catch (error) {
    showError(error);
    return;
  }
  detailed = true;
  await showMachine();
}

function showModel(card) {
  model = card.id;
  const { bytes_per_token, bits_per_element, layers } = card.kv_cache;
  document.title = `Kvant · ${model}`;
  $("model").textContent = model;
  const bits = number.format(bits_per_element);
  $("facts").textContent =
    `${model} · ${number.format(card.max_model_len)} tokens of context · ${bits}-bit cache`;
  $("bits").textContent = `${bits} of 16`;
  $("per_token").textContent = number.format(bytes_per_token);
  // "0-3  K 8 V 4 bits  100 B/token  as asked for": columns stand two spaces apart.
  const rows = layers.map((line) => {
    const row = make("tr");
    const cells = line.trim().split(/ {2,}/);
    row.append(...cells.map((cell) => make("td", "", cell.replace(/\/token$/, ""))));
    return row;
  });
  $("layers").replaceChildren(...rows);
}

/** What a server tells where no key is needed, or to an admin's key. */
async function showMachine() {
  if (!detailed) return;
  let status;
  try {
    status = await (await call("admin/status")).json();
  } catch {
    detailed = false;
    $("machine").hidden = true;
    return;
  }
  const rows = [
    ["device", status.model.device],
    ["version", status.version],
    ["up for", duration(status.now - status.started)],
  ];
  for (const [name, size] of Object.entries(status.memory)) {
    if (name !== "cache_used_bytes") rows.push([name.replace("_bytes", " memory"), bytes(size)]);
  }
  $("machine").hidden = false;
  $("machine_rows").replaceChildren(
    ...rows.map(([name, text]) => {
      const row = make("div");
      row.append(make("dt", "", name[0].toUpperCase() + name.slice(1)), make("dd", "", text));
      return row;
    }),
  );
}

function duration(seconds) {
  const minutes = Math.floor(seconds / 60);
  if (minutes < 1) return `${Math.floor(seconds)} s`;
  if (minutes < 60) return `${minutes} min`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Sums of a page of metrics by name, and the pages of the cache. */
function read(page) {
  const sums = new Map();
  for (const line of page.split("\n")) {
    const [, name, amount] = line.match(/^([\w:]+)(?:\{.*\})? (\S+)$/) ?? [];
    if (name) sums.set(name, (sums.get(name) ?? 0) + Number(amount));
  }
  const capacity = Number(page.match(/num_gpu_blocks="(\d+)"/)?.[1] ?? 0);
  const block = Number(page.match(/block_size="(\d+)"/)?.[1] ?? 0);
  return { at: performance.now(), sums, capacity, block };
}

const SECONDS = 60;
const rates = new Array(SECONDS).fill(0);
let last = null;

function showMetrics(now) {
  const of = (name) => now.sums.get(name) ?? 0;
  const grown = (name) => {
    const seconds = (now.at - (last?.at ?? now.at)) / 1000;
    // A counter that fell belongs to a server that was started anew.
    return seconds > 0 ? Math.max(0, of(name) - (last.sums.get(name) ?? 0)) / seconds : 0;
  };
  const rate = grown("vllm:generation_tokens_total");
  rates.push(rate);
  rates.shift();
  showSpark();
  const set = (id, amount) => ($(id).textContent = number.format(amount));
  $("rate").textContent = rounded(rate);
  $("prompt_rate").textContent = rounded(grown("vllm:prompt_tokens_total"));
  set("running", of("vllm:num_requests_running"));
  set("waiting", of("vllm:num_requests_waiting"));
  set("written", of("vllm:generation_tokens_total"));
  const used = of("kvant:pages_used");
  const page = now.block * of("kvant:kv_cache_bytes_per_token");
  $("bytes").textContent = bytes(of("kvant:kv_cache_used_bytes"));
  $("of_bytes").textContent = `of ${bytes(now.capacity * page)}`;
  $("pages").textContent = `${number.format(used)} of ${number.format(now.capacity)}`;
  set("room", (now.capacity - used) * now.block);
  $("meter").setAttribute("aria-valuemax", now.capacity);
  $("meter").setAttribute("aria-valuenow", used);
  const part = now.capacity ? used / now.capacity : 0;
  $("meter").firstElementChild.style.width = `${used ? Math.max(100 * part, 1) : 0}%`;
  last = now;
}

function showSpark() {
  const most = Math.max(...rates, 1);
  const points = rates.map((rate, second) => `${second} ${(19 - 18 * (rate / most)).toFixed(2)}`);
  const line = `M${points.join("L")}`;
  $("line").setAttribute("d", line);
  $("area").setAttribute("d", `${line}V20H0Z`);
  const peak = Math.max(...rates);
  $("peak").textContent = peak ? `peak ${rounded(peak)}` : "";
}

const HEALTH = { ok: "ready", draining: "going down", stalled: "stalled", dead: "engine dead" };

function showHealth(state, ok) {
  if ($("health").lastChild.textContent !== state) $("health").lastChild.textContent = state;
  $("health").className = ok ? "ok" : "bad";
}

let away = false;

async function poll() {
  try {
    const { status } = await (await fetch("health", { cache: "no-store" })).json();
    showHealth(HEALTH[status] ?? status, status === "ok");
    if (away) await connect();
    away = false;
    if (open) showMetrics(read(await (await call("metrics")).text()));
  } catch (error) {
    // Busy or closing is no reason to stop asking; a key that is not taken is.
    if (error.status) open = ![401, 403].includes(error.status);
    else {
      away = true;
      showHealth("unreachable", false);
    }
  }
}

async function live() {
  if (!document.hidden) await poll();
  setTimeout(live, away ? 3000 : 1000);
}

showSpark();
await connect();
live();
setInterval(() => document.hidden || showMachine(), 5000);
