// The status page: asks api/status every two seconds and shows what has changed. It changes nothing on the server.
import {
  make, say, mark, place, rough, bytes, exact, ratio, many, span, stamp, parse, readable,
} from "./text.js";
import { moments } from "./moment.js";

const HOUR = 3600e3;
const $ = (id) => document.getElementById(id);

// ---- what the reader has chosen; it stands in the address, so that a link shows the same

const choice = Object.assign({ filter: "", sort: "topic", down: "", span: "24", trouble: "" },
  Object.fromEntries(new URLSearchParams(location.hash.slice(1))));

function keepChoice() {
  const kept = Object.entries(choice).filter(([, value]) => value !== "");
  history.replaceState(null, "", "#" + new URLSearchParams(kept));
}

// ---- the state

let status = null;
let ahead = 0; // this machine's clock minus the server's
let answered = null;
let failed = null;
const rows = new Map();
const now = () => Date.now() - ahead;

/** A stream with what is computed from it once an answer. */
function prepare(stream) {
  const through = parse(stream.complete_through);
  return {
    ...stream, through,
    first: parse(stream.min_time),
    lag: through === null ? null : now() - through,
    spans: stream.gaps.map((gap) => ({ ...gap, from: parse(gap.from), to: parse(gap.to) })),
  };
}

const orders = {
  topic: (a, b) => a.topic.localeCompare(b.topic, "en", { numeric: true }),
  lag: (a, b) => (a.lag ?? Infinity) - (b.lag ?? Infinity),
  rate: (a, b) => a.records_per_second - b.records_per_second,
  records: (a, b) => a.records - b.records,
  stored: (a, b) => a.stored_bytes - b.stored_bytes,
  ratio: (a, b) => a.bytes / (a.stored_bytes || Infinity) - b.bytes / (b.stored_bytes || Infinity),
  gaps: (a, b) => a.gap_count - b.gap_count,
};

function chosen(streams) {
  const wanted = choice.filter.toLowerCase();
  const shown = streams.filter((stream) => stream.topic.toLowerCase().includes(wanted)
    && (!choice.trouble || stream.gap_count > 0 || stream.trouble || stream.stalled.length > 0));
  const order = orders[choice.sort] ?? orders.topic;
  const sign = choice.down ? -1 : 1;
  return shown.sort((a, b) => sign * order(a, b) || orders.topic(a, b));
}

// ---- the time line

/** The window that all time lines show: [from, to] in ms. */
function window_of(streams) {
  const to = now();
  const hours = Number(choice.span);
  if (hours > 0) return [to - hours * HOUR, to];
  const first = streams.reduce((least, stream) => Math.min(least, stream.first ?? to), to - HOUR / 60);
  return [(status.postgres?.windows ?? []).reduce((least, { from }) => Math.min(least, parse(from)), first), to];
}

const STEPS = [1 / 60, 5 / 60, 0.25, 0.5, 1, 3, 6, 12, 24, 48, 168, 720, 2160, 8760, 87600].map((hours) => hours * HOUR);

function drawAxis([from, to]) {
  const axis = $("axis");
  const room = Math.max(1, Math.floor(axis.clientWidth / 96));
  const step = STEPS.find((step) => (to - from) / step <= room) ?? STEPS.at(-1);
  const labels = [];
  for (let at = Math.ceil(from / step) * step; at < to; at += step) {
    const percent = ((at - from) / (to - from)) * 100;
    // Half a label to the left, one and a half to `now` on the right.
    const pixels = (percent / 100) * axis.clientWidth;
    if (pixels > 16 && axis.clientWidth - pixels > 56) {
      const iso = new Date(at).toISOString();
      labels.push([percent, step < 24 * HOUR ? iso.slice(11, 16) : iso.slice(5, 10)]);
    }
  }
  labels.push([100, "now"]);
  while (axis.childElementCount < labels.length) axis.append(make("span"));
  while (axis.childElementCount > labels.length) axis.lastChild.remove();
  labels.forEach(([percent, text], index) => {
    const label = axis.children[index];
    label.className = text === "now" ? "now" : "";
    place(label, "left", percent);
    say(label, text);
  });
}

/** Puts parts of a time line side by side: [class, from, to, title]. */
function drawTrack(track, [from, to], parts) {
  const percent = (at) => Math.min(100, Math.max(0, ((at - from) / (to - from)) * 100));
  const visible = parts.filter(([, start, end]) => end >= from && start <= to && end >= start);
  while (track.childElementCount < visible.length) track.append(make("span"));
  while (track.childElementCount > visible.length) track.lastChild.remove();
  visible.forEach(([kind, start, end, title], index) => {
    const part = track.children[index];
    if (part.className !== kind) part.className = kind;
    place(part, "left", Math.min(percent(start), 99.6));
    place(part, "width", percent(end) - percent(start));
    if (title && part.title !== title) part.title = title;
  });
}

const gapWords = (gap) => `partition ${gap.partition}: ${many(gap.offsets, "offset")} lost (${gap.reason.replaceAll("_", " ")})`
  + `, found ${stamp(parse(gap.found))}`;

/** What is archived of a stream, what is not yet, and what is lost. */
function partsOf(stream) {
  const parts = [];
  const start = stream.first ?? stream.through;
  if (start !== null && stream.through !== null && stream.through >= start) parts.push(["have", start, stream.through]);
  if (stream.through !== null) parts.push(["late", stream.through, now()]);
  for (const gap of stream.spans) parts.push(["gap", gap.from ?? gap.to, gap.to, gapWords(gap)]);
  return parts;
}

function drawStream(track, window, stream) {
  drawTrack(track, window, partsOf(stream));
  const words = [stream.through === null ? "coverage not known yet" : "complete to " + stamp(stream.through)];
  if (stream.first !== null) words.push("from " + stamp(stream.first));
  words.push(stream.gap_count > 0 ? many(stream.gap_count, "gap") : "no gaps");
  const label = words.join(", ");
  if (track.getAttribute("aria-label") !== label) track.setAttribute("aria-label", label);
}

// ---- rows

function newRow(topic) {
  const name = make("span", "name", topic);
  name.title = topic;
  const parts = make("span", "parts");
  const open = make("button", "open", name, parts);
  open.type = "button";
  open.setAttribute("aria-expanded", "false");
  const head = make("th", "", open);
  head.scope = "row";
  head.setAttribute("role", "rowheader");
  const track = make("div", "track");
  track.setAttribute("role", "img");
  const cell = (label) => {
    const td = make("td", "number");
    td.dataset.label = label;
    return td;
  };
  const cells = { lag: cell("Lag"), rate: cell("Rate"), records: cell("Records"), stored: cell("Stored"), ratio: cell("Ratio"), gaps: cell("Gaps") };
  const element = make("tr", "row", head, make("td", "line", track), ...Object.values(cells));
  element.setAttribute("role", "row");
  for (const td of element.querySelectorAll("td")) td.setAttribute("role", "cell");
  const row = { topic, element, track, parts, open, cells, detail: null, moments: null };
  open.addEventListener("click", () => toggle(row));
  return row;
}

function drawRow(row, stream, window) {
  const { cells } = row;
  say(row.parts, many(stream.partitions, "part"));
  row.parts.title = many(stream.partitions, "partition") + " of this process";
  drawStream(row.track, window, stream);
  row.moments?.draw(window, partsOf(stream));
  say(cells.lag, stream.lag === null ? "–" : span(stream.lag));
  mark(cells.lag, "tone", stream.trouble || stream.stalled.length > 0 ? "bad" : stream.lag > 5 * 60e3 ? "warn" : "");
  cells.lag.title = stream.lag_records === null ? "" : many(stream.lag_records, "offset") + " behind the brokers";
  say(cells.rate, stream.records_per_second >= 0.05 ? rough(stream.records_per_second) + "/s" : "–");
  cells.rate.title = bytes(stream.bytes_per_second) + "/s";
  say(cells.records, rough(stream.records));
  cells.records.title = exact(stream.records);
  say(cells.stored, bytes(stream.stored_bytes));
  say(cells.ratio, ratio(stream.bytes, stream.stored_bytes));
  cells.stored.title = `${many(stream.segments, "segment")}, ${bytes(stream.bytes)} before encoding`;
  say(cells.gaps, stream.gap_count > 0 ? exact(stream.gap_count) : "none");
  mark(cells.gaps, "tone", stream.gap_count > 0 ? "bad" : "");
}

function drawRows(streams, window) {
  $("streams").hidden = !status.kafka;
  const width = columns();
  for (const { detail } of rows.values()) if (detail && detail.firstChild.colSpan !== width) detail.firstChild.colSpan = width;
  const body = $("rows");
  const visible = chosen(streams);
  for (const stream of visible) {
    if (!rows.has(stream.topic)) rows.set(stream.topic, newRow(stream.topic));
    drawRow(rows.get(stream.topic), stream, window);
  }
  const wanted = visible.flatMap(({ topic }) => {
    const row = rows.get(topic);
    return row.detail ? [row.element, row.detail] : [row.element];
  });
  if (wanted.length !== body.childElementCount || wanted.some((element, index) => body.children[index] !== element)) {
    const focused = document.activeElement;
    body.replaceChildren(...wanted);
    if (focused !== document.activeElement && body.contains(focused)) focused.focus();
  }
  const known = new Set(streams.map(({ topic }) => topic));
  for (const topic of rows.keys()) if (!known.has(topic)) rows.delete(topic);
  const all = streams.length;
  say($("count"), visible.length === all ? String(all) : `${visible.length} of ${all}`);
  $("empty").hidden = visible.length > 0;
  say($("empty"), all > 0 ? "No stream is like that." : status.kafka ? "This process owns no partition now." : "");
}

// ---- a stream's partitions, when its row is open

/** How many columns there are now: narrow windows have less. */
const columns = () => [...document.querySelectorAll("#streams > table > thead th")].filter((th) => th.offsetParent !== null).length;

function toggle(row) {
  if (row.detail) {
    row.detail.remove();
    [row.detail, row.moments] = [null, null];
  } else {
    row.moments = moments(row.topic, { drawTrack, table });
    const cell = make("td", "", row.moments.element, make("div", "", "…"));
    cell.colSpan = columns();
    row.detail = make("tr", "detail", cell);
    row.element.after(row.detail);
    refreshDetail(row);
    draw();
  }
  row.open.setAttribute("aria-expanded", String(row.detail !== null));
}

/** A small table; its first `texts` columns are texts, the others numbers. */
function table(caption, headings, lines, texts = 1) {
  const head = make("tr", "", ...headings.map((text, index) => {
    const th = make("th", index >= texts ? "number" : "", text);
    th.scope = "col";
    return th;
  }));
  const body = lines.map((line) => make("tr", "", ...line.map((text, index) => make("td", index >= texts ? "number" : "", text))));
  const scroll = make("div", "scroll", make("table", "inner", make("caption", "", caption), make("thead", "", head), make("tbody", "", ...body)));
  scroll.tabIndex = 0;
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", caption);
  return scroll;
}

function facts(pairs) {
  return make("dl", "facts", ...pairs.filter(([, text]) => text).map(([name, text]) => make("div", "", make("dt", "", name), make("dd", "", text))));
}

async function refreshDetail(row) {
  let stream;
  try {
    const answer = await fetch("api/streams/" + encodeURIComponent(row.topic));
    if (!answer.ok) return;
    stream = await answer.json();
  } catch {
    return; // the next answer of api/status tells that nobody answers
  }
  if (!row.detail) return;
  const key = JSON.stringify(stream);
  if (row.detail.dataset.key === key) return;
  row.detail.dataset.key = key;
  const partitions = stream.partitions.map((at) => [String(at.partition), exact(at.checkpoint_position), at.end === null ? "–" : exact(Math.max(at.end, at.archived)),
    at.lag_records === null ? "–" : exact(at.lag_records), at.complete_through ? stamp(parse(at.complete_through)) : "–"]);
  const still = stream.partitions.filter((at) => at.stall).map((at) =>
    `partition ${at.partition} at offset ${exact(at.next)} since ${stamp(parse(at.stall.since))}: ${at.stall.text} (do: ${at.stall.hint})`);
  const gaps = stream.gaps.map((gap) => [String(gap.partition), `${exact(gap.start)} … ${exact(gap.end - 1)}`, exact(gap.offsets),
    gap.reason.replaceAll("_", " "), stamp(parse(gap.found))]);
  const below = row.detail.firstChild.lastChild;
  const scrolled = [...below.querySelectorAll(".scroll")].map((part) => part.scrollTop);
  below.replaceChildren(
    facts([["stream", stream.stream], ["records", exact(stream.records)],
      ["segments", `${exact(stream.segments)}, ${bytes(stream.stored_bytes)} of ${bytes(stream.bytes)}`],
      ["first record", stream.min_time && stamp(parse(stream.min_time))], ["newest record", stream.max_time && stamp(parse(stream.max_time))],
      ["waiting for the store", stream.segments_waiting > 0 ? many(stream.segments_waiting, "segment") : ""],
      ["fails", stream.trouble && `${stream.trouble.text} (since ${stamp(parse(stream.trouble.since))})`],
      ["stands still", still.join("; ")]]),
    ...(gaps.length > 0 ? [table("Lost for good", ["Partition", "Offsets", "Count", "Reason", "Found"], gaps)] : []),
    table("Partitions of this process", ["Partition", "Archived to", "End on the broker", "Lag", "Complete to"], partitions));
  [...below.querySelectorAll(".scroll")].forEach((part, index) => { part.scrollTop = scrolled[index] ?? 0; });
}

// ---- the head of the page

const STATES = {
  running: ["good", "Archiving"], paused: ["warn", "Paused"], stopped: ["warn", "Stopped"], connecting: ["warn", "Connecting"],
  restarting: ["warn", "Restarting"], ending: ["warn", "Ending"],
};

function drawHead() {
  // Of two archivers the one that does not archive is of interest.
  const states = [status.kafka, status.postgres].filter(Boolean).map(({ state }) => STATES[state] ?? ["warn", state]);
  let [tone, text] = states.find(([tone]) => tone !== "good") ?? states[0] ?? ["warn", "Nothing to archive"];
  if (!status.ready && tone === "good") [tone, text] = ["bad", "Not ready"];
  if (failed) [tone, text] = ["bad", "No answer"];
  mark($("state"), "tone", tone);
  say($("state-text"), text);
  say($("where"), [status.worker, status.archive].filter(Boolean).join(" → "));
  document.title = (tone === "good" ? "" : text + " · ") + "tidelog";
  const messages = [
    ...(failed ? [["bad", "tidelog does not answer", "since " + stamp(failed) + " UTC; what you see is older"]] : []),
    ...status.reasons.map((reason) => ["bad", "", reason]),
    ...status.notes.map((note) => ["warn", "", note]),
  ];
  const key = JSON.stringify(messages);
  const box = $("messages");
  if (box.dataset.key !== key) {
    box.dataset.key = key;
    box.hidden = messages.length === 0;
    box.replaceChildren(...messages.map(([tone, title, text]) =>
      make("p", "message " + tone, ...(title ? [make("b", "", title), " "] : []), ...readable(text))));
  }
}

function tile(name, big, small, more = {}) {
  const box = $("tiles");
  let element = box.querySelector(`[data-name="${name}"]`);
  if (!element) {
    element = make("div", "tile", make("dt", "", name), make("dd", "big"), make("dd", "small"));
    element.dataset.name = name;
    if ("part" in more) {
      const bar = make("span");
      const meter = make("dd", "meter", bar);
      meter.setAttribute("aria-hidden", "true");
      element.append(meter);
    }
    box.append(element);
  }
  say(element.children[1], big);
  say(element.children[2], small);
  element.children[2].title = small;
  mark(element, "tone", more.tone ?? "");
  if ("part" in more) place(element.children[3].firstChild, "width", Math.min(100, more.part * 100));
}

function drawTiles(streams) {
  const sum = (field) => streams.reduce((sum, stream) => sum + stream[field], 0);
  const worst = streams.reduce((worst, stream) => (stream.lag !== null && stream.lag > (worst?.lag ?? -1) ? stream : worst), null);
  const partitions = sum("partitions");
  const gaps = sum("gap_count");
  const [raw, stored] = [sum("bytes"), sum("stored_bytes")];
  if (status.kafka) {
    tile("Lag", worst ? span(worst.lag) : "–", worst ? "at most, " + worst.topic : "not known yet");
    tile("Rate", rough(sum("records_per_second")) + "/s", bytes(sum("bytes_per_second")) + "/s from Kafka");
    tile("Records", rough(sum("records")), many(streams.length, "topic") + ", " + many(partitions, "partition"));
    tile("Stored", bytes(stored), `ratio ${ratio(raw, stored)}, ${many(sum("segments"), "segment")}`);
    tile("Gaps", gaps > 0 ? exact(gaps) : "none", gaps > 0 ? many(streams.filter((stream) => stream.gap_count > 0).length, "topic") : "nothing lost", { tone: gaps > 0 ? "bad" : "" });
    tile("Memory", bytes(status.kafka.memory_used_bytes), "of " + bytes(status.memory_budget_bytes), { part: status.kafka.memory_used_bytes / status.memory_budget_bytes });
  }
  if (status.postgres) drawPostgresTiles(status.postgres);
}

function drawPostgresTiles({ complete_through, lag_bytes, windows, slots }) {
  const through = parse(complete_through);
  tile("WAL lag", through === null ? "–" : span(now() - through), through === null ? "not known yet" : bytes(lag_bytes) + " not archived");
  const from = parse(windows.at(-1)?.from);
  tile("Recoverable", from === null ? "nothing" : span(parse(windows.at(-1).to) - from), from === null ? "no base backup yet" : "since " + stamp(from).slice(0, 16),
    { tone: from === null ? "bad" : "" });
  const lost = slots.filter(isLost);
  const near = slots.filter(isNear).sort((a, b) => (a.seconds_to_loss ?? 0) - (b.seconds_to_loss ?? 0));
  const names = (some) => some.map(({ slot }) => slot).join(", ");
  if (lost.length > 0) tile("Slots", exact(lost.length) + " lost", names(lost), { tone: "bad" });
  else if (near.length > 0) tile("Slots", toLoss(near[0]), names(near) + " near loss", { tone: "bad" });
  else tile("Slots", exact(slots.length), slots.length > 0 ? "none near loss" : "none on the server");
}

// ---- Postgres

function drawPostgres(window) {
  const state = status.postgres;
  $("postgres").hidden = !state;
  if (!state) return;
  const through = parse(state.complete_through);
  const words = { connecting: "not connected", running: "streaming from " + state.host }[state.state] ?? state.state;
  say($("postgres-state"), words);
  const time = (text) => text && stamp(parse(text));
  const ago = (text) => text && `${time(text)} (${span(now() - parse(text))} ago)`;
  const newest = state.windows.at(-1);
  const list = facts([["archived to", state.durable_lsn && `${state.durable_lsn}, timeline ${state.timeline}`],
    ["server at", state.server_lsn], ["lag", through === null ? "not known yet" : `${span(now() - through)}, ${bytes(state.lag_bytes)}`],
    ["recoverable", newest ? `${time(newest.from)} to ${time(newest.to)}` : "no moment yet"],
    ["last base backup", state.last_backup ? ago(state.last_backup) : "none yet"], ["last commit archived", time(state.last_commit)],
    ["since the start", `${bytes(state.bytes)} as ${bytes(state.stored_bytes)}, ratio ${ratio(state.bytes, state.stored_bytes)}`],
    ["gaps", state.gaps > 0 ? exact(state.gaps) : ""], ["system", state.system_id]]);
  const key = list.textContent;
  if ($("postgres-facts").dataset.key !== key) {
    $("postgres-facts").dataset.key = key;
    $("postgres-facts").replaceChildren(...list.children);
  }
  const spans = state.windows.map(({ from, to }) => ["have", parse(from), parse(to), `${time(from)} to ${time(to)}`]);
  const holes = state.windows.slice(1).map(({ from }, index) => {
    const end = state.windows[index].to;
    return ["gap", parse(end), parse(from), `not recoverable: ${time(end)} to ${time(from)}`];
  });
  drawTrack($("postgres-line"), window, [...spans, ...holes, ...(newest ? [["late", parse(newest.to), now()]] : [])]);
  const label = newest ? `recoverable from ${time(newest.from)} to ${time(newest.to)}` : "no moment is recoverable yet";
  if ($("postgres-line").getAttribute("aria-label") !== label) $("postgres-line").setAttribute("aria-label", label);
  drawSlots(state.slots);
}

/** A slot within this time of its loss is shown in colour, as the log warns of it. */
const NEAR_SECONDS = 3600;
const isLost = (slot) => slot.wal_status === "lost";
/** One whose reader is there and has not fallen behind is as far from its loss as it can be. */
const keepsUp = (slot) => slot.active && slot.wal_status === "reserved";
const isNear = (slot) => !isLost(slot) && !keepsUp(slot) && (slot.wal_status === "unreserved" || (slot.seconds_to_loss ?? Infinity) < NEAR_SECONDS);
function toLoss(slot) {
  if (isLost(slot)) return "lost";
  if (slot.safe_bytes === null) return "no limit";
  return slot.seconds_to_loss === null ? bytes(Math.max(0, slot.safe_bytes)) + " left" : "in " + span(slot.seconds_to_loss * 1000);
}

function drawSlots(slots) {
  const lines = slots.map((slot) => [slot.slot, slot.database ? `${slot.kind}, ${slot.database}` : slot.kind, slot.active ? "yes" : "no",
    slot.wal_status ?? "–", slot.retained_bytes === null ? "–" : bytes(slot.retained_bytes), toLoss(slot)]);
  const key = JSON.stringify(lines);
  const box = $("postgres-slots");
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  box.replaceChildren(...(slots.length > 0 ? [table("Replication slots", ["Slot", "Kind", "In use", "State", "Kept on the server", "Time to loss"], lines, 4)] : []));
  [...box.querySelectorAll("tbody tr")].forEach((line, index) => {
    const slot = slots[index];
    const tone = isLost(slot) ? "bad" : isNear(slot) ? "warn" : "";
    if (tone) line.lastChild.className = "number " + tone;
  });
}

function drawFoot() {
  if ($("footer").childElementCount > 0) return;
  const link = (path) => {
    const a = make("a", "", path);
    a.href = path;
    return a;
  };
  $("footer").append(make("span", "", `tidelog ${status.version} (${status.revision})`),
    make("span", "", "writer " + (status.writer ?? "–")), make("span", "", "started " + stamp(parse(status.started)) + " UTC"),
    make("span", "", link("metrics"), " · ", link("healthz"), " · ", link("readyz"), " · ", link("api/status"), " · ", link("connectors")));
}

function drawFresh() {
  say($("fresh"), answered === null ? "" : "as of " + stamp(answered - ahead).slice(11) + " UTC");
}

function draw() {
  if (!status) return;
  const streams = (status.kafka?.streams ?? []).map(prepare);
  const window = window_of(streams);
  drawHead();
  drawTiles(streams);
  drawPostgres(window);
  drawAxis(window);
  drawRows(streams, window);
  drawFoot();
  drawFresh();
  for (const th of document.querySelectorAll("th[data-sort]")) {
    if (th.dataset.sort === choice.sort) th.setAttribute("aria-sort", choice.down ? "descending" : "ascending");
    else th.removeAttribute("aria-sort");
  }
}

// ---- asking

let timer = null;

async function ask() {
  clearTimeout(timer);
  try {
    // The browser keeps the last answer and sends its ETag; 304 comes back as that answer.
    const answer = await fetch("api/status", { signal: AbortSignal.timeout(10e3) });
    if (!answer.ok) throw new Error(String(answer.status));
    const date = Date.parse(answer.headers.get("date") ?? "");
    if (!Number.isNaN(date) && Math.abs(Date.now() - date - ahead) > 2000) ahead = Date.now() - date;
    status = await answer.json();
    answered = Date.now();
    failed = null;
  } catch {
    failed ??= now();
  }
  if (status) draw();
  else if (failed) say($("state-text"), "No answer; trying again");
  for (const row of rows.values()) if (row.detail) refreshDetail(row);
  if (!document.hidden) timer = setTimeout(ask, 2000);
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });

// ---- controls

for (const [id, event] of [["filter", "input"], ["sort", "change"], ["span", "change"]]) {
  $(id).value = choice[id];
  $(id).addEventListener(event, () => {
    choice[id] = $(id).value;
    if (id === "sort") choice.down = choice.sort === "topic" ? "" : "1";
    keepChoice();
    draw();
  });
}
$("trouble").checked = choice.trouble !== "";
$("trouble").addEventListener("change", () => {
  choice.trouble = $("trouble").checked ? "1" : "";
  keepChoice();
  draw();
});
$("tools").addEventListener("submit", (event) => event.preventDefault());
for (const th of document.querySelectorAll("th[data-sort]")) {
  th.querySelector("button").addEventListener("click", () => {
    const name = th.dataset.sort;
    // Of numbers the greatest are of interest first.
    choice.down = choice.sort === name ? (choice.down ? "" : "1") : name === "topic" ? "" : "1";
    choice.sort = name;
    $("sort").value = name;
    keepChoice();
    draw();
  });
}
window.addEventListener("resize", draw);
ask();
