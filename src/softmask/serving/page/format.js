"use strict";
// How tokens, numbers and elements are written down. Whatever a model or a file says becomes text
// through textContent; nothing in these files sets HTML.

const SIGNS = { " ": "\u2423", "\n": "\u21b5", "\t": "\u21e5", "\ufffd": "\u2592" };
const END = "\u220e";
const SPECIAL = /^(<\|.+\|>|<\/?s>|<pad>)$/s;

const byId = (id) => document.getElementById(id);

function element(name, className = "", text = "") {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text) made.textContent = text;
  return made;
}

const isEnd = (text) => SPECIAL.test(text) && /end|\/s|eot/.test(text);

/** A token as it is drawn: the space before it apart, white space as signs. */
function face(text) {
  if (SPECIAL.test(text)) {
    const core = isEnd(text) ? END : text.replace(/^<\|?|\|?>$/g, "");
    return { spaced: false, core, breaks: false, special: true };
  }
  const spaced = text.length > 1 && text.startsWith(" ") && text[1] !== " ";
  const core = (spaced ? text.slice(1) : text)
    .replace(/[\n\t\ufffd]/g, (sign) => SIGNS[sign])
    .replace(/^ +$/, (spaces) => SIGNS[" "].repeat(spaces.length));
  return { spaced, core, breaks: text.includes("\n"), special: false };
}

/** A token in a table, where its spaces matter. */
const quoted = (text) =>
  SPECIAL.test(text) ? text : text.replace(/[ \n\t\ufffd]/g, (sign) => SIGNS[sign]);

const fixed = (value, digits = 2) => (Number.isFinite(value) ? value.toFixed(digits) : "\u2013");

const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

const isDark = () =>
  (document.documentElement.dataset.theme ??
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";

const isAbort = (error) => error.name === "AbortError";

/** Whether a text came into the clipboard: not on a page over plain HTTP from another machine. */
function copy(text) {
  const copying = navigator.clipboard?.writeText(text) ?? Promise.reject();
  return copying.then(() => true, () => false);
}

// Storage can be forbidden, for a page from a file too: then what is kept is kept for this visit.

function recall(storage, name) {
  try {
    return window[storage].getItem(name);
  } catch {
    return null;
  }
}

function keep(storage, name, value) {
  try {
    window[storage].setItem(name, value);
  } catch {
    // It is full or forbidden.
  }
}
