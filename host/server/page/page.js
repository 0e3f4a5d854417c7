// The page: a workflow as a form, the queue as it runs, and what was made. No library, no build step.

const $ = (id) => document.getElementById(id);

/** An element with attributes, listeners (onclick: f) and children. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key in node && key !== "list" && key !== "form") node[key] = value;
    else if (value !== false && value != null) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child != null));
  return node;
}

/** What the server answers, as JSON; a refusal is thrown with its sentence. */
async function ask(path, options) {
  const response = await fetch(path, options);
  if (response.status === 401) location.assign("login");
  const text = await response.text();
  let answer = null;
  try { answer = text ? JSON.parse(text) : null; } catch { /* a sentence, then */ }
  if (response.ok) return answer;
  const error = new Error(answer?.error?.message ?? answer?.error ?? text ?? response.statusText);
  error.nodes = answer?.node_errors ?? {};
  throw error;
}

const post = (path, body) =>
  ask(path, { method: "POST", body: body instanceof Blob ? body : JSON.stringify(body) });

const client = sessionStorage.client ??= crypto.randomUUID?.() ?? String(Math.random()).slice(2);
let classes = {};
let current = null; // {name, prompt, workflow}
const fields = new Map(); // "node input" -> element

// ---- The form ----

/** The widgets of a node: what its class says of an input that is no link. */
function widgets(node) {
  const info = classes[node.class_type]?.input ?? {};
  const all = { ...info.required, ...info.optional };
  const is_widget = ([name, [type]]) =>
    !Array.isArray(node.inputs[name]) && (Array.isArray(type) || ["INT", "FLOAT", "STRING", "BOOLEAN"].includes(type));
  return Object.entries(all).filter(is_widget);
}

const is_text = ([, [type, options]]) => type === "STRING" && options?.multiline;
const is_picture = ([, [, options]]) => options?.image_upload;
const is_seed = ([name, [, options]]) => options?.control_after_generate || name === "seed" || name === "noise_seed";
const is_model = ([name, [type]]) => Array.isArray(type) && name.endsWith("_name") && name !== "sampler_name";
const is_first = (widget) => is_text(widget) || is_picture(widget) || is_seed(widget) || is_model(widget);

function view_url(item, preview) {
  const query = new URLSearchParams({ filename: item.filename, subfolder: item.subfolder ?? "", type: item.type ?? "output" });
  if (preview) query.set("preview", preview);
  return `view?${query}`;
}

/** The element that edits one input; its value is written into the prompt at once. */
function field(id, node, widget) {
  const [name, [type, options = {}]] = widget;
  const set = (value) => { node.inputs[name] = value; };
  const value = node.inputs[name] ?? options.default ?? (Array.isArray(type) ? type[0] : "");
  const key = `f-${id}-${name}`;
  const tip = options.tooltip ?? "";
  let input;
  if (is_picture(widget)) return picture(key, name, type, value, set);
  if (Array.isArray(type)) {
    const choices = type.includes(value) ? type : [value, ...type];
    input = el("select", { id: key, title: tip, onchange: (e) => set(e.target.value) },
      ...choices.map((choice) => el("option", { value: choice, selected: choice === value }, String(choice))));
  } else if (type === "BOOLEAN") {
    input = el("input", { id: key, type: "checkbox", checked: value === true, title: tip, onchange: (e) => set(e.target.checked) });
  } else if (type === "STRING") {
    const tag = options.multiline ? "textarea" : "input";
    input = el(tag, { id: key, value, title: tip, spellcheck: false, oninput: (e) => set(e.target.value) });
  } else {
    // Seeds have 64 bits, more than a number here: they travel as they are typed.
    const read = (text) => (is_seed(widget) && !/^-?\d{1,15}$/.test(text.trim()) ? text.trim() : Number(text));
    input = el("input", { id: key, value: String(value), inputMode: type === "INT" ? "numeric" : "decimal", title: tip,
      autocomplete: "off", oninput: (e) => set(read(e.target.value)) });
  }
  fields.set(`${id} ${name}`, input);
  const label = el("label", { htmlFor: key }, name.replaceAll("_", " "));
  if (!is_seed(widget)) return el("div", { className: "field" }, label, input);
  const roll = () => {
    input.value = String(Math.floor(Math.random() * 2 ** 48));
    set(Number(input.value));
  };
  input.placeholder = "a number, or 1..5 for several";
  return el("div", { className: "field" }, label,
    el("div", { className: "row" }, input, el("button", { type: "button", onclick: roll, title: "Another seed" }, "⚄")));
}

/** A picture: chosen from those there are, dropped, or taken from the disk. */
function picture(key, name, choices, value, set) {
  const image = el("img", { alt: "", hidden: true });
  const select = el("select", { id: key });
  const show = () => {
    image.hidden = !select.value;
    if (select.value) image.src = view_url({ filename: select.value, type: "input" }, "webp;80");
  };
  const fill = (all, chosen) => {
    select.replaceChildren(...all.map((choice) => el("option", { value: choice, selected: choice === chosen }, choice)));
    set(select.value);
    show();
  };
  const upload = async (file) => {
    if (!file) return;
    const form = new FormData();
    form.append("image", file);
    try {
      const kept = await ask("upload/image", { method: "POST", body: form });
      const path = kept.subfolder ? `${kept.subfolder}/${kept.name}` : kept.name;
      fill([path, ...choices.filter((choice) => choice !== path)], path);
    } catch (error) { tell(error); }
  };
  select.addEventListener("change", () => { set(select.value); show(); });
  const file = el("input", { type: "file", accept: "image/*", "aria-label": `Upload for ${name}`, onchange: (e) => upload(e.target.files[0]) });
  const box = el("div", { className: "picture" }, image, select, file);
  box.addEventListener("dragover", (e) => { e.preventDefault(); e.stopPropagation(); box.classList.add("over"); });
  box.addEventListener("dragleave", () => box.classList.remove("over"));
  box.addEventListener("drop", (e) => {
    e.preventDefault();
    e.stopPropagation();
    $("drop").hidden = true;
    box.classList.remove("over");
    upload(e.dataTransfer.files[0]);
  });
  fill(choices.includes(value) ? choices : [value, ...choices].filter(Boolean), value);
  return el("div", { className: "field" }, el("label", { htmlFor: key }, name.replaceAll("_", " ")), box);
}

const title = (id, node) => node._meta?.title ?? node.class_type ?? id;

function show_form() {
  fields.clear();
  const groups = [[], []];
  for (const [id, node] of Object.entries(current.prompt)) {
    const all = widgets(node);
    for (const [at, wanted] of [[0, all.filter(is_first)], [1, all.filter((widget) => !is_first(widget))]]) {
      if (!wanted.length) continue;
      const legend = el("legend", {}, title(id, node));
      groups[at].push(el("fieldset", {}, legend, ...wanted.map((widget) => field(id, node, widget))));
    }
  }
  // Words first, then pictures and seeds, then what is chosen from lists.
  const rank = (set) => (set.querySelector("textarea") ? 0 : set.querySelector(".picture, .row") ? 1 : 2);
  groups[0].sort((one, other) => rank(one) - rank(other));
  const more = groups[1].length ? el("details", {}, el("summary", {}, "Everything else"), ...groups[1]) : null;
  const run = el("button", { type: "submit", className: "main" }, "Draw");
  $("form").replaceChildren(...groups[0], ...(more ? [more] : []), el("div", { id: "trouble", role: "alert" }),
    el("div", { className: "actions" }, run));
}

function tell(error) {
  const trouble = $("trouble");
  if (!trouble) return;
  for (const input of fields.values()) input.classList.remove("wrong");
  const lines = [];
  for (const [id, node] of Object.entries(error?.nodes ?? {})) {
    for (const problem of node.errors) {
      const name = problem.extra_info?.input_name;
      fields.get(`${id} ${name}`)?.classList.add("wrong");
      lines.push(`${title(id, current.prompt[id] ?? {})}${name ? `, ${name}` : ""}: ${problem.message}`);
    }
  }
  if (error && !lines.length) lines.push(error.message);
  trouble.replaceChildren(...lines.map((line) => el("p", { className: "error" }, line)));
}

async function submit(event) {
  event?.preventDefault();
  if (!current) return;
  try {
    const extra_data = { preview_method: "auto" };
    if (current.workflow) extra_data.extra_pnginfo = { workflow: current.workflow };
    const answer = await post("prompt", { prompt: current.prompt, client_id: client, extra_data });
    tell(Object.keys(answer.node_errors).length ? { nodes: answer.node_errors } : null);
    // On a phone what is being made lies below the form.
    if (matchMedia("(max-width: 760px)").matches) $("work").scrollIntoView({ behavior: "smooth" });
    refresh();
  } catch (error) { tell(error); }
}

async function open_workflow(name) {
  try {
    current = { name, ...(await ask(`kosmograph/workflows/${encodeURIComponent(name)}`)) };
    localStorage.workflow = name;
    show_form();
  } catch (error) { current = null; $("form").replaceChildren(el("p", { className: "error" }, error.message)); }
}

async function open_file(file) {
  try {
    current = { name: "", ...(await post("kosmograph/workflow", file)) };
    $("workflows").value = "";
    show_form();
  } catch (error) { tell(error); }
}

// ---- The queue and what was made ----

let shown = null; // The large picture's job
const live = { prompt: null, node: null, value: 0, max: 1, picture: null };

async function refresh() {
  try {
    const [jobs, queue] = await Promise.all([
      ask("api/jobs?status=completed,failed,cancelled&limit=60&offset=0"), ask("queue")]);
    show_queue(queue);
    show_history(jobs.jobs);
  } catch { /* The next message asks again. */ }
}

function show_queue({ queue_running, queue_pending }) {
  if (!queue_running.some(([, id]) => id === live.prompt)) Object.assign(live, { prompt: queue_running[0]?.[1] ?? null, node: null, picture: null });
  const prompt = queue_running[0]?.[2];
  $("running").replaceChildren();
  if (prompt) {
    const node = prompt[live.node];
    const what = node ? title(live.node, node) : "at work";
    const bar = el("progress", { max: live.max, value: live.value, "aria-label": what });
    const stop = el("button", { type: "button", onclick: () => post("interrupt", { prompt_id: queue_running[0][1] }) }, "Stop");
    $("running").append(el("div", { className: "card" }, el("header", {}, el("span", { id: "what" }, what), stop), bar,
      live.picture ? el("img", { src: live.picture, alt: "Preview" }) : null));
  }
  const rows = queue_pending.slice(0, 8).map(([, id]) => el("div", { className: "job" },
    el("span", {}, `waits: ${id.slice(0, 8)}`),
    el("button", { type: "button", onclick: () => post("queue", { delete: [id] }) }, "Remove")));
  if (queue_pending.length > 8) rows.push(el("div", { className: "job" }, el("span", {}, `and ${queue_pending.length - 8} more`),
    el("button", { type: "button", onclick: () => post("queue", { clear: true }) }, "Remove all")));
  $("queue").replaceChildren(...(rows.length ? [el("div", { className: "card" }, ...rows)] : []));
}

function show_history(jobs) {
  const cards = jobs.map((job) => {
    const item = job.preview_output;
    const when = new Date(job.execution_end_time ?? job.create_time).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    const inside = item
      ? [el("img", { src: view_url(item, "webp;70"), alt: item.filename, loading: "lazy" }), el("small", {}, when)]
      : [el("div", { className: job.status === "failed" ? "failed" : "failed hint" },
          job.status === "cancelled" ? "stopped" : job.execution_error?.exception_message ?? "nothing to show"), el("small", {}, when)];
    return el("button", { type: "button", title: "Look at it", onclick: () => look(job) }, ...inside);
  });
  $("history").replaceChildren(...(cards.length ? cards : [el("p", { className: "empty" }, "Nothing yet.")]));
}

function look(job) {
  shown = job;
  const image = $("large").querySelector("img");
  image.hidden = !job.preview_output;
  if (job.preview_output) image.src = view_url(job.preview_output);
  const error = job.execution_error;
  $("large").querySelector("p").textContent = error
    ? `${error.node_type} (node ${error.node_id}): ${error.exception_message}` : job.preview_output?.filename ?? "";
  $("large").showModal();
}

async function open_shown() {
  const { workflow } = await ask(`api/jobs/${shown.id}`);
  const editor = workflow.extra_data.extra_pnginfo?.workflow ?? null;
  current = { name: "", prompt: workflow.prompt, workflow: editor };
  $("workflows").value = "";
  $("large").close();
  show_form();
  $("form").focus();
}

// ---- The socket ----

function draw_progress() {
  const bar = $("running").querySelector("progress");
  if (bar) Object.assign(bar, { max: live.max, value: live.value });
}

function heard(message) {
  const { type, data } = JSON.parse(message);
  if (type === "status") refresh();
  if (type === "execution_error") tell(new Error(`${data.node_type} (node ${data.node_id}): ${data.exception_message}`));
  if (type === "progress_state") {
    live.prompt = data.prompt_id;
    const at_work = Object.entries(data.nodes).find(([, node]) => node.state === "running");
    if (at_work && at_work[0] !== live.node) {
      live.node = at_work[0];
      refresh();
    }
    if (at_work) Object.assign(live, { value: at_work[1].value, max: at_work[1].max });
    draw_progress();
  }
}

function previewed(buffer) {
  const view = new DataView(buffer);
  const kind = view.getUint32(0);
  const start = kind === 4 ? 8 + view.getUint32(4) : 8;
  if (live.picture) URL.revokeObjectURL(live.picture);
  live.picture = URL.createObjectURL(new Blob([buffer.slice(start)]));
  const image = $("running").querySelector("img");
  if (image) image.src = live.picture;
  else $("running").querySelector(".card")?.append(el("img", { src: live.picture, alt: "Preview" }));
}

function connect() {
  const url = new URL(`ws?clientId=${client}`, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  const socket = new WebSocket(url);
  socket.binaryType = "arraybuffer";
  const say = (text, lost) => { $("connection").textContent = text; $("connection").classList.toggle("lost", lost); };
  socket.onopen = () => {
    say("connected", false);
    socket.send(JSON.stringify({ type: "feature_flags", data: { supports_preview_metadata: true } }));
  };
  socket.onmessage = ({ data }) => (typeof data === "string" ? heard(data) : previewed(data));
  socket.onclose = () => { say("the server is not there", true); setTimeout(connect, 1000); };
}

// ---- Begin ----

async function begin() {
  $("form").addEventListener("submit", submit);
  $("open").addEventListener("click", open_shown);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) submit();
  });
  addEventListener("dragover", (event) => { event.preventDefault(); $("drop").hidden = false; });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").hidden = true;
    if (event.dataTransfer.files[0]) open_file(event.dataTransfer.files[0]);
  });
  connect();
  const [list, info] = await Promise.all([ask("kosmograph/workflows"), ask("object_info")]);
  classes = info;
  const select = $("workflows");
  select.replaceChildren(el("option", { value: "", disabled: true }, list.length ? "Choose a workflow" : "Drop a workflow or a saved picture here"),
    ...list.map(({ name, title }) => el("option", { value: name }, title)));
  select.addEventListener("change", () => open_workflow(select.value));
  const first = list.find(({ name }) => name === localStorage.workflow) ?? list[0];
  select.value = first?.name ?? "";
  if (first) await open_workflow(first.name);
  else $("form").replaceChildren(el("p", { className: "hint" }, "Drop a workflow, or a picture that was saved by one, onto this page."));
  refresh();
}

begin().catch((error) => $("form").replaceChildren(el("p", { className: "error" }, error.message)));
