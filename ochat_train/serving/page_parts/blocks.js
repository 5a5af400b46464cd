// Markdown in blocks: paragraphs, lists, code, tables, quotes.

const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/, HEADING = /^ {0,3}(#{1,6})[ \t]+(\S.*)$/, QUOTE = /^ {0,3}> ?/;
const RULE = /^ {0,3}(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$/, ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])(?:( {1,4})(?=\S)|[ \t]*$)/;
const isBlank = line => line.trim() === "";

/** Cells of a line of a table; null where it has none. */
function cells(line) {
  if (!line?.includes("|")) return null;
  const row = line.trim().replace(/^\|/, "").replace(/\\\||\|$/g, bar => bar === "|" ? "" : "\u0000");
  return row.split("|").map(cell => cell.replaceAll("\u0000", "|").trim());
}

function isTable(lines, at) {
  const head = cells(lines[at]), under = cells(lines[at + 1]);
  return head !== null && under !== null && head.length === under.length && under.every(cell => /^:?-+:?$/.test(cell));
}

const beginsBlock = (lines, at) => isBlank(lines[at]) || [FENCE, HEADING, RULE, QUOTE, ITEM].some(rule => rule.test(lines[at])) || isTable(lines, at);

/** Blocks of lines, in order: kind, first line (`at`) and the line after the last (`end`). */
function* blocksOf(lines) {
  for (let at = 0; at < lines.length;) {
    if (isBlank(lines[at])) { at += 1; continue; }
    const [kind, end] = blockAt(lines, at);
    yield {kind, at, end};
    at = end;
  }
}

function blockAt(lines, at) {
  const line = lines[at], fence = FENCE.exec(line);
  let end = at + 1;
  if (fence) {
    const closes = text => { const run = text.trim(); return run.length >= fence[1].length && run === fence[1][0].repeat(run.length); };
    while (end < lines.length && !closes(lines[end])) end += 1;
    return ["code", Math.min(end + 1, lines.length)];
  }
  if (HEADING.test(line)) return ["heading", end];
  if (RULE.test(line)) return ["rule", end];
  if (QUOTE.test(line)) {
    while (end < lines.length && QUOTE.test(lines[end])) end += 1;
    return ["quote", end];
  }
  if (ITEM.test(line)) return ["list", listEnd(lines, at)];
  if (isTable(lines, at)) {
    for (end = at + 2; end < lines.length && cells(lines[end]) && !isBlank(lines[end]);) end += 1;
    return ["table", end];
  }
  while (end < lines.length && !beginsBlock(lines, end)) end += 1;
  return ["paragraph", end];
}

const isNumbered = line => /\d/.test(ITEM.exec(line)[2]);

/** The line after a list: its items, what is indented below them, and blank lines between. */
function listEnd(lines, at) {
  const numbered = isNumbered(lines[at]);
  const belongs = line => /^(?: {2}|\t)/.test(line) || (ITEM.test(line) && !RULE.test(line) && isNumbered(line) === numbered);
  let end = at + 1;
  for (let next = end; next < lines.length; next += 1) {
    if (isBlank(lines[next])) continue;
    if (!belongs(lines[next]) && (next > end || beginsBlock(lines, next))) break;  // a line right below continues a text
    end = next + 1;
  }
  return end;
}

function list(lines, depth) {
  const numbered = isNumbered(lines[0]), items = [];
  let width = 0;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && (items.length === 0 || (item[1].length < width && isNumbered(line) === numbered))) {
      width = item[0].length + (item[3] === undefined ? 1 : 0);
      items.push([line.slice(item[0].length)]);
    } else items.at(-1).push(line.slice(Math.min(line.search(/\S|$/), width)));
  }
  const tag = numbered ? "ol" : "ul", start = numbered ? {start: parseInt(ITEM.exec(lines[0])[2], 10)} : {};
  return make(tag, start, ...items.map(item => make("li", {}, ...itemNodes(item, depth))));
}

function itemNodes(lines, depth) {
  const blocks = [...blocksOf(lines)];
  const isText = blocks.length === 1 && blocks[0].kind === "paragraph";
  return isText ? inline(lines.join("\n").trim()) : render(lines, depth + 1);
}

function table(lines) {
  const aligned = cells(lines[1]).map(rule => rule.endsWith(":") ? (rule.startsWith(":") ? "center" : "right") : "");
  const row = (line, tag) => {
    const texts = cells(line);
    return make("tr", {}, ...aligned.map((side, at) => {
      const cell = make(tag, {}, ...inline(texts[at] ?? ""));
      cell.style.textAlign = side;
      return cell;
    }));
  };
  const body = make("tbody", {}, ...lines.slice(2).map(line => row(line, "td")));
  return make("div", {className: "wide", tabIndex: 0}, make("table", {}, make("thead", {}, row(lines[0], "th")), body));
}

function codeText(lines) {
  const fence = FENCE.exec(lines[0])[1], last = lines.at(-1).trim();
  const closed = lines.length > 1 && last.length >= fence.length && last === fence[0].repeat(last.length);
  return lines.slice(1, closed ? -1 : undefined).join("\n");
}

function codeBlock(lines) {
  const code = make("code", {}, shown(codeText(lines)));
  const copy = make("button", {type: "button", className: "small", textContent: "Copy code"});
  copy.onclick = () => copyText(node.source, copy);
  const node = make("div", {className: "code"}, make("div", {}, make("span", {}, shown(FENCE.exec(lines[0])[2].trim())), copy), make("pre", {tabIndex: 0}, code));
  node.source = codeText(lines);
  return node;
}

/** The element of a block. */
function blockNode(kind, lines, depth) {
  if (kind === "code") return codeBlock(lines);
  if (kind === "rule") return make("hr");
  if (kind === "table") return table(lines);
  if (kind === "heading") {
    const [, marks, text] = HEADING.exec(lines[0]);
    return make(marks.length < 3 ? "h3" : "h4", {}, ...inline(text.trim().replace(/ #+$/, "")));
  }
  if (kind === "quote" && depth < DEEPEST) return make("blockquote", {}, ...render(lines.map(line => line.replace(QUOTE, "")), depth + 1));
  if (kind === "list" && depth < DEEPEST) return list(lines, depth);
  return make("p", {}, ...inline(lines.join("\n")));
}

const linesOf = text => text.split("\n").map(line => line.endsWith("\r") ? line.slice(0, -1) : line);
const render = (lines, depth = 0) => Array.from(blocksOf(lines), ({kind, at, end}) => blockNode(kind, lines.slice(at, end), depth));

/** An answer that grows. Blocks that can no longer change are drawn once; the last one is drawn again with each piece. */
class GrowingMarkdown {
  constructor(node, drawn) {
    Object.assign(this, {node, drawn, text: "", settled: 0, tail: [], waits: false});
  }

  add(piece) {
    this.text += piece;
    if (this.waits) return;
    this.waits = true;
    requestAnimationFrame(() => {
      const began = performance.now();
      this.draw();
      // At most a third of the time goes into drawing, however long the answer is.
      setTimeout(() => { this.waits = false; if (this.undrawn) this.add(""); }, 2 * (performance.now() - began));
    });
  }

  get undrawn() { return this.drawnLength !== this.text.length; }

  draw() {
    this.drawnLength = this.text.length;
    const lines = linesOf(this.text.slice(this.settled)), blocks = [...blocksOf(lines)], last = blocks.at(-1);
    this.tail.forEach(node => node.remove());
    const nodes = blocks.map(({kind, at, end}) => blockNode(kind, lines.slice(at, end), 0));
    this.node.append(...nodes);
    const isCertain = last && last.at < lines.length - 1;  // the first line of the last block is complete
    this.tail = isCertain ? nodes.slice(-1) : nodes;
    if (isCertain) for (let at = 0, left = last.at; left > 0; left -= 1) this.settled = this.text.indexOf("\n", this.settled) + 1;
    this.drawn();
  }
}
