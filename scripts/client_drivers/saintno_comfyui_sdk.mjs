import { spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";

const { SERVER, WORKFLOW, RESULT } = process.env;
const folder = mkdtempSync(`${tmpdir()}/pictures-`);
const cli = new URL("node_modules/@saintno/comfyui-sdk/dist/cli.js", import.meta.url).pathname;
const run = spawnSync(process.execPath, [cli, "-f", WORKFLOW, "-H", SERVER, "-d", "-o", folder, "--json"], { stdio: "inherit" });
if (run.status !== 0) process.exit(1);
writeFileSync(RESULT, readFileSync(`${folder}/${readdirSync(folder)[0]}`));
