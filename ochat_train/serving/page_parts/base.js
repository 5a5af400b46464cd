"use strict";
// What a person, a model or the server says becomes text nodes. Nothing here reads it as HTML, and the server's
// Content-Security-Policy forbids other scripts and requests to other hosts.

const $ = id => document.getElementById(id);

/** An element with properties and children; children that are strings become text nodes. */
function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** Characters that are not seen or turn the direction of a text are shown as \u{...}; joiners of emoji and scripts stay. */
const HIDDEN = /[\0-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060-\u2069\ufeff\u{e0000}-\u{e007f}]/gu;
const shown = text => text.replace(HIDDEN, character => `\\u{${character.codePointAt(0).toString(16)}}`);

/** The beginning of a long text, without half of a character. */
const MOST_DRAWN = 10_000;
const beginningOf = text => text.length > MOST_DRAWN ? text.slice(0, MOST_DRAWN).replace(/[\ud800-\udbff]$/, "") : text;

/** A store of the browser, which may be switched off or full: then nothing is kept. */
const kept = (store, name) => ({
  read() { try { return store()[name] ?? null; } catch { return null; } },
  write(text) { try { text === null ? store().removeItem(name) : store().setItem(name, text); } catch { /* not kept */ } },
});
const keptKey = kept(() => sessionStorage, "ochat.key"), keptChat = kept(() => sessionStorage, "ochat.chat");
const keptTheme = kept(() => localStorage, "ochat.theme");
