// Keeps the status page live. Text from outside becomes text nodes and attributes only, never HTML.

const EVERY = 2000; // milliseconds between two looks
const WINDOW = 300; // seconds that a plot shows
const WIDTH = 300;
const HEIGHT = 60;
const SVG = "http://www.w3.org/2000/svg";

const byId = (id) => document.getElementById(id);
const form = byId("try");
const field = form.elements;
const plots = new Map(); // by model

function make(name, text = "") {
  const element = document.createElement(name);
  element.textContent = text;
  return element;
}

function fill(name, rows) {
  const headings = [...byId(name).tHead.rows[0].cells].map((cell) => cell.textContent);
  byId(name).tBodies[0].replaceChildren(
    ...rows.map((cells) => {
      const row = make("tr");
      row.append(
        ...cells.map((text, i) => {
          const cell = make("td", text);
          cell.dataset.label = headings[i];
          return cell;
        }),
      );
      return row;
    }),
  );
}

function offer(models) {
  const known = [...field.model.options].map((option) => [option.value, option.dataset.chat].join());
  const now = models.map((model) => [model.name, model.has_chat_template ? "yes" : "no"]);
  if (known.join("\n") === now.map((pair) => pair.join()).join("\n")) return;
  const chosen = field.model.value;
  field.model.replaceChildren(
    ...now.map(([name, chat]) => {
      const option = make("option", name);
      option.value = name;
      option.dataset.chat = chat;
      option.selected = name === chosen;
      return option;
    }),
  );
}

// Totals change with a worker's heartbeat only, so that a rate lasts until its next one. Null until there were two.
function rateOf(beats, worker) {
  const old = beats.get(worker.name);
  if (old && old.at === worker.beat_at) return old.rate;
  const tokens = worker.output_tokens - (old ? old.tokens : Infinity);
  const rate = tokens >= 0 && worker.beat_at > old.at ? tokens / (worker.beat_at - old.at) : null;
  beats.set(worker.name, { at: worker.beat_at, tokens: worker.output_tokens, rate });
  return rate;
}

function newPlot(title) {
  const figure = make("figure");
  const caption = make("figcaption");
  const svg = document.createElementNS(SVG, "svg");
  const line = document.createElementNS(SVG, "polyline");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  svg.append(line);
  figure.append(caption, svg);
  byId("plots").append(figure);
  return { title, figure, caption, svg, line, samples: [] };
}

const short = (value) => value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 1 : 0 });

function draw(plot, at, value, unit) {
  plot.samples.push([at, value]);
  plot.samples = plot.samples.filter((sample) => sample[0] > at - WINDOW);
  const known = plot.samples.filter((sample) => sample[1] !== null);
  const most = Math.max(0, ...known.map((sample) => sample[1]));
  const points = known.map(([when, number]) => {
    const x = WIDTH * (1 - (at - when) / WINDOW);
    const y = HEIGHT - 2 - (HEIGHT - 4) * (most ? number / most : 0);
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  });
  plot.line.setAttribute("points", points.join(" "));
  const now = value === null ? "waiting for heartbeats" : `${short(value)} ${unit}, at most ${short(most)}`;
  plot.caption.textContent = `${plot.title}: ${now} in ${WINDOW / 60} minutes`;
  plot.svg.setAttribute("aria-label", plot.caption.textContent);
}

function plot(queues) {
  for (const [model, known] of plots) {
    if (queues.some((queue) => queue.model === model)) continue;
    known.rate.figure.remove();
    known.depth.figure.remove();
    plots.delete(model);
  }
  for (const { model, at, workers, lanes } of queues) {
    if (!plots.has(model)) plots.set(model, { beats: new Map(), rate: newPlot(model), depth: newPlot(model) });
    const { beats, rate, depth } = plots.get(model);
    for (const name of beats.keys()) if (!workers.some((worker) => worker.name === name)) beats.delete(name);
    const rates = workers.map((worker) => rateOf(beats, worker)).filter((number) => number !== null);
    const total = rates.length || !workers.length ? rates.reduce((sum, number) => sum + number, 0) : null;
    draw(rate, at, total, "tokens/s");
    draw(depth, at, Object.values(lanes).reduce((sum, lane) => sum + lane.waiting, 0), "jobs waiting");
  }
}

async function explain(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `the gateway answered ${response.status}`;
}

async function look() {
  try {
    const response = await fetch("status.json", { cache: "no-store", signal: AbortSignal.timeout(15000) });
    if (!response.ok) throw new Error(await explain(response));
    const { models, queues, rows } = await response.json();
    for (const name of Object.keys(rows)) fill(name, rows[name]);
    offer(models);
    plot(queues);
    byId("problem").textContent = "";
  } catch (error) {
    byId("problem").textContent = `Not up to date: ${error.message}`;
  }
}

async function keepLooking() {
  for (;;) {
    if (!document.hidden) await look();
    await new Promise((resolve) => setTimeout(resolve, EVERY));
  }
}

// The data of server-sent events, each one line here; comments keep the connection alive and say nothing.
async function* dataOf(response) {
  let rest = "";
  for (const reader = response.body.pipeThrough(new TextDecoderStream()).getReader(); ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield line.slice(6).trimEnd();
  }
}

function question() {
  const common = {
    model: field.model.value,
    max_tokens: Number(field.max_tokens.value),
    stream: true,
    stream_options: { include_usage: true },
  };
  if (field.model.selectedOptions[0]?.dataset.chat === "no") {
    // Such a model completes text; what it is told first stands before it.
    const prompt = [field.system.value, field.prompt.value].filter(Boolean).join("\n");
    return ["v1/completions", { ...common, prompt }];
  }
  const messages = [{ role: "user", content: field.prompt.value }];
  if (field.system.value) messages.unshift({ role: "system", content: field.system.value });
  return ["v1/chat/completions", { ...common, messages }];
}

async function ask(signal) {
  const [path, body] = question();
  const started = performance.now();
  const seconds = () => `${((performance.now() - started) / 1000).toFixed(2)} s`;
  const response = await fetch(path, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw new Error(await explain(response));
  let first = "";
  for await (const data of dataOf(response)) {
    if (data === "[DONE]") return;
    const { error, choices, usage } = JSON.parse(data);
    if (error) throw new Error(error.message);
    const text = choices[0]?.delta?.content ?? choices[0]?.text ?? "";
    if (text && !first) first = seconds();
    byId("answer").append(text);
    if (usage) byId("told").textContent = `${usage.completion_tokens} tokens in ${seconds()}, the first after ${first}`;
  }
  throw new Error("the answer broke off");
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const [send, stop] = [form.querySelector("[type=submit]"), byId("stop")];
  const asking = new AbortController();
  stop.onclick = () => asking.abort();
  send.disabled = !(stop.disabled = false);
  byId("answer").textContent = "";
  byId("told").textContent = "waiting";
  try {
    await ask(asking.signal);
  } catch (error) {
    byId("told").textContent = asking.signal.aborted ? "stopped" : error.message;
  }
  send.disabled = !(stop.disabled = true);
});

keepLooking();
