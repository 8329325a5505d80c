// Chromium without a screen. The packages lie in the rig's cache (RIG_PAGE), not beside this file.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const modules = createRequire(join(process.env.RIG_PAGE, "package.json"));
const { chromium } = modules("playwright-core");

/** The source of axe-core, to be run in a page. */
export const axe = readFileSync(modules.resolve("axe-core/axe.min.js"), "utf8");

export const desktop = { width: 1440, height: 900 };
export const phone = { width: 390, height: 844 };

/** Starts the browser. As root it has no sandbox of its own; it sees only our page. */
export function start() {
  return chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });
}

/** Opens the page in a window of its own; `complaints` gathers what the console and the network have to complain of. */
export async function open(browser, url, { viewport = desktop, dark = false, hash = "" } = {}) {
  const context = await browser.newContext({ viewport, colorScheme: dark ? "dark" : "light", bypassCSP: false, reducedMotion: "reduce" });
  const page = await context.newPage();
  const complaints = [];
  page.on("console", (message) => { if (["error", "warning"].includes(message.type())) complaints.push(message.text()); });
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("requestfailed", (request) => complaints.push(`${request.url()}: ${request.failure()?.errorText}`));
  page.on("request", (request) => {
    if (!request.url().startsWith(url) && !request.url().startsWith("data:")) complaints.push(`asked for ${request.url()}`);
  });
  await page.goto(`${url}/${hash}`);
  await page.waitForFunction(() => document.querySelectorAll("#tiles .tile").length > 0);
  return { page, complaints, close: () => context.close() };
}
