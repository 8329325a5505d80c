// What the status page is written with: elements, and numbers and times as people read them.

/** An element with a class and children: texts or elements. */
export function make(tag, className, ...children) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

/** Sets a text only if it is another one, so that nothing is laid out or read aloud anew for nothing. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function mark(element, name, value) {
  if (value) {
    if (element.dataset[name] !== value) element.dataset[name] = value;
  } else {
    delete element.dataset[name];
  }
}

export function place(element, property, percent) {
  const value = percent.toFixed(2) + "%";
  if (element.style[property] !== value) element.style[property] = value;
}

// ---- numbers and times as people read them

export function scaled(number, step, units) {
  let unit = 0;
  while (unit + 1 < units.length && number >= step - 0.5) {
    number /= step;
    unit += 1;
  }
  return (unit > 0 && number < 9.95 ? number.toFixed(1) : number.toFixed(0)) + units[unit];
}
export const rough = (number) => scaled(number, 1000, ["", " k", " M", " G", " T", " P"]);
export const bytes = (number) => scaled(number, 1024, [" B", " KiB", " MiB", " GiB", " TiB", " PiB"]);
export const exact = (number) => number.toLocaleString("en-US");
export const ratio = (raw, stored) => (stored > 0 ? (raw / stored).toFixed(1) + "×" : "–");
export const many = (number, one) => exact(number) + " " + one + (number === 1 ? "" : "s");

export function span(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 120) return seconds + " s";
  if (seconds < 7200) return Math.floor(seconds / 60) + " min";
  if (seconds < 172800) return Math.floor(seconds / 3600) + " h";
  return Math.floor(seconds / 86400) + " d";
}
export const stamp = (ms) => new Date(ms).toISOString().slice(0, 19).replace("T", " ");
export const parse = (text) => (text ? Date.parse(text) : null);

/** A text with its times (RFC 3339) as the page writes times, each of them in one piece. */
export function readable(text) {
  return text.split(/(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z)/).map((part, index) => (index % 2 === 1 ? make("time", "", stamp(parse(part))) : part));
}
