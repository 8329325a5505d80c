// The status page as a person and a machine meet it: node check.mjs URL TOPIC
// First against the running archiver at URL, which archives TOPIC; then with made-up answers: 500 topics, gaps, a pause,
// a store that fails. Prints what is wrong and fails; prints "the page is sound" and ends with 0.
import assert from "node:assert/strict";
import { axe, desktop, open, phone, start } from "./browser.mjs";
import { fixture, postgres } from "./fixture.mjs";

const [url, topic] = process.argv.slice(2);
const browser = await start();

/** No fault that axe-core calls serious or critical. */
async function accessible(page, what) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => globalThis.axe.run({ resultTypes: ["violations"] }));
  const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  assert.deepEqual(serious.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, any }) => `${html} ${any.map((one) => one.message)}`).join("; ")}`), [], what);
}

/** Nothing is wider than the window. */
async function fits(page, what) {
  const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(over, 0, `${what}: wider than the window by ${over} px`);
}

const rows = (page) => page.locator("tr.row");
const cell = (page, name, label) => page.locator("tr.row", { has: page.getByText(name, { exact: true }) }).locator(`td[data-label="${label}"]`);

async function live() {
  const { page, complaints, close } = await open(browser, url);
  await page.locator("#state-text", { hasText: "Archiving" }).waitFor();
  await cell(page, topic, "Records").filter({ hasText: "100" }).waitFor();
  // Live without a reload: the state of another moment comes by itself.
  const before = await page.locator("#fresh").textContent();
  await page.waitForFunction((text) => document.getElementById("fresh").textContent !== text, before);
  await page.getByRole("button", { name: topic }).click();
  await page.getByText("Partitions of this process").waitFor();
  await accessible(page, "live");
  await fits(page, "live");
  assert.deepEqual(complaints, []);
  await close();
}

async function many() {
  const { page, complaints, close } = await open(browser, url, { status: fixture({ count: 500, gaps: true }) });
  assert.equal(await rows(page).count(), 500);
  const first = () => page.locator("tr.row .name").first().textContent();
  assert.equal(await first(), "cdc.billing.audit_033");
  // By keyboard: the filter, then sorting by what is greatest.
  await page.getByRole("searchbox", { name: "Filter" }).focus();
  await page.keyboard.type("INVOICES");
  assert.equal(await page.locator("#count").textContent(), `${await rows(page).count()} of 500`);
  assert.ok((await rows(page).count()) > 10 && (await first()).includes("invoices"));
  await page.keyboard.press("Escape");
  await page.getByRole("searchbox", { name: "Filter" }).fill("");
  await page.getByRole("button", { name: "Gaps" }).focus();
  await page.keyboard.press("Enter");
  assert.equal(await page.locator("th[aria-sort]").textContent(), "Gaps");
  assert.equal(await page.locator("th[aria-sort]").getAttribute("aria-sort"), "descending");
  assert.equal(await first(), "cdc.shop.orders");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Gaps", "the focus stays");
  await page.getByRole("checkbox", { name: "only with gaps or trouble" }).check();
  assert.equal(await rows(page).count(), 2);
  const line = page.locator("tr.row .track").first();
  assert.match(await line.getAttribute("aria-label"), /^complete to 2026-11-22 08:0\d:\d\d, from .*, 2 gaps$/);
  assert.equal(await line.locator(".gap").count(), 2);
  assert.match(await line.locator(".gap").first().getAttribute("title"), /1,204 offsets lost \(broker retention\)/);
  // The choice stands in the address.
  assert.match(page.url(), /sort=gaps&down=1.*trouble=1/);
  // One poll of 500 topics is drawn within a moment.
  await page.getByRole("checkbox", { name: "only with gaps or trouble" }).uncheck();
  const took = await page.evaluate(() => { const began = performance.now(); window.dispatchEvent(new Event("resize")); return performance.now() - began; });
  assert.ok(took < 500, `drawing 500 topics took ${took} ms`);
  await accessible(page, "500 topics");
  assert.deepEqual(complaints, []);
  await close();
}

async function states() {
  const paused = await open(browser, url, { status: fixture({ paused: true }) });
  assert.equal(await paused.page.locator("#state-text").textContent(), "Paused");
  assert.match(await paused.page.locator("#messages").textContent(), /kafka is paused since .*resume goes on/);
  assert.match(await paused.page.title(), /^Paused/);
  await accessible(paused.page, "paused");
  await paused.close();

  const failing = await open(browser, url, { status: fixture({ trouble: true }), dark: true });
  assert.equal(await failing.page.locator("#state-text").textContent(), "Not ready");
  assert.match(await failing.page.locator("#messages").textContent(), /a checkpoint cannot be written/);
  assert.equal(await cell(failing.page, "payments", "Lag").getAttribute("data-tone"), "bad");
  // The server goes away: the page says so and keeps what it has.
  await failing.page.unroute("**/api/status");
  await failing.page.route("**/api/status", (route) => route.abort());
  await failing.page.locator("#state-text", { hasText: "No answer" }).waitFor();
  assert.equal(await rows(failing.page).count(), 6);
  await accessible(failing.page, "no answer");
  await failing.close();
}

async function database() {
  const { page, complaints, close } = await open(browser, url, { status: fixture({ database: postgres(true) }) });
  assert.match(await page.locator("#postgres-facts").textContent(), /2A\/7F380000, timeline 3.*last base backup2026-11-22 02:53:12/);
  assert.equal(await page.locator("#postgres-line .have").count(), 2);
  assert.equal(await page.locator("#postgres-line .gap").count(), 1);
  const slots = page.getByRole("region", { name: "Replication slots" });
  assert.equal(await slots.locator("tbody tr").count(), 3);
  assert.equal(await slots.locator("td.bad").textContent(), "lost");
  assert.equal(await slots.locator("td.warn").textContent(), "in 44 min");
  await accessible(page, "Postgres");
  assert.deepEqual(complaints, []);
  await close();
}

async function looks() {
  for (const [viewport, name] of [[desktop, "desktop"], [phone, "phone"], [{ width: 900, height: 700 }, "tablet"]]) {
    for (const dark of [false, true]) {
      const what = `${name}, ${dark ? "dark" : "light"}`;
      const { page, complaints, close } = await open(browser, url, { viewport, dark, status: fixture({ gaps: true, trouble: true, database: postgres(true) }) });
      await page.getByRole("button", { name: "cdc.shop.orders" }).click();
      await page.getByText("Lost for good").waitFor();
      await fits(page, what);
      await accessible(page, what);
      assert.deepEqual(complaints, [], what);
      await close();
    }
  }
}

try {
  if (topic) await live();
  await many();
  await states();
  await database();
  await looks();
  console.log("the page is sound");
} finally {
  await browser.close();
}
