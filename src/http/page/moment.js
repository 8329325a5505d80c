// A topic's time line, larger: a moment is chosen on it and its records are shown; a range, and the command that replays it.
import { make, say, place, bytes, exact, many, stamp, parse } from "./text.js";

const RECORDS = 20;
/** Longer values are opened by a click. */
const SHORT = 64;

/** What shows what records hold; kept while the page is open, and nowhere else. */
let token = "";

const moment = (ms) => new Date(ms).toISOString().replace(".000Z", "Z");
const quoted = (word) => (/^[\w.-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

/** The command that replays a range of a topic; `--dry-run` shows what it would do. */
export const command = (topic, from, to) =>
  `tidelog replay --topics ${quoted(topic)} --from ${moment(from)} --to ${moment(to)} --rename '(.*)=replay.$1' --dry-run`;

/** What a record holds as text; where it is no text, what it is. */
function held(part) {
  if (part === null) return "null";
  if (typeof part === "string") return part;
  if ("beginning" in part) return part.beginning + "…";
  return "beginning_base64" in part ? `base64 ${part.beginning_base64}…` : `base64 ${part.base64}`;
}

function cell(text) {
  if (text.length <= SHORT) return make("span", "", text);
  return make("details", "", make("summary", "", text.slice(0, SHORT) + "…"), make("pre", "", text));
}

function line(record, masked) {
  const size = (length) => (length === null ? "null" : bytes(length));
  const key = masked ? size(record.key_bytes) : cell(held(record.key));
  const value = masked ? size(record.value_bytes) : cell(held(record.value));
  return [moment(parse(record.timestamp)).replace("T", " ").replace("Z", ""), String(record.partition), exact(record.offset), key, value];
}

/** The part of a topic's row for moments: its element, and what draws it for a window of time. */
export function moments(topic, { drawTrack, table }) {
  const track = make("div", "track");
  const range = make("span", "range");
  const hand = make("span", "hand");
  const scrub = make("div", "scrub", track, range, hand);
  scrub.setAttribute("role", "slider");
  scrub.setAttribute("aria-label", `Moment of ${topic}`);
  scrub.setAttribute("aria-description", "Arrow keys move it, with Shift they mark a range; Enter shows the records");
  scrub.tabIndex = 0;
  const typed = make("input", "");
  Object.assign(typed, { type: "text", autocomplete: "off", spellcheck: false, placeholder: "2026-11-22T08:05:12Z" });
  const show = make("button", "plain", "Show records");
  const secret = make("input", "");
  Object.assign(secret, { type: "password", autocomplete: "off" });
  const masked = make("label", "field", make("span", "", "Reader’s token"), secret);
  masked.hidden = true;
  const form = make("form", "tools", make("label", "field", make("span", "", "Moment (UTC)"), typed), show, masked);
  const text = make("code", "");
  const copy = make("button", "plain", "Copy");
  copy.type = "button";
  copy.hidden = !navigator.clipboard;
  const order = make("p", "order", make("span", "", "to replay it: "), text, copy);
  order.hidden = true;
  const found = make("div", "found");
  found.setAttribute("aria-live", "polite");
  const element = make("div", "moments", scrub, form, order, found);

  let [from, to] = [0, 1];
  let at = null; // the moment, in ms
  let mark = null; // the other end of a range
  const within = (ms) => Math.round(Math.min(to, Math.max(from, ms)) / 1000) * 1000;
  const percent = (ms) => Math.min(100, Math.max(0, ((ms - from) / (to - from)) * 100));

  function choose(ms, keepMark) {
    mark = keepMark ? mark ?? at : null;
    at = within(ms);
    typed.value = moment(at);
    redraw();
  }

  function redraw() {
    const now = at ?? to;
    place(hand, "left", percent(now));
    const ends = mark === null || mark === at ? null : [Math.min(mark, at), Math.max(mark, at)];
    range.hidden = ends === null;
    order.hidden = ends === null;
    if (ends) {
      place(range, "left", percent(ends[0]));
      place(range, "width", percent(ends[1]) - percent(ends[0]));
      say(text, command(topic, ...ends));
    }
    for (const [name, value] of [["valuemin", from], ["valuemax", to], ["valuenow", now]]) scrub.setAttribute("aria-" + name, String(Math.round(value / 1000)));
    scrub.setAttribute("aria-valuetext", stamp(now) + (ends ? `, range from ${stamp(ends[0])} to ${stamp(ends[1])}` : ""));
  }

  async function ask(begin) {
    found.setAttribute("aria-busy", "true");
    let answer;
    try {
      const headers = token ? { authorization: `Bearer ${token}` } : {};
      const asked = await fetch(`api/streams/${encodeURIComponent(topic)}/records?` + new URLSearchParams({ from: begin, limit: RECORDS }), { headers });
      answer = await asked.json();
    } catch {
      answer = { message: "tidelog does not answer" };
    }
    found.removeAttribute("aria-busy");
    if (answer.message) {
      found.replaceChildren(make("p", "message bad", answer.message));
      return;
    }
    masked.hidden = !answer.masked && !token;
    const lines = answer.records.map((record) => line(record, answer.masked));
    const later = make("button", "plain", "Later");
    later.type = "button";
    later.addEventListener("click", () => {
      choose(parse(answer.until), false);
      ask(answer.until);
    });
    const caption = answer.masked ? "Records, masked: the reader’s token shows what they hold" : "Records";
    const headings = ["Time", "Partition", "Offset", answer.masked ? "Key has" : "Key", answer.masked ? "Value has" : "Value"];
    const left = answer.left_out.map(({ object, why }) => make("p", "message warn", `${object}: ${why}`));
    found.replaceChildren(...left,
      lines.length > 0 ? table(caption, headings, lines, headings.length) : make("p", "none", `No record from ${stamp(parse(answer.from))} to ${stamp(parse(answer.until))}.`),
      make("p", "none", lines.length > 0 ? many(lines.length, "record") + " from " + stamp(parse(answer.from)) + " on " : "", later));
  }

  const momentOf = (event) => {
    const box = scrub.getBoundingClientRect();
    return from + ((event.clientX - box.left) / box.width) * (to - from);
  };
  let down = null;
  scrub.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    down = event.clientX;
    scrub.setPointerCapture(event.pointerId);
    choose(momentOf(event), event.shiftKey);
  });
  scrub.addEventListener("pointermove", (event) => {
    if (down !== null && (mark !== null || Math.abs(event.clientX - down) > 3)) choose(momentOf(event), true);
  });
  scrub.addEventListener("pointerup", () => {
    if (down !== null && mark === null) ask(typed.value);
    down = null;
  });
  scrub.addEventListener("pointercancel", () => { down = null; });
  scrub.addEventListener("keydown", (event) => {
    const step = (to - from) / 100;
    const by = { ArrowLeft: -step, ArrowDown: -step, ArrowRight: step, ArrowUp: step, PageDown: -10 * step, PageUp: 10 * step, Home: from - to, End: to - from }[event.key];
    if (by !== undefined) choose((at ?? to) + by, event.shiftKey);
    else if (event.key === "Enter") ask(moment(at ?? to));
    else if (event.key === "Escape") choose(at ?? to, false);
    else return;
    event.preventDefault();
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const time = Date.parse(typed.value.trim());
    if (!Number.isNaN(time)) {
      [at, mark] = [time, null];
      redraw();
    }
    token = secret.value || token;
    ask(typed.value.trim() || moment(at ?? to));
  });
  copy.addEventListener("click", () => navigator.clipboard.writeText(text.textContent));

  return {
    element,
    draw(window, parts) {
      [from, to] = window;
      drawTrack(track, window, parts);
      redraw();
    },
  };
}
