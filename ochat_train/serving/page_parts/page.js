// The page around the columns: what is sent, settings, key, prompts, copies.

// A browser opens six connections to a server, for all its tabs together; an answer that streams holds one.
const MOST_COLUMNS = 6;

/** Names and buttons of columns, after one was added or removed, or its model changed. */
function showColumns() {
  const chosen = $("target").selectedIndex;
  $("target").replaceChildren(make("option", {value: "all"}, "all columns"));
  columns.forEach((column, at) => {
    column.list.setAttribute("aria-label", `Conversation ${at + 1}: ${column.label}`);
    column.remove.hidden = columns.length === 1;
    $("target").append(make("option", {value: at}, shown(`only ${at + 1}: ${column.label}`)));
  });
  $("target").selectedIndex = chosen > 0 && chosen <= columns.length ? chosen : 0;
  $("target").parentElement.hidden = columns.length === 1;
  $("add").disabled = columns.length >= MOST_COLUMNS;
  $("add").title = $("add").disabled ? `At most ${MOST_COLUMNS} columns: a browser has no more connections to one server` : "";
}

function addColumn(model, turns) {
  const column = new Column(model, turns);
  columns.push(column);
  $("columns").append(column.node);
  column.drawAll();
  showColumns();
  return column;
}

function removeColumn(column) {
  column.stop();
  columns.splice(columns.indexOf(column), 1);
  column.node.remove();
  showColumns();
  showBusy();
  save();
  $("input").focus();
}

/** The columns that the next message goes to. */
const targets = () => $("target").value === "all" ? columns : [columns[$("target").value]];

function showBusy() {
  const isStopping = document.activeElement === $("stop");
  $("stop").hidden = !columns.some(column => column.isBusy);
  if (isStopping && $("stop").hidden) $("input").focus();
}

const stopAll = () => columns.forEach(column => column.stop());

function send() {
  const text = $("input").value;
  if (text.trim() === "" || columns.length === 0) return;
  if (targets().some(column => column.isBusy)) return speak("Still answering. Escape stops.");
  if (!$("settings").checkValidity()) {
    showSettings(true);
    $("settings").reportValidity();
    return;
  }
  $("input").value = "";
  fitInput();
  targets().forEach(column => column.ask(text));
}

/** What is sent with every message. */
function settings() {
  const values = {system: $("system").value.trim() === "" ? "" : $("system").value, temperature: $("temperature").valueAsNumber};
  if ($("max-tokens").value) values.max_tokens = $("max-tokens").valueAsNumber;
  if ($("seed").value) values.seed = $("seed").valueAsNumber;
  return values;
}

const SETTINGS = ["system", "temperature", "max-tokens", "seed"];

let isLeaving = false;  // answers that end because the page is left do not count as failed

/** Keep conversations and settings in this tab, so that loading the page again does not lose them. */
function save() {
  if (isLeaving) return;
  const turnFields = ({user, answer, state, problem, facts, model, label, sent}) => ({user, answer, state, problem, facts, model, label, sent});
  keptChat.write(JSON.stringify({
    settings: Object.fromEntries(SETTINGS.map(name => [name, $(name).value])),
    columns: columns.map(column => ({model: column.model, turns: column.turns.map(turnFields)})),
  }));
}

function restored() {
  try {
    const {settings, columns} = JSON.parse(keptChat.read());
    SETTINGS.forEach(name => { $(name).value = settings[name]; });
    for (const {turns} of columns) for (const turn of turns) if (turn.state === "running") Object.assign(turn, {state: "stopped", facts: "the page was left"});
    return columns;
  } catch { return []; }
}

function showSettings(isShown) {
  $("settings").hidden = !isShown;
  $("show-settings").setAttribute("aria-expanded", isShown);
}

const isDark = () => (keptTheme.read() ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

function showTheme() {
  document.documentElement.style.colorScheme = keptTheme.read() ?? "";
  $("theme").setAttribute("aria-pressed", isDark());
}

function askForKey(problem) {
  $("key-problem").hidden = problem === "";
  $("key-problem").textContent = shown(problem);
  if (!$("key-dialog").open) $("key-dialog").showModal();
  $("key").focus();
}

async function useKey() {
  keptKey.write($("key").value.trim());
  $("key").value = "";
  $("key-dialog").close();
  const waiting = columns.filter(column => column.turns.at(-1)?.needsKey);
  if (columns.length === 0) await load();
  waiting.forEach(column => column.answer(column.turns.at(-1)));
  $("input").focus();
}

/** The id of a token with its text as a hint; control tokens are marked. */
const tokenNode = ({id, text, is_control}) => make(is_control ? "b" : "span", {title: shown(text)}, id.toString());

/** What is said in place of the rest of a long prompt, which copying takes along. */
const MOST_IDS = 4000;
const more = (number, what) => number > 0 ? `… and ${number.toLocaleString("en")} more ${what}` : "";

/** Show text and ids of the prompt of an answer, which the server makes from the request that was sent. */
async function showPrompt(turn) {
  const {model, messages} = turn.sent;
  try {
    const prompt = await (await request("v1/render", {body: {model, messages}})).json();
    $("prompt-facts").textContent = `${prompt.num_tokens} tokens, ${prompt.condition ? `condition ${shown(prompt.condition)}` : "no condition"}`;
    $("prompt-text").textContent = shown(beginningOf(prompt.text)) + more(prompt.text.length - MOST_DRAWN, "characters");
    const drawn = prompt.tokens.slice(0, MOST_IDS);
    $("prompt-ids").replaceChildren(...drawn.flatMap(token => [tokenNode(token), " "]).slice(0, -1), more(prompt.ids.length - MOST_IDS, "ids"));
    $("copy-prompt").onclick = () => copyText(prompt.text, $("copy-prompt"));
    $("copy-ids").onclick = () => copyText(JSON.stringify(prompt.ids), $("copy-ids"));
  } catch (error) {
    if ($("key-dialog").open) return;
    $("prompt-facts").textContent = shown(error.message);
    for (const name of ["prompt-text", "prompt-ids"]) $(name).textContent = "";
  }
  $("prompt-dialog").showModal();
}

/** Copy a text. The clipboard of the browser is closed to pages of other machines without HTTPS; there a field does it. */
async function copyText(text, button) {
  let isCopied = true;
  try { await navigator.clipboard.writeText(text); } catch {
    const field = make("textarea", {value: text, className: "unseen"});
    button.after(field);
    field.select();
    isCopied = document.execCommand("copy");
    field.remove();
    button.focus();
  }
  const label = button.textContent;
  button.textContent = isCopied ? "Copied" : "Cannot copy";
  speak(button.textContent);
  setTimeout(() => { button.textContent = label; }, 1200);
}

/** Say a text to a person who cannot see the page. */
function speak(text) {
  $("spoken").append(make("p", {}, shown(text)));
  while ($("spoken").children.length > 10) $("spoken").firstChild.remove();
}

function fitInput() {
  if ($("input").value.length > MOST_DRAWN) {  // it is as high as it may be; to measure it would take seconds
    $("input").style.height = "100vh";
    return;
  }
  $("input").style.height = "auto";
  $("input").style.height = `${$("input").scrollHeight + 2}px`;
}

/** Read the models and make the columns: those of before, or one for each of the first two conditions. */
async function load() {
  try {
    const rows = (await (await request("v1/models")).json()).data;
    models = rows.map(row => row.id);
    defaults = new Map(rows.map(row => [row.id, row.condition]));
    if (models.length === 0) throw new ServerError("The server has no model.");
  } catch (error) {
    const again = make("button", {type: "button", textContent: "Try again", onclick: load});
    const notice = make("div", {className: "notice"}, make("p", {}, shown(error.message)), again);
    notice.setAttribute("role", "alert");
    $("columns").replaceChildren(notice);
    return;
  }
  $("columns").replaceChildren();
  $("models").textContent = [...new Set(models.map(id => partsOf(id).name))].map(shown).join(", ");
  const before = restored().filter(column => models.includes(column.model)), conditions = models.filter(id => partsOf(id).condition !== null);
  if (before.length > 0) before.slice(0, MOST_COLUMNS).forEach(({model, turns}) => addColumn(model, turns));
  else (conditions.length > 0 ? conditions : models).slice(0, 2).forEach(model => addColumn(model));
  $("temperature-value").value = $("temperature").value;
}

$("add").onclick = () => {
  if (models.length === 0) return;
  const unused = models.filter(id => columns.every(column => column.model !== id));
  addColumn(unused.find(id => partsOf(id).condition !== null) ?? unused[0] ?? models[0]).select.focus();
  if ($("add").disabled) speak($("add").title);
  save();
};
$("clear").onclick = () => { columns.forEach(column => column.clear()); $("input").focus(); };
$("show-settings").onclick = () => showSettings($("settings").hidden);
$("settings").onsubmit = event => event.preventDefault();
$("settings").oninput = () => { $("temperature-value").value = $("temperature").value; };
$("settings").onchange = save;
$("theme").onclick = () => { keptTheme.write(isDark() ? "light" : "dark"); showTheme(); };
matchMedia("(prefers-color-scheme: dark)").onchange = showTheme;
$("change-key").onclick = () => askForKey("");
$("forget-key").onclick = () => { keptKey.write(null); speak("The key is forgotten."); };
$("key-form").onsubmit = event => { event.preventDefault(); useKey(); };
$("cancel-key").onclick = () => $("key-dialog").close();
$("close-prompt").onclick = () => $("prompt-dialog").close();
$("stop").onclick = stopAll;
$("composer").onsubmit = event => { event.preventDefault(); send(); };
$("input").oninput = fitInput;
$("input").onkeydown = event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
};
addEventListener("keydown", event => { if (event.key === "Escape" && !document.querySelector("dialog[open]")) stopAll(); });
addEventListener("pagehide", () => { save(); isLeaving = true; });
addEventListener("pageshow", () => { isLeaving = false; });
showTheme();
load();
