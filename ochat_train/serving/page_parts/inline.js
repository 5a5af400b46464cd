// Text with marks: code, bold, italics, links.

const MARKS = ["**", "__", "~~", "*", "_"];  // longer ones first
const TAG_OF_MARK = {"**": "strong", "__": "strong", "~~": "s", "*": "em", "_": "em"};
const DEEPEST = 8;  // of marks, lists and quotes inside each other
const isWord = character => character !== undefined && /[\p{L}\p{N}_]/u.test(character);
const isSpace = character => character === undefined || /\s/.test(character);

/** The address of a link that may be followed, null for all others: `javascript:`, `data:` and their like. */
function safeAddress(text) {
  try {
    const address = new URL(text);
    return address.protocol === "https:" || address.protocol === "http:" ? address.href : null;
  } catch { return null; }
}

/** Nodes of a text with marks: code, bold, italics, links. linked: whether it is already inside a link. */
function inline(text, depth = 0, linked = false) {
  const nodes = [], missing = new Set();  // closing marks that the rest of the text does not have
  let plain = "", at = 0;
  while (at < text.length) {
    const found = depth < DEEPEST ? special(text, at, depth, linked, missing) : null;
    if (found === null) { plain += text[at]; at += 1; continue; }
    if (typeof found.node === "string") plain += found.node;
    else { nodes.push(shown(plain), found.node); plain = ""; }
    at = found.end;
  }
  return [...nodes, shown(plain)];
}

/** What begins at a place of a text: its node and its end; null for an ordinary character. */
function special(text, at, depth, linked, missing) {
  const character = text[at];
  if (character === "\\" && /[!-\/:-@\[-`{-~]/.test(text[at + 1] ?? "")) return {node: text[at + 1], end: at + 2};
  if (character === "`") return inlineCode(text, at, missing);
  if (character === "[" || (character === "!" && text[at + 1] === "[")) return link(text, at, depth, linked);
  if (character === "h" && !linked && !isWord(text[at - 1])) return bareLink(text, at);
  const mark = MARKS.find(mark => text.startsWith(mark, at));
  return mark === undefined ? null : marked(text, at, mark, depth, linked, missing);
}

function inlineCode(text, at, missing) {
  const ticks = /`+/y;
  ticks.lastIndex = at;
  const fence = ticks.exec(text)[0];
  if (missing.has(fence)) return {node: fence, end: at + fence.length};
  for (let end = text.indexOf(fence, at + fence.length); end >= 0;) {
    ticks.lastIndex = end;
    const run = ticks.exec(text)[0].length;
    if (run === fence.length) {
      const code = text.slice(at + fence.length, end).replace(/^ (.*) $/s, "$1");
      return {node: make("code", {}, shown(code)), end: end + run};
    }
    end = text.indexOf(fence, end + run);
  }
  missing.add(fence);
  return {node: fence, end: at + fence.length};
}

/** `[text](address)`. A picture is a link too: this page loads nothing from elsewhere. */
function link(text, at, depth, linked) {
  const found = /!?\[([^\[\]]{0,1000})\]\(<?((?:[^\s()<>]|\([^\s()<>]*\)){1,4000})>?(?:\s+["'][^"'\n]{0,1000}["'])?\)/y;
  found.lastIndex = at;
  const match = found.exec(text), address = match && safeAddress(match[2]);
  if (!address || linked) return null;
  const inside = match[1] ? inline(match[1], depth + 1, true) : [shown(address)];
  return {node: anchor(address, inside), end: found.lastIndex};
}

function bareLink(text, at) {
  const found = /https?:\/\/[^\s<>"'`\\]{1,4000}/y;
  found.lastIndex = at;
  let written = found.exec(text)?.[0] ?? "";
  written = written.replace(/[.,;:!?*_~\]}]{1,20}$/, "");
  if (written.endsWith(")") && !written.includes("(")) written = written.slice(0, -1);
  const address = written && safeAddress(written);
  return address ? {node: anchor(address, [shown(written)]), end: at + written.length} : null;
}

const anchor = (address, inside) =>
  make("a", {href: address, title: address, target: "_blank", rel: "noopener noreferrer"}, ...inside);

function marked(text, at, mark, depth, linked, missing) {
  const from = at + mark.length;
  const inWords = mark[0] === "_" || /\d/.test(text[at - 1] ?? "");  // snake_case and 2*3*4 have no marks
  const opens = !isSpace(text[from]) && !(inWords && isWord(text[at - 1])) && !missing.has(mark);
  for (let end = opens ? text.indexOf(mark, from + 1) : -1; end >= 0; end = text.indexOf(mark, end + 1)) {
    while (text[end + mark.length] === mark[0] && mark.length === 2) end += 1;
    const single = mark.length === 2 || (text[end + 1] !== mark && text[end - 1] !== mark);
    if (!single || isSpace(text[end - 1]) || (inWords && isWord(text[end + mark.length]))) continue;
    const inside = inline(text.slice(from, end), depth + 1, linked);
    return {node: make(TAG_OF_MARK[mark], {}, ...inside), end: end + mark.length};
  }
  if (opens) missing.add(mark);
  return {node: mark, end: from};
}
