// Runs the official frontend in headless Chromium against `kosmograph serve`, and says what it saw:
//
//   npm install --prefix target/frontend playwright-core@1.56.1
//   pip install --target target/frontend/python --no-deps comfyui-frontend-package==1.58.1
//   cargo build --release --workspace && node scripts/frontend.mjs [FOLDER OF THE FRONTEND]
//
// It opens a bundled workflow, runs it with previews, interrupts it, runs it to its picture, ends the server with kill -9,
// starts it again, and asks for the history. Every error in the console counts, but for the two that the frontend has with
// ComfyUI as well. CHROMIUM names the browser (or else /usr/bin/chromium). The exit code is 0 only if all of it held.
import { spawn } from "node:child_process";
import { cpSync, existsSync, mkdtempSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const root = resolve(import.meta.dirname, "..");
const require = createRequire(join(root, "target/frontend/package.json"));
const { chromium } = require("playwright-core");
const frontend = resolve(process.argv[2] ?? join(root, "target/frontend/python/comfyui_frontend_package/static"));
const folder = mkdtempSync(join(tmpdir(), "frontend-"));

// A model that says what its latents look like, so that there are previews.
const model = join(folder, "models/checkpoints/shown");
cpSync(join(root, "models/tiny/sd"), model, { recursive: true });
const config = JSON.parse(readFileSync(join(model, "unet/config.json")));
config.latent_rgb = [[0.3, 0.2, 0.3], [0.3, 0.5, 0.2], [-0.3, 0.2, 0.3], [-0.2, -0.3, -0.7]];
config.latent_rgb_bias = [0, 0, 0];
writeFileSync(join(model, "unet/config.json"), JSON.stringify(config));
mkdirSync(join(folder, "in"));

const port = await new Promise((done) => {
  const probe = createServer().listen(0, "127.0.0.1", () => {
    const { port } = probe.address();
    probe.close(() => done(port));
  });
});
const address = `http://127.0.0.1:${port}`;
const get = async (path) => (await fetch(address + path)).json();

async function start() {
  const server = spawn(join(root, "target/release/kosmograph"), ["serve", "--listen", `127.0.0.1:${port}`, "--frontend", frontend,
    "--previews", "--models", join(folder, "models"), "--state", join(folder, "state"), "--out", join(folder, "out"),
    "--input", join(folder, "in")], { stdio: "ignore" });
  for (;;) {
    if (await fetch(address + "/healthz").then(() => true, () => false)) return server;
    await new Promise((done) => setTimeout(done, 50));
  }
}

const wrong = [];
const check = (what, holds) => {
  console.log(holds ? "yes" : "NO ", what);
  if (!holds) wrong.push(what);
};

let server = await start();
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1400, height: 900 } });
const errors = [];
let listens = true;
// Its makers' own services, and a file that nobody's server has.
const isKnown = (text) => /comfy\.templates\.json|comfy\.org|ERR_NAME_NOT_RESOLVED|ERR_INTERNET_DISCONNECTED|ERR_PROXY/.test(text);
page.on("console", (message) => {
  const text = `${message.text()} ${message.location().url}`;
  if (listens && message.type() === "error" && !isKnown(text)) errors.push(text.slice(0, 300));
});
page.on("pageerror", (error) => listens && errors.push(error.message.slice(0, 300)));
try {
  await page.goto(address + "/");
  await page.waitForFunction(() => window.app?.graph && window.comfyAPI?.api?.api, null, { timeout: 90000 });
  await page.waitForTimeout(4000);
  const workflow = JSON.parse(readFileSync(join(root, "workflows/text.json")));
  const sampler = Object.values(workflow).find((node) => "steps" in node.inputs);
  const loader = Object.values(workflow).find((node) => "ckpt_name" in node.inputs);
  loader.inputs.ckpt_name = "shown";
  const queue = async (steps, seed) => {
    Object.assign(sampler.inputs, { steps, seed });
    await page.evaluate(async (workflow) => {
      await window.app.loadApiJson(workflow, "text");
      window.heard = {};
      const kinds = ["b_preview", "b_preview_with_metadata", "progress_state", "execution_interrupted", "execution_success"];
      for (const kind of kinds) {
        window.comfyAPI.api.api.addEventListener(kind, () => (window.heard[kind] = (window.heard[kind] ?? 0) + 1));
      }
      await window.app.queuePrompt(0, 1);
    }, workflow);
  };
  const heard = (kind) => page.waitForFunction((kind) => window.heard[kind], kind, { timeout: 60000 }).then(() => true, () => false);
  await queue(1000, 1);
  check("a workflow opens", (await page.evaluate(() => window.app.graph._nodes.length)) === Object.keys(workflow).length);
  check("progress is told", await heard("progress_state"));
  check("previews are told", await heard("b_preview_with_metadata"));
  await page.screenshot({ path: join(folder, "running.png") });
  await page.evaluate(() => window.comfyAPI.api.api.interrupt(null));
  check("a run is interrupted", await heard("execution_interrupted"));
  await queue(2, 2);
  check("a run is done", await heard("execution_success"));
  await page.waitForTimeout(1000);
  await page.screenshot({ path: join(folder, "done.png") });
  const picture = Object.values(await get("/history?max_items=1"))[0].outputs["23"].images[0];
  check("its picture is there", existsSync(join(folder, "out", picture.filename)));
  check("no error in the console", errors.length === 0);
  errors.forEach((error) => console.log("    ", error));
  // What the browser says of a server that is gone is no error of either.
  listens = false;
  server.kill("SIGKILL");
  await new Promise((done) => server.once("exit", done));
  server = await start();
  await page.reload();
  await page.waitForFunction(() => window.app?.graph && window.comfyAPI?.api?.api, null, { timeout: 90000 });
  listens = true;
  errors.length = 0;
  const history = await page.evaluate(async () => {
    const told = await window.comfyAPI.api.api.getHistory(64);
    return (Array.isArray(told) ? told : (told.History ?? Object.values(told))).map((job) => job.status?.status_str ?? job.status);
  });
  check(`the history is there after kill -9: ${history}`, history.length === 2);
  await page.waitForTimeout(3000);
  check("no error in the console after the restart", errors.length === 0);
  errors.forEach((error) => console.log("    ", error));
  await page.screenshot({ path: join(folder, "history.png") });
} catch (error) {
  check(String(error.message).split("\n")[0], false);
} finally {
  await browser.close();
  server.kill();
}
console.log(`pictures of the pages: ${folder}`);
process.exit(wrong.length === 0 ? 0 : 1);
