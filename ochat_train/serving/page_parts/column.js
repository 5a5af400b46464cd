// One conversation beside others.

let models = [];  // ids of /v1/models
let defaults = new Map();  // id -> condition, where the server says it
const columns = [];

/** The model and the condition of an id: NAME@CONDITION if the server also lists NAME. */
function partsOf(id) {
  const name = models.filter(name => id.startsWith(`${name}@`)).sort((a, b) => a.length - b.length)[0];
  return name === undefined ? {name: id, condition: null} : {name, condition: id.slice(name.length + 1)};
}

function labelOf(id) {
  const {name, condition} = partsOf(id), several = models.filter(id => partsOf(id).condition === null).length > 1;
  const named = condition ?? defaults.get(id) ?? "default condition";
  const label = `${named || "no condition"}${condition === null && defaults.get(id) ? " (default)" : ""}`;
  return several ? `${name}: ${label}` : label;
}

const rate = value => value < 100 ? value.toFixed(1) : Math.round(value).toString();

/** One conversation with a model under a condition. turns: {user, answer, state, problem, ...}, in order. */
class Column {
  constructor(model, turns = []) {
    this.turns = turns;
    this.select = make("select", {ariaLabel: "Model and condition"});
    this.select.append(...this.options());
    this.select.value = models.includes(model) ? model : models[0];
    this.select.onchange = () => { showColumns(); save(); };
    const clear = make("button", {type: "button", textContent: "Clear", onclick: () => this.clear()});
    this.remove = make("button", {type: "button", textContent: "✕", ariaLabel: "Remove column", title: "Remove column", onclick: () => removeColumn(this)});
    this.list = make("div", {className: "turns", tabIndex: 0});
    this.list.setAttribute("role", "region");
    this.isFollowing = true;  // until the reader scrolls up
    this.list.onscroll = () => { this.isFollowing = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 60; };
    this.node = make("section", {className: "column"}, make("div", {className: "head"}, this.select, clear, this.remove), this.list);
    this.drawAll();
  }

  options() {
    const names = [...new Set(models.map(id => partsOf(id).name))];
    const groups = names.map(name => {
      const ids = models.filter(id => partsOf(id).name === name);
      const options = ids.map(id => make("option", {value: id}, shown(labelOf(id))));
      return names.length > 1 ? [make("optgroup", {label: shown(name)}, ...options)] : options;
    });
    return groups.flat();
  }

  get model() { return this.select.value; }
  get label() { return labelOf(this.model); }
  get isBusy() { return this.turns.at(-1)?.abort !== undefined; }
  stop() { this.turns.at(-1)?.abort?.abort(); }

  clear() {
    this.stop();
    this.turns = [];
    this.drawAll();
    save();
  }

  drawAll() {
    this.list.replaceChildren(...this.turns.map(turn => this.turnNode(turn)));
    if (this.turns.length === 0) this.list.append(make("p", {className: "empty"}, "Answers appear here."));
    this.list.scrollTop = this.list.scrollHeight;
  }

  /** Messages before a turn, and its own. A turn that failed without an answer is not part of the conversation. */
  messagesUpTo(turn, system) {
    const before = this.turns.slice(0, this.turns.indexOf(turn)).filter(turn => turn.answer !== "" || turn.state === "done");
    return [
      ...(system ? [{role: "system", content: system}] : []),
      ...before.flatMap(({user, answer}) => [{role: "user", content: user}, {role: "assistant", content: answer}]),
      {role: "user", content: turn.user},
    ];
  }

  ask(user) {
    if (this.turns.length === 0) this.list.replaceChildren();
    const turn = {user}, previous = this.turns.at(-1);
    this.turns.push(turn);
    if (previous) this.draw(previous);  // it is no longer the last one
    this.list.append(this.turnNode(turn));
    return this.answer(turn);
  }

  async answer(turn) {
    const {system, ...values} = settings(), began = performance.now(), earlier = turn.answer && {...turn};
    Object.assign(turn, {answer: "", state: "running", problem: "", facts: "", abort: new AbortController(), model: this.model, label: this.label});
    turn.sent = {model: this.model, messages: this.messagesUpTo(turn, system), ...values};
    this.isFollowing = true;
    this.draw(turn);
    showBusy();
    const measured = {began, tokens: 0};
    try {
      const body = {...turn.sent, stream: true, stream_options: {include_usage: true}};
      const response = await request("v1/chat/completions", {body, signal: turn.abort.signal});
      for await (const event of eventsOf(response)) this.take(turn, event, measured);
      turn.state = "done";
    } catch (error) {
      turn.state = error.name === "AbortError" ? "stopped" : "failed";
      turn.problem = error.name === "AbortError" ? "" : error.message;
      turn.needsKey = error.status === 401;
      if (turn.answer === "" && earlier) {  // there is no other answer: the one of before stays
        Object.assign(turn, {answer: earlier.answer, label: earlier.label, sent: earlier.sent});
        Object.assign(measured, {kept: earlier.facts});
      }
    }
    this.finish(turn, measured);
  }

  /** Take an event of the stream. */
  take(turn, event, measured) {
    const choice = event.choices?.[0], piece = choice?.delta?.content;
    if (piece) {
      measured.first ??= performance.now();
      measured.tokens += 1;
      turn.answer += piece;
      turn.markdown.add(piece);
    }
    if (choice?.finish_reason) Object.assign(measured, {finish: choice.finish_reason, last: performance.now()});
    if (event.usage) measured.counted = event.usage.completion_tokens;
  }

  finish(turn, {began, first, last = performance.now(), tokens, counted, finish, kept}) {
    const total = counted ?? tokens, seconds = (last - first) / 1000, facts = [];
    if (first !== undefined) facts.push(`${counted === undefined ? "about " : ""}${total} token${total === 1 ? "" : "s"}`);
    if (total >= 10 && seconds > 0) facts.push(`${rate((total - 1) / seconds)} tokens/s`);
    if (first !== undefined) facts.push(`${((first - began) / 1000).toFixed(2)} s to the first`);
    if (finish === "length") facts.push("cut off: no more tokens allowed");
    if (turn.state === "stopped") facts.push("stopped");
    if (turn.state === "done" && turn.answer === "") facts.push("empty answer");
    turn.facts = kept ?? facts.join(" · ");
    delete turn.abort;
    this.draw(turn);
    showBusy();
    save();
    speak(`${turn.label}: ${turn.problem || turn.answer.slice(0, 500) || turn.facts}`);
  }

  turnNode(turn) {
    turn.node = make("article", {}, this.saidNode(turn.user), make("div", {className: "answer"}));
    this.draw(turn);
    return turn.node;
  }

  /** What a person said. Of a pasted book only the beginning: a browser places letters of all kinds for a minute. */
  saidNode(text) {
    const node = make("div", {className: "said"}, shown(beginningOf(text)));
    if (text.length <= MOST_DRAWN) return node;
    const showAll = () => { node.replaceChildren(shown(text)); $("input").focus(); };
    const label = `Show all ${text.length.toLocaleString("en")} characters`;
    node.append("… ", make("button", {type: "button", className: "small", textContent: label, onclick: showAll}));
    return node;
  }

  /** Draw the answer of a turn. */
  draw(turn) {
    const isLast = turn === this.turns.at(-1), node = turn.node.lastChild;
    const body = make("div", {className: turn.state === "running" ? "markdown waiting" : "markdown"});
    node.replaceChildren(make("div", {className: "who"}, shown(turn.label ?? "")), body);
    turn.markdown = new GrowingMarkdown(body, () => this.follow());
    if (turn.answer) { turn.markdown.text = turn.answer; turn.markdown.draw(); }
    if (turn.problem) node.append(this.problemNode(turn, isLast));
    if (turn.state !== "running" && turn.state) node.append(this.footNode(turn, isLast));
    this.follow();
  }

  problemNode(turn, isLast) {
    const node = make("div", {className: "problem"}, shown(turn.problem));
    node.setAttribute("role", "alert");
    if (turn.needsKey) node.append(" ", make("button", {type: "button", textContent: "Enter a key", onclick: () => askForKey("")}));
    if (!isLast && turn.answer === "") node.append("\nThis message is not part of the conversation.");
    return node;
  }

  footNode(turn, isLast) {
    const small = (text, action, more = "") => make("button", {type: "button", className: `small ${more}`, textContent: text, onclick: event => action(event.target)});
    const foot = make("div", {className: "foot"});
    if (turn.facts) foot.append(make("span", {className: "facts"}, turn.facts));
    if (turn.answer) foot.append(small("Copy", button => copyText(turn.answer, button)));
    if (turn.sent) foot.append(small("Prompt as sent", () => showPrompt(turn)));
    if (isLast) foot.append(small(turn.problem ? "Try again" : "Regenerate", () => { this.answer(turn); $("input").focus(); }, "again"));
    return foot;
  }

  follow() {
    if (this.isFollowing) this.list.scrollTop = this.list.scrollHeight;
  }
}
