// The status page as a person and a machine meet it, over a running archiver: node check.mjs URL STAGE
// tests/page.rs brings the archiver into each stage. Prints what is wrong and fails; prints "the page is sound" and ends
// with 0. With PICTURES=DIRECTORY it also takes pictures.
import assert from "node:assert/strict";
import { join } from "node:path";
import { axe, desktop, open, phone, start } from "./browser.mjs";

const [url, stage] = process.argv.slice(2);
const tablet = { width: 900, height: 700 };
const browser = await start();

/** No fault that axe-core calls serious or critical. */
async function accessible(page, what) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run({ resultTypes: ["violations"] }));
  const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  assert.deepEqual(serious.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, any }) => `${html} ${any.map((one) => one.message)}`).join("; ")}`), [], what);
}

/** Nothing is wider than the window, and the rows are as wide as their table. */
async function fits(page, what) {
  const [table, row] = await page.evaluate(() => ["#streams > table", "tr.row"].map((of) => document.querySelector(of).getBoundingClientRect().right));
  assert.ok(Math.abs(table - row) < 3, `${what}: the table ends at ${table} px, its rows at ${row} px`);
  const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(over, 0, `${what}: wider than the window by ${over} px`);
}

async function picture(page, name) {
  if (process.env.PICTURES) await page.screenshot({ path: join(process.env.PICTURES, `${name}.png`) });
}

const rows = (page) => page.locator("tr.row");
const cell = (page, name, label) => page.locator("tr.row", { has: page.getByText(name, { exact: true }) }).locator(`td[data-label="${label}"]`);
const state = (page, text) => page.locator("#state-text", { hasText: text }).waitFor();
const text = (page, selector) => page.locator(selector).textContent();

/** What somebody sees who opens the page and touches nothing. */
async function glance() {
  const { page, complaints, close } = await open(browser, url);
  await state(page, "Archiving");
  assert.equal(await rows(page).count(), 6);
  // What is lost is red, and named on top.
  assert.match(await text(page, "#messages"), /the replication slot reports is lost/);
  assert.equal(await page.locator('.tile[data-name="Gaps"]').getAttribute("data-tone"), "bad");
  assert.equal(await cell(page, "cdc.shop.orders", "Gaps").textContent(), "1");
  assert.equal(await cell(page, "cdc.shop.orders", "Gaps").getAttribute("data-tone"), "bad");
  assert.equal(await page.locator("tr.row .gap").count(), 1);
  assert.match(await page.locator("tr.row .gap").getAttribute("title"), /^partition 0: 1,204 offsets lost \(broker retention\), found /);
  // Where the lost records were in time: an hour, eight hours ago.
  const [left, width] = await page.locator("tr.row .gap").evaluate((gap) => [parseFloat(gap.style.left), parseFloat(gap.style.width)]);
  assert.ok(Math.abs(left - (15 / 24) * 100) < 1 && Math.abs(width - 100 / 24) < 1, `${left} % and ${width} % wide`);
  assert.match(await cell(page, "cdc.shop.orders", "Ratio").textContent(), /^\d+\.\d×$/);
  // The database: how far it can be recovered, since when, and what the server may throw away.
  assert.match(await text(page, "#postgres-facts"), /archived to[0-9A-F]+\/[0-9A-F]+, timeline 1.*recoverable20.* to 20.*last base backup20.* ago\).*ratio \d+\.\d×/);
  assert.ok((await page.locator("#postgres-line .have").count()) >= 1);
  const slots = page.getByRole("region", { name: "Replication slots" });
  assert.equal(await slots.locator("tbody tr").count(), 3);
  assert.equal(await slots.locator("td.bad").textContent(), "lost");
  assert.match(await slots.locator("tr", { hasText: "debezium" }).locator("td.warn").textContent(), /^in \d+ (s|min)$/);
  assert.doesNotMatch(await text(page, "#messages"), /slot tidelog/, "its reader keeps up");
  // Live, and without a reload: records come.
  await page.evaluate(() => { globalThis.loadedOnce = true; });
  const records = await cell(page, "web.clicks", "Records").getAttribute("title");
  await page.waitForFunction(({ records }) => {
    const row = [...document.querySelectorAll("tr.row")].find((row) => row.textContent.includes("web.clicks"));
    return row.querySelector('[data-label="Records"]').title !== records;
  }, { records });
  assert.match(await cell(page, "web.clicks", "Rate").textContent(), /\/s$/);
  assert.ok(await page.evaluate(() => globalThis.loadedOnce));
  await accessible(page, "six topics");
  assert.deepEqual(complaints, []);
  await picture(page, "page-desktop-light");
  await close();
}

/** A row by keyboard alone, in every size and colour. */
async function looks() {
  for (const [viewport, name] of [[desktop, "desktop"], [phone, "phone"], [tablet, "tablet"]]) {
    for (const dark of [false, true]) {
      const what = `${name}, ${dark ? "dark" : "light"}`;
      const { page, complaints, close } = await open(browser, url, { viewport, dark });
      await page.keyboard.press("Tab");
      assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to the streams", what);
      await page.getByRole("button", { name: "cdc.shop.orders" }).focus();
      await page.keyboard.press("Enter");
      await page.getByText("Lost for good").waitFor();
      assert.match(await text(page, "tr.detail"), /1,500 … 2,703/, what);
      await fits(page, what);
      await accessible(page, what);
      assert.deepEqual(complaints, [], what);
      await picture(page, `page-${name}-${dark ? "dark" : "light"}-open`);
      await close();
    }
  }
}

/** Somebody opens a topic's time line at a moment, sees its records, and marks a range to replay; by keys, and by mouse. */
async function moment() {
  const topic = "cdc.shop.customers";
  const { page, complaints, close } = await open(browser, url);
  await page.getByRole("button", { name: topic }).focus();
  await page.keyboard.press("Enter");
  const line = page.getByRole("slider", { name: `Moment of ${topic}` });
  await line.focus();
  await page.keyboard.press("PageDown");
  await page.keyboard.press("PageDown");
  await page.keyboard.press("ArrowRight");
  const [least, most, now] = await line.evaluate((line) => ["min", "max", "now"].map((end) => Number(line.getAttribute(`aria-value${end}`))));
  assert.ok(Math.abs((now - least) / (most - least) - 0.81) < 0.002, `${now} in ${least} to ${most}`);
  await page.keyboard.press("Enter");
  const found = page.locator(".found");
  await found.locator("tbody tr").first().waitFor();
  assert.equal(await found.locator("tbody tr").count(), 20);
  assert.match(await found.locator("caption").textContent(), /masked/);
  assert.doesNotMatch(await found.textContent(), /paid/, "nobody has shown a token");
  const times = () => found.locator("tbody tr td:first-child").allTextContents();
  const masked = await times();
  assert.deepEqual(masked, [...masked].sort());
  assert.ok(Date.parse(masked[0].replace(" ", "T") + "Z") >= now * 1000, `${masked[0]} is not before the moment`);
  await accessible(page, "masked records");
  // With the reader's token the same records, and what they hold; with another one nothing.
  await page.getByLabel("Reader’s token", { exact: true }).fill(process.env.READER);
  await page.keyboard.press("Enter");
  await found.getByText('"status":"paid"').first().waitFor();
  assert.deepEqual(await times(), masked);
  await found.locator("details").first().click();
  assert.match(await found.locator("details[open] pre").textContent(), /^\{"op":"u".*\}$/);
  await found.getByRole("button", { name: "Later" }).click();
  await page.waitForFunction((first) => document.querySelector(".found tbody td").textContent >= first, masked.at(-1));
  // A range by keys: the command that replays it.
  await line.focus();
  await page.keyboard.press("End");
  await page.keyboard.press("Shift+PageDown");
  const order = () => page.locator(".order code").textContent();
  const [, from, to] = /^tidelog replay --topics cdc\.shop\.customers --from (\S+) --to (\S+) --rename '\(\.\*\)=replay\.\$1' --dry-run$/.exec(await order());
  const hours = (from, to) => (Date.parse(to) - Date.parse(from)) / 3600e3;
  assert.ok(Math.abs(hours(from, to) - 2.4) < 0.01, `${from} to ${to}`);
  assert.match(await line.getAttribute("aria-valuetext"), /range from 20.* to 20/);
  // The same with the mouse.
  const box = await line.boundingBox();
  const at = (part) => [box.x + box.width * part, box.y + box.height / 2];
  await page.mouse.move(...at(0.25));
  await page.mouse.down();
  await page.mouse.move(...at(0.4), { steps: 4 });
  await page.mouse.move(...at(0.5), { steps: 4 });
  await page.mouse.up();
  const [, left, right] = /--from (\S+) --to (\S+)/.exec(await order());
  assert.ok(Math.abs(hours(left, right) - 6) < 0.05, `${left} to ${right}`);
  await page.mouse.click(...at(0.75));
  await page.locator(".order").waitFor({ state: "hidden" });
  await page.waitForFunction((end) => document.querySelector(".found tbody td")?.textContent > end, right.replace("T", " "));
  await fits(page, "records");
  await accessible(page, "records");
  await picture(page, "page-desktop-moment");
  assert.deepEqual(complaints, []);
  await close();
  const narrow = await open(browser, url, { viewport: phone, dark: true });
  await narrow.page.getByRole("button", { name: topic }).click();
  await narrow.page.getByRole("button", { name: "Show records" }).click();
  await narrow.page.locator(".found tbody tr, .found .none").first().waitFor();
  await fits(narrow.page, "records on a phone");
  await accessible(narrow.page, "records on a phone");
  await narrow.close();
}

/** Somebody pauses the archiver while the page is open, and resumes it. */
async function pause() {
  const order = async (what) => {
    const headers = { authorization: `Bearer ${process.env.TOKEN}` };
    for (const connector of ["kafka", "postgres"]) {
      const answer = await fetch(`${url}/connectors/${connector}/${what}`, { method: "PUT", headers });
      assert.equal(answer.status, 202);
    }
  };
  const { page, complaints, close } = await open(browser, url, { viewport: phone, dark: true });
  await state(page, "Archiving");
  await order("pause");
  await state(page, "Paused");
  await page.locator("#messages", { hasText: /kafka is paused since .*resume goes on/ }).waitFor();
  assert.match(await page.title(), /^Paused/);
  await fits(page, "paused");
  await accessible(page, "paused");
  await picture(page, "page-phone-dark");
  const wide = await open(browser, url, { dark: true });
  await state(wide.page, "Paused");
  await picture(wide.page, "page-desktop-dark");
  await wide.close();
  await order("resume");
  await state(page, "Archiving");
  await page.locator("#messages", { hasText: "is paused" }).waitFor({ state: "detached" });
  assert.deepEqual(complaints, []);
  await close();
}

async function failing() {
  const { page, close } = await open(browser, url, { dark: true });
  await state(page, "Not ready");
  assert.match(await text(page, "#messages"), /a segment cannot be uploaded/);
  await page.locator('td[data-label="Lag"][data-tone="bad"]').first().waitFor();
  await page.getByRole("checkbox", { name: "only with gaps or trouble" }).check();
  assert.ok((await rows(page).count()) < 6);
  await accessible(page, "not ready");
  await picture(page, "page-trouble");
  await page.getByRole("checkbox", { name: "only with gaps or trouble" }).uncheck();
  // The network between goes away: the page says so and keeps what it has.
  await page.route("**/api/status", (route) => route.abort());
  await state(page, "No answer");
  assert.equal(await rows(page).count(), 6);
  await accessible(page, "no answer");
  await page.unroute("**/api/status");
  await state(page, "Not ready");
  await close();
}

async function many() {
  const { page, complaints, close } = await open(browser, url);
  assert.equal(await rows(page).count(), 500);
  const first = () => page.locator("tr.row .name").first().textContent();
  assert.equal(await first(), "cdc.billing.audit_033");
  // By keyboard: the filter, then sorting by what is greatest.
  await page.getByRole("searchbox", { name: "Filter" }).focus();
  await page.keyboard.type("INVOICES");
  assert.equal(await text(page, "#count"), `${await rows(page).count()} of 500`);
  assert.ok((await rows(page).count()) > 10 && (await first()).includes("invoices"));
  await page.keyboard.press("Escape");
  await page.getByRole("searchbox", { name: "Filter" }).fill("");
  await page.getByRole("button", { name: "Gaps" }).focus();
  await page.keyboard.press("Enter");
  assert.equal(await text(page, "th[aria-sort]"), "Gaps");
  assert.equal(await page.locator("th[aria-sort]").getAttribute("aria-sort"), "descending");
  assert.equal(await first(), "cdc.shop.orders");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Gaps", "the focus stays");
  await picture(page, "page-500-topics");
  await page.getByRole("checkbox", { name: "only with gaps or trouble" }).check();
  assert.equal(await rows(page).count(), 1);
  const line = page.locator("tr.row .track").first();
  assert.match(await line.getAttribute("aria-label"), /^complete to 20.*, from .*, 1 gap$/);
  // The choice stands in the address.
  assert.match(page.url(), /sort=gaps&down=1.*trouble=1/);
  // One poll of 500 topics is drawn within a moment.
  await page.getByRole("checkbox", { name: "only with gaps or trouble" }).uncheck();
  const took = await page.evaluate(() => { const began = performance.now(); window.dispatchEvent(new Event("resize")); return performance.now() - began; });
  assert.ok(took < 500, `drawing 500 topics took ${took} ms`);
  await accessible(page, "500 topics");
  await fits(page, "500 topics");
  assert.deepEqual(complaints, []);
  await close();
}

const stages = { six: [glance, looks, moment, pause], failing: [failing], many: [many] };
try {
  for (const check of stages[stage]) await check();
  console.log("the page is sound");
} finally {
  await browser.close();
}
