// Takes the pictures of the page that docs/ shows, from made-up data: node pictures.mjs URL DIRECTORY
// The server at URL only has to give the page's three files.
import { join } from "node:path";
import { desktop, open, phone, start } from "./browser.mjs";
import { fixture, postgres } from "./fixture.mjs";

const [url, directory] = process.argv.slice(2);
const PICTURES = [
  ["page-desktop-light", { viewport: { ...desktop, height: 780 }, status: fixture({ gaps: true, database: postgres() }) }],
  ["page-desktop-dark", { viewport: { ...desktop, height: 820 }, dark: true, status: fixture({ gaps: true, database: postgres(true) }) }],
  ["page-500-topics", { viewport: desktop, status: fixture({ count: 500, gaps: true }), hash: "#sort=lag&down=1" }],
  ["page-paused", { viewport: { ...desktop, height: 620 }, status: fixture({ paused: true }) }],
  ["page-trouble", { viewport: { ...desktop, height: 720 }, dark: true, status: fixture({ trouble: true, gaps: true }) }],
  ["page-phone-light", { viewport: phone, status: fixture({ gaps: true }) }],
  ["page-phone-dark", { viewport: phone, dark: true, status: fixture({ gaps: true, paused: true, database: postgres() }) }],
  ["page-detail", { viewport: desktop, status: fixture({ gaps: true }) }],
];

const browser = await start();
for (const [name, options] of PICTURES) {
  const { page, complaints, close } = await open(browser, url, options);
  if (name === "page-detail") await page.getByRole("button", { name: "cdc.shop.orders" }).first().click();
  await page.waitForTimeout(name === "page-detail" ? 500 : 100);
  await page.screenshot({ path: join(directory, `${name}.png`) });
  if (complaints.length > 0) console.log(name, complaints);
  await close();
}
await browser.close();
