// Keeps the status page live and asks what the form asks. The page itself is made by the gateway: a look fetches it
// anew and takes over what differs, so that nothing from outside becomes HTML here.

const EVERY = Number(document.body.dataset.every) * 1000; // milliseconds between two looks
const PATIENCE = 15000; // milliseconds that a look may take

// The page's address without a name and password that it may have been opened with: fetch() refuses those in a URL.
// The browser sends them along by itself, as it does with all requests to where it was asked for them.
const here = location.origin + location.pathname;
const byId = (id) => document.getElementById(id);
const form = byId("try");
const field = form.elements;

async function explain(response) {
  const body = await response.json().catch(() => null);
  return body?.error?.message ?? `the gateway answered ${response.status}`;
}

// fetch() that says in words what went wrong.
async function request(path, options) {
  const response = await fetch(here + path, { credentials: "same-origin", ...options }).catch((error) => {
    throw error.name === "TypeError" ? new Error("the gateway cannot be reached") : error;
  });
  if (!response.ok) throw new Error(await explain(response));
  return response;
}

// The status of the answer, and the page as it is now, as a document: text that is parsed so runs no script and loads nothing.
function fetchPage() {
  return new Promise((resolve, reject) => {
    const asking = new XMLHttpRequest();
    asking.open("GET", here);
    asking.responseType = "document";
    asking.timeout = PATIENCE;
    asking.onload = () => resolve([asking.status, asking.responseXML]);
    asking.onerror = () => reject(new Error("the gateway cannot be reached"));
    asking.ontimeout = () => reject(new Error(`the gateway did not answer within ${PATIENCE / 1000} s`));
    asking.send();
  });
}

// Makes `old` equal to `now` and touches nothing that is equal already, so that a selection of text stays.
function follow(old, now) {
  if (old.isEqualNode(now)) return;
  if (old.nodeName !== now.nodeName) return void old.replaceWith(document.importNode(now, true));
  if (old.nodeType !== Node.ELEMENT_NODE) return void (old.data = now.data);
  for (const { name } of [...old.attributes]) if (!now.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of now.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  while (old.childNodes.length > now.childNodes.length) old.lastChild.remove();
  now.childNodes.forEach((child, i) => {
    if (i < old.childNodes.length) follow(old.childNodes[i], child);
    else old.append(document.importNode(child, true));
  });
}

// Returns whether to look again.
async function look() {
  let problem = "";
  let again = true;
  try {
    const [status, page] = await fetchPage();
    // Another look would make the browser ask for the password each time.
    again = status !== 401;
    if (!again) throw new Error("the gateway does not know this page's key any more; load the page anew");
    // Whoever may not see the page gets no page, but a reason.
    if (!page?.getElementById("live")) throw new Error(await request("").then(() => "this is no page", (e) => e.message));
    problem = page.getElementById("problem").textContent;
    if (!problem) {
      const chosen = field.model.value;
      follow(byId("summary"), page.getElementById("summary"));
      follow(byId("live"), page.getElementById("live"));
      follow(field.model, page.getElementById("try").elements.model);
      if ([...field.model.options].some((option) => option.value === chosen)) field.model.value = chosen;
    }
  } catch (error) {
    problem = error.message;
  }
  const text = problem && `Not up to date: ${problem}`;
  if (byId("problem").textContent !== text) byId("problem").textContent = text;
  return again;
}

async function keepLooking() {
  do {
    await new Promise((resolve) => setTimeout(resolve, EVERY));
    if (document.hidden) await new Promise((resolve) => (document.onvisibilitychange = resolve));
  } while (await look());
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

function tell(text, bad = false) {
  byId("told").textContent = text;
  byId("told").className = bad ? "bad" : "";
}

async function ask(signal) {
  const [path, body] = question();
  const started = performance.now();
  const seconds = () => `${((performance.now() - started) / 1000).toFixed(2)} s`;
  const headers = { "content-type": "application/json" };
  const response = await request(path, { method: "POST", headers, body: JSON.stringify(body), signal });
  let first = "";
  for await (const data of dataOf(response)) {
    if (data === "[DONE]") return;
    const { error, choices, usage } = JSON.parse(data);
    if (error) throw new Error(error.message);
    const text = choices[0]?.delta?.content ?? choices[0]?.text ?? "";
    if (text && !first) {
      first = seconds();
      tell(`first token after ${first}`);
    }
    byId("answer").append(text);
    if (usage) tell(`${usage.completion_tokens} tokens in ${seconds()}` + (first && `, the first after ${first}`));
  }
  throw new Error("the answer broke off");
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const [send, stop] = [byId("send"), byId("stop")];
  // Not `disabled`: the button has the focus, and would lose it.
  if (send.ariaDisabled === "true") return;
  const asking = new AbortController();
  stop.onclick = () => asking.abort();
  stop.disabled = false;
  send.ariaDisabled = "true";
  byId("answer").textContent = "";
  tell("waiting for the first token");
  try {
    await ask(asking.signal);
  } catch (error) {
    if (asking.signal.aborted) tell("stopped");
    else tell(`No answer: ${error.message}`, true);
  }
  if (document.activeElement === stop) send.focus();
  stop.disabled = true;
  send.ariaDisabled = "false";
});

form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});

byId("unscripted").remove();
form.firstElementChild.disabled = false;
keepLooking();
